"""Calls of a JSON API over HTTP: async, bounded, and never an empty answer for a failure.

A call has one deadline for all its attempts; refused connections, status 429 and 5xx are tried again with growing, jittered
pauses, or after what `Retry-After` says. After several failed calls in a row the server counts as down, and calls fail at once
for a while.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from project.errors import InputError, RetrievalError
from project.records import Row

if TYPE_CHECKING:
    import httpx

ATTEMPTS = 4
PAUSE_S = 0.1
"""Mean pause before the second attempt, in seconds; it doubles each time."""
FAILURES, DOWN_S = 8, 5.0
"""Failed calls in a row after which a server counts as down, and for how many seconds."""


class Breaker:
    """Counts failed calls in a row; after `FAILURES` one is let through every `DOWN_S` seconds, and the others fail at once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._failures, self._until = 0, 0.0

    def __enter__(self) -> None:
        if self._failures >= FAILURES and time.monotonic() < self._until:
            said = f"failed {self._failures} times in a row and is not asked again for a moment"
            raise RetrievalError(f"{self.name} {said}; is it up?")
        self._until = time.monotonic() + DOWN_S  # while this one finds out, others do not

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self._failures = 0
        elif isinstance(error, RetrievalError):
            self._failures += 1


@dataclass(frozen=True, slots=True)
class _Connections:
    """What belongs to one event loop."""

    http: httpx.AsyncClient
    slots: asyncio.Semaphore


class JsonApi:
    """One server. Works from any number of successive `asyncio.run` calls."""

    def __init__(
        self, url: str, timeout_s: float = 30.0, concurrency: int = 32, headers: Mapping[str, str] | None = None, hint: str = ""
    ) -> None:
        """Prepare; nothing is connected before the first call.

        Args:
            url: base address.
            timeout_s: seconds for one call, its further attempts included, waiting for a free slot excluded.
            concurrency: requests in flight at once, per event loop.
            headers: sent with each request.
            hint: what the message says of a server that cannot be reached.
        """
        if not (host := _host(url)):
            raise InputError(f"'{url}' is not the address of a server; give one such as http://127.0.0.1:8001")
        if concurrency < 1 or timeout_s <= 0:
            raise InputError(f"concurrency={concurrency}, timeout_s={timeout_s}: each must be above 0")
        self.url, self.timeout_s, self.concurrency, self.hint = url.rstrip("/"), timeout_s, concurrency, hint
        self._headers = {"content-type": "application/json", **(headers or {})}
        self._breaker = Breaker(self.url)
        self._local = _is_local(host)
        self._random = random.Random()  # the run's own random state stays as it is
        self._by_loop: dict[asyncio.AbstractEventLoop, _Connections] = {}

    async def call(self, method: str, path: str, body: Row | None = None) -> Any:  # noqa: ANN401 - whatever JSON held
        """Return what the server answers.

        Raises:
            RetrievalError: it cannot be reached, is too slow, refuses, or answers with something that is not JSON.
        """
        connections = self._connections()
        async with connections.slots:
            with self._breaker:
                response = await self._response(connections.http, method, path, body)
        if response.status_code != 200:
            raise _refused(self.url + path, response)
        try:
            return response.json()
        except ValueError as error:
            raise RetrievalError(
                f"{self.url}{path} answered with something that is not JSON: {response.text[:100]!r}"
            ) from error

    async def aclose(self) -> None:
        """Close this loop's connections; calls may be made again."""
        connections = self._by_loop.pop(asyncio.get_running_loop(), None)
        if connections:
            await connections.http.aclose()

    def _connections(self) -> _Connections:
        """Return this loop's connections and forget those of loops that were closed."""
        import httpx

        loop = asyncio.get_running_loop()
        if loop not in self._by_loop:
            for closed in [other for other in [*self._by_loop] if other.is_closed()]:  # threads may all do so
                self._by_loop.pop(closed, None)
            http = httpx.AsyncClient(timeout=None, trust_env=not self._local)  # the deadline is asyncio's
            self._by_loop[loop] = _Connections(http, asyncio.Semaphore(self.concurrency))
        return self._by_loop[loop]

    async def _response(self, http: httpx.AsyncClient, method: str, path: str, body: Row | None) -> httpx.Response:
        try:
            async with asyncio.timeout(self.timeout_s):
                response = await self._attempts(http, method, path, body)
        except TimeoutError as error:
            raise RetrievalError(f"{self.url}{path} did not answer in {self.timeout_s:g} s; is it overloaded?") from error
        if response.status_code >= 500:
            raise _refused(self.url + path, response)
        return response

    async def _attempts(self, http: httpx.AsyncClient, method: str, path: str, body: Row | None) -> httpx.Response:
        import httpx

        content = None if body is None else json.dumps(body)  # in ASCII: a lone surrogate cannot fail
        for attempt in range(1, ATTEMPTS + 1):
            pause = PAUSE_S * 2 ** (attempt - 1) * self._random.uniform(0.5, 1.5)
            try:
                response = await http.request(method, self.url + path, content=content, headers=self._headers)
            except httpx.RequestError as error:
                if attempt == ATTEMPTS:
                    reason = f"{str(error) or type(error).__name__}, {ATTEMPTS} attempts"
                    raise RetrievalError(f"{self.url}{path} cannot be reached ({reason}){self.hint}") from error
            else:
                if (response.status_code < 500 and response.status_code != 429) or attempt == ATTEMPTS:
                    return response
                pause = max(pause, _retry_after(response.headers.get("retry-after", "")))
            await asyncio.sleep(pause)
        raise AssertionError  # the last attempt returned or raised


def _refused(url: str, response: httpx.Response) -> RetrievalError:
    return RetrievalError(f"{url} answered with status {response.status_code}: {response.text[:300]}")


def _retry_after(header: str) -> float:
    """Return the seconds that a server asks for; 0 where it names none, or a date."""
    return float(header) if header.isdecimal() else 0.0


def _host(url: str) -> str:
    """Return the host of an address; empty where it is none."""
    try:
        parts = urlsplit(url)
        return (parts.hostname or "") if parts.scheme in ("http", "https") and (parts.port or 80) > 0 else ""
    except ValueError:  # a port that is no number or above 65,535, half an IPv6 address
        return ""


def _is_local(host: str) -> bool:
    """True for this machine's loopback, which must never go through a proxy."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
