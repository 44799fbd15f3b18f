"""Episodes -> training rows: token ids, which of them were sampled, and their behaviour log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    weights: list[float]
    """What each token counts by its kind; 0 where not trained."""
    reward: float
    episode: int
    """Its number in the update."""


def training_row(
    episode: Episode, reward: float, number: int = 0, weigh: Callable[[Sequence[int]], list[float]] | None = None
) -> TrainingRow:
    """Lay an episode's turns end to end.

    Args:
        episode: with its turns.
        reward: paid at its end.
        number: of the episode in the update.
        weigh: returns what each token of a turn counts; None counts each as 1.
    """
    row = TrainingRow([], [], [], [], reward, number)
    for turn in episode.turns:
        before = len(turn.context_ids)
        row.ids.extend([*turn.context_ids, *turn.ids])
        row.trained.extend([False] * before + [True] * len(turn.ids))
        row.logprobs.extend([0.0] * before + list(turn.logprobs))
        row.weights.extend([0.0] * before + (weigh(turn.ids) if weigh else [1.0] * len(turn.ids)))
    return row


def collate_rows(rows: Sequence[TrainingRow]) -> dict[str, Tensor | list[int]]:
    """Lay rows end to end.

    Returns:
        of each token, (T,): `input_ids`, `trained` (bool), `logprobs` and `weights` (float32), `episodes`; and rows' `lengths`.
    """
    return {
        "input_ids": torch.tensor([i for row in rows for i in row.ids], dtype=torch.long),
        "trained": torch.tensor([t for row in rows for t in row.trained], dtype=torch.bool),
        "logprobs": torch.tensor([p for row in rows for p in row.logprobs], dtype=torch.float32),
        "weights": torch.tensor([w for row in rows for w in row.weights], dtype=torch.float32),
        "episodes": torch.tensor([row.episode for row in rows for _ in row.ids], dtype=torch.long),
        "lengths": [len(row.ids) for row in rows],
    }
