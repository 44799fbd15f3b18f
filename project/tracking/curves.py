"""Learning curves of runs on shared axes: which metrics, as lines of blocks for a terminal, and as SVG for a page.

Both axes of a metric are those of all runs together: the first to the last step, the least to the greatest value.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from io import StringIO
from typing import TYPE_CHECKING, Any

from project.tracking.store import metric_curves, run_metrics

if TYPE_CHECKING:
    from mlflow.entities import Run

DRAWN = ("train/loss", "val*/loss", "train/reward", "val*/em", "val*/reward", "ppo/kl", "ppo/entropy", "loss", "*_loss")
"""Metrics that are drawn unless others are asked for, the first of them first: what is learnt, and what may go wrong in PPO."""
INFINITE = sys.float_info.max
"""As MLflow keeps infinity."""
MOST_DRAWN = 6
BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 40
"""Cells of a line of blocks, at most."""
MOST_POINTS = 240
"""Points of a drawn curve: of a longer one every so many-th value is drawn, and the last."""
INK = "#010203"
"""A colour that nothing else has, for what is to be of the page's own."""
COLOURS = ("#4c8bf5", "#e8710a", "#1e9e55", "#d93025", "#9b59d0", "#12a4a4", "#c2a100", "#e255a1", "#7a7a7a", "#8d6e4a")


@dataclass(frozen=True)
class Curves:
    """A metric's curves."""

    metric: str
    of: list[dict[int, float]]
    """{step: value} of each run, empty where it has none."""

    @cached_property
    def steps(self) -> tuple[int, int]:
        """The first and the last step of all runs."""
        found = [step for curve in self.of for step in curve]
        return min(found), max(found)

    @cached_property
    def values(self) -> tuple[float, float]:
        """The least and the greatest value of all runs."""
        found = [value for curve in self.of for value in curve.values()]
        return min(found), max(found)

    def lines(self) -> list[str]:
        """Return each run's curve as a line of blocks, on shared axes."""
        width = min(WIDTH, max(map(len, self.of)))
        return [sparkline(curve, self.steps, self.values, width) for curve in self.of]


class Histories:
    """The histories of runs' metrics, each read once."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.ids = [run.info.run_id for run in runs]
        self.metrics = [run_metrics(run) for run in runs]
        self._read: dict[str, list[dict[int, float]]] = {}

    def of(self, metric: str) -> list[dict[int, float]]:
        """Return each run's {step: value} of a metric, empty where it has none; without those that are not finite."""
        if metric not in self._read:
            having = [ident for ident, held in zip(self.ids, self.metrics, strict=True) if metric in held]
            found = metric_curves(having, metric)
            self._read[metric] = [
                {step: value for step, value in found.get(ident, {}).items() if abs(value) < INFINITE} for ident in self.ids
            ]
        return self._read[metric]


def read_curves(histories: Histories, wanted: Sequence[str] | None) -> list[Curves]:
    """Return the curves of the wanted metrics that a run holds, by default of some of `DRAWN` that two runs share.

    A metric of one step has no curve.

    Args:
        histories: of the runs.
        wanted: names of metrics or patterns of them (`val/*`).
    """
    found: list[Curves] = []
    for metric in _chosen(histories.metrics, wanted):
        of = histories.of(metric)
        if max(map(len, of)) > 1:
            found.append(Curves(metric, of))
        if wanted is None and len(found) == MOST_DRAWN:
            break
    return found


def _chosen(held: Sequence[Mapping[str, float]], wanted: Sequence[str] | None) -> list[str]:
    names = sorted({name for metrics in held for name in metrics})
    if wanted is None:
        names = [name for name in names if sum(name in metrics for metrics in held) > 1]
    found = [name for pattern in (DRAWN if wanted is None else wanted) for name in names if fnmatchcase(name, pattern)]
    return list(dict.fromkeys(found))


def sparkline(curve: Mapping[int, float], steps: tuple[int, int], values: tuple[float, float], width: int) -> str:
    """Return a curve as a line of blocks: each cell is the mean of its steps, and blank where it has none.

    >>> sparkline({0: 0.0, 1: 1.0, 3: 3.0}, (0, 3), (0.0, 4.0), 4)
    '▁▃ ▇'

    Args:
        curve: {step: value}.
        steps: the first and the last that the line spans.
        values: what the lowest and the highest block stand for.
        width: cells.
    """
    cells: list[list[float]] = [[] for _ in range(width)]
    first, last = steps
    for step, value in curve.items():
        cells[(step - first) * width // (last - first + 1)].append(value)
    return "".join(_block(sum(cell) / len(cell), values) if cell else " " for cell in cells)


def _block(value: float, values: tuple[float, float]) -> str:
    low, high = values
    share = (value - low) / (high - low) if high > low else 0.5
    return BLOCKS[min(len(BLOCKS) - 1, int(share * len(BLOCKS)))]


def thinned(curve: Mapping[int, float]) -> tuple[list[int], list[float]]:
    """Return the steps and values of a curve that are drawn."""
    steps = list(curve)
    every = -(-len(steps) // MOST_POINTS)
    kept = steps[::every] + ([steps[-1]] if (len(steps) - 1) % every else [])
    return kept, [curve[step] for step in kept]


def svg(curves: Curves) -> str:
    """Return curves as an SVG element for a page, a colour a run, with the page's own colour for the axes."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": curves.metric}):
        figure = Figure(figsize=(6.4, 3.0), facecolor="none")
        axes = figure.add_axes((0.12, 0.16, 0.86, 0.78), facecolor="none")
        for number, curve in enumerate(curves.of):
            if curve:
                shape: dict[str, Any] = {"marker": "o", "markersize": 3} if len(curve) < 20 else {}
                axes.plot(*thinned(curve), color=colour(number), linestyle=dash(number), linewidth=1.4, **shape)
        axes.set_xlabel("step", color=INK)
        axes.ticklabel_format(scilimits=(-3, 5))
        axes.tick_params(colors=INK)
        axes.grid(color=INK, alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        text = StringIO()
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _element(text.getvalue())


def colour(number: int) -> str:
    """Return the colour of a run by its place."""
    return COLOURS[number % len(COLOURS)]


def dash(number: int) -> str:
    """Return the line style of a run by its place, which tells runs of one colour apart."""
    return ("-", "--", ":", "-.")[number // len(COLOURS) % 4]


def _element(document: str) -> str:
    """Return an SVG document's element as it stands in HTML: without prologue, comments and the names of XML's namespaces."""
    element = re.sub(r"<!--.*?-->", "", document[document.index("<svg") :], flags=re.DOTALL)
    element = re.sub(r' xmlns(:\w+)?="[^"]*"', "", element, count=2).replace("xlink:href", "href")
    return element.replace(INK, "currentColor")
