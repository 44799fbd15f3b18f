"""Losses as pure functions on tensors: each returns (loss, metrics) or a tensor; only the modules log.

Shapes: B rows, T tokens, N selected tokens, H hidden, V vocabulary. Masks and weights are positive where a token is trained.
Every sum is divided by a total that the caller gives (the whole optimizer step's), never by a micro-batch's own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Metrics = dict[str, Tensor]
CHUNK = 256
"""Positions whose logits are made at once: 256 x 49,152 in float32 is 50 MB."""
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

    def part(hidden: Tensor, labels: Tensor) -> Tensor:
        return token_logprobs(head(hidden), labels, temperature)

    recompute = torch.is_grad_enabled() and len(hidden_NH) > KEPT_CHUNKS * CHUNK
    parts = [
        checkpoint(part, hidden, labels, use_reentrant=False) if recompute else part(hidden, labels)
        for hidden, labels in zip(hidden_NH.split(CHUNK), labels_N.split(CHUNK), strict=True)
    ]
    return torch.cat(parts)


@torch.no_grad()
def chunked_argmax(head: Callable[[Tensor], Tensor], hidden_NH: Tensor) -> Tensor:
    """Return the likeliest token of each position, int64, without ever holding all logits."""
    return torch.cat([head(hidden).argmax(-1) for hidden in hidden_NH.split(CHUNK)])


def weighted_cross_entropy(logprobs_N: Tensor, weights_N: Tensor, total_weight: Tensor | float) -> Tensor:
    """Return sum(w * CE) / total_weight (DESIGN §4.4); `total_weight` is that of the whole optimizer step."""
    return -(logprobs_N * weights_N).sum() / total_weight


def k1_kl(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Return Schulman's k1 estimate of KL(policy || reference) at each sampled token: unbiased, may be negative."""
    return logprobs - reference


def k3_kl(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Return Schulman's k3 estimate of KL(policy || reference): exp(r) - r - 1 with r = log ref - log p; never negative."""
    ratio = reference - logprobs
    return ratio.exp() - ratio - 1


def ppo_policy_loss(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    total: Tensor | float,
    clip: float = 0.2,
    importance_N: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Clipped surrogate of PPO (Schulman et al. 2017, eq. 7), a sum over trained tokens divided by `total`.

    Args:
        logprobs_N: under the policy that is trained.
        old_logprobs_N: under the policy at the start of the update, no gradient.
        advantages_N: no gradient.
        total: trained tokens in the whole optimizer step.
        clip: epsilon of the ratio's clipping.
        importance_N: truncated p_old / p_behaviour, which corrects for an engine that computes in another precision.
    """
    ratio = (logprobs_N - old_logprobs_N).exp()
    surrogate = torch.minimum(ratio * advantages_N, ratio.clamp(1 - clip, 1 + clip) * advantages_N)
    if importance_N is not None:
        surrogate = surrogate * importance_N
    with torch.no_grad():
        clipped = ((ratio - 1).abs() > clip).float().sum() / total
        approx_kl = k3_kl(logprobs_N, old_logprobs_N).sum() / total
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
