"""Advantages as pure functions. They see trained tokens only: tool results between them never change an advantage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from project.losses import LengthNorm

EstimatorName = Literal["gae", "rloo", "grpo", "reinforce++"]


def gae(rewards_T: Tensor, values_T: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) of one episode's trained tokens, in time order.

    Args:
        rewards_T: float, the reward that follows each trained token.
        values_T: float, the critic's value at each trained token (before it is sampled).
        gamma: discount per trained token.
        lam: 1 = Monte Carlo returns, 0 = one-step differences.

    Returns:
        (advantages_T, returns_T); the episode ends after its last token, so no value follows it.
    """
    advantages = torch.zeros_like(rewards_T)
    running, following = rewards_T.new_zeros(()), rewards_T.new_zeros(())
    for t in range(len(rewards_T) - 1, -1, -1):
        delta = rewards_T[t] + gamma * following - values_T[t]
        running = delta + gamma * lam * running
        advantages[t] = running
        following = values_T[t]
    return advantages, advantages + values_T


def whiten(advantages_N: Tensor) -> Tensor:
    """Return advantages with mean 0 and standard deviation 1; unchanged mean-free where they do not vary."""
    centred = advantages_N - advantages_N.mean()
    return centred / centred.std(correction=0).clamp_min(1e-6)


def scale(advantages_N: Tensor, least: float = 0.1) -> Tensor:
    """Return advantages over their root mean square: centred by group, they have no mean of tokens to be taken off.

    Whitening would push every token of a solved question by how long the failures of other questions were.

    Args:
        advantages_N: float, one a trained token.
        least: the smallest root mean square divided by, so that an update without a difference in reward stays small.
    """
    return advantages_N / advantages_N.square().mean().sqrt().clamp_min(least)


def leave_one_out(rewards_E: Tensor, groups_E: Tensor) -> Tensor:
    """Return each episode's reward minus the mean of the others of its group (RLOO, Kool et al. 2019, Ahmadian et al. 2024).

    What the others earned does not depend on what this episode did, so the policy gradient stays unbiased; an episode that
    is alone in its group is measured against all others.

    Args:
        rewards_E: float, one an episode.
        groups_E: int64, the same number for episodes on the same question.
    """
    same = groups_E[:, None] == groups_E
    same = same | (same.sum(1, keepdim=True) == 1)
    others = same.sum(1) - 1
    totals_E = torch.where(same, rewards_E, torch.zeros_like(rewards_E)).sum(1)  # a matrix product would round under autocast
    return rewards_E - (totals_E - rewards_E) / others.clamp_min(1)


def group_normalise(rewards_E: Tensor, groups_E: Tensor) -> Tensor:
    """Return each episode's reward minus its group's mean, over the group's deviation (GRPO, Shao et al. 2024, eq. 3).

    Args:
        rewards_E: float, one an episode (not one a row).
        groups_E: int64, the same number for episodes on the same question.
    """
    advantages = torch.zeros_like(rewards_E)
    for group in groups_E.unique():
        members = groups_E == group
        rewards = rewards_E[members]
        advantages[members] = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-6)
    return advantages


@dataclass(frozen=True)
class Estimator:
    """How episodes' rewards become advantages: baseline, then GAE over the episode's trained tokens, then `normalise`."""

    baseline: Callable[[Tensor, Tensor], Tensor]
    """Takes rewards (E,) and groups (E,) and returns what each episode is paid at its end, (E,)."""
    normalise: Callable[[Tensor], Tensor]
    """Takes and returns the advantages of all trained tokens of an update, (N,)."""
    critic: bool = False
    """Whether values of a critic are taken off; without it GAE is run with lambda 1 on values of 0: sums of what follows."""
    by_group: bool = True
    """Whether episodes whose whole group earned the same are left out: they would teach nothing."""
    kl_in: Literal["reward", "loss"] = "loss"
    """Where its paper has the KL. In the reward it needs something that takes its mean off: a critic, or whitening."""
    length_norm: LengthNorm = "token"
    """How its paper counts long episodes."""


def _as_they_are(rewards: Tensor, groups: Tensor | None = None) -> Tensor:
    del groups
    return rewards


ESTIMATORS: dict[EstimatorName, Estimator] = {
    "gae": Estimator(leave_one_out, scale, critic=True, kl_in="reward"),
    "rloo": Estimator(leave_one_out, _as_they_are),
    "grpo": Estimator(group_normalise, _as_they_are, length_norm="episode"),
    "reinforce++": Estimator(_as_they_are, whiten, by_group=False, kl_in="reward"),
}
"""PPO with a critic over what the group earned; RLOO (Ahmadian et al. 2024, but for the KL, which they take from an episode's
reward); GRPO (Shao et al. 2024, its outcome supervision); REINFORCE++ (Hu et al. 2025), whose baseline is the whole batch."""
