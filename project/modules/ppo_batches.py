"""What an update trains on: its micro-batches, paid after all of them are annotated, and dealt to optimizer steps.

A micro-batch is a dictionary. Of its rows' trained tokens, laid end to end, (N,): `old_logprobs`, `old_values`, `reference`,
`entropy`, `kl`, `penalty`, `engine_gap`, `importance`, `token_weights`, `token_episodes`, `advantages`, `returns`, and with a
critic `hidden`, (N, H). `rows` are the `TrainingRow`s and `counts` the trained tokens of each. The rest is of `collate_rows`.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from project.advantages import Estimator, gae
from project.losses import LengthNorm, length_weights
from project.modules.ppo_settings import PPOSettings

Batch = dict[str, Any]


def pay(micro: list[Batch], estimator: Estimator, ppo: PPOSettings, norm: LengthNorm) -> None:
    """Put advantages, returns and what each token counts into an update's micro-batches.

    The contexts of an episode are joined in time: the value after the last token of one is that of the next one's first.
    """
    parts = [(row, batch, i) for batch in micro for i, row in enumerate(batch["rows"])]
    parts.sort(key=lambda part: (part[0].episode, part[0].part))
    lam = ppo.lam if estimator.critic else 1.0
    for _, contexts in groupby(parts, key=lambda part: part[0].episode):
        joined = list(contexts)
        penalties, values = ([_of_row(batch, name, i) for _, batch, i in joined] for name in ("penalty", "old_values"))
        rewards = -torch.cat(penalties)
        rewards[-1] += joined[-1][0].reward
        found = gae(rewards, torch.cat(values), ppo.gamma, lam)
        counts = [len(part) for part in penalties]
        for (_, batch, i), advantages, returns in zip(joined, *(of.split(counts) for of in found), strict=True):
            _of_row(batch, "advantages", i).copy_(advantages)
            _of_row(batch, "returns", i).copy_(returns)
    _put(micro, "advantages", estimator.normalise(_all(micro, "advantages")))
    if norm != "token":  # of whole episodes, whose contexts may be dealt to several steps
        weights, episodes = _all(micro, "token_weights"), _all(micro, "token_episodes")
        _put(micro, "token_weights", length_weights(weights, episodes, norm, ppo.length_tokens))


def deal(micro: list[Batch], episodes_a_step: int, generator: torch.Generator) -> list[list[Batch]]:
    """Return the micro-batches of each of an epoch's optimizer steps.

    The longest of a step comes first, so that the heap grows once. All steps get the same number of micro-batches, give or
    take one: Adam would give a small rest the weight of a whole step.
    """
    order = torch.randperm(len(micro), generator=generator)
    episodes = len({row.episode for batch in micro for row in batch["rows"]})
    steps = max(1, round(episodes / episodes_a_step))
    parts = order.tensor_split(min(steps, len(micro)))
    return [[micro[i] for i in sorted(part.tolist())] for part in parts]


def _of_row(batch: Batch, name: str, row: int) -> Tensor:
    """Return what a micro-batch holds of the trained tokens of one of its rows, as a view."""
    return batch[name].split(batch["counts"])[row]  # type: ignore[no-any-return]


def _all(micro: list[Batch], name: str) -> Tensor:
    return torch.cat([batch[name] for batch in micro])


def _put(micro: list[Batch], name: str, whole: Tensor) -> None:
    for batch, part in zip(micro, whole.split([len(batch[name]) for batch in micro]), strict=True):
        batch[name] = part
