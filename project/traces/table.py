"""What the trace verbs share: reading trace files, the groups of the split, the table of features, counts for people."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from project.answers import normalise_answer
from project.errors import InputError
from project.files import read_records
from project.records import Row, Trace
from project.traces.tidy import tidy

if TYPE_CHECKING:
    import polars as pl


def question_group(question: str) -> str:
    """Return what train and validation must not share: a digest of the normalised question."""
    return hashlib.sha256((normalise_answer(question) or question).encode()).hexdigest()[:16]


def as_paths(input_file: list[Path] | Path) -> list[Path]:
    """Return the input files of a verb, one or several."""
    paths = input_file if isinstance(input_file, list) else [input_file]
    if not paths:
        raise InputError("--input_file names no file; give one or several")
    return paths


def refuse_same_file(inputs: Iterable[Path], output: Path) -> None:
    """Refuse an output that is an input."""
    if any(path.resolve() == output.resolve() for path in inputs):
        raise InputError(f"--output_file {output} is the input file; give another name")


def parse_trace(row: Row) -> Trace:
    """Read a trace row and make it uniform."""
    return uniform(Trace.from_row(row))


def uniform(trace: Trace) -> Trace:
    """Return the trace tidied; one in which no question or no step is left is a `ValueError`."""
    trace = tidy(trace)
    if not trace.question:
        msg = "field 'question' is empty"
        raise ValueError(msg)
    if not trace.steps:
        msg = "field 'steps' is empty"
        raise ValueError(msg)
    return trace


def read_traces(input_file: list[Path] | Path) -> list[Trace]:
    """Read the trace rows of one or several files; one wrong row stops, named by file, line and field."""
    return [trace for path in as_paths(input_file) for trace in read_records(path, parse_trace)]


def features(traces: Sequence[Trace]) -> pl.LazyFrame:
    """Return one row a trace: what the filters and the counts look at.

    Example row: `{"row": 0, "source": "webdancer", "correct": None, "answered": True, "searches": 2, "results": 2,
    "errors": 0, "malformed": 0, "chars": 5120, "group": "9f…", "digest": "03…"}`
    """
    import polars as pl

    schema = {
        "row": pl.Int64,
        "source": pl.String,
        "correct": pl.Boolean,
        "answered": pl.Boolean,
        "searches": pl.Int64,
        "results": pl.Int64,
        "errors": pl.Int64,
        "malformed": pl.Int64,
        "chars": pl.Int64,
        "group": pl.String,
        "digest": pl.String,
    }
    return pl.LazyFrame([_features(number, trace) for number, trace in enumerate(traces)], schema=schema)


def _features(number: int, trace: Trace) -> Row:
    texts = [" ".join((s.content, s.error, *s.queries, *(f"{d.title} {d.content}" for d in s.documents))) for s in trace.steps]
    key = "\n".join(f"{step.type} {normalise_answer(text)}" for step, text in zip(trace.steps, texts, strict=True))
    return {
        "row": number,
        "source": trace.source,
        "correct": trace.correct,
        "answered": trace.steps[-1].type == "answer",
        "searches": sum(step.type == "search" for step in trace.steps),
        "results": sum(step.type == "search_result" for step in trace.steps),
        "errors": sum(bool(step.error) for step in trace.steps),
        "malformed": sum(step.type == "other" for step in trace.steps),
        "chars": len(trace.question) + sum(map(len, texts)),
        "group": question_group(trace.question),
        "digest": hashlib.sha256(key.encode()).hexdigest()[:16],
    }


def print_counts(title: str, counts: Mapping[str, int]) -> None:
    """Print a table of counts, one line each."""
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "count", title=title, title_justify="left")
    table.columns[1].justify = "right"
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    Console().print(table)
