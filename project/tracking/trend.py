"""Whether a metric rises over a training: the least-squares slope over its steps, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from project.errors import TrackingError
from project.tracking.store import metric_curve, with_parents

if TYPE_CHECKING:
    from mlflow.entities import Run

TRAINED = "train/reward"


@dataclass(frozen=True)
class Trend:
    """A straight line through n logged values."""

    first: float
    last: float
    slope: float
    """Change from one logged value to the next (PPO logs one an update)."""
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """Return first and last value, and the slope with its interval."""
        return f"{self.first:.3f} to {self.last:.3f}, {self.slope:+.4f} [{self.low:+.4f}, {self.high:+.4f}] n={self.n}"


def trend(curve: Mapping[int, float]) -> Trend | None:
    """Return the least-squares slope over a curve's positions and its 95 % interval (Student's t with n - 2 degrees).

    The residuals are taken as independent. Where every update meets the same questions the slope says what was learnt of these
    questions; where each meets others, which questions an update drew is part of its noise. None under 3 values.

    Args:
        curve: {step: value}; only the order of the steps counts.
    """
    return pooled_trend([curve]) if len(curve) >= 3 else None


def pooled_trend(curves: Sequence[Mapping[int, float]]) -> Trend:
    """Return the slope that several trainings share, each with a level of its own, and its 95 % interval.

    Least squares over all values, t with n - trainings - 1 degrees of freedom; `first` and `last` are means over the trainings.

    Raises:
        TrackingError: there is no training, or one has fewer than 3 values.
    """
    import numpy as np
    from scipy.special import stdtrit  # Student's t; scipy.stats takes half a second to import

    values = [np.array([curve[step] for step in sorted(curve)]) for curve in curves]
    if not values or min(map(len, values)) < 3:
        raise TrackingError(f"a shared slope needs trainings of at least 3 values, got {[len(one) for one in values]}")
    places = np.concatenate([np.arange(len(one)) - (len(one) - 1) / 2 for one in values])
    centred = np.concatenate([one - one.mean() for one in values])
    slope = float(places @ centred / (places @ places))
    free = len(centred) - len(values) - 1
    error = float(np.sum((centred - slope * places) ** 2) / free / (places @ places)) ** 0.5
    reach = float(stdtrit(free, 0.975)) * error
    first, last = (float(np.mean([one[end] for one in values])) for end in (0, -1))
    return Trend(first, last, slope, slope - reach, slope + reach, len(centred))


def trained_reward(run: Run) -> tuple[str, Trend] | None:
    """Return (run name, trend of its training reward) of the run, or else of the nearest it was made from that logged one."""
    for one in with_parents(run):
        if TRAINED in one.data.metrics:
            found = trend(metric_curve(one.info.run_id, TRAINED))
            return (str(one.info.run_name), found) if found else None
    return None
