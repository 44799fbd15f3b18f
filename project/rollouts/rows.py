"""Episodes -> training rows: token ids, which of them were sampled, and their behaviour log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from project.records import Episode


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One physical context of an episode. The lists have one entry per token."""

    ids: list[int]
    trained: list[bool]
    """True where the policy sampled the token; what the environment wrote is never trained."""
    logprobs: list[float]
    """Behaviour log-probabilities; 0 where not trained."""
    reward: float


def training_row(episode: Episode, reward: float) -> TrainingRow:
    """Lay an episode's turns end to end."""
    row = TrainingRow([], [], [], reward)
    for turn in episode.turns:
        row.ids.extend([*turn.context_ids, *turn.ids])
        row.trained.extend([False] * len(turn.context_ids) + [True] * len(turn.ids))
        row.logprobs.extend([0.0] * len(turn.context_ids) + list(turn.logprobs))
    return row


def collate_rows(rows: Sequence[TrainingRow]) -> dict[str, Tensor | list[int]]:
    """Lay rows end to end: `input_ids` (T,), `trained` (T,) bool and `logprobs` (T,) float32 of each token, and `lengths`."""
    return {
        "input_ids": torch.tensor([i for row in rows for i in row.ids], dtype=torch.long),
        "trained": torch.tensor([t for row in rows for t in row.trained], dtype=torch.bool),
        "logprobs": torch.tensor([p for row in rows for p in row.logprobs], dtype=torch.float32),
        "lengths": [len(row.ids) for row in rows],
    }
