"""What the trace verbs share: rows as traces, the groups of the split, counts for people."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from project.answers import normalise_answer
from project.errors import InputError
from project.records import Row, Step, Trace
from project.traces.tidy import tidy


def question_group(question: str) -> str:
    """Return what train and validation must not share: a digest of the normalised question."""
    return hashlib.sha256((normalise_answer(question) or question).encode(errors="surrogatepass")).hexdigest()[:16]


def as_paths(input_file: list[Path] | Path) -> list[Path]:
    """Return the input files of a verb, one or several."""
    paths = input_file if isinstance(input_file, list) else [input_file]
    if not paths:
        raise InputError("--input_file names no file; give one or several")
    return paths


def parse_trace(row: Row) -> Trace:
    """Read a trace row and make it uniform."""
    return uniform(Trace.from_row(row))


def uniform(trace: Trace) -> Trace:
    """Return the trace tidied; one in which no question or no step is left is a `ValueError`."""
    trace = tidy(trace)
    if not trace.question:
        msg = "field 'question' is empty"
        raise ValueError(msg)
    if any("\ud800" <= char <= "\udfff" for text in (trace.id, trace.question, trace.source, *trace.answers) for char in text):
        msg = "the id, question, source or an answer holds half a surrogate pair, which is no text"
        raise ValueError(msg)
    if not trace.steps:
        msg = "field 'steps' is empty"
        raise ValueError(msg)
    return trace


def step_text(step: Step) -> str:
    """Return all that a step says."""
    return " ".join((step.content, step.error, *step.queries, *(f"{d.title} {d.content}" for d in step.documents)))


def trace_digest(trace: Trace) -> str:
    """Return what two traces with the same question and the same steps share, case and punctuation aside."""
    texts = [f"{step.type} {normalise_answer(step_text(step))}" for step in trace.steps]
    said = "\n".join((question_group(trace.question), *texts))
    return hashlib.sha256(said.encode(errors="surrogatepass")).hexdigest()


def print_counts(title: str, counts: Mapping[str, int] | None) -> None:
    """Print a table of counts, one line each; None says that nothing was to be done."""
    from rich.console import Console
    from rich.table import Table

    if counts is None:
        Console().print(f"{title}: the outputs are there, made of the same inputs in the same way; nothing to do")
        return
    table = Table("what", "count", title=title, title_justify="left")
    table.columns[1].justify = "right"
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    Console().print(table)
