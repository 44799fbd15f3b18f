r"""Read tag text (`<think> <search> <information> <answer>`), whole or as the messages of a conversation.

Calls in Hermes' text (`<tool_call>` JSON, `<tool_response>`) are read too: a rollout keeps what the model wrote as text.

A block that is never closed is malformed and stays as `other`; prose outside all tags is the agent's reasoning.
"""

from __future__ import annotations

import json
import re

from project.dialects import DECISION_TOKENS, RESERVED
from project.records import Row, Step
from project.traces.readers.observations import join_results
from project.traces.readers.tool_calls import read_call, read_reply

TEXT_FIELDS = ("text", "response", "output", "completion", "generation", "trace", "gen_text_store")
_SAME_TAGS = {
    "<|begin_of_query|>": "<search>",
    "<|end_of_query|>": "</search>",
    "<|begin_of_documents|>": "<information>",
    "<|end_of_documents|>": "</information>",
}
"""R1-Searcher's."""
_TAG = re.compile(r"<(?:think|search|information|answer|tool_call)>")
_BLOCK = re.compile(
    r"<(?P<tag>think|search|information|answer|summary|tool_call|tool_response)>(?P<body>.*?)</(?P=tag)>", re.DOTALL
)
_DECISION = re.compile("|".join(map(re.escape, DECISION_TOKENS)))
_REFUSED = re.compile(r"My previous action is invalid\..*?(?:Let me try again\.|$)", re.DOTALL)
"""What Search-R1's environment says to a turn it could not read; it holds the tags, and is not the agent's."""


def matches(row: Row) -> bool:
    """Return whether some text of the row, or some message of an agent that calls no tools, holds a tag."""
    return bool(_TAG.search(_text(row)))


def read(row: Row) -> list[Step]:
    """Read the blocks in order; searches of one turn are one call, and so are the results of one call."""
    steps: list[Step] = []
    for step in _blocks(_text(row)):
        last = steps[-1] if steps else None
        if last and last.type == step.type == "search" and last.tool == step.tool:
            steps[-1] = Step("search", tool=step.tool, queries=last.queries + step.queries)
        else:
            steps.append(step)
    return _join(steps)


def _text(row: Row) -> str:
    messages = row.get("messages")
    if isinstance(messages, list):
        said = [m for m in messages if isinstance(m, dict) and isinstance(m.get("content"), str)]
        first = next((i for i, m in enumerate(said) if m.get("role") == "assistant"), len(said))
        return "\n".join(_said(m) for m in said[first:])
    text = next((row[name] for name in TEXT_FIELDS if isinstance(row.get(name), str)), "")
    for theirs, ours in _SAME_TAGS.items():
        text = text.replace(theirs, ours)
    return text if "<think>" in text else text.replace("</think>", "")  # one that the prompt opened


def _said(message: Row) -> str:
    content = str(message["content"])
    return f"<tool_response>{content}</tool_response>" if message.get("role") == "tool" else content


def _blocks(text: str) -> list[Step]:
    steps: list[Step] = []
    text, position = _REFUSED.sub("<information>Invalid Action</information>", text), 0
    for match in _BLOCK.finditer(text):
        steps += _outside(text[position : match.start()])
        steps += _inside(match["tag"], match["body"].strip(), match[0], len(steps[-1].queries) if steps else 1)
        position = match.end()
    return steps + _outside(text[position:])


def _outside(text: str) -> list[Step]:
    text = _DECISION.sub("", text).strip()
    if not text:
        return []
    return [Step("other" if any(tag in text for tag in RESERVED) else "reasoning", text)]


def _inside(tag: str, body: str, raw: str, queries: int) -> list[Step]:
    if tag in ("information", "tool_response"):
        return [read_reply(body, queries)]
    if tag == "think":
        return [Step("reasoning", body)] if body else []
    if tag == "tool_call":
        return [_called(body, raw)]
    if tag == "search" and body:
        return [Step("search", tool="search", queries=(body,))]
    return [Step("answer", body)] if tag == "answer" and body else [Step("other", raw)]


def _called(body: str, raw: str) -> Step:
    try:
        function = json.loads(body)
    except json.JSONDecodeError:
        function = None
    step = read_call({"function": function}) if isinstance(function, dict) else None
    return step if step and step.type == "search" else Step("other", raw)


def _join(steps: list[Step]) -> list[Step]:
    """Join consecutive results: one `<information>` a query is the result of one call."""
    joined: list[Step] = []
    group: list[Step] = []
    for step in [*steps, None]:
        if step is not None and step.type == "search_result":
            group.append(step)
            continue
        if group:
            joined.append(group[0] if len(group) == 1 else join_results(group))
            group = []
        if step is not None:
            joined.append(step)
    return joined
