"""Search results cut to a budget of tokens: whole passages first, then the words of one that still fit, marked as cut."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace

from project.records import Document

CUT = " …"
"""Ends a passage that goes on."""
LEAST_TOKENS = 16
"""A part of a passage below which it is left out; of the best passage any part is shown."""


def fit(documents: Sequence[Document], budget: int, count: Callable[[str], int]) -> list[Document]:
    """Return the documents that a budget has room for, best first; the last may be cut between two words.

    Args:
        documents: best first.
        budget: tokens of titles and contents.
        count: returns how many tokens a text has.
    """
    kept = list[Document]()
    for document in documents:
        room = budget - count(document.title)
        size = count(document.content)
        if size > room:
            if not kept or room >= LEAST_TOKENS:
                kept.append(replace(document, content=_cut(document.content, room - count(CUT), count)))
            break
        kept.append(document)
        budget = room - size
    return kept


def _cut(text: str, budget: int, count: Callable[[str], int]) -> str:
    """Return as many whole words of a text as have room, at least one, and the mark.

    Of a first word that is as long as a passage, as text without spaces is, in Chinese say, it returns a part.
    """
    ends = [word.end() for word in re.finditer(r"\S+", text)]
    fitting = bisect_right(ends, budget, key=lambda end: count(text[:end]))
    if not fitting and ends and count(text[: ends[0]]) > LEAST_TOKENS:
        ends = list(range(1, ends[0] + 1))
        fitting = bisect_right(ends, budget, key=lambda end: count(text[:end]))
    kept = text[: ends[max(1, fitting) - 1]] if ends else text
    return kept + CUT if text[len(kept) :].strip() else text
