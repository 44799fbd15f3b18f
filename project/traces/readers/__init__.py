"""The formats of agent traces that Seeker reads. A reader looks at a row and turns it into steps.

| reader | rows |
|---|---|
| `trace` | Seeker's own: `steps` of DESIGN §3 |
| `normalised` | `steps` of thoughts, actions and observations |
| `predecessor` | `{"question", "trace": […, "CorrectAnswer"]}` |
| `react` | text, or messages, with `Thought:`, `Action: search[…]`, `Observation:` (ReAct, FireAct, Reflexion) |
| `tags` | text, or messages, with `<think> <search> <information> <answer>`, or R1-Searcher's |
| `tool_calls` | an OpenAI conversation with `tool_calls` and tool messages |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from project.errors import InputError
from project.named import class_named, is_path
from project.records import Row, Step, Trace
from project.traces.readers import normalised, react, rows, tagged, tool_calls

ReaderName = Literal["auto", "trace", "normalised", "predecessor", "react", "tags", "tool_calls"] | str
"""A name of `READERS`, auto, or the path of a `TraceReader` of your own: `module.Class`."""


@runtime_checkable
class TraceReader(Protocol):
    """A format of your own: a class without arguments, named by its path."""

    def matches(self, row: Row) -> bool:
        """Return whether a row is of this format."""

    def steps(self, row: Row) -> list[Step]:
        """Return a row's steps; `ValueError` names the field that is wrong."""


@dataclass(frozen=True, slots=True)
class Reader:
    """How one format is recognised and read. `steps` raises `ValueError` with the field that is wrong."""

    matches: Callable[[Row], bool]
    steps: Callable[[Row], list[Step]]


READERS: dict[str, Reader] = {
    "trace": Reader(rows.matches, rows.read),
    "normalised": Reader(normalised.matches, normalised.read),
    "predecessor": Reader(rows.matches_predecessor, rows.read_predecessor),
    "react": Reader(react.matches, react.read),
    "tags": Reader(lambda row: not _has_calls(row) and tagged.matches(row), tagged.read),
    "tool_calls": Reader(tool_calls.matches, tool_calls.read),
}
"""By name, in the order in which they are tried."""
VERDICTS: dict[str, dict[str, bool]] = {
    "reward": {"True": True, "False": False},
    "status": {"correct": True, "incorrect": False},
    "gpt4o_output": {"True": True, "False": False},
}
"""Where other systems say whether the answer was right: FireAct, Reflexion, R1-Searcher's judge."""


def reader_named(name: str) -> Reader | TraceReader:
    """Return a reader by its name, or of a class by its path.

    Raises:
        InputError: there is none.
    """
    if is_path(name):
        return class_named(name, TraceReader, "--reader")()  # type: ignore[type-abstract]
    if name not in READERS:
        known = ", ".join(("auto", *READERS))
        raise InputError(f"--reader is {name}, which is none of {known}; give one, or a class of your own as module.Class")
    return READERS[name]


def read_trace(row: Row, reader: ReaderName = "auto") -> tuple[str, Trace]:
    """Return the name of the reader that fits and the trace it read; `ValueError` says what is wrong with the row."""
    own = {reader: reader_named(reader)} if reader != "auto" else READERS
    name = next((n for n, r in own.items() if r.matches(row)), None)
    if name is None:
        fields = ", ".join(sorted(set(row) - {"id", "source"})) or "none"
        msg = f"format not known to reader '{reader}' (fields: {fields}); give one of {', '.join(READERS)}"
        raise ValueError(msg)
    answers, correct = _answers(row), _correct(row)
    if name == "predecessor" and (right := rows.predecessor_answer(row)):
        answers, correct = answers or (right,), True if correct is None else correct
    if name == "react" and (right := react.right_answer(row)):
        answers = answers or (right,)
    steps = tuple(own[name].steps(row))
    return name, Trace(str(row["id"]), _question(row), answers, steps, correct, str(row.get("source") or ""))


def _has_calls(row: Row) -> bool:
    messages = row.get("messages")
    return isinstance(messages, list) and any(isinstance(m, dict) and m.get("tool_calls") for m in messages)


def _question(row: Row) -> str:
    """Return the question: the field, or the first user message."""
    question = row.get("question")
    messages = row.get("messages")
    if question is None and isinstance(messages, list):
        users = (m.get("content") for m in messages if isinstance(m, dict) and m.get("role") == "user")
        question = next(users, None)
    if not isinstance(question, str) or not question.strip():
        msg = "field 'question' is missing"
        raise ValueError(msg)
    return question


def _correct(row: Row) -> bool | None:
    """Return whether the answer was right, where the row or its `extra_info` says so, or a judge whom the row quotes."""
    info = row.get("extra_info")
    value = row.get("correct", info.get("correct") if isinstance(info, dict) else None)
    if value is not None and not isinstance(value, bool):
        msg = f"field 'correct' is {type(value).__name__}, expected true, false or null"
        raise ValueError(msg)
    if value is not None:
        return value
    return next((said[str(row[name])] for name, said in VERDICTS.items() if str(row.get(name)) in said), None)


def _answers(row: Row) -> tuple[str, ...]:
    names = ("answers", "gold_answers", "golden_answers", "gold_answer", "ground_truth", "gt", "answer")
    value = next((row[name] for name in names if row.get(name) is not None), None)
    return tuple(str(v) for v in _flat(value) if v is not None)


def _flat(value: object) -> list[object]:
    return [one for part in value for one in _flat(part)] if isinstance(value, list) else [value]
