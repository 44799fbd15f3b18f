"""Conversations with one call a turn, for templates and trainers that take no parallel ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

from project.records import Message


def split_calls(messages: Sequence[Message]) -> list[Message]:
    """Return messages with one call a turn: each with its result after it, the thought at the first.

    The last turn may still wait for its results.

    Raises:
        ValueError: a turn of several calls is followed by results that are not one for each.
    """
    split: list[Message] = []
    waiting = list(messages)
    while waiting:
        message = waiting.pop(0)
        if len(message.tool_calls) < 2:
            split.append(message)
            continue
        results = list(takewhile(lambda one: one.role == "tool", waiting))
        del waiting[: len(results)]
        split += _one_by_one(message, results) if results or waiting else _turns(message)
    return split


def _turns(message: Message) -> list[Message]:
    first, *others = (replace(message, tool_calls=(call,)) for call in message.tool_calls)
    return [first, *(replace(turn, content="") for turn in others)]


def _one_by_one(message: Message, results: Sequence[Message]) -> list[Message]:
    ids = [call.id for call in message.tool_calls]
    found = {result.tool_call_id: result for result in results}
    if not any(ids) and len(results) == len(ids):
        found = dict(zip(map(str, range(len(ids))), results, strict=True))
        ids = list(found)
    if len(results) != len(ids) or found.keys() != set(ids):
        msg = f"a turn of {len(ids)} calls has {len(results)} results, not one for each call's id"
        raise ValueError(msg)
    return [one for turn, ident in zip(_turns(message), ids, strict=True) for one in (turn, found[ident])]
