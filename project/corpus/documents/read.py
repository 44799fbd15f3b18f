"""Files to documents: Markdown, plain text, HTML and PDF, each read into one text with the places where its sections begin.

Markdown and plain text are taken as they are, so that offsets count in the file's own text. HTML is turned into Markdown,
without scripts, styles and menus; of a PDF the text is taken, its lines joined to sentences, and each page is a section.
"""

from __future__ import annotations

import gzip
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from project.records import Row
from project.writing import is_text, stem_of, suffix_of

NO_CONTENT = ("script", "style", "template", "noscript", "svg", "iframe", "button", "input", "select", "textarea", "head")
"""HTML elements that hold nothing to read. Menus (`nav`) are left out too, unless most of the page is in one."""
DEEPEST = 50_000
"""Python's frames while HTML is read: unclosed elements lie in each other, hundreds deep on old pages."""
_LINE_END = re.compile(r"\r\n|\r|\n")
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?(?:\n|\Z)", re.DOTALL)
_HYPHEN = re.compile("(?:\ufffe|\x02)\\s*")
"""How PDFium writes the hyphen of a word that goes on in the next line."""
_UNFINISHED_LINE = re.compile(r"(?<=[^.!?:;\n])[ \t]*\n(?=[^\n])")


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a section begins."""

    start: int
    """Offset of its heading in the document's text, in characters."""
    body: int
    """Offset of what follows the heading."""
    path: str
    """Its heading under those above it: `Results > Tables`; of a PDF `page 3`."""


@dataclass(frozen=True, slots=True)
class Source:
    """A document that can be cut into passages."""

    id: str
    title: str
    text: str
    marks: tuple[Mark, ...] = ()

    @classmethod
    def from_row(cls, row: Row) -> Source:
        """Read what `to_row` returned."""
        return cls(row["id"], row["title"], row["text"], tuple(Mark(**mark) for mark in row["marks"]))

    def to_row(self) -> Row:
        """Return the document as a JSON object."""
        return asdict(self)


def read_document(path: Path, ident: str) -> Source:
    """Read a file of one document.

    Args:
        path: a file with a suffix of `READERS`, also with `.gz`.
        ident: the document's id.

    Raises:
        ValueError: it cannot be read, or holds no text; the message says why, without the file's name.
    """
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    document = READERS[suffix_of(path).lower()](data, ident, stem_of(path))
    if not document.text.strip():
        msg = "holds no text" + (" (the pages of a scanned document need OCR first)" if data.startswith(b"%PDF") else "")
        raise ValueError(msg)
    if not is_text(document.id + document.title + document.text):
        msg = "its name or title holds what is no text (half a surrogate pair, or bytes that are not UTF-8)"
        raise ValueError(msg)
    return document


def _markdown(data: bytes, ident: str, stem: str) -> Source:
    front, text = _front_matter(_decoded(data))
    return markdown_document(text, ident, str(front.get("title") or "").strip() or stem)


def _text(data: bytes, ident: str, stem: str) -> Source:
    return Source(ident, stem, _decoded(data))


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"is not UTF-8 at byte {error.start}; convert it, as with iconv"
        raise ValueError(msg) from error


def _html(data: bytes, ident: str, stem: str) -> Source:
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(DEEPEST)
    try:
        return _page(data, ident, stem)
    finally:
        sys.setrecursionlimit(usual)


def _page(data: bytes, ident: str, stem: str) -> Source:
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    page = BeautifulSoup(data, "html.parser")
    title = page.title.get_text(" ", strip=True) if page.title else ""
    for element in page([*NO_CONTENT]):
        element.decompose()
    most = len(page.get_text()) / 2
    for menu in page("nav"):
        if len(menu.get_text()) < most:
            menu.decompose()
    text = MarkdownConverter(heading_style="ATX").convert_soup(page)
    return markdown_document(re.sub(r"\n{3,}", "\n\n", text).strip(), ident, title or stem)


def _pdf(data: bytes, ident: str, stem: str) -> Source:
    from pypdfium2 import PdfDocument, PdfiumError

    try:
        pdf = PdfDocument(data)
        pages = [_page_text(page.get_textpage().get_text_bounded()) for page in pdf]
        title = pdf.get_metadata_value("Title").strip()
    except PdfiumError as error:
        msg = f"is a PDF that cannot be read ({error}); remove its password, or repair it"
        raise ValueError(msg) from error
    marks, start = [], 0
    for number, page in enumerate(pages, 1):
        marks.append(Mark(start, start, f"page {number}"))
        start += len(page) + 2
    return Source(ident, title or stem, "\n\n".join(pages), tuple(marks))


def _page_text(text: str) -> str:
    """Return a page's text with the words and sentences joined that its lines cut."""
    joined = _HYPHEN.sub("", text.replace("\r\n", "\n").replace("\x00", ""))
    return _UNFINISHED_LINE.sub(" ", joined).strip()


READERS: dict[str, Callable[[bytes, str, str], Source]] = {
    "md": _markdown,
    "markdown": _markdown,
    "txt": _text,
    "text": _text,
    "html": _html,
    "htm": _html,
    "pdf": _pdf,
}
"""Readers of a file's bytes by its suffix; they get the document's id and the file's stem too."""


def markdown_document(text: str, ident: str, title: str) -> Source:
    """Return a Markdown text with its sections; a first heading that is the only one of its level gives the title."""
    found = list(headings(text))
    tops = [heading for level, heading, _, _ in found if level == 1]
    if len(tops) == 1 and found[0][0] == 1:
        title = tops[0]
    marks: list[Mark] = []
    path: list[tuple[int, str]] = []
    for level, heading, start, body in found:
        path = [(above, name) for above, name in path if above < level] + [(level, heading)]
        named = path[1:] if path[0][1] == title else path
        marks.append(Mark(start, body, " > ".join(name for _, name in named)))
    return Source(ident, title, text, tuple(marks))


def headings(text: str) -> Iterator[tuple[int, str, int, int]]:
    """Yield each heading of a Markdown text: its level from 1, its text, where it starts and where what follows it starts."""
    from markdown_it import MarkdownIt

    ends = [0, *(end.end() for end in _LINE_END.finditer(text)), len(text)]
    front = _FRONT_MATTER.match(text)
    tokens = MarkdownIt("commonmark").disable("inline").parse(text)
    for opening, inline in itertools.pairwise(tokens):
        if opening.type != "heading_open" or opening.map is None:
            continue
        start, body = (ends[min(line, len(ends) - 1)] for line in opening.map)
        if (heading := inline.content.strip()) and (front is None or start >= front.end()):
            yield int(opening.tag[1]), heading, start, body


def _front_matter(text: str) -> tuple[Row, str]:
    """Return what stands before a Markdown file's text (an object in YAML between two lines of dashes), and the text.

    What is no object stays in the text, and `headings` takes none of it for a heading.
    """
    import yaml

    if not (front := _FRONT_MATTER.match(text)):
        return {}, text
    try:
        held = yaml.safe_load(front[1])
    except (yaml.YAMLError, ValueError):  # a date that is none is a ValueError
        return {}, text
    return (held, text[front.end() :]) if isinstance(held, dict) else ({}, text)
