"""Rows of other people's corpora to passages or documents: dumps for search, title and text, HotpotQA's contexts."""

from __future__ import annotations

from dataclasses import replace

from project.corpus.documents.read import Source, markdown_document
from project.corpus.hotpotqa import context_passages
from project.records import Passage, Row

IDS = ("id", "_id", "docid", "doc_id", "pid")
TEXTS = ("text", "contents", "content", "body")


def passages_of(row: Row) -> list[Passage]:
    r"""Return the passages that a row holds; each keeps its own id.

    Read are `{"id", "title", "text"}` (a passage of ours keeps its source, offsets and section), Search-R1's
    `{"id", "contents": "\"Title\"\ntext"}`, and rows with HotpotQA's `context`, whose paragraphs are passages.

    Raises:
        ValueError: the row holds no text, or no id.
    """
    if "context" in row and not any(isinstance(row.get(name), str) for name in TEXTS):
        return list(context_passages(row))
    named = dict(row)
    named["id"] = next((row[name] for name in IDS if row.get(name) not in (None, "")), None)
    if not isinstance(row.get("contents"), str) and (name := next((n for n in TEXTS if isinstance(row.get(n), str)), None)):
        named["text"] = row[name]
    if "text" not in named and "contents" not in named:
        msg = f"has no text; expected one of the fields {', '.join(TEXTS)}, or HotpotQA's 'context', and found {', '.join(row)}"
        raise ValueError(msg)
    return [Passage.from_row(named)]


def as_document(passage: Passage) -> Source:
    """Return a row's passage as a document that can be cut; its text is read as Markdown."""
    read = markdown_document(passage.text, passage.id, passage.title)
    return replace(read, title=passage.title)
