"""Any server of the `/retrieve` format as an engine; the search client of rollouts and evaluation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

from project.corpus.engines.json_api import JsonApi
from project.errors import RetrievalError
from project.records import Hit, Passage, Row

TOKEN = "SEEKER_RETRIEVAL_TOKEN"
"""The environment variable that holds the bearer token; server and client read it."""


class HttpRetriever:
    """Searches through any server of the `/retrieve` format: a call is one POST, and a dead server is not "No results."."""

    def __init__(self, url: str, timeout_s: float = 30.0, concurrency: int = 32, token: str | None = None) -> None:
        """Prepare; nothing is connected before the first search.

        Args:
            url: base address of the server, or that of its `/retrieve`.
            timeout_s: seconds for one search, its further attempts included, waiting for a free slot excluded.
            concurrency: requests in flight at once, per event loop.
            token: the server's bearer token; by default what SEEKER_RETRIEVAL_TOKEN holds, if anything.
        """
        token = token or os.environ.get(TOKEN)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        base = url.rstrip("/").removesuffix("/retrieve")
        self._api = JsonApi(base, timeout_s, concurrency, headers, "; is 'seeker serve retrieval' running?")
        self.url = self._api.url

    async def search(self, queries: Sequence[str], k: int, seed: str = "") -> list[list[Hit]]:
        """Return for each query its hits, best first; none is a right answer.

        Args:
            queries: of one request.
            k: hits a query, at most.
            seed: what tells the request from others, for a server that adds noise.

        Raises:
            RetrievalError: the server cannot be reached, is too slow, refuses, or answers with something else.
        """
        if not queries:
            return []
        body: Row = {"queries": list(queries), "topk": k, "return_scores": True} | ({"seed": seed} if seed else {})
        answer = await self._api.call("POST", "/retrieve", body)
        try:
            return [hits[:k] for hits in _hits(answer, len(queries))]
        except (ValueError, TypeError, KeyError) as error:
            raise RetrievalError(f"{self.url}/retrieve did not answer in the /retrieve format: {error}") from error

    async def health(self) -> Row:
        """Return what `/health` says: status, number of passages, digest.

        Raises:
            RetrievalError: as `search`.
        """
        answer = await self._api.call("GET", "/health")
        if not isinstance(answer, dict):
            raise RetrievalError(f"{self.url}/health answered with a JSON {type(answer).__name__}, expected an object")
        return answer

    async def aclose(self) -> None:
        """Close this loop's connections; the client may be used again."""
        await self._api.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()


def _hits(answer: Any, queries: int) -> list[list[Hit]]:  # noqa: ANN401 - whatever JSON held
    """Read `{"result": [[hit, …], …]}`; a hit is a document or `{"document": …, "score": …}`."""
    found = answer["result"] if isinstance(answer, dict) and "result" in answer else None
    if not isinstance(found, list) or not all(isinstance(hits, list) for hits in found):
        msg = "field 'result' is missing or not a list of lists"
        raise ValueError(msg)
    if len(found) != queries:
        msg = f"field 'result' holds {len(found)} lists for {queries} queries"
        raise ValueError(msg)
    return [[_hit(hit, rank) for rank, hit in enumerate(hits, 1)] for hits in found]


def _hit(hit: Any, rank: int) -> Hit:  # noqa: ANN401 - whatever JSON held
    """Read a hit; one without a score gets 1 / rank."""
    if not isinstance(hit, dict):
        msg = f"a hit is a JSON {type(hit).__name__}, expected an object"
        raise ValueError(msg)
    row, score = hit.get("document", hit), hit.get("score", 1 / rank)
    if not isinstance(row, dict) or not isinstance(score, (int, float)):
        msg = f"a hit's document is a JSON {type(row).__name__} and its score {score!r}, expected an object and a number"
        raise ValueError(msg)
    return Hit(Passage.from_row({"id": ""} | row), float(score))
