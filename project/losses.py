"""Losses as pure functions on tensors; only the modules log.

Shapes: B rows, T tokens, N selected tokens, H hidden, V vocabulary. Masks and weights are positive where a token is trained.
A sum over tokens is divided by the whole optimizer step's total, which the caller gives or divides by itself, never by a
micro-batch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Metrics = dict[str, Tensor]
CHUNK = 256
"""Positions whose logits are made at once: 256 x 49,152 in float32 is 50 MB."""
CHUNK_LOGITS = 1 << 23
"""Logits that `weighted_cross_entropy` makes at once: 32 MB in float32."""
KEPT_CHUNKS = 2
"""Chunks whose logits are kept for backward; beyond, they are made a second time."""


def token_logprobs(logits_NV: Tensor, labels_N: Tensor, temperature: float = 1.0) -> Tensor:
    """Return log p(label) of each position, float32, under the softmax of logits / temperature."""
    logits_NV = logits_NV.float()
    if temperature != 1.0:  # a pass over all logits, and another one backward
        logits_NV = logits_NV / temperature
    return -functional.cross_entropy(logits_NV, labels_N, reduction="none")


def token_entropy(logits_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the entropy of each position's distribution in nats, float32."""
    logprobs = functional.log_softmax(logits_NV.float() / temperature, dim=-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def chunked_logprobs(head: Callable[[Tensor], Tensor], hidden_NH: Tensor, labels_N: Tensor, temperature: float = 1.0) -> Tensor:
    """Return log p(label) of each position; beyond `KEPT_CHUNKS` chunks backward makes the logits again and none is kept."""
    return _chunked(lambda hidden, labels: token_logprobs(head(hidden), labels, temperature), hidden_NH, labels_N)


def chunked_logprobs_and_entropy(
    head: Callable[[Tensor], Tensor], hidden_NH: Tensor, labels_N: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return log p(label) and the entropy of each position, both (N,), as `chunked_logprobs` does."""

    def both(hidden: Tensor, labels: Tensor) -> Tensor:
        logits = head(hidden)
        return torch.stack([token_logprobs(logits, labels, temperature), token_entropy(logits, temperature)], dim=-1)

    logprobs, entropy = _chunked(both, hidden_NH, labels_N).unbind(-1)
    return logprobs, entropy


def _chunked(part: Callable[[Tensor, Tensor], Tensor], hidden_NH: Tensor, labels_N: Tensor) -> Tensor:
    recompute = torch.is_grad_enabled() and len(hidden_NH) > KEPT_CHUNKS * CHUNK
    parts = [
        checkpoint(part, hidden, labels, use_reentrant=False) if recompute else part(hidden, labels)
        for hidden, labels in zip(hidden_NH.split(CHUNK), labels_N.split(CHUNK), strict=True)
    ]
    return torch.cat(parts)


class _LinearCrossEntropy(torch.autograd.Function):
    """Makes the logits of a chunk, what is asked of them and their gradient at once, so that none outlives its chunk.

    The idea is Liger-Kernel's (Hsu et al. 2024) and cut cross-entropy's (Wijmans et al. 2025), here in plain PyTorch.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,  # noqa: ANN401 - autograd's own
        hidden_NH: Tensor,
        table_VH: Tensor,
        labels_N: Tensor,
        weights_N: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        exact = torch.promote_types(hidden_NH.dtype, torch.float32)
        of_hidden, of_table = ctx.needs_input_grad[:2]
        gradient_NH = torch.empty_like(hidden_NH) if of_hidden else None
        gradient_VH = torch.zeros_like(table_VH, dtype=exact) if of_table else None
        logprobs_N, right_N = (
            labels_N.new_empty(len(labels_N), dtype=exact),
            labels_N.new_empty(len(labels_N), dtype=torch.bool),
        )
        size = max(1, CHUNK_LOGITS // len(table_VH))
        for start in range(0, len(labels_N), size):
            part = slice(start, start + size)
            labels_C1 = labels_N[part, None]
            logits_CV = (hidden_NH[part] @ table_VH.T).to(exact)
            right_N[part] = logits_CV.argmax(-1) == labels_N[part]
            logits_CV -= logits_CV.logsumexp(-1, keepdim=True)
            logprobs_N[part] = logits_CV.gather(1, labels_C1)[:, 0]
            if gradient_NH is None and gradient_VH is None:
                continue
            slopes_CV = logits_CV.exp_().scatter_add_(1, labels_C1, -torch.ones_like(labels_C1, dtype=exact))
            slopes_CV = (slopes_CV * weights_N[part, None].to(exact)).to(hidden_NH.dtype)
            if gradient_NH is not None:
                gradient_NH[part] = slopes_CV @ table_VH
            if gradient_VH is not None:
                gradient_VH += slopes_CV.T @ hidden_NH[part]
        ctx.save_for_backward(gradient_NH, None if gradient_VH is None else gradient_VH.to(table_VH.dtype))
        ctx.mark_non_differentiable(logprobs_N, right_N)
        return -(logprobs_N * weights_N.to(exact)).sum(), logprobs_N, right_N

    @staticmethod
    def backward(ctx: Any, slope: Tensor, *_: Any) -> tuple[Tensor | None, Tensor | None, None, None]:  # noqa: ANN401
        gradient_NH, gradient_VH = ctx.saved_tensors
        return (
            None if gradient_NH is None else _scaled(gradient_NH, slope),
            None if gradient_VH is None else _scaled(gradient_VH, slope),
            None,
            None,
        )


def _scaled(gradient: Tensor, slope: Tensor) -> Tensor:
    """Multiply in float32 or wider: rounded to bf16, the slope would put all gradients of a rank off by up to 0.4 %."""
    return (gradient.to(torch.promote_types(gradient.dtype, torch.float32)) * slope).to(gradient.dtype)


def weighted_cross_entropy(
    hidden_NH: Tensor, table_VH: Tensor, labels_N: Tensor, weights_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum of w * CE under the softmax of hidden @ table.T, without ever holding all logits.

    The caller divides the sum by the weight of the whole optimizer step (DESIGN §4.4).

    Args:
        hidden_NH: the hidden states from which the labels are predicted: trained positions only.
        table_VH: the head's weight. Under autocast both are cast to its dtype; sums over V are in float32 or wider.
        labels_N: int64.
        weights_N: float.

    Returns:
        (loss (), log-probabilities (N,), whether the label is the likeliest token (N,) bool); only the loss has a gradient.
    """
    device = hidden_NH.device.type
    if not torch.is_grad_enabled():  # a Function's forward cannot see that, and would make the table's gradient
        hidden_NH, table_VH = hidden_NH.detach(), table_VH.detach()
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_NH, table_VH = hidden_NH.to(dtype), table_VH.to(dtype)
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(hidden_NH, table_VH, labels_N, weights_N)  # type: ignore[no-any-return]


def k1_kl(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Return Schulman's k1 estimate of KL(policy || reference) at each sampled token: unbiased, may be negative."""
    return logprobs - reference


def k3_kl(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Return Schulman's k3 estimate of KL(policy || reference): exp(r) - r - 1 with r = log ref - log p; never negative."""
    ratio = reference - logprobs
    return ratio.exp() - ratio - 1


LengthNorm = Literal["token", "episode", "constant"]


def length_weights(weights_N: Tensor, episodes_N: Tensor, norm: LengthNorm = "token", constant: int = 512) -> Tensor:
    """Return what each trained token of an optimizer step counts, scaled so that the loss is their weighted sum over N.

    Args:
        weights_N: float from 0, what the token counts by its kind.
        episodes_N: int64, which episode it belongs to.
        norm: `token`: all alike, so that long episodes count more (DAPO, Yu et al. 2025); `episode`: each episode counts the
            same (GRPO, Shao et al. 2024); `constant`: each token counts as one of `constant` tokens of an episode, whatever
            its length (Dr. GRPO, Liu et al. 2025).
        constant: tokens.

    Returns:
        float (N,): with `token` and `episode` their sum is N.
    """
    count = len(weights_N)
    if norm == "token":
        return weights_N * (count / weights_N.sum().clamp_min(1e-12))
    _, of = episodes_N.unique(return_inverse=True)
    episodes = int(of.max()) + 1 if count else 0
    if norm == "constant":
        return weights_N * (count / (episodes * constant))
    totals = weights_N.new_zeros(episodes).index_add_(0, of, weights_N).clamp_min(1e-12)
    return weights_N * (count / episodes) / totals[of]


def ppo_policy_loss(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    total: Tensor | float,
    clip: float = 0.2,
    weights_N: Tensor | None = None,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[Tensor, Metrics]:
    """Clipped surrogate of PPO (Schulman et al. 2017, eq. 7), a sum over trained tokens divided by `total`.

    Args:
        logprobs_N: under the policy that is trained.
        old_logprobs_N: under the policy at the start of the update, no gradient.
        advantages_N: no gradient.
        total: trained tokens in the whole optimizer step.
        clip: epsilon of the ratio's clipping.
        weights_N: what each token counts: `length_weights`, times truncated p_old / p_behaviour, which corrects for an engine
            that computes in another precision. None counts each as 1.
        clip_high: epsilon above 1, where it differs (clip-higher; DAPO, Yu et al. 2025): what is rare may grow faster.
        dual_clip: the largest ratio, above 1, that pushes a bad action down (dual clip; Ye et al. 2020, eq. 5).
    """
    ratio = (logprobs_N - old_logprobs_N).exp()
    low, high = 1 - clip, 1 + (clip if clip_high is None else clip_high)
    surrogate = torch.minimum(ratio * advantages_N, ratio.clamp(low, high) * advantages_N)
    if dual_clip is not None:
        surrogate = torch.where(advantages_N < 0, torch.maximum(surrogate, dual_clip * advantages_N), surrogate)
    if weights_N is not None:
        surrogate = surrogate * weights_N
    with torch.no_grad():
        clipped = ((ratio < low) | (ratio > high)).float().sum() / total
        approx_kl = k3_kl(old_logprobs_N, logprobs_N).sum() / total  # the old policy sampled them
    return -surrogate.sum() / total, {"clip_fraction": clipped, "approx_kl": approx_kl, "ratio": ratio.detach().sum() / total}


def value_loss(
    values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, total: Tensor | float, clip: float | None = None
) -> tuple[Tensor, Metrics]:
    """Half the squared error of the critic over `total`; with `clip`, kept around the old values as in PPO's reference code."""
    errors = (values_N - returns_N) ** 2
    moved = (values_N - old_values_N).detach().abs()
    if clip is not None:
        clipped = old_values_N + (values_N - old_values_N).clamp(-clip, clip)
        errors = torch.maximum(errors, (clipped - returns_N) ** 2)
    return 0.5 * errors.sum() / total, {"value_change": moved.sum() / total}


def explained_variance(values_N: Tensor, returns_N: Tensor) -> Tensor:
    """Return 1 - Var(returns - values) / Var(returns); 0 where the returns do not vary."""
    variance = returns_N.var(correction=0)
    return torch.where(variance > 0, 1 - (returns_N - values_N).var(correction=0) / variance.clamp_min(1e-12), variance)
