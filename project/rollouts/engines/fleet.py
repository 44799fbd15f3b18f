"""Several HTTP servers that answer the same requests: the least busy one is asked, and what one fails at another does.

A server is asked who it is before it is trusted: when its weights are loaded, and again whenever it was not heard of for
longer than it takes to start one. So one that was restarted, and holds other weights, is noticed and never asked again.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from project.errors import EngineError, InputError
from project.records import Row

if TYPE_CHECKING:
    import httpx

Found = TypeVar("Found")
ROUNDS, PAUSE_S = 2, 1.0
"""How often a request is tried on each server, and the seconds between: for a server that was only full."""
AVOID_S = 10.0
"""For how many seconds a server that failed is asked only where no other is left."""
TRUST_S = 5.0
"""For how many seconds an answer tells that the server is still the same; none starts in less."""
CONNECT_S = 10.0
BIRTH = re.compile(r"^process_start_time_seconds (\S+)", re.MULTILINE)


class ServerError(EngineError):
    """One server failed; `status` is None where it gave no answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def may_work_elsewhere(self) -> bool:
        """False for what every server would refuse."""
        return self.status is None or self.status >= 500 or self.status == 429


@dataclass(eq=False)
class Server:
    """What a client knows of one server; times are of the monotonic clock, in seconds."""

    url: str
    busy: int = 0
    """Requests of this process that are under way."""
    heard: float = -TRUST_S
    """When it last answered."""
    avoid_until: float = 0.0
    failure: str = ""
    """The last one, in words."""
    birth: str = ""
    """Which process had taken the weights; empty before."""
    lost: bool = True
    """True where its weights may be others: none were loaded, or it is another process than the one that took them."""


@dataclass
class _Connections:
    """What belongs to one event loop."""

    http: httpx.AsyncClient
    users: int = 0


class Fleet:
    """HTTP servers. Works from any number of successive `asyncio.run` calls."""

    def __init__(self, urls: Sequence[str], timeout_s: float, first: int = 0) -> None:
        """Prepare; nothing is connected before the first request.

        Args:
            urls: base addresses, each once.
            timeout_s: seconds that a server may take for one answer.
            first: which of them to take where all are equally busy, so that ranks begin at different ones.

        Raises:
            InputError: no address, one twice, or one that is not an address.
        """
        known = [_base(url) for url in urls]
        if not known or len({*known}) < len(known):
            raise InputError(f"the addresses of servers are {list(urls)}; give at least one, and each once")
        self.servers, self._first, self._timeout_s = [Server(url) for url in known], first, timeout_s
        token = os.environ.get("VLLM_API_KEY")
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._by_loop: dict[asyncio.AbstractEventLoop, _Connections] = {}
        self._ssl: ssl.SSLContext | None = None

    async def call(self, server: Server, method: str, path: str, body: Row | None = None) -> Any:  # noqa: ANN401 - as JSON held
        """Return what one server answers: what its JSON holds, or its text.

        Raises:
            ServerError: it cannot be reached, is too slow, or answers with another status than 200.
        """
        import httpx

        try:
            async with self._client() as http:
                response = await http.request(method, server.url + path, json=body, headers=self._headers)
        except httpx.ReadTimeout as error:
            raise ServerError(f"{server.url}{path} did not answer in {self._timeout_s:g} s") from error
        except httpx.RequestError as error:
            said = str(error) or type(error).__name__
            raise ServerError(f"{server.url}{path} cannot be reached ({said})") from error
        if response.status_code != 200:
            raise ServerError(_refusal(server.url + path, response), response.status_code)
        server.heard = time.monotonic()
        is_json = response.headers.get("content-type", "").startswith("application/json")
        return response.json() if is_json else response.text

    async def anywhere(self, ask: Callable[[Server], Awaitable[Found]]) -> Found:
        """Return what the least busy server answers; where it fails the next one is asked.

        Raises:
            ServerError: what every server would refuse, in the words of the first.
            EngineError: no server is left.
        """
        for left in reversed(range(ROUNDS)):
            tried: set[Server] = set()
            while server := self._least_busy(tried):
                tried.add(server)
                try:
                    return await self._asked(server, ask)
                except ServerError as error:
                    if not error.may_work_elsewhere:
                        raise
                    self._avoid(server, str(error))
            if left and not all(server.lost for server in self.servers):
                await asyncio.sleep(PAUSE_S)
        failures = "; ".join(server.failure for server in self.servers)
        raise EngineError(
            f"none of the {len(self.servers)} servers is left to generate ({failures}); start them again and resume"
        )

    async def everywhere(self, ask: Callable[[Server], Awaitable[Found]]) -> list[Found]:
        """Return what all servers answer, in order; all have answered before one's failure is raised."""
        answers = await asyncio.gather(*(ask(server) for server in self.servers), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers  # type: ignore[return-value]

    async def birth(self, server: Server) -> str:
        """Return when the server's process started, by its own clock: a restart changes it.

        Raises:
            ServerError: as `call`.
            EngineError: the server does not tell.
        """
        told = BIRTH.search(str(await self.call(server, "GET", "/metrics")))
        if told is None:
            raise EngineError(
                f"{server.url}/metrics has no process_start_time_seconds, by which a restart is noticed; start the server with "
                "--api-server-count 1"
            )
        return told[1]

    def trust(self, births: Sequence[str]) -> None:
        """Take it that all servers, each the process that started at its time in `births`, hold the right weights."""
        for server, birth in zip(self.servers, births, strict=True):
            server.birth, server.lost, server.avoid_until = birth, False, 0.0

    def distrust(self) -> None:
        """Ask no server for anything until `trust`: weights are on their way, and one may end up without them."""
        for server in self.servers:
            server.lost, server.failure = True, f"{server.url} may hold other weights, since they were not loaded everywhere"

    async def _asked(self, server: Server, ask: Callable[[Server], Awaitable[Found]]) -> Found:
        server.busy += 1
        try:
            if time.monotonic() > server.heard + TRUST_S and await self.birth(server) != server.birth:
                server.lost = True
                raise ServerError(f"{server.url} was restarted and has lost its weights")
            return await ask(server)
        finally:
            server.busy -= 1

    def _least_busy(self, tried: set[Server]) -> Server | None:
        now, count = time.monotonic(), len(self.servers)
        turned = [self.servers[(self._first + i) % count] for i in range(count)]
        able = [server for server in turned if not server.lost and server not in tried]
        return min(able, key=lambda server: (server.avoid_until > now, server.busy), default=None)

    def _avoid(self, server: Server, failure: str) -> None:
        server.failure, server.avoid_until, server.heard = failure, time.monotonic() + AVOID_S, -TRUST_S

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        """Give this loop's connections, which are open while any of its requests is under way: none outlives its loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._by_loop:
            self._by_loop[loop] = _Connections(self._new_client())
        held = self._by_loop[loop]
        held.users += 1
        try:
            yield held.http
        finally:
            held.users -= 1
            if not held.users:
                del self._by_loop[loop]
                await held.http.aclose()

    def _new_client(self) -> httpx.AsyncClient:
        import httpx

        self._ssl = self._ssl or httpx.create_ssl_context()  # slow to make
        # As many connections as requests, and never through a proxy: these are machines of one's own.
        limits, timeout = httpx.Limits(max_connections=None), httpx.Timeout(self._timeout_s, connect=CONNECT_S, pool=None)
        return httpx.AsyncClient(verify=self._ssl, limits=limits, timeout=timeout, trust_env=False)


def _refusal(url: str, response: httpx.Response) -> str:
    return f"{url} answered with status {response.status_code}: {' '.join(response.text.split())[:300]}"


def _base(url: str) -> str:
    """Return a server's address without `/v1` at its end."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 80) > 0
    except ValueError:  # a port that is no number or above 65,535, half an IPv6 address
        right = False
    if not right:
        raise InputError(f"'{url}' is not the address of a server; give one such as http://127.0.0.1:8000")
    return url.rstrip("/").removesuffix("/v1")
