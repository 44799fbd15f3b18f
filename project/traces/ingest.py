"""`seeker data traces`: the logs of any agent -> the trace table (DESIGN §3).

Each row is read by the reader that fits it (`readers/`) and made uniform (`tidy.py`). A row that no reader can read is
counted by its reason and written to `OUTPUT.rejected.jsonl` with file and line; with `strict` it stops the run. The
filters are polars expressions over `table.features`, off by default; what each removed is printed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from project.errors import InputError
from project.files import read_rows, write_records, write_rows
from project.records import Row, Trace
from project.traces.readers import ReaderName, read_trace
from project.traces.table import as_paths, features, print_counts, refuse_same_file, uniform

if TYPE_CHECKING:
    import polars as pl


@dataclass
class Ingested:
    """What was read from the input files."""

    traces: list[Trace] = field(default_factory=list)
    rejected: list[Row] = field(default_factory=list)
    """`{"file", "line", "reason", "row"}` of each row that could not be read."""
    readers: Counter[str] = field(default_factory=Counter)


def traces(
    input_file: list[Path] | Path,
    output_file: Path,
    reader: ReaderName = "auto",
    correct_only: bool = False,
    answered: bool = False,
    no_tool_error: bool = False,
    no_malformed: bool = False,
    no_duplicates: bool = False,
    min_searches: int = 0,
    max_chars: int = 0,
    strict: bool = False,
) -> None:
    """Read raw agent traces of any known format into the trace table.

    Args:
        input_file: one or several files (.jsonl, .json or .parquet, also .gz) of agents' logs.
        output_file: the trace table to write (.jsonl, .jsonl.gz or .parquet).
        reader: the format of the rows; auto looks at each row.
        correct_only: keep traces whose answer is known to be right.
        answered: keep traces that end with an answer.
        no_tool_error: keep traces in which no tool failed.
        no_malformed: keep traces in which every step could be read.
        no_duplicates: keep one of the traces with the same question and the same steps.
        min_searches: keep traces with at least so many searches.
        max_chars: keep traces with at most so many characters of text; 0 is no limit.
        strict: stop at the first row that cannot be read, instead of listing it.
    """
    paths = as_paths(input_file)
    refuse_same_file(paths, output_file)
    read = ingest(paths, reader, strict=strict)
    filters = named_filters(
        correct_only=correct_only,
        answered=answered,
        no_tool_error=no_tool_error,
        no_malformed=no_malformed,
        min_searches=min_searches,
        max_chars=max_chars,
    )
    kept, removed = apply_filters(read.traces, filters, no_duplicates=no_duplicates)
    if not kept:
        raise InputError(f"no trace is left of {len(read.traces)} after {', '.join(removed)}; relax the filters")
    write_records(output_file, kept)
    _write_rejected(output_file, read.rejected)
    _report(read, removed, kept)


def ingest(paths: Sequence[Path], reader: ReaderName = "auto", *, strict: bool = False) -> Ingested:
    """Read all rows. Fails where no row of a file can be read, with the first one's reason."""
    found = Ingested()
    seen: Counter[str] = Counter()
    for path in paths:
        before = len(found.traces)
        for line, trace, reason in _read(path, reader, found):
            if trace is None:
                if strict:
                    raise InputError(f"{path}, line {line}: {reason}")
                continue
            seen[trace.id] += 1
            found.traces.append(trace if seen[trace.id] == 1 else replace(trace, id=f"{trace.id}~{seen[trace.id]}"))
        if len(found.traces) == before:
            first = next(row for row in found.rejected if row["file"] == str(path))
            raise InputError(f"{path}, line {first['line']}: {first['reason']} (no row of the file could be read)")
    return found


def _read(path: Path, reader: ReaderName, found: Ingested) -> Iterator[tuple[int, Trace | None, str]]:
    """Yield (line, trace, "") or (line, None, reason)."""
    stem = path.name.split(".")[0]
    for line, row in read_rows(path):
        named = row | {"id": row.get("id") or f"{stem}-{line}", "source": row.get("source") or stem}
        try:
            name, trace = read_trace(named, reader)
            trace = uniform(trace)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            found.rejected.append({"file": str(path), "line": line, "reason": str(error), "row": row})
            yield line, None, str(error)
        else:
            found.readers[name] += 1
            yield line, trace, ""


def named_filters(
    *, correct_only: bool, answered: bool, no_tool_error: bool, no_malformed: bool, min_searches: int, max_chars: int
) -> dict[str, pl.Expr]:
    """Return the filters that are on, by name: each is true for a row of `features` that stays."""
    import polars as pl

    filters = {
        "correct_only": (correct_only, pl.col("correct").fill_null(value=False)),
        "answered": (answered, pl.col("answered")),
        "no_tool_error": (no_tool_error, pl.col("errors") == 0),
        "no_malformed": (no_malformed, pl.col("malformed") == 0),
        "min_searches": (min_searches > 0, pl.col("searches") >= min_searches),
        "max_chars": (max_chars > 0, pl.col("chars") <= max_chars),
    }
    return {name: expression for name, (on, expression) in filters.items() if on}


def apply_filters(
    found: Sequence[Trace], filters: dict[str, pl.Expr], *, no_duplicates: bool = False
) -> tuple[list[Trace], dict[str, int]]:
    """Return the traces that stay and how many rows each filter removed, a row counted for the first that removes it."""
    import polars as pl

    reasons: list[pl.Expr] = [pl.when(~keep).then(pl.lit(name)).otherwise(None) for name, keep in filters.items()]
    first = pl.coalesce(*reasons, pl.lit(None, pl.String))
    table = features(found).with_columns(removed_by=first)
    if no_duplicates:
        repeated = ~pl.struct("group", "digest", pl.col("removed_by").is_null()).is_first_distinct()
        mark = pl.when(repeated & pl.col("removed_by").is_null()).then(pl.lit("no_duplicates"))
        table = table.with_columns(removed_by=pl.coalesce(mark, "removed_by"))
    judged = table.select("row", "removed_by").collect()
    counts = dict(judged.group_by("removed_by").len().iter_rows())
    names = [*filters, *(["no_duplicates"] if no_duplicates else [])]
    kept = judged.filter(pl.col("removed_by").is_null())["row"]
    return [found[row] for row in kept], {name: counts.get(name, 0) for name in names}


def rejected_path(output_file: Path) -> Path:
    """Return where the rows that could not be read are listed."""
    name = output_file.name.removesuffix(".gz").rsplit(".", 1)[0]
    return output_file.with_name(f"{name}.rejected.jsonl")


def _write_rejected(output_file: Path, rejected: list[Row]) -> None:
    """List the rows that could not be read, and remove the list of an earlier run."""
    path = rejected_path(output_file)
    if rejected:
        write_rows(path, rejected)
    else:
        path.unlink(missing_ok=True)


def _report(read: Ingested, removed: dict[str, int], kept: Sequence[Trace]) -> None:
    import polars as pl

    counts = {f"read by '{name}'": count for name, count in read.readers.items()}
    counts |= {f"could not be read: {reason}": n for reason, n in Counter(r["reason"] for r in read.rejected).most_common()}
    counts |= {f"removed by {name}": count for name, count in removed.items()} | {"traces written": len(kept)}
    sums = pl.col("searches", "results", "errors", "malformed").sum()
    right = pl.col("correct").sum().alias("with a right answer")
    table = features(kept).select(right, pl.col("answered").sum().alias("that end with an answer"), sums).collect()
    print_counts("traces", counts | dict(zip(table.columns, table.row(0), strict=True)))
