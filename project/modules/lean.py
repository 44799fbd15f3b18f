"""Norms and gated MLPs that keep less for backward: what goes in, not the float32 copies and products made of it.

Eager autograd keeps 40 to 50 KB a token and layer of SmolLM2-135M, this and `attention.py` half of it. The gradients are worked
out by hand and the rest recomputed, as Liger-Kernel does on GPUs (Hsu et al. 2024), here in plain PyTorch.
"""

from __future__ import annotations

from copy import deepcopy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _RMSNorm(torch.autograd.Function):
    """weight * x / rms(x), in float32 and rounded before the weight (Zhang and Sennrich 2019); keeps x and 1 / rms(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override] # noqa: ANN401
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override] # noqa: ANN401
        x, weight, scale = ctx.saved_tensors
        normed = x.float() * scale
        of_weight = (slope * normed).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        of_normed = (slope * weight).float()
        of_x = (of_normed - normed * (of_normed * normed).mean(-1, keepdim=True)) * scale
        return of_x.to(x.dtype), of_weight, None


class _GatedSiLU(torch.autograd.Function):
    """silu(gate) * up (Shazeer 2020), of which only gate and up are kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:  # type: ignore[override] # noqa: ANN401
        ctx.save_for_backward(gate, up)
        return functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override] # noqa: ANN401
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(slope * up, gate), functional.silu(gate) * slope


def _norm(module: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    return _RMSNorm.apply(x, module.weight, module.variance_epsilon)  # type: ignore[no-any-return]


def _mlp(module: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    return module.down_proj(_GatedSiLU.apply(module.gate_proj(x), module.up_proj(x)))  # type: ignore[no-any-return]


def make_lean(model: nn.Module) -> dict[str, int]:
    """Give a model's norms and MLPs these forwards, where a class of them is shown to compute the same to the bit.

    Returns:
        modules changed, by class; a class of another formula (Gemma's norm, a GELU) stays as it is and is not in it.
    """
    changed: dict[str, int] = {}
    known: dict[type[nn.Module], MethodType | None] = {}
    for module in model.modules():
        kind = type(module)
        if kind not in known:
            known[kind] = _lean_forward(module)
        if (forward := known[kind]) is not None:
            module.forward = MethodType(forward.__func__, module)
            changed[kind.__name__] = changed.get(kind.__name__, 0) + 1
    return changed


@torch.no_grad()
def _lean_forward(module: nn.Module) -> MethodType | None:
    """Return the forward that computes what the module does on random vectors, None where there is none."""
    parts: Any = module
    names = {name for name, _ in (*module.named_parameters(recurse=False), *module.named_children())}
    if hasattr(module, "variance_epsilon") and names == {"weight"}:
        formula, width, dtype = _norm, len(parts.weight), parts.weight.dtype
    elif names == {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        weight = parts.gate_proj.weight
        formula, width = _mlp, parts.gate_proj.in_features
        dtype = weight.dtype if weight.is_floating_point() else parts.gate_proj.compute_dtype  # of a 4-bit layer
    else:
        return None
    generator = torch.Generator("cpu").manual_seed(0)
    if any(parameter.is_meta for parameter in module.parameters()):  # the weights come later: any will do
        module = deepcopy(module).to_empty(device="cpu")
        for parameter in module.parameters():
            nn.init.normal_(parameter, generator=generator)
    forward = MethodType(formula, module)
    # Lightning loads models under a default device, which a generator does not follow.
    x = torch.randn(4, width, generator=generator, device="cpu").to(next(module.parameters()).device, dtype)
    return forward if torch.equal(module(x), forward(x)) else None
