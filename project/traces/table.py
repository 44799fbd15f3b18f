"""What the trace verbs share: rows as traces, the groups of the split."""

from __future__ import annotations

import hashlib

from project.answers import normalise_answer
from project.records import Row, Step, Trace
from project.traces.tidy import tidy


def question_group(question: str) -> str:
    """Return what train and validation must not share: a digest of the normalised question."""
    return hashlib.sha256((normalise_answer(question) or question).encode(errors="surrogatepass")).hexdigest()[:16]


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
