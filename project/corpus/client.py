"""The search client of rollouts and evaluation: async, bounded, and never an empty result for a failure.

One call of `search` is one POST. It has one deadline for all its attempts; refused connections and statuses 5xx are tried
again with growing, jittered pauses. Whatever is left is a `RetrievalError`: a dead server is not "No results.".
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from project.errors import InputError, RetrievalError
from project.records import Document, Passage, Row

if TYPE_CHECKING:
    import httpx

ATTEMPTS = 4
PAUSE_S = 0.1
"""Mean pause before the second attempt, in seconds; it doubles each time."""


@dataclass(frozen=True, slots=True)
class _Connections:
    """What belongs to one event loop."""

    http: httpx.AsyncClient
    slots: asyncio.Semaphore


class SearchClient:
    """Searches through any server of the `/retrieve` format. Works from any number of successive `asyncio.run` calls."""

    def __init__(self, url: str, topk: int = 3, timeout_s: float = 30.0, concurrency: int = 32) -> None:
        """Prepare; nothing is connected before the first search.

        Args:
            url: base address of the server, or that of its `/retrieve`.
            topk: hits per query, at most.
            timeout_s: seconds for one search, its further attempts included, waiting for a free slot excluded.
            concurrency: requests in flight at once, per event loop.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"'{url}' is not the address of a retrieval server; give one such as http://127.0.0.1:8001")
        if topk < 1 or concurrency < 1 or timeout_s <= 0:
            raise InputError(f"topk={topk}, concurrency={concurrency}, timeout_s={timeout_s}: each must be above 0")
        self.url = url.rstrip("/").removesuffix("/retrieve")
        self.topk, self.timeout_s, self.concurrency = topk, timeout_s, concurrency
        self._local = _is_local(parts.hostname)
        self._random = random.Random()  # the run's own random state stays as it is
        self._by_loop: dict[asyncio.AbstractEventLoop, _Connections] = {}

    async def search(self, queries: Sequence[str]) -> list[list[Document]]:
        """Return for each query its documents, best first; none is a right answer.

        Raises:
            RetrievalError: the server cannot be reached, is too slow, refuses, or answers with something else.
        """
        if not queries:
            return []
        body = {"queries": list(queries), "topk": self.topk, "return_scores": False}
        answer = await self._request("POST", "/retrieve", body)
        try:
            return _documents(answer, len(queries))
        except (ValueError, TypeError, KeyError) as error:
            raise RetrievalError(f"{self.url}/retrieve did not answer in the /retrieve format: {error}") from error

    async def health(self) -> Row:
        """Return what `/health` says: status, number of passages, digest.

        Raises:
            RetrievalError: as `search`.
        """
        answer = await self._request("GET", "/health", None)
        if not isinstance(answer, dict):
            raise RetrievalError(f"{self.url}/health answered with a JSON {type(answer).__name__}, expected an object")
        return answer

    async def aclose(self) -> None:
        """Close this loop's connections; the client may be used again."""
        connections = self._by_loop.pop(asyncio.get_running_loop(), None)
        if connections:
            await connections.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    def _connections(self) -> _Connections:
        """Return this loop's connections and forget those of loops that were closed."""
        import httpx

        loop = asyncio.get_running_loop()
        if loop not in self._by_loop:
            for closed in [other for other in self._by_loop if other.is_closed()]:
                del self._by_loop[closed]
            http = httpx.AsyncClient(timeout=None, trust_env=not self._local)  # the deadline is asyncio's
            self._by_loop[loop] = _Connections(http, asyncio.Semaphore(self.concurrency))
        return self._by_loop[loop]

    async def _request(self, method: str, path: str, body: Row | None) -> Any:  # noqa: ANN401 - whatever JSON held
        connections = self._connections()
        async with connections.slots:
            try:
                async with asyncio.timeout(self.timeout_s):
                    response = await self._attempts(connections.http, method, path, body)
            except TimeoutError as error:
                raise RetrievalError(f"{self.url}{path} did not answer in {self.timeout_s:g} s; is it overloaded?") from error
        if response.status_code != 200:
            raise RetrievalError(f"{self.url}{path} answered with status {response.status_code}: {response.text[:300]}")
        try:
            return response.json()
        except ValueError as error:
            raise RetrievalError(
                f"{self.url}{path} answered with something that is not JSON: {response.text[:100]!r}"
            ) from error

    async def _attempts(self, http: httpx.AsyncClient, method: str, path: str, body: Row | None) -> httpx.Response:
        import httpx

        content = None if body is None else json.dumps(body)  # in ASCII: a lone surrogate cannot fail
        headers = {"content-type": "application/json"}
        for attempt in range(1, ATTEMPTS + 1):
            try:
                response = await http.request(method, self.url + path, content=content, headers=headers)
            except httpx.TransportError as error:
                if attempt == ATTEMPTS:
                    reason = f"{str(error) or type(error).__name__}, {ATTEMPTS} attempts"
                    raise RetrievalError(
                        f"{self.url}{path} cannot be reached ({reason}); is 'seeker serve retrieval' running?"
                    ) from error
            else:
                if response.status_code < 500 or attempt == ATTEMPTS:
                    return response
            await asyncio.sleep(PAUSE_S * 2 ** (attempt - 1) * self._random.uniform(0.5, 1.5))
        raise AssertionError  # the last attempt returned or raised


def _is_local(host: str) -> bool:
    """True for this machine's loopback, which must never go through a proxy."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _documents(answer: Any, queries: int) -> list[list[Document]]:  # noqa: ANN401 - whatever JSON held
    """Read `{"result": [[hit, …], …]}`; a hit is a document or `{"document": …, "score": …}`."""
    found = answer["result"] if isinstance(answer, dict) and "result" in answer else None
    if not isinstance(found, list) or not all(isinstance(hits, list) for hits in found):
        msg = "field 'result' is missing or not a list of lists"
        raise ValueError(msg)
    if len(found) != queries:
        msg = f"field 'result' holds {len(found)} lists for {queries} queries"
        raise ValueError(msg)
    return [[_document(hit) for hit in hits] for hits in found]


def _document(hit: Any) -> Document:  # noqa: ANN401 - whatever JSON held
    row = hit.get("document", hit) if isinstance(hit, dict) else hit
    if not isinstance(row, dict):
        msg = f"a hit is a JSON {type(row).__name__}, expected an object"
        raise ValueError(msg)
    passage = Passage.from_row({"id": ""} | row)
    return Document(passage.text, passage.title, passage.id)
