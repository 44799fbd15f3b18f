"""Which samples are trained when: optimizer steps -> micro-batches -> ranks, a pure function of (lengths, seed, epoch).

Samples are shuffled and packed whole into micro-batches of at most `micro_tokens` tokens, the micro-batches are shuffled and
dealt evenly to optimizer steps. Every micro-batch knows its step's total weight, so the loss is sum(w * CE) / sum(w) over the
step however it is cut (DESIGN §4.4). A packed micro-batch holds no padding, and attention keeps its samples apart.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from project.datamodules.samples import Samples
from project.errors import InputError
from project.rendering import Sample

MicroBatch = dict[str, Any]
T = TypeVar("T")
WINDOW = 32
"""Micro-batches that are packed at once, at most."""


def draw(rows: Sequence[T], limit: int | None, seed: int | str) -> Sequence[T]:
    """Return `limit` of the rows, drawn by the seed: a file in the order of its sources stays represented. None = all."""
    return rows if limit is None or limit >= len(rows) else random.Random(seed).sample(rows, limit)


def pack(lengths: Sequence[int], order: Sequence[int], budget: int) -> list[list[int]]:
    """Return bins of samples of at most `budget` tokens each, best-fit decreasing within windows of the order.

    Windows, at least four where there are samples enough, keep the bins of different orders different; the emptiest bin of
    one is opened again in the next.
    """
    window_tokens = budget * max(4, min(WINDOW, sum(lengths[i] for i in order) // budget // 4))
    bins: list[list[int]] = []
    start, carried = 0, list[int]()
    while start < len(order):
        window, held = carried, sum(lengths[i] for i in carried)
        while start < len(order) and held < window_tokens:
            window.append(order[start])
            held += lengths[order[start]]
            start += 1
        packed = _best_fit(window, lengths, budget)
        carried = min(packed, key=lambda one: sum(lengths[i] for i in one)) if start < len(order) else []
        bins += [one for one in packed if one is not carried]
    return bins


def _best_fit(samples: list[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    bins: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (tokens free, bin), sorted
    for sample in sorted(samples, key=lambda i: -lengths[i]):
        place = bisect_left(spaces, (lengths[sample], -1))
        if place == len(spaces):
            free, number = budget, len(bins)
            bins.append([])
        else:
            free, number = spaces.pop(place)
        bins[number].append(sample)
        insort(spaces, (free - lengths[sample], number))
    return bins


def plan_epoch(
    lengths: Sequence[int], seed: int, epoch: int, micro_tokens: int, accumulate: int, world: int
) -> list[list[list[list[int]]]]:
    """Return steps -> micro-batches -> ranks -> sample indices; each sample stands in it exactly once.

    All epochs have as many steps as the first, whose number the learning-rate schedule is made for; one whose packing does
    not come out so takes the first's in another order. Steps hold the same number of filled micro-batches, give or take one: a
    short last step would be a whole one to Adam.

    Args:
        lengths: tokens of each sample, none over `micro_tokens`.
        seed: of the shuffle, with `epoch`.
        epoch: counted from 0.
        micro_tokens: most tokens in one micro-batch of one rank.
        accumulate: micro-batches in one optimizer step.
        world: ranks. A rank whose share is empty gets an empty list and still takes part.
    """

    def packed(epoch: int) -> list[list[int]]:
        order = list(range(len(lengths)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        return pack(lengths, order, micro_tokens)

    first = packed(0)
    parts = accumulate * world
    count = -(-len(first) // parts)
    bins = packed(epoch) if epoch else first
    if not count <= len(bins) <= count * parts:
        bins = first
    random.Random(f"{seed}/{epoch}/steps").shuffle(bins)
    steps = []
    for number in range(count):
        chosen = bins[number::count]
        shares = chosen + [list[int]()] * (parts - len(chosen))
        steps.append([shares[m * world : (m + 1) * world] for m in range(accumulate)])
    return steps


def collate(samples: Sequence[Sample], pad_id: int) -> dict[str, Any]:
    """Lay samples end to end, or two tokens that weigh nothing where there are none.

    Returns:
        `input_ids` and `kinds` (T,) int64, `weights` (T,) float32, in which each sample's first token, which nothing
        predicts, weighs 0; `lengths`, the tokens of each sample, `tokens`, their sum without padding, and `names`, their ids.
    """
    rows = samples or [Sample("", [pad_id, pad_id], [0, 0], [0.0, 0.0])]
    return {
        "input_ids": torch.tensor([i for row in rows for i in row.ids], dtype=torch.long),
        "kinds": torch.tensor([k for row in rows for k in row.kinds], dtype=torch.long),
        "weights": torch.tensor([w for row in rows for w in (0.0, *row.weights[1:])], dtype=torch.float32),
        "lengths": [len(row.ids) for row in rows],
        "tokens": sum(len(sample.ids) for sample in samples),
        "names": [sample.id for sample in samples],
    }


@dataclass
class PlannedLoader:
    """Yields this rank's micro-batches of each epoch; resumes inside an epoch through `state_dict`.

    A micro-batch holds what `collate` returns and `step_weight`, the total weight of its optimizer step over all ranks.
    """

    samples: Samples
    pad_id: int
    micro_tokens: int
    accumulate: int = 1
    seed: int = 0
    rank: int = 0
    world: int = 1
    is_training: bool = True
    """False = every pass starts anew with the same order, also after a sanity check that stopped early."""
    epoch: int = 0
    position: int = field(default=0, init=False)
    """Micro-batches of this epoch that were already given."""

    def __post_init__(self) -> None:
        """Plan the first epoch, which has as many steps as every other."""
        self._lengths: list[int] = self.samples.column("tokens")
        self._totals: list[float] = self.samples.column("total")
        plan = self._plan(0)
        self._steps = len(plan)
        bins = sum(bool(share) for step in plan for micro in step for share in micro)
        parts = self.accumulate * self.world
        if self.is_training and bins < parts:
            raise InputError(
                f"the {len(self.samples)} training samples fill {bins} micro-batches of {self.micro_tokens} tokens, fewer than "
                f"the {parts} of one optimizer step; lower trainer.accumulate_grad_batches or data.micro_tokens"
            )

    def __len__(self) -> int:
        return self._steps * self.accumulate

    def __iter__(self) -> Iterator[MicroBatch]:
        if not self.is_training:
            self.epoch, self.position = 0, 0
        elif self.position >= len(self):  # Lightning takes len(self) batches and never asks for the end
            self.epoch, self.position = self.epoch + 1, 0
        plan = self._plan(self.epoch)
        for number in range(self.position, len(self)):
            step, micro = divmod(number, self.accumulate)
            weight = sum(self._totals[i] for micros in plan[step] for share in micros for i in share)
            self.position = number + 1
            yield {**collate([self.samples[i] for i in plan[step][micro][self.rank]], self.pad_id), "step_weight": weight}
        self.epoch, self.position = self.epoch + 1, 0

    def _plan(self, epoch: int) -> list[list[list[list[int]]]]:
        return plan_epoch(self._lengths, self.seed, epoch, self.micro_tokens, self.accumulate, self.world)

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader stands, in micro-batches of one rank, and in which plan."""
        return {"epoch": self.epoch, "position": self.position, "accumulate": self.accumulate, "plan": self._digest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` stood, maybe on another number of ranks that shares the same steps; a step begun starts anew.

        Raises:
            InputError: it stood in another plan, whose positions mean other samples here.
        """
        if state.get("plan") != self._digest():
            raise InputError(
                "the checkpoint stands in another plan of the samples: the data, their weights or limit, how they are rendered "
                "and tokenised, data.micro_tokens, data.seed or accumulate_grad_batches x ranks has changed; give what it was "
                "made with, or start a training without --ckpt_path"
            )
        self.epoch, self.position = state["epoch"], state["position"] // state["accumulate"] * self.accumulate

    def _digest(self) -> str:
        held = (self.samples.key, self.micro_tokens, self.accumulate * self.world, self.seed)
        return hashlib.sha256(repr(held).encode()).hexdigest()[:16]
