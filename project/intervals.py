"""Ends of 95 % intervals, of shares and of what was resampled."""

from __future__ import annotations

import math

Z = 1.959964
"""Two-sided 95 % point of the normal distribution."""


def widened(mean: float, low: float, high: float, groups: int) -> tuple[float, float]:
    """Return a percentile interval with the ends as far out as so few groups make them; NaN for one group.

    The bootstrap takes the spread of a sample for that of what it was drawn from and knows no degrees of freedom: with six
    groups its 95 % hold the truth 85 times in 100. So the ends go out by Student's t over the normal's and the root of
    G / (G - 1) (Hesterberg 2015).
    """
    from scipy.special import stdtrit

    if groups < 2:
        return math.nan, math.nan
    factor = float(stdtrit(groups - 1, 0.975)) / Z * math.sqrt(groups / (groups - 1))
    return mean - max(0.0, mean - float(low)) * factor, mean + max(0.0, float(high) - mean) * factor


def wilson(mean: float, n: int) -> tuple[float, float]:
    """Return Wilson's interval (1927) of a share of n."""
    centre, spread = mean + Z**2 / (2 * n), Z * math.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
    return max(0.0, (centre - spread) / (1 + Z**2 / n)), min(1.0, (centre + spread) / (1 + Z**2 / n))
