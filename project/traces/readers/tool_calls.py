"""Read OpenAI conversations with `tool_calls` and tool messages; the calls of one turn are one search."""

from __future__ import annotations

import json
import re

from project.records import Row, Step
from project.traces.readers.observations import join_results, read_result

_TOOLS = ("search", "lookup", "visit")
_ARGUMENTS = ("query", "queries", "query_list", "q", "keyword", "url", "urls")
_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_REACT = re.compile(r"^(?:Thought|Action)(?: \d+)?: ", re.MULTILINE)
_CALLED = re.compile(r"<tool_(?:call|response)>")


def matches(row: Row) -> bool:
    """Return whether the row is a conversation with an assistant's message, and not one in ReAct's text."""
    messages = row.get("messages")
    if not isinstance(messages, list):
        return False
    said = [m for m in messages if isinstance(m, dict) and m.get("role") == "assistant"]
    if any(m.get("tool_calls") for m in said):
        return True
    return bool(said) and not any(_REACT.search(as_text(m.get("content"))) for m in said)


def read(row: Row) -> list[Step]:
    """Read the messages from the assistant's first on; system and question are not steps."""
    steps: list[Step] = []
    results: list[Step] = []
    started = False
    for message in [*row["messages"], {}]:
        role = message.get("role")
        if role == "tool":
            results.append(read_reply(as_text(message.get("content")), len(steps[-1].queries) if steps else 1))
            continue
        if results:
            steps.append(results[0] if len(results) == 1 else join_results(results))
            results = []
        if role == "assistant":
            started = True
            steps += _turn(message)
        elif role == "user" and started:
            steps.append(Step("other", as_text(message.get("content"))))
    return steps


def as_text(content: object) -> str:
    """Return a message's text, also of the form `[{"type": "text", "text": "…"}]`."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def _turn(message: Row) -> list[Step]:
    content, calls = as_text(message.get("content")), message.get("tool_calls") or []
    thoughts = [str(message.get("reasoning_content") or message.get("reasoning") or ""), *_THINK.findall(content)]
    said = _THINK.sub("", content).strip()
    if calls:
        thoughts.append(said)
    steps = [Step("reasoning", thought.strip()) for thought in thoughts if thought.strip()]
    if calls:
        return steps + _calls(calls)
    answer = _ANSWER.search(said)
    text = answer[1].strip() if answer else said
    malformed = not text or _CALLED.search(text)
    return [*steps, Step("other", content) if malformed else Step("answer", text)]


def _calls(calls: list[Row]) -> list[Step]:
    """Return the calls of one turn as one search; if one cannot be read, or the tools differ, each by itself."""
    steps = [read_call(call) for call in calls]
    if all(step.type == "search" for step in steps) and len({step.tool for step in steps}) == 1:
        return [Step("search", tool=steps[0].tool, queries=tuple(q for step in steps for q in step.queries))]
    return steps


def read_call(call: Row) -> Step:
    """Read one call; of a tool or with arguments that are not known, it stays as `other`."""
    function = call.get("function") or {}
    raw, name = function.get("arguments"), function.get("name")
    try:
        arguments = json.loads(raw) if isinstance(raw, str) else raw
    except json.JSONDecodeError:
        arguments = None
    if isinstance(arguments, dict) and name in _TOOLS:
        value = next((arguments[key] for key in _ARGUMENTS if key in arguments), None)
        values = value if isinstance(value, list) else [value]
        if queries := tuple(v.strip() for v in values if isinstance(v, str) and v.strip()):
            return Step("search", tool=name, queries=queries)
    return Step("other", json.dumps(function, ensure_ascii=False))


def read_reply(text: str, queries: int = 1) -> Step:
    """Read a tool message: `{"error"}`, a JSON list of documents (also under `results`), or text."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return read_result(text, queries)
    if isinstance(value, dict) and value.get("error"):
        return Step("search_result", error=str(value["error"]))
    found = value.get("results", value.get("documents")) if isinstance(value, dict) else value
    if isinstance(found, list) and all(isinstance(d, str | dict) for d in found):
        return Step.from_row({"type": "search_result", "documents": [_document(d) for d in found]})
    return read_result(text, queries)


def _document(value: str | Row) -> Row:
    if isinstance(value, str):
        return {"content": value}
    content = next((value[k] for k in ("content", "text", "contents", "snippet") if isinstance(value.get(k), str)), "")
    return {"content": content or json.dumps(value, ensure_ascii=False), "title": str(value.get("title") or "")}
