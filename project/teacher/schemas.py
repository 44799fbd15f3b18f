"""The forms in which models are given the search tool, and what they say in each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from project.dialects import SEARCH_TOOL
from project.records import Row, ToolCall

SchemaName = Literal["query", "query_list", "queries"]


def search_tool(name: SchemaName) -> Row:
    """Return the tool's schema.

    `query` is one text; `query_list` several under that name (Search-R1's server); `queries` several under the name `query`
    (Tongyi DeepResearch).
    """
    if name == "query":
        return SEARCH_TOOL
    field = _field(name)
    texts = {"type": "array", "items": {"type": "string"}, "description": "Search queries, each of a few words."}
    parameters = {"type": "object", "properties": {field: texts}, "required": [field]}
    return SEARCH_TOOL | {"function": SEARCH_TOOL["function"] | {"parameters": parameters}}


def _field(name: SchemaName) -> str:
    return "query_list" if name == "query_list" else "query"


def read_queries(call: ToolCall, name: SchemaName) -> tuple[str, ...]:
    """Return the queries of a call; none where it is not one of the search tool, or holds none."""
    value = call.arguments.get(_field(name)) if call.name == "search" else None
    several = name != "query"
    texts: Sequence[object] = value if several and isinstance(value, list) else [value] if isinstance(value, str) else []
    if not all(isinstance(text, str) for text in texts):
        return ()
    return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())


def read_call(row: Row, ident: str) -> ToolCall | None:
    """Return a call as OpenAI or Hermes writes it, under another id; None where it is none."""
    function = row.get("function", row)
    try:
        arguments = function["arguments"]
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
        return ToolCall(str(function["name"]), dict(parsed), ident)
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
