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


def collate_rows(rows: Sequence[TrainingRow], pad_id: int) -> dict[str, Tensor]:
    """Pad rows on the right to (B, T); `trained` and `logprobs` are (B, T - 1): position t is about ids[t + 1]."""
    longest = max(len(row.ids) for row in rows)

    def pad(values: Sequence[object], fill: object, width: int = longest) -> list[object]:
        return [*values, *([fill] * (width - len(values)))]

    return {
        "input_ids": torch.tensor([pad(row.ids, pad_id) for row in rows], dtype=torch.long),
        "attention_mask": torch.tensor([pad([1] * len(row.ids), 0) for row in rows], dtype=torch.long),
        "trained": torch.tensor([pad(row.trained[1:], False, longest - 1) for row in rows], dtype=torch.bool),
        "logprobs": torch.tensor([pad(row.logprobs[1:], 0.0, longest - 1) for row in rows], dtype=torch.float32),
    }
