"""The retrieval wire format: what `POST /retrieve` takes and returns.

Search-R1's clients send `queries`, `topk`, `return_scores` and read `result`. Another family sends `query` or
`query_list` with `top_k` or `k` and reads `results[i][j].title` and `.content`; it gets both.
"""

from __future__ import annotations

import json
from itertools import combinations
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, Field, StrictBool, StrictInt, StrictStr, ValidationError, model_validator

from project.corpus.serving.limits import Limits, Refusal
from project.records import Hit, Row

DEFAULT_TOPK = 3
TEXTS, COUNTS = ("queries", "query", "query_list"), ("topk", "top_k", "k")
"""The names of a request's queries, and of how many hits it asks for."""


def _whole(value: Any) -> Any:  # noqa: ANN401 - whatever JSON held
    """Return 3 for 3.0, which is the same number in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[StrictInt, Field(ge=1), BeforeValidator(_whole)]
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
    seed: Annotated[StrictStr, Field(max_length=1000)] | StrictInt | None = None
    """What tells the request from others, for a server that adds noise; Seeker's own clients send it."""

    @model_validator(mode="after")
    def _one_name_each(self) -> Self:
        _only_one(self, TEXTS, needed=True)
        _only_one(self, COUNTS, needed=False)
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


def read_request(body: bytes, limits: Limits) -> RetrieveRequest:
    """Read the body of a request.

    Raises:
        Refusal: it is no search, or asks for more than it may.
    """
    try:
        asked = json.loads(body)
        request = RetrieveRequest.model_validate(asked)
    except ValidationError as error:
        if not isinstance(asked, dict):
            raise Refusal(422, f"the body is a JSON {type(asked).__name__}, expected an object") from error
        raise Refusal(422, _sentence(error.errors()[0])) from error
    except (ValueError, RecursionError) as error:
        raise Refusal(422, f"the body is not JSON: {error}") from error
    name = next(name for name in TEXTS if getattr(request, name) is not None)
    if len(request.texts) > limits.max_queries:
        raise Refusal(422, f"field '{name}' holds {len(request.texts):,} queries, at most {limits.max_queries:,} are answered")
    if (longest := max(map(len, request.texts), default=0)) > limits.max_query_chars:
        raise Refusal(
            422, f"field '{name}' holds a query of {longest:,} characters, at most {limits.max_query_chars:,} are read"
        )
    if request.limit > limits.max_topk:
        raise Refusal(422, f"{request.limit:,} hits are asked for, at most {limits.max_topk:,} a query are given")
    return request


def _sentence(error: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    where = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    return f"field '{where}': {message}" if where else message


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


def request_schema(limits: Limits) -> Row:
    """Return the JSON schema of a request, for the OpenAPI description."""
    text: Row = {"type": "string", "maxLength": limits.max_query_chars}
    texts: Row = {"type": "array", "items": text, "maxItems": limits.max_queries}
    count: Row = {"type": "integer", "minimum": 1, "maximum": limits.max_topk}
    counts = {name: count for name in COUNTS}
    others: Row = {**counts, "return_scores": _BOOLEAN, "seed": _SEED}
    asked: list[Row] = [
        {
            "type": "object",
            "properties": {name: {"anyOf": [text, texts]} if name == "query" else texts, **others},
            "required": [name],
            "not": {"anyOf": [{"required": [other]} for other in TEXTS if other != name]},
        }
        for name in TEXTS
    ]
    twice: Row = {"anyOf": [{"required": [a, b]} for a, b in combinations(COUNTS, 2)]}
    return {"allOf": [{"oneOf": asked}, {"not": twice}]}


_BOOLEAN: Row = {"type": "boolean"}
_STRING: Row = {"type": "string"}
_SEED: Row = {"type": ["string", "integer"], "maxLength": 1000}
_DOCUMENT: Row = {"type": "object", "properties": dict.fromkeys(("id", "contents", "title", "text"), _STRING)}
_SCORED: Row = {"type": "object", "properties": {"document": _DOCUMENT, "score": {"type": "number"}}}
_HITS: Row = {"type": "array", "items": {"type": "array", "items": {"anyOf": [_SCORED, _DOCUMENT]}}}
RESPONSE_SCHEMA: Row = {"type": "object", "properties": {"result": _HITS, "results": _HITS}, "required": ["result"]}
"""Of an answer, for the OpenAPI description."""
