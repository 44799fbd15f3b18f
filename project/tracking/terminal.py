"""Runs side by side in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from project.tracking.curves import Curves

if TYPE_CHECKING:
    from project.tracking.paired import PairedResult

    Paired = Mapping[tuple[int, int], list[PairedResult]]

Rows = Mapping[str, list[str]]


def console(columns: int = 3) -> Console:
    """Return a console on standard output, wide enough for ids where that is no terminal.

    Args:
        columns: of a table with a run in each.
    """
    made = Console()
    return made if made.is_terminal else Console(width=max(160, 40 + 64 * columns))


def side_by_side(names: Sequence[str], sections: Mapping[str, Rows], paired: Paired) -> Table:
    """Return one table, a run a column and a section a kind; beside metrics the paired test of each run and the one before."""
    steps = [pair for pair in pairwise(range(len(names))) if pair in paired]
    said = "" if steps else "; no two neighbours kept scores for common questions, so none is tested in pairs"
    table = Table(title=f"runs side by side; {escape('[95 % interval]')}{said}", title_justify="left")
    for name in ("", *names, *(f"{names[later]} - {names[earlier]}, paired" for earlier, later in steps)):
        table.add_column(escape(name), overflow="fold")
    for title, rows in sections.items():
        table.add_row(f"[bold]{title}[/bold]" + ("" if rows else ": none"))
        for key, values in rows.items():
            changes = (_change(paired[step], key.removeprefix("test/")) for step in steps)
            table.add_row(*map(escape, (key, *values, *changes)))
        table.add_section()
    return table


def _change(results: Sequence[PairedResult], metric: str) -> str:
    found = next((result for result in results if result.metric == metric), None)
    return "" if found is None else change(found)


def change(found: PairedResult) -> str:
    """Return a paired difference as one reads it."""
    return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}] n={found.n} p={found.p:.4f}"


def curves_table(names: Sequence[str], curves: Sequence[Curves]) -> Table:
    """Return the curves as lines of blocks, a metric a section; blocks and cells mean the same for all runs of a metric."""
    table = Table("metric", "run", "curve", "first", "last", title="learning curves on shared axes", title_justify="left")
    for of in curves:
        (low, high), (first, last) = of.values, of.steps
        table.add_row(f"[bold]{escape(of.metric)}[/bold]", "", f"{low:.4g} to {high:.4g}, steps {first:,} to {last:,}")
        for name, line, curve in zip(names, of.lines(), of.of, strict=True):
            if curve:
                values = list(curve.values())
                table.add_row("", escape(name), line, f"{values[0]:.4g}", f"{values[-1]:.4g}")
        table.add_section()
    return table
