"""A report's plots as SVG that stands in the page: its colours are the page's, light or dark, its bytes the same each time."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from project.evaluation.metrics import Estimate, Numbers, is_share
from project.evaluation.report_tables import Breakdown, Calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID = "#010203", "#040506"
SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
"""Stand for the colours of the page: `currentColor`, `var(--line)` and `var(--series-1)` to 6."""
HISTOGRAM_BINS = 24
MARKERS = "osD^vP"
"""Beside the colours, for eyes and printers that do not tell those apart."""


def colour(number: int) -> str:
    """Return the colour that stands for one of the results."""
    return SERIES[number % len(SERIES)]


def _drawn(draw: Callable[[Figure], None], title: str, size: tuple[float, float]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {  # a stub of matplotlib lists every key
        "svg.hashsalt": title, "svg.fonttype": "none", "font.size": 10, "text.color": INK, "axes.edgecolor": GRID,
        "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "grid.color": GRID, "axes.grid": True,
        "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
        "grid.linewidth": 0.6, "xtick.bottom": False, "ytick.left": False,
    }  # fmt: skip
    stream = io.StringIO()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(stream, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _for_page(stream.getvalue(), title)


def _for_page(svg: str, title: str) -> str:
    """Return an SVG without what only a file needs: declarations, name spaces, metadata, a size, ids that nothing uses."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', rf'\1 role="img" aria-label="{title}"', svg, count=1)
    used = set(re.findall(r'#([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)
    names = {INK: "currentColor", GRID: "var(--line)"} | {c: f"var(--series-{i})" for i, c in enumerate(SERIES, 1)}
    for drawn, named in names.items():
        svg = svg.replace(drawn, named)
    return svg


def reliability(of: Sequence[Calibration | None]) -> str:
    """Draw the observed share over the forecast with intervals, and below how many forecasts each bin holds."""

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], linestyle="--", color=INK, linewidth=0.8)
        for number, one in enumerate(of):
            if one is not None:
                bins = [each for each in one.bins if each.observed.n]
                _points(above, [each.forecast for each in bins], [each.observed for each in bins], number, joined=True)
                width = 0.08 / len(of)
                lefts = [each.low + 0.01 + number * width for each in bins]
                below.bar(lefts, [each.observed.n for each in bins], width, align="edge", color=colour(number))
        above.set(ylim=(-0.03, 1.03), ylabel="share that needed a search")
        below.set(xlim=(-0.03, 1.03), xlabel="probability of a search at the first decision", ylabel="questions")

    return _drawn(draw, "calibration of the decision to search", (5.2, 4.8))


def histogram(metric: str, values: Sequence[Numbers]) -> str:
    """Draw how the values of a metric are distributed in each of the results, in common bins."""
    label = metric.replace("_", " ")

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        known = [of[~np.isnan(of)] for of in values]
        edges = np.histogram_bin_edges(np.concatenate(known), HISTOGRAM_BINS)
        for number, of in enumerate(known):
            counts, _ = np.histogram(of, edges)
            axes.stairs(counts, edges, fill=True, alpha=0.25, color=colour(number))
            axes.stairs(counts, edges, color=colour(number), linewidth=1.5)
        axes.set(xlabel=label, ylabel="episodes")

    return _drawn(draw, f"distribution of {label}", (5.2, 2.9))


def by_category(breakdown: Breakdown, metric: str) -> str:
    """Draw a metric of a breakdown's categories with intervals."""
    place = breakdown.metrics.index(metric)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        sides = len(breakdown.rows[0][1])
        for number in range(sides):
            known = [(x, parts[number].estimates[place]) for x, (_, parts) in enumerate(breakdown.rows)]
            known = [(x, one) for x, one in known if one.n]
            shift = (number - (sides - 1) / 2) * 0.14
            _points(axes, [x + shift for x, _ in known], [one for _, one in known], number)
        axes.set_xticks(
            range(len(breakdown.rows)), [re.sub("^(over .*) to ", r"\1\nto ", label) for label, _ in breakdown.rows]
        )
        axes.set(xlim=(-0.5, len(breakdown.rows) - 0.5), xlabel=breakdown.title, ylabel=metric)
        if is_share(metric):
            axes.set(ylim=(-0.03, 1.03))

    return _drawn(draw, f"{metric} by {breakdown.title}", (5.2, 2.9))


def _points(axes: Axes, at: Sequence[float], found: Sequence[Estimate], number: int, *, joined: bool = False) -> None:
    spread = [[one.mean - one.low for one in found], [one.high - one.mean for one in found]]
    style = "-" if joined else "none"
    axes.errorbar(
        at, [one.mean for one in found], np.clip(spread, 0, None), color=colour(number), marker=MARKERS[number % len(MARKERS)],
        linestyle=style, linewidth=1.2, markersize=5, elinewidth=1.2, capsize=2.5,
    )  # fmt: skip
