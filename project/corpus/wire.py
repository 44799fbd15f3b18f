"""The retrieval wire format: what `POST /retrieve` takes and returns.

Search-R1's clients send `queries`, `topk`, `return_scores` and read `result`. Another family sends `query` or
`query_list` with `top_k` or `k` and reads `results[i][j].title` and `.content`; it gets both.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, Field, StrictBool, StrictInt, StrictStr, model_validator

from project.records import Hit, Row

DEFAULT_TOPK = 3

Count = Annotated[StrictInt, Field(ge=1)]
"""How many hits at most for each query."""


class RetrieveRequest(BaseModel):
    """The body of `POST /retrieve`. Exactly one of `queries`, `query` and `query_list` is needed."""

    queries: list[StrictStr] | None = None
    query: StrictStr | list[StrictStr] | None = None
    query_list: list[StrictStr] | None = None
    topk: Count | None = None
    top_k: Count | None = None
    k: Count | None = None
    return_scores: StrictBool | None = None

    @model_validator(mode="after")
    def _one_name_each(self) -> Self:
        _only_one(self, ("queries", "query", "query_list"), needed=True)
        _only_one(self, ("topk", "top_k", "k"), needed=False)
        return self

    @property
    def texts(self) -> list[str]:
        """The queries, under whichever name they came."""
        if self.query is not None:
            return [self.query] if isinstance(self.query, str) else self.query
        return self.queries if self.queries is not None else self.query_list or []

    @property
    def limit(self) -> int:
        """How many hits at most for each query."""
        return self.topk or self.top_k or self.k or DEFAULT_TOPK


def _only_one(request: RetrieveRequest, names: tuple[str, ...], *, needed: bool) -> None:
    given = [name for name in names if getattr(request, name) is not None]
    if len(given) > 1 or (needed and not given):
        msg = f"give {'one' if needed else 'at most one'} of {', '.join(names)}, not {', '.join(given) or 'none'}"
        raise ValueError(msg)


def response(request: RetrieveRequest, hits: list[list[Hit]]) -> Row:
    """Return the answer: one list of hits for each query, in the order of the queries.

    A hit is `{"document": …, "score": …}`, or with `return_scores` false or absent the document itself.
    """
    scored = bool(request.return_scores)
    answer: Row = {"result": [[_scored(hit) if scored else _document(hit) for hit in found] for found in hits]}
    if request.queries is None:
        answer["results"] = [[_titled(hit) for hit in found] for found in hits]
    return answer


def _document(hit: Hit) -> Row:
    passage = hit.passage
    return {"id": passage.id, "contents": passage.contents, "title": passage.title, "text": passage.text}


def _scored(hit: Hit) -> Row:
    return {"document": _document(hit), "score": hit.score}


def _titled(hit: Hit) -> Row:
    return {"id": hit.passage.id, "title": hit.passage.title, "content": hit.passage.text, "score": hit.score}
