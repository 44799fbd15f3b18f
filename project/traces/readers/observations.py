r"""What a tool returned, as text -> one `search_result` step with its documents or its error.

Formats seen in real traces: Seeker's and Search-R1's `Doc 1 (Title: …)`, R1-Searcher's `(1)Title: … Text: …` and
`(1)Title   text`, WebDancer's web results and visited pages, and plain text (Wikipedia's API, a snippet).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from project.dialects import NO_RESULTS
from project.records import Document, Step

_EMPTY = {"", "None", NO_RESULTS}
_FAILURE = re.compile(
    r"Could not find\b|No Results$|No more results|The last page Searched was not found|Invalid Action\b|Unknown tool\b"
    r"|(?:Tool )?Error: |HTTP ?(?:Error )?[45]\d\d\b|Traceback \(most recent call last\)|Request timed out"
    r"|\(.*\) generated an exception: "
)
"""How a tool says that it failed; matched at the start of what it returned."""
_DOC = re.compile(r"^Doc \d+ ?\(Title: ", re.MULTILINE)
_NUMBERED = re.compile(r"^\((\d+)\)", re.MULTILINE)
_WEB_HIT = re.compile(r"^\d+\. \[(?P<title>.*)\]\((?P<url>\S+)\)$", re.MULTILINE)
_PART = re.compile(r"\n=======\n(?=A Google search for '|The useful information in )")
_VISIT = re.compile(r"The useful information in (?P<url>\S+) for user goal .*? as follows:\s*", re.DOTALL)


def read_result(text: str, queries: int = 1) -> Step:
    """Read what a call with so many queries returned.

    Where the text says which documents answer which query, and there were several, their ids are `QUERY/RANK` from 1.
    """
    text = text.strip()
    if text in _EMPTY:
        return Step("search_result")
    if _FAILURE.match(text):
        return Step("search_result", error=text)
    parts = [_documents(part) for part in _PART.split(text)]
    if len(parts) == queries > 1:
        return join_results([Step("search_result", documents=documents) for documents in parts])
    return Step("search_result", documents=tuple(document for part in parts for document in part))


def join_results(results: Sequence[Step]) -> Step:
    """Return the results of the queries of one call as one step; documents get the ids `QUERY/RANK`."""
    documents = tuple(
        replace(document, id=f"{query}/{rank}")
        for query, result in enumerate(results, 1)
        for rank, document in enumerate(result.documents, 1)
    )
    return Step("search_result", documents=documents, error="; ".join(r.error for r in results if r.error))


def by_query(result: Step, queries: int) -> list[list[Document]] | None:
    """Return the documents of each query, or None where the ids do not say which query they answer."""
    if queries == 1:
        return [list(result.documents)]
    numbers = [re.match(r"(\d+)/", document.id) for document in result.documents]
    if not all(match and 1 <= int(match[1]) <= queries for match in numbers):
        return None
    groups: list[list[Document]] = [[] for _ in range(queries)]
    for match, document in zip(numbers, result.documents, strict=True):
        groups[int(match[1]) - 1 if match else 0].append(document)
    return groups


def _documents(text: str) -> tuple[Document, ...]:
    if _DOC.match(text):
        return tuple(_titled_doc(chunk) for chunk in _chunks(text, [m.start() for m in _DOC.finditer(text)]))
    starts = _numbered_starts(text)
    if len(starts) > 1 or (starts and text[starts[0] :].startswith("(1)Title: ")):
        return tuple(_numbered_doc(chunk) for chunk in _chunks(text, starts))
    if text.startswith("A Google search for '") and (hits := list(_WEB_HIT.finditer(text))):
        bodies = _chunks(text, [hit.start() for hit in hits])
        return tuple(
            Document(body[hit.end() - hit.start() :].strip(), hit["title"]) for hit, body in zip(hits, bodies, strict=True)
        )
    if visit := _VISIT.match(text):
        return (Document(text[visit.end() :].strip(), visit["url"]),)
    return (Document(text),)


def _chunks(text: str, starts: Sequence[int]) -> list[str]:
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def _titled_doc(chunk: str) -> Document:
    """Read `Doc 1 (Title: A (b))␤text`, or with the text on the same line."""
    body = chunk[chunk.index("Title: ") + len("Title: ") :]
    line, _, rest = body.partition("\n")
    if line.rstrip().endswith(")"):
        return Document(rest.strip(), line.rstrip()[:-1].strip('"'))
    title, _, text = body.partition(") ")
    return Document(text.strip(), title.strip('"'))


def _numbered_starts(text: str) -> list[int]:
    """Return where (1), (2), … stand at line starts; a number out of turn belongs to the text."""
    starts: list[int] = []
    for match in _NUMBERED.finditer(text):
        if int(match[1]) == len(starts) + 1:
            starts.append(match.start())
    return starts if starts and starts[0] == 0 else []


def _numbered_doc(chunk: str) -> Document:
    body = chunk[chunk.index(")") + 1 :].strip()
    if body.startswith(('"Title: ', "Title: ")):
        quoted = body.startswith('"')
        title, _, text = body.removeprefix('"').removeprefix("Title: ").partition(" Text: ")
        text = text.strip().removesuffix('"').replace('""', '"') if quoted else text.strip()
        return Document(text, title.strip().replace('""', '"') if quoted else title.strip())
    title, gap, text = body.partition("   ")
    return Document(text.strip(), title.strip()) if gap else Document(body)
