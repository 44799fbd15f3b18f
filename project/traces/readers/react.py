r"""Read ReAct's text (`Thought: … Action: search[…] Observation: …`, lines numbered or not), whole or as messages.

FireAct publishes it as `messages`, as a list `traj` and as one text `traj`; Reflexion as a numbered log `text`. A line of
another number than the step at hand belongs to the text before it. An action that is no `name[argument]` stays as `other`.
"""

from __future__ import annotations

import re

from project.dialects import RESERVED
from project.records import Row, Step
from project.traces.readers.observations import read_result
from project.traces.readers.tool_calls import as_text

TEXT_FIELDS = ("traj", "trajectory", "text", "response", "output", "completion", "generation", "trace")
_LINE = re.compile(r"^(?P<what>Thought|Action|Observation)(?: (?P<number>\d+))?:[ \t]*", re.MULTILINE)
_ACTION = re.compile(r"(?P<name>\w+)\[(?P<argument>.*)\]", re.DOTALL)
_PROMPT = re.compile(r"\A.*?^### Response:\s*", re.DOTALL | re.MULTILINE)
"""FireAct's instruction before the agent's first words (the Alpaca template)."""
_TOLD = re.compile(r"\nCorrect answer: (?P<answer>.*)\s*\Z")
"""Reflexion's environment tells the answer at the end, also of a trace that was halted: it is no step."""
_TOOLS = ("search", "lookup")


def matches(row: Row) -> bool:
    """Return whether the agent's words hold a line `Action: `, and do not begin with a tag of another format."""
    text = "\n".join(_texts(row)).lstrip()
    return any(line["what"] == "Action" for line in _LINE.finditer(text)) and not text.startswith(RESERVED)


def right_answer(row: Row) -> str:
    """Return what the environment says at a log's end that the answer would have been; empty where it does not."""
    told = _TOLD.search(_texts(row)[-1])
    return told["answer"].strip() if told else ""


def read(row: Row) -> list[Step]:
    """Read the lines in order."""
    return [step for text in _texts(row) for step in _steps(_TOLD.sub("", text))]


def _texts(row: Row) -> list[str]:
    """Return the log as one text, or one text a message from the agent's first on."""
    messages = next((row[name] for name in ("messages", "traj") if isinstance(row.get(name), list)), None)
    if messages is None:
        text = next((row[name] for name in TEXT_FIELDS if isinstance(row.get(name), str)), "")
        return [_PROMPT.sub("", text)]
    said = [message for message in messages if isinstance(message, dict)]
    first = next((i for i, message in enumerate(said) if message.get("role") == "assistant"), len(said))
    return [as_text(message.get("content")) for message in said[first:]]


def _steps(text: str) -> list[Step]:
    lines: list[re.Match[str]] = []
    for line in _LINE.finditer(text):
        if _is_next(lines[-1] if lines else None, line):
            lines.append(line)
    starts = [*(line.start() for line in lines), len(text)]
    before = text[: starts[0]].strip()
    steps = [Step("other", before)] if before and not before.startswith("Question: ") else []
    ends = starts[1:]
    return steps + [_step(line["what"], text[line.end() : end].strip()) for line, end in zip(lines, ends, strict=True)]


def _is_next(last: re.Match[str] | None, line: re.Match[str]) -> bool:
    """Return whether a line is of the step at hand, or begins the next; once lines are numbered, those without are text."""
    if last is None or last["number"] is None:
        return True
    number, before = int(line["number"] or 0), int(last["number"])
    begins = line["what"] == "Thought" or (line["what"] == "Action" and last["what"] == "Observation")
    if number > before + begins:
        msg = f"the log goes from step {before} to '{line[0].strip()}'; a step between them is missing"
        raise ValueError(msg)
    return number == before or number == before + 1


def _step(what: str, body: str) -> Step:
    if what == "Observation":
        return read_result(body)
    return Step("reasoning", body) if what == "Thought" else _action(body)


def _action(body: str) -> Step:
    call = _ACTION.fullmatch(body)
    if call and (argument := call["argument"].strip()) and _balanced(argument):
        name = call["name"].lower()
        if name in _TOOLS:
            return Step("search", tool=name, queries=(argument,))
        if name == "finish":
            return Step("answer", argument)
    return Step("other", body)


def _balanced(argument: str) -> bool:
    """Return whether no bracket closes that was not opened: `a] and search[b` is two calls."""
    depth = 0
    for char in argument:
        depth += (char == "[") - (char == "]")
        if depth < 0:
            return False
    return True
