"""Read Seeker's own trace rows, and the predecessors' (`trace` for the list, one `query`, `CorrectAnswer` at the end)."""

from __future__ import annotations

from typing import get_args

from project.records import Row, Step, StepType
from project.traces.readers.observations import read_result

_TYPES = frozenset(get_args(StepType))
_OLD_NAMES = {"CorrectAnswer": "answer", "thought": "reasoning", "think": "reasoning", "information": "search_result"}


def matches(row: Row) -> bool:
    """Return whether the row holds DESIGN's `steps`."""
    steps = row.get("steps")
    return isinstance(steps, list) and all(isinstance(s, dict) and s.get("type") in _TYPES for s in steps)


def read(row: Row) -> list[Step]:
    """Read DESIGN's steps."""
    return [Step.from_row(step) for step in row["steps"]]


def matches_predecessor(row: Row) -> bool:
    """Return whether the row calls its list of steps `trace`."""
    return isinstance(row.get("trace"), list)


def read_predecessor(row: Row) -> list[Step]:
    """Read the predecessors' steps; one of an unknown type stays as `other`."""
    return [_old_step(step) for step in row["trace"]]


def predecessor_answer(row: Row) -> str:
    """Return the text of the step called `CorrectAnswer`, which says by its name that it is right; empty where none is."""
    return next((_content(step) for step in row["trace"] if isinstance(step, dict) and _name(step) == "CorrectAnswer"), "")


def _name(step: Row) -> str:
    """Return a step's type, also of the form `{"CorrectAnswer": "…"}`."""
    if "type" in step:
        return str(step["type"])
    return str(next(iter(step))) if len(step) == 1 else ""


def _content(step: Row) -> str:
    names = ("content", "text", "answer", "value", _name(step))
    return next((step[name] for name in names if isinstance(step.get(name), str)), "")


def _old_step(step: object) -> Step:
    if not isinstance(step, dict):
        return Step("other", str(step))
    kind = _OLD_NAMES.get(_name(step), _name(step))
    if kind == "search":
        queries = step.get("queries", step.get("query", step.get("content", step.get("search"))))
        found = tuple(q for q in (queries if isinstance(queries, list) else [queries]) if isinstance(q, str) and q.strip())
        return Step("search", tool=str(step.get("tool") or "search"), queries=found) if found else Step("other", str(step))
    if kind == "search_result":
        return _old_result(step)
    if kind in ("reasoning", "answer", "other") and _content(step).strip():
        return Step.from_row({"type": kind, "content": _content(step)})
    return Step("other", str(step))


def _old_result(step: Row) -> Step:
    """Read a result given as documents, as strings, or as one text."""
    documents = step.get("documents", step.get("results"))
    if not isinstance(documents, list):
        return read_result(_content(step))
    rows = [{"content": d} if isinstance(d, str) else d | {"content": _content(d)} for d in documents]
    return Step.from_row({"type": "search_result", "documents": rows, "error": step.get("error")})
