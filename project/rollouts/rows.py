"""Episodes -> training rows, one a context: token ids, which were sampled, and their behaviour log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
    """Paid after the last token; 0 for all but an episode's last context."""
    episode: int
    """Its number in the update."""
    part: int
    """Which of the episode's contexts this is."""


def training_rows(
    episode: Episode, reward: float, number: int = 0, weigh: Callable[[Sequence[int]], list[float]] | None = None
) -> list[TrainingRow]:
    """Lay the turns of each of an episode's contexts end to end.

    Args:
        episode: with its turns.
        reward: paid at its end.
        number: of the episode in the update.
        weigh: returns what each token of a turn counts; None counts each as 1.
    """
    rows = list[TrainingRow]()
    for turn in episode.turns:
        if turn.fresh or not rows:
            rows.append(TrainingRow([], [], [], [], 0.0, number, len(rows)))
        row, before = rows[-1], len(turn.context_ids)
        row.ids.extend([*turn.context_ids, *turn.ids])
        row.trained.extend([False] * before + [True] * len(turn.ids))
        row.logprobs.extend([0.0] * before + list(turn.logprobs))
        row.weights.extend([0.0] * before + (weigh(turn.ids) if weigh else [1.0] * len(turn.ids)))
    rows[-1] = replace(rows[-1], reward=reward)
    return rows


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
