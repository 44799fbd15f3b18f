"""What two sides of a split must not share (DESIGN §8.8), as strings that are equal where something is shared."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

from project.answers import normalise_answer
from project.errors import InputError
from project.records import Conversation, Question, Row


def marks(record: Question | Conversation) -> set[str]:
    """Return a record's groups (its `group`, parted at `|`, or its id), trace and opening, and its question with each answer.

    The opening is what a conversation holds before the agent's first word, the system prompt aside: the question, with the
    passage or the summary that it comes with. Texts are compared by their words, case and punctuation aside.
    """
    found = {f"the group '{group}'" for group in record.group.split("|")} if record.group else {f"the id '{record.id}'"}
    asked = normalise_answer(record.question)
    if asked:
        found |= {f"the answer to '{asked}', '{normalise_answer(answer)}'" for answer in record.answers}
        if not record.answers and not record.extra_info.get("passage"):
            found.add(f"the answer to '{asked}', which has none")
    if isinstance(record, Conversation):
        if trace := record.extra_info.get("trace_id"):
            found.add(f"the trace '{trace}'")
        found.add(f"the opening {_opening(record)}")
    return found


def record_marks(row: Row) -> set[str]:
    """Return the marks of a row, a conversation's or a question's; one that is neither is a `ValueError`."""
    return marks(Conversation.from_row(row) if "messages" in row else Question.from_row(row))


LASTING = ("the answer to ", "the trace ", "the opening ")
"""Beginnings of marks that say the same in every file; ids and groups may be numbers of one file."""


def lasting(found: Iterable[str]) -> set[str]:
    """Return those of the marks that say the same in every file."""
    return {mark for mark in found if mark.startswith(LASTING)}


def _opening(conversation: Conversation) -> str:
    said = []
    for message in conversation.messages:
        if message.role == "assistant":
            break
        if message.role != "system":
            said.append(" ".join(re.findall(r"\w+", message.content.casefold())))
    text = "\n".join(said)
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]
    return f"'{text[:60]}…' ({digest})" if len(text) > 60 else f"'{text}'"


def refuse_overlap(sides: Mapping[str, set[str]]) -> None:
    """Refuse sides (marks by name) that share a mark.

    Raises:
        InputError: two do; the message names one mark.
    """
    names = list(sides)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            if shared := sides[one] & sides[other]:
                more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
                raise InputError(f"{one} and {other} share {min(shared)}{more}; split them by group with `seeker data split`")
