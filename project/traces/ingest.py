"""`seeker data traces`: the logs of any agent -> the trace table (DESIGN §3).

Each row is read by the reader that fits it (`readers/`) and made uniform (`tidy.py`). A row that no reader can read is
counted by its reason and listed with file and line. The filters are named expressions over `table.features`, none by
default; what each removed is counted, a trace for the first that removes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from project.errors import InputError
from project.records import Step, Trace
from project.streams import ROW_ERRORS, Made, Placed, run
from project.traces.readers import ReaderName, read_trace
from project.traces.table import as_paths, features, print_counts, trace_digest, uniform

if TYPE_CHECKING:
    import polars as pl

FILTERS = {
    "correct": "correct",
    "answered": "answered",
    "searched": "searches > 0",
    "answer_found": "answer_found",
    "no_tool_error": "errors = 0",
    "no_malformed": "malformed = 0",
}
"""Filters by name, each an SQL expression that is true for a trace that stays."""
NO_DUPLICATES = "no_duplicates"
_EXAMPLE = Trace("", "a question", (), (Step("answer", "an answer"),))
"""What filters are tried on before anything is read."""


def traces(
    input_file: list[Path] | Path,
    output_file: Path,
    reader: ReaderName = "auto",
    filters: list[str] | None = None,
    strict: bool = False,
    force: bool = False,
) -> None:
    """Read raw agent traces of any known format into the trace table.

    Args:
        input_file: one or several files (.jsonl, .json or .parquet, also .gz) of agents' logs.
        output_file: the trace table to write (.jsonl, .jsonl.gz or .parquet).
        reader: the format of the rows; auto looks at each row.
        filters: which traces stay: correct, answered, searched, answer_found, no_tool_error, no_malformed, no_duplicates, or
            any SQL expression over source, correct, answered, answer_found, turns, searches, results, errors, malformed, words
            and chars, as in '[correct, no_duplicates, "turns <= 6", "words between 50 and 4000"]'.
        strict: stop at the first row that cannot be read, instead of listing it in OUTPUT.rejected.jsonl.
        force: replace an output that was made otherwise.
    """
    expressions = named_filters(filters or [])
    check_filters(expressions)
    once = NO_DUPLICATES in (filters or [])
    program = partial(ingest, reader, expressions, once)
    parameters = {"reader": reader, "filters": filters or []}
    counts = run(
        "seeker data traces", program, as_paths(input_file), {"traces": output_file}, parameters, strict=strict, force=force
    )
    print_counts("traces", counts)


def named_filters(names: Sequence[str]) -> dict[str, str]:
    """Return the SQL expression of each filter, by its name; one that has no name is its own."""
    return {name: FILTERS.get(name, name) for name in names if name != NO_DUPLICATES}


def check_filters(filters: Mapping[str, str]) -> None:
    """Refuse an expression that cannot be computed, or is neither true nor false."""
    import polars as pl
    from polars.exceptions import PolarsError

    table = features([_EXAMPLE, replace(_EXAMPLE, correct=True, steps=_EXAMPLE.steps * 3)])
    for name, expression in filters.items():
        try:
            found = table.select(pl.sql_expr(expression)).to_series()
            alone = [table[row].select(pl.sql_expr(expression)).to_series().to_list() for row in range(len(table))]
        except PolarsError as error:
            cause = str(error).partition("\n")[0]
            raise InputError(
                f"the filter '{name}' cannot be computed ({cause}); give one of {', '.join([*FILTERS, NO_DUPLICATES])}, or "
                f"an SQL expression over the columns {', '.join(table.columns)}"
            ) from error
        if found.dtype != pl.Boolean:
            raise InputError(
                f"the filter '{name}' is {found.dtype}, expected true or false; write a comparison, as in 'turns <= 6'"
            )
        if [[value] for value in found] != alone:
            raise InputError(f"the filter '{name}' does not look at each trace by itself; leave out avg, max and the like")


def ingest(
    reader: ReaderName, filters: Mapping[str, str], once: bool, rows: Sequence[Placed], made: Made
) -> Iterator[tuple[Placed, str]]:
    """Read rows into traces; a `Program` of `streams.py`."""
    found: list[Trace] = []
    for placed in rows:
        stem = placed.file.name.split(".")[0]
        own = {name: value for name, value in placed.row.items() if value not in (None, "")}
        named = {"id": f"{stem}-{placed.line}", "source": stem} | own
        try:
            name, trace = read_trace(named, reader)
            trace = uniform(trace)
        except ROW_ERRORS as error:
            yield placed, str(error)
            continue
        made.counts[f"read by '{name}'"] += 1
        found.append(trace)
    for trace, removed_by in zip(found, judged(found, filters), strict=True):
        if removed_by:
            made.counts[f"removed by {removed_by}"] += 1
        else:
            made.put("traces", trace.to_row(), once=trace_digest(trace) if once else None, unique=True)


def judged(found: Sequence[Trace], filters: Mapping[str, str]) -> list[str | None]:
    """Return the first filter that removes each trace, None for one that stays; a null removes."""
    import polars as pl

    if not filters:
        return [None] * len(found)
    removes = [_stays(expression).not_() for expression in filters.values()]
    reasons = [pl.when(remove).then(pl.lit(name)) for name, remove in zip(filters, removes, strict=True)]
    return features(found).select(pl.coalesce(*reasons, pl.lit(None, pl.String)).alias("removed_by"))["removed_by"].to_list()


def _stays(expression: str) -> pl.Expr:
    import polars as pl

    return pl.sql_expr(expression).fill_null(value=False)
