"""What an update trains on: rows dealt to ranks and micro-batches, paid after all of them are annotated, dealt to steps.

A row's notes hold for its trained tokens, (N,): `old_logprobs`, `old_values`, `reference`, `entropy`, `kl`, `penalty`,
`engine_gap`, `importance`, `token_weights`, and after `pay` `advantages` and `returns`. A micro-batch is a dictionary of what
`collate_rows` returns, the `rows`, their `numbers` in the update, the `counts` of their trained tokens, their notes end to end,
and with a critic `hidden`, (N, H).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from project.advantages import Estimator, gae
from project.losses import LengthNorm, length_weights
from project.modules.ppo_settings import PPOSettings
from project.rollouts.rows import TrainingRow

Batch = dict[str, Any]
Notes = dict[str, Tensor]
FILLER = TrainingRow([0, 0], [False, False], [0.0, 0.0], [0.0, 0.0], 0.0, -1, 0)
"""A row of which nothing is trained."""


class Update(NamedTuple):
    """What one update trains on."""

    rows: Sequence[TrainingRow]
    planned: Sequence[Sequence[Sequence[int]]]
    """By `plan`."""
    micro: Sequence[Batch]
    """This rank's micro-batches."""
    notes: Sequence[Notes]
    """Of all rows."""


class Step(NamedTuple):
    """One optimizer step."""

    micro: list[int]
    """The numbers of its micro-batches, the same on all ranks."""
    divisor: float
    """What its sums over all ranks' trained tokens are divided by."""
    scale: float
    """What its token weights are multiplied by."""
    tokens: int
    """Its trained tokens, of all ranks."""


def plan(rows: Sequence[TrainingRow], size: int, ranks: int) -> list[list[list[int]]]:
    """Return, for each micro-batch number, the rows of each rank's: all ranks run the same number of them.

    Rows that run together are of like length, the longest first, so that no rank waits for another. In the last some ranks may
    have no row: they run a filler that counts nothing (`collate_rows` of no rows), or the others would wait for them for ever.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))
    columns = [order[start : start + size * ranks] for start in range(0, len(order), size * ranks)]
    return [[column[rank::ranks] for rank in range(ranks)] for column in columns]


def pay(rows: Sequence[TrainingRow], notes: Sequence[Notes], estimator: Estimator, ppo: PPOSettings, norm: LengthNorm) -> None:
    """Put advantages, returns and what each token counts into the notes of an update's rows.

    The contexts of an episode are joined in time: the value after the last token of one is that of the next one's first.
    """
    order = sorted(range(len(rows)), key=lambda i: (rows[i].episode, rows[i].part))
    lam = ppo.lam if estimator.critic else 1.0
    for _, contexts in groupby(order, key=lambda i: rows[i].episode):
        joined = list(contexts)
        rewards = -torch.cat([notes[i]["penalty"] for i in joined])
        rewards[-1] += rows[joined[-1]].reward
        found = gae(rewards, torch.cat([notes[i]["old_values"] for i in joined]), ppo.gamma, lam)
        counts = [len(notes[i]["penalty"]) for i in joined]
        for i, advantages, returns in zip(joined, *(of.split(counts) for of in found), strict=True):
            notes[i]["advantages"], notes[i]["returns"] = advantages, returns
    _put(notes, "advantages", estimator.normalise(together(notes, "advantages")))
    if norm != "token":  # of whole episodes, whose contexts may be dealt to several steps
        episodes = torch.cat([torch.full((len(note["penalty"]),), row.episode) for row, note in zip(rows, notes, strict=True)])
        weights = together(notes, "token_weights")
        _put(notes, "token_weights", length_weights(weights, episodes.to(weights.device), norm, ppo.length_tokens))


def deal(update: Update, episodes_a_step: int, norm: LengthNorm, generator: torch.Generator) -> list[Step]:
    """Return an epoch's optimizer steps.

    The longest of a step comes first, so that the heap grows once. All steps get the same number of micro-batches, give or
    take one: Adam would give a small rest the weight of a whole step.
    """
    rows, planned, notes = update.rows, update.planned, update.notes
    order = torch.randperm(len(planned), generator=generator)
    steps = max(1, round(len({row.episode for row in rows}) / episodes_a_step))
    parts = [sorted(part.tolist()) for part in order.tensor_split(min(steps, len(planned)))]
    share = sum(len(note["token_weights"]) for note in notes) / len(parts)
    return [_step(part, update, share if norm != "token" else None) for part in parts]


def _step(part: list[int], update: Update, share: float | None) -> Step:
    """Return a step whose sums are divided by `share`; by its own tokens where that is None, its weights having a mean of 1."""
    numbers = [i for number in part for of_rank in update.planned[number] for i in of_rank]
    weights = together([update.notes[i] for i in numbers], "token_weights")
    count = len(weights)
    return Step(part, share, 1.0, count) if share else Step(part, count, count / max(float(weights.sum()), 1e-12), count)


def together(notes: Sequence[Notes], name: str) -> Tensor:
    """Return what the notes of several rows hold under a name, end to end."""
    return torch.cat([note[name] for note in notes])


def _put(notes: Sequence[Notes], name: str, values: Tensor) -> None:
    for note, part in zip(notes, values.split([len(note[name]) for note in notes]), strict=True):
        note[name] = part
