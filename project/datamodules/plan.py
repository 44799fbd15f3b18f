"""Which samples are trained when: optimizer steps -> micro-batches -> ranks, a pure function of (lengths, seed, epoch).

Samples are shuffled, cut into optimizer steps, sorted by length inside each step so that micro-batches waste little
padding (the longest first: then the heap grows once), and dealt to ranks. Every micro-batch knows its step's total weight,
so the loss is sum(w * CE) / sum(w) over the step however it is cut (DESIGN §4.4). On CPU length-bucketed batches beat packing
(DESIGN §7).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from project.records import Conversation, Question
from project.rendering import Sample

MicroBatch = dict[str, Any]
T = TypeVar("T")


def groups_of(record: Question | Conversation) -> set[str]:
    """Return what a record must not share with another split: its groups (joined by `|`), or its id where it has none."""
    return set(record.group.split("|")) if record.group else {record.id}


def draw(rows: Sequence[T], limit: int | None, seed: int | str) -> Sequence[T]:
    """Return `limit` of the rows, drawn by the seed: a file in the order of its sources stays represented. None = all."""
    return rows if limit is None or limit >= len(rows) else random.Random(seed).sample(rows, limit)


def plan_epoch(
    lengths: Sequence[int], seed: int, epoch: int, step_samples: int, accumulate: int, world: int
) -> list[list[list[list[int]]]]:
    """Return steps -> micro-batches -> ranks -> sample indices; each sample stands in it exactly once.

    Args:
        lengths: tokens of each sample.
        seed: of the shuffle, with `epoch`.
        epoch: counted from 0.
        step_samples: samples in one optimizer step, over all micro-batches and ranks.
        accumulate: micro-batches in one optimizer step.
        world: ranks. A rank whose share is empty in a short last step gets an empty list and still takes part.
    """
    order = list(range(len(lengths)))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    parts = accumulate * world
    steps = []
    for start in range(0, len(order), step_samples):
        chosen = sorted(order[start : start + step_samples], key=lambda i: (-lengths[i], i))
        size, extra = divmod(len(chosen), parts)
        cuts = [0]
        for part in range(parts):
            cuts.append(cuts[-1] + size + (part < extra))
        shares = [chosen[a:b] for a, b in pairwise(cuts)]
        steps.append([shares[m * world : (m + 1) * world] for m in range(accumulate)])
    return steps


def collate(samples: Sequence[Sample], pad_id: int) -> dict[str, Tensor]:
    """Pad on the right to (B, T): `input_ids`, `attention_mask` (1 = real) and `kinds` int64, `weights` float32."""
    width = max((len(s.ids) for s in samples), default=2)
    rows = samples or [Sample("", [pad_id, pad_id], [0, 0], [0.0, 0.0])]

    def pad(values: list[Any], fill: float, dtype: torch.dtype) -> Tensor:
        return torch.tensor([row + [fill] * (width - len(row)) for row in values], dtype=dtype)

    return {
        "input_ids": pad([s.ids for s in rows], pad_id, torch.long),
        "attention_mask": pad([[1] * len(s.ids) for s in rows], 0, torch.long),
        "weights": pad([s.weights for s in rows], 0.0, torch.float32),
        "kinds": pad([s.kinds for s in rows], 0, torch.long),
    }


def shifted_weight(sample: Sample) -> float:
    """Return the sum of a sample's weights that labels can have: the first token is never predicted."""
    return sum(sample.weights[1:])


@dataclass
class PlannedLoader:
    """Yields this rank's micro-batches of each epoch; resumes inside an epoch through `state_dict`.

    A micro-batch holds `collate`'s tensors and `step_weight`, the total weight of its optimizer step over all ranks.
    """

    samples: Sequence[Sample]
    pad_id: int
    step_samples: int
    accumulate: int = 1
    seed: int = 0
    rank: int = 0
    world: int = 1
    is_training: bool = True
    """False = every pass starts anew with the same order, also after a sanity check that stopped early."""
    epoch: int = 0
    position: int = field(default=0, init=False)
    """Micro-batches of this epoch that were already given."""

    def __len__(self) -> int:
        return -(-len(self.samples) // self.step_samples) * self.accumulate

    def __iter__(self) -> Iterator[MicroBatch]:
        if not self.is_training:
            self.epoch, self.position = 0, 0
        elif self.position >= len(self):  # Lightning takes len(self) batches and never asks for the end
            self.epoch, self.position = self.epoch + 1, 0
        lengths = [len(s.ids) for s in self.samples]
        plan = plan_epoch(lengths, self.seed, self.epoch, self.step_samples, self.accumulate, self.world)
        start, number = self.position, 0
        for step in plan:
            weight = sum(shifted_weight(self.samples[i]) for micro in step for share in micro for i in share)
            for micro in step:
                number += 1
                if number > start:
                    self.position = number
                    yield {**collate([self.samples[i] for i in micro[self.rank]], self.pad_id), "step_weight": weight}
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Return where the loader stands."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state` stood."""
        self.epoch, self.position = state["epoch"], state["position"]
