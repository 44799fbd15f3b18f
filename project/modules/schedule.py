"""The learning-rate schedule of every training here."""

from __future__ import annotations

import math
from collections.abc import Callable


def warmup_cosine(steps: int, warmup_share: float) -> Callable[[int], float]:
    """Return the factor at each step: linear from 1/warmup to 1 over the first share of steps, then cosine to 0.

    >>> [round(warmup_cosine(4, 0.5)(step), 2) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup = max(1, round(steps * warmup_share))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor
