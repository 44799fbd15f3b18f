"""Documents to passages: five ways to cut, each a function from a text to the spans of its pieces.

A piece is `text[start:end]` of its document without white space around it, and all that is not white space lies in some
piece; only `sections` leaves out the headings, which stand in the titles of what follows them.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from project.corpus.documents.read import Source
from project.errors import InputError
from project.records import Passage

StrategyName = Literal["fixed", "tokens", "sentences", "sections", "paragraphs"]
Span = tuple[int, int]
Strategy = Callable[[str, "Cutting"], Iterator[Span]]
"""Yields the spans of a text's pieces, in their order; white space around them is taken off afterwards."""

_PARAGRAPH_END = re.compile(r"(?>\r\n|\r|\n)[ \t]*(?>\r\n|\r|\n)\s*")


@dataclass(frozen=True, slots=True)
class Cutting:
    """How documents are cut."""

    strategy: StrategyName
    size: int
    """The longest a piece may be, in characters; in tokens for `tokens`."""
    overlap: int = 0
    """How much of a piece the next one repeats, at most, in the same unit."""
    tokenizer: str | None = None
    """What cuts `tokens`: a model's folder or its name on the hub; None is the default model's."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"--size is {self.size}; give 1 or more")
        if not 0 <= self.overlap < self.size:
            raise InputError(f"--overlap is {self.overlap}; give 0 or more, and less than the size, {self.size}")


def pieces(document: Source, cutting: Cutting) -> Iterator[Passage]:
    """Yield a document's passages, `<id>#0` and so on, each with its offsets and the section in which it begins."""
    starts = [mark.start for mark in document.marks]
    number = 0
    for span in spans(document, cutting):
        start, end = _trimmed(document.text, *span)
        if start >= end:  # white space only
            continue
        mark = bisect_right(starts, start) - 1
        section = document.marks[mark].path if mark >= 0 else ""
        title = " > ".join(filter(None, (document.title, section))) if cutting.strategy == "sections" else document.title
        yield Passage(f"{document.id}#{number}", title, document.text[start:end], document.id, start, end, section)
        number += 1


def spans(document: Source, cutting: Cutting) -> Iterator[Span]:
    """Yield the spans of a document's pieces."""
    cut = STRATEGIES["sentences" if cutting.strategy == "sections" else cutting.strategy]
    for start, end in _bodies(document) if cutting.strategy == "sections" else [(0, len(document.text))]:
        for first, last in cut(document.text[start:end], cutting):
            yield start + first, start + last


def _bodies(document: Source) -> Iterator[Span]:
    """Yield what stands before the first heading and under each one."""
    bodies = [0, *(mark.body for mark in document.marks)]
    ends = [*(mark.start for mark in document.marks), len(document.text)]
    yield from zip(bodies, ends, strict=True)


def _trimmed(text: str, start: int, end: int) -> Span:
    piece = text[start:end]
    return end - len(piece.lstrip()), start + len(piece.rstrip())


def fixed(text: str, cutting: Cutting) -> Iterator[Span]:
    """Cut after every `size` characters, in words too."""
    yield from _windows(len(text), cutting)


def tokens(text: str, cutting: Cutting) -> Iterator[Span]:
    """Cut after every `size` tokens."""
    from project.model_cache import fast_tokenizer

    offsets = fast_tokenizer(cutting.tokenizer).encode(text, add_special_tokens=False).offsets
    for first, last in _windows(len(offsets), cutting):
        end = offsets[last][0] if last < len(offsets) else len(text)
        yield offsets[first][0] if first else 0, max(end, offsets[last - 1][1])


def _windows(length: int, cutting: Cutting) -> Iterator[Span]:
    start = 0
    while start < length:
        yield start, min(start + cutting.size, length)
        if start + cutting.size >= length:
            return
        start += cutting.size - cutting.overlap


def sentences(text: str, cutting: Cutting) -> Iterator[Span]:
    """Pack whole paragraphs, sentences where a paragraph is too long, and words where a sentence is."""
    from semantic_text_splitter import TextSplitter

    for start, piece in TextSplitter(cutting.size, overlap=cutting.overlap).chunk_indices(text):
        yield start, start + len(piece)


def paragraphs(text: str, cutting: Cutting) -> Iterator[Span]:
    """Cut at blank lines; a paragraph that is too long as `sentences`."""
    start = 0
    for blank in [*(match.span() for match in _PARAGRAPH_END.finditer(text)), (len(text), len(text))]:
        for first, last in sentences(text[start : blank[0]], cutting):
            yield start + first, start + last
        start = blank[1]


STRATEGIES: dict[str, Strategy] = {"fixed": fixed, "tokens": tokens, "sentences": sentences, "paragraphs": paragraphs}
"""By name; `sections` cuts each section as `sentences`."""
