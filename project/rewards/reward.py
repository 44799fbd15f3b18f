"""What a reward is: derive from `Reward` for one of your own, and name it in a config by its class.

model:
init_args:
reward: {class_path: my_rewards.Brief, init_args: {most_words: 5}}
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from project.errors import InputError
from project.records import Episode


class Reward(ABC):
    """Scores an episode that has ended; called on each rank for its own episodes."""

    @abstractmethod
    def __call__(self, episode: Episode) -> dict[str, float]:
        """Return `total`, which is the reward, and what else is to be logged: the same names for every episode."""


def breakdown(reward: Callable[[Episode], dict[str, float]], episode: Episode) -> dict[str, float]:
    """Return what a reward gives for an episode.

    Raises:
        InputError: it gives no finite `total`.
    """
    given: Any = reward(episode)
    total = given.get("total") if isinstance(given, dict) else None
    if not isinstance(total, (int, float)) or not math.isfinite(total):
        name, asked = type(reward).__name__, episode.question.id
        raise InputError(f"the reward {name} gives {given} for question '{asked}'; it must hold a finite 'total'")
    return dict(given)
