"""Causal attention over packed samples: several of them end to end in one row, none of which sees another.

Registered with transformers as the implementation `packed`; `Policy` gives it the samples' lengths. Everything else of a
layer works on the row as it is, so that no token of padding is ever computed. On CUDA in half precision it is PyTorch's
variable-length flash kernel. Elsewhere each sample is attended to by itself: on CPU two matrix products and a softmax are
faster than PyTorch's flash kernel (`scripts/benchmarks/attention.py`); from 1,024 tokens on its memory, linear in the length,
decides.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from project.errors import InputError

NAME = "packed"
LONG = 1024
"""Tokens from which the scores of a sample, T x T for each head, are not kept."""
_CHANGES_THE_SCORES = ("sliding_window", "softcap", "s_aux")


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    lengths: list[int],
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,  # noqa: ANN401 - transformers passes what any implementation may want
) -> tuple[Tensor, None]:
    """Attend within each sample; the signature is that of transformers' attention interface.

    Args:
        module: the layer's attention, not used.
        query: (1, heads, T, D), rotated.
        key: (1, key heads, T, D); each serves heads / key heads successive query heads.
        value: as `key`.
        attention_mask: must be None.
        lengths: tokens of each sample, in order; their sum is T.
        scaling: of the scores; 1 / sqrt(D) by default.
        dropout: must be 0.
        kwargs: what the model's layer adds.

    Returns:
        ((1, T, heads, D), None).

    Raises:
        InputError: the model's attention is not plain causal attention.
    """
    del module
    changed = [name for name in _CHANGES_THE_SCORES if kwargs.get(name) is not None]
    if changed or dropout or attention_mask is not None:
        raise InputError(
            f"packed training attends plainly and the model asks for {', '.join(changed) or 'a mask or dropout'}; "
            "give a model without it"
        )
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotation of float32 weights' states undoes autocast
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _flash(query, key, value, lengths, scale), None
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    return torch.cat([_attend(q, k, v, scale).transpose(1, 2) for q, k, v in parts], 1), None


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Return (1, heads, T, D) of one sample."""
    if query.shape[2] >= LONG:
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    return _Scores.apply(query, key, value, scale)  # type: ignore[no-any-return]


class _Scores(torch.autograd.Function):
    """softmax(q k^T * scale) v under the causal mask, of which backward keeps the shares in the model's dtype.

    The heads that share a key stand below each other, so that keys and values are never copied. PyTorch's softmax sums in
    float32 whatever its dtype.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:  # type: ignore[override] # noqa: ANN401
        _, heads, tokens, width = query.shape
        rows = query.reshape(1, key.shape[1], -1, width)
        scores = (rows @ key.transpose(2, 3)).view(1, heads, tokens, tokens).mul_(scale)
        later = torch.full((tokens, tokens), torch.finfo(scores.dtype).min, dtype=scores.dtype, device=scores.device)
        shares = scores.add_(later.triu_(1)).softmax(-1).view(1, key.shape[1], -1, tokens)
        ctx.save_for_backward(rows, key, value, shares)
        ctx.scale = scale
        return (shares @ value).view(query.shape)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override] # noqa: ANN401
        rows, key, value, shares = ctx.saved_tensors
        slope_rows = slope.reshape(rows.shape)
        of_shares = slope_rows @ value.transpose(2, 3)
        of_scores = torch.ops.aten._softmax_backward_data(of_shares, shares, -1, shares.dtype).mul_(ctx.scale)
        of_query = (of_scores @ key).view(slope.shape)
        return of_query, of_scores.transpose(2, 3) @ rows, shares.transpose(2, 3) @ slope_rows, None


def _flash(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scale: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor([0, *lengths], device=query.device).cumsum(0, dtype=torch.int32)
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    longest = max(lengths)
    out = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=True)
    return out[None]  # type: ignore[call-overload,index,no-any-return]


def register() -> str:
    """Make the implementation known to transformers, and return its name; without a mask of its own it gets none."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
    return NAME
