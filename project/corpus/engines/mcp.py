"""A search tool of any MCP server as an engine, over streamable HTTP or as a child process that speaks on its pipes.

What the tool's arguments are called is read from its schema. Its results are read from structured content, or from text that
is JSON: a list of objects with a text, however named. Any other text is one result.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from project.corpus.engines.http import TOKEN
from project.errors import InputError, RetrievalError
from project.records import Hit, Passage, Row

if TYPE_CHECKING:
    from mcp import Client

QUERIES = ("query", "q", "queries", "search_query", "question", "text")
COUNTS = ("topk", "top_k", "k", "num_results", "max_results", "limit", "count", "n")
TEXTS = ("text", "content", "contents", "snippet", "body", "description", "page_content")
LISTS = ("results", "result", "documents", "hits", "items", "data")


@dataclass(eq=False)
class _Connection:
    """A client and the tool that is called; opened and closed by a task of its own, since who opens one must close it."""

    ready: asyncio.Future[tuple[Client, str, str, str | None]]
    """The client, the tool's name, and what its query and its number of results are called."""
    closing: asyncio.Event
    owner: asyncio.Task[None] | None = None


class McpRetriever:
    """Searches through an MCP server; one connection for each event loop, kept until `aclose`."""

    def __init__(self, address: str, tool: str | None = None, timeout_s: float = 30.0) -> None:
        """Prepare; nothing is started before the first search.

        Args:
            address: an URL, or a command with its arguments, which is started.
            tool: its name; default: `search`, or the only one that takes a query.
            timeout_s: seconds for one query, the connection included.
        """
        if not address.strip() or timeout_s <= 0:
            raise InputError(f"'{address}', timeout_s={timeout_s}: give an MCP server's URL or command, and seconds above 0")
        self.address, self.tool, self.timeout_s = address, tool, timeout_s
        self._by_loop: dict[asyncio.AbstractEventLoop, _Connection] = {}

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Search; see `Retriever`."""
        return list(await asyncio.gather(*(self._one(query, k) for query in queries)))

    async def aclose(self) -> None:
        """End this loop's connection, and the process where one was started."""
        if connection := self._by_loop.get(asyncio.get_running_loop()):
            await self._drop(connection)

    async def _one(self, query: str, k: int) -> list[Hit]:
        from mcp import MCPError

        connection = self._connected()
        try:
            async with asyncio.timeout(self.timeout_s):
                client, tool, query_name, count_name = await asyncio.shield(connection.ready)
                asked: Row = {query_name: [query] if query_name == "queries" else query}
                answer = await client.call_tool(tool, asked | ({count_name: k} if count_name else {}))
        except TimeoutError as error:
            if not connection.ready.done():
                await self._drop(connection)
            raise RetrievalError(f"the MCP server {self.address} did not answer in {self.timeout_s:g} s") from error
        except (MCPError, OSError, RetrievalError) as error:
            await self._drop(connection)  # the next search connects anew
            raise RetrievalError(f"the MCP server {self.address} failed: {error}") from error
        text = "\n".join(block.text for block in answer.content if block.type == "text")
        if answer.is_error:
            raise RetrievalError(f"the tool {tool} of {self.address} failed: {text[:300]}")
        return list(hits_of(answer.structured_content, text))[:k]

    def _connected(self) -> _Connection:
        loop = asyncio.get_running_loop()
        if loop not in self._by_loop:
            self._by_loop = {other: held for other, held in self._by_loop.items() if not other.is_closed()}
            self._by_loop[loop] = connection = _Connection(loop.create_future(), asyncio.Event())
            connection.ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())  # may be asked by nobody
            connection.owner = asyncio.create_task(self._own(connection))
        return self._by_loop[loop]

    async def _drop(self, connection: _Connection) -> None:
        loop = asyncio.get_running_loop()
        if self._by_loop.get(loop) is connection:
            del self._by_loop[loop]
        connection.closing.set()
        if connection.owner is not None:
            if not connection.ready.done():
                connection.owner.cancel()
            await asyncio.gather(connection.owner, return_exceptions=True)

    async def _own(self, connection: _Connection) -> None:
        try:
            async with opened(self.address) as client:
                connection.ready.set_result((client, *_chosen((await client.list_tools()).tools, self.tool)))
                await connection.closing.wait()
        except Exception as error:  # noqa: BLE001 - whatever a transport raises, several at once among it
            if not connection.ready.done():
                connection.ready.set_exception(RetrievalError(str(_first(error))))


@asynccontextmanager
async def opened(address: str) -> AsyncIterator[Client]:
    """Give a client; over HTTP it sends the bearer token that SEEKER_RETRIEVAL_TOKEN holds, if anything."""
    from mcp import Client, StdioServerParameters
    from mcp.client.stdio import stdio_client
    from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client

    command, *arguments = shlex.split(address)
    if not command.startswith(("http://", "https://")):
        # By default the SDK takes the sys.stderr of its import for the server's, which in a notebook is no file.
        with open(os.devnull, "w") if sys.__stderr__ is None else nullcontext(sys.__stderr__) as errors:
            async with Client(stdio_client(StdioServerParameters(command=command, args=arguments), errors)) as client:
                yield client
        return
    token = os.environ.get(TOKEN)
    headers = {"authorization": f"Bearer {token}"} if token else None
    async with create_mcp_http_client(headers) as http, Client(streamable_http_client(address, http_client=http)) as client:
        yield client


def _first(error: BaseException) -> BaseException:
    """Return what a group of errors began with."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _chosen(tools: Sequence[Any], wanted: str | None) -> tuple[str, str, str | None]:
    """Return the tool's name and what its query and its number of results are called."""
    taking = {tool.name: named for tool in tools if (named := _arguments(tool)) is not None}
    name = wanted or ("search" if "search" in taking else next(iter(taking), "") if len(taking) == 1 else "")
    if name not in taking:
        found = ", ".join(tool.name for tool in tools) or "none"
        raise RetrievalError(f"it has no tool '{wanted or 'search'}' that takes a query, and has {found}; name one")
    return name, *taking[name]


def _arguments(tool: Any) -> tuple[str, str | None] | None:  # noqa: ANN401 - an mcp.types.Tool
    known = tool.input_schema.get("properties", {})
    query = next((name for name in QUERIES if name in known), None)
    return None if query is None else (query, next((name for name in COUNTS if name in known), None))


def hits_of(structured: Any, text: str) -> Iterator[Hit]:  # noqa: ANN401 - whatever JSON held
    """Yield what an answer holds."""
    rows = _rows(structured)
    if rows is None:
        try:
            rows = _rows(json.loads(text))
        except ValueError:
            rows = None
    if rows is None:
        rows = [{"text": text}] if text.strip() and text.strip() != "No results." else []
    for rank, row in enumerate(rows, 1):
        held: Row = row["document"] if isinstance(row.get("document"), dict) else row
        said = next((str(held[name]) for name in TEXTS if held.get(name)), "")
        ident = str(held.get("id") or held.get("url") or held.get("link") or "")
        score = row.get("score")
        yield Hit(
            Passage(ident, str(held.get("title") or ""), said), float(score) if isinstance(score, (int, float)) else 1 / rank
        )


def _rows(value: Any) -> list[Row] | None:  # noqa: ANN401 - whatever JSON held
    """Return the objects that an answer lists; None where it is no such list."""
    if isinstance(value, dict):
        value = next((value[name] for name in LISTS if isinstance(value.get(name), list)), value)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]  # one query's
    if not isinstance(value, list):
        return None
    return [row if isinstance(row, dict) else {"text": str(row)} for row in value]
