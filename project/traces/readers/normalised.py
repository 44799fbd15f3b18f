"""Read rows whose steps are thoughts, actions and observations (ReAct), as `../shared/data/traces` normalises 13 sources."""

from __future__ import annotations

import re

from project.records import Row, Step
from project.traces.readers.observations import read_result

_TAIL = re.compile(r"</think>\s*<answer>.*</answer>\s*$", re.DOTALL)
_TOOLS = ("search", "lookup", "visit")


def matches(row: Row) -> bool:
    """Return whether the row's steps are thoughts, actions and observations."""
    steps = row.get("steps")
    return isinstance(steps, list) and bool(steps) and all(_type(s) in ("thought", "action", "observation") for s in steps)


def read(row: Row) -> list[Step]:
    """Read the steps; an action that no tool understands stays as `other` with its raw text."""
    steps: list[Step] = []
    for step in row["steps"]:
        kind = _type(step)
        if kind == "action":
            steps.append(_action(step))
        elif kind == "thought":
            steps.append(Step("reasoning", _thought(_text(step))))
        else:
            queries = len(steps[-1].queries) if steps else 1
            steps.append(read_result(_text(step), max(queries, 1)))
    return steps


def _type(step: object) -> object:
    return step.get("type") if isinstance(step, dict) else None


def _text(step: Row) -> str:
    if not isinstance(step.get("text"), str):
        msg = f"field 'text' of a step of type '{step['type']}' is missing"
        raise ValueError(msg)
    return str(step["text"])


def _thought(text: str) -> str:
    """Return a thought without the answer block that the next step repeats."""
    return _TAIL.sub("", text).strip()


def _action(step: Row) -> Step:
    name, argument = step.get("name"), step.get("argument")
    if step.get("malformed") or not isinstance(name, str):
        return Step("other", str(argument))
    queries = _queries(argument)
    if name in _TOOLS and queries:
        return Step("search", tool=name, queries=queries)
    if name == "finish" and isinstance(argument, str) and argument.strip():
        return Step("answer", argument.strip())
    return Step("other", f"{name.strip()}[{argument}]")


def _queries(argument: object) -> tuple[str, ...]:
    """Return the queries of `"text"`, `{"query": …}` or `{"url": […], "goal": …}`."""
    if isinstance(argument, dict):
        argument = argument.get("query", argument.get("url"))
    values = argument if isinstance(argument, list) else [argument]
    return tuple(value.strip() for value in values if isinstance(value, str) and value.strip())
