"""Advantages as pure functions. They see trained tokens only: tool results between them never change an advantage."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from project.errors import InputError
from project.losses import LengthNorm
from project.named import class_named, is_path

EstimatorName = Literal["gae", "rloo", "grpo", "reinforce++"] | str
"""A name of `ESTIMATORS`, or the path of a class: `module.Class`."""


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


class Estimator:
    """How episodes' rewards become advantages: baseline, then GAE over the episode's trained tokens, then `normalise`.

    Derive from it for one of your own, and name that by its path: `model.ppo.estimator: my_module.Median`.
    """

    critic: ClassVar[bool] = False
    """Whether values of a critic are taken off; without it GAE is run with lambda 1 on values of 0: sums of what follows."""
    by_group: ClassVar[bool] = True
    """Whether episodes whose whole group earned the same are left out: they would teach nothing."""
    kl_in: ClassVar[Literal["reward", "loss"]] = "loss"
    """Where its paper has the KL. In the reward it needs something that takes its mean off: a critic, or whitening."""
    length_norm: ClassVar[LengthNorm] = "token"
    """How its paper counts long episodes."""

    def baseline(self, rewards_E: Tensor, groups_E: Tensor) -> Tensor:
        """Return what each episode is paid at its end, (E,).

        Args:
            rewards_E: float, one an episode.
            groups_E: int64, the same number for episodes on the same question.
        """
        del groups_E
        return rewards_E

    def normalise(self, advantages_N: Tensor) -> Tensor:
        """Return the advantages of all trained tokens of an update, (N,), as they are trained on."""
        return advantages_N


class GAE(Estimator):
    """PPO with a critic (Schulman et al. 2017) over what the group earned."""

    critic, kl_in = True, "reward"

    def baseline(self, rewards_E: Tensor, groups_E: Tensor) -> Tensor:
        """See `leave_one_out`."""
        return leave_one_out(rewards_E, groups_E)

    def normalise(self, advantages_N: Tensor) -> Tensor:
        """See `scale`."""
        return scale(advantages_N)


class RLOO(Estimator):
    """RLOO (Ahmadian et al. 2024), but for the KL, which they take from an episode's reward."""

    def baseline(self, rewards_E: Tensor, groups_E: Tensor) -> Tensor:
        """See `leave_one_out`."""
        return leave_one_out(rewards_E, groups_E)


class GRPO(Estimator):
    """GRPO (Shao et al. 2024), its outcome supervision."""

    length_norm = "episode"

    def baseline(self, rewards_E: Tensor, groups_E: Tensor) -> Tensor:
        """See `group_normalise`."""
        return group_normalise(rewards_E, groups_E)


class ReinforcePlusPlus(Estimator):
    """REINFORCE++ (Hu et al. 2025), whose baseline is the whole batch."""

    by_group, kl_in = False, "reward"

    def normalise(self, advantages_N: Tensor) -> Tensor:
        """See `whiten`."""
        return whiten(advantages_N)


ESTIMATORS: dict[str, Estimator] = {"gae": GAE(), "rloo": RLOO(), "grpo": GRPO(), "reinforce++": ReinforcePlusPlus()}


def estimator_named(name: str) -> Estimator:
    """Return an estimator by its name, or of a class by its path.

    Raises:
        InputError: there is none.
    """
    if is_path(name):
        return class_named(name, Estimator, "ppo.estimator")()
    if name not in ESTIMATORS:
        known = ", ".join(ESTIMATORS)
        raise InputError(f"ppo.estimator={name} is none of {known}; give one, or a class of your own as module.Class")
    return ESTIMATORS[name]
