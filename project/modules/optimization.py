"""The optimizer and the learning-rate schedule of every training here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from project.errors import InputError

OptimizerName = Literal["adamw", "adamw_8bit"]


def make_optimizer(
    module: nn.Module, learning_rate: float, weight_decay: float = 0.0, name: OptimizerName = "adamw"
) -> torch.optim.Optimizer:
    """Return AdamW over a module's trained parameters; norms and biases, those of one dimension, do not decay.

    `adamw` is PyTorch's fused one, its state in the parameters' dtype; `adamw_8bit` keeps its state in blocks of 8 bits
    (Dettmers et al. 2022), which bitsandbytes does on GPUs.

    Raises:
        InputError: nothing is trained, or 8 bits are asked for where there is no GPU.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise InputError("no parameter of the model is trained; give lora, or lora: null to train all of them")
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "adamw":
        return torch.optim.AdamW(groups, learning_rate, fused=True)
    if not trained[0].is_cuda:
        raise InputError(f"optimizer: {name} needs a GPU, and the parameters are on {trained[0].device}; take adamw")
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, learning_rate)  # type: ignore[no-untyped-call,no-any-return]


def check_rates(**rates: float) -> None:
    """Refuse rates of an optimizer, by the names of a module's arguments, that cannot be.

    Raises:
        InputError: one is below 0, not finite, or as a share above 1.
    """
    for name, rate in rates.items():
        most = 1.0 if name.endswith("share") else math.inf
        if not 0 <= rate <= most or math.isinf(rate):
            raise InputError(f"model.{name}={rate} must be " + ("from 0 to 1" if most == 1 else "a number from 0"))


def warmup_cosine(steps: int, warmup_share: float) -> Callable[[int], float]:
    """Return the factor at each step: linear from 1/warmup to 1 over the first share of steps, then cosine to 0.

    >>> [round(warmup_cosine(4, 0.5)(step), 2) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup = max(1, round(steps * warmup_share))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor
