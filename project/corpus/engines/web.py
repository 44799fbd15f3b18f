"""A web search API as an engine: Tavily's or Serper's, or any server that speaks as they do.

The key comes from TAVILY_API_KEY or SERPER_API_KEY. A result's address is its id.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any, Literal

from project.corpus.engines.json_api import JsonApi
from project.errors import InputError, RetrievalError
from project.records import Hit, Passage, Row

WebApi = Literal["tavily", "serper"]
ADDRESSES: dict[WebApi, str] = {"tavily": "https://api.tavily.com", "serper": "https://google.serper.dev"}


class WebRetriever:
    """Searches the web: one call a query, side by side."""

    def __init__(self, api: WebApi, url: str | None = None, timeout_s: float = 30.0, concurrency: int = 8) -> None:
        """Prepare; nothing is connected before the first search.

        Args:
            api: whose requests and answers are spoken.
            url: base address of another server that speaks so.
            timeout_s: seconds for one query, its further attempts included.
            concurrency: requests in flight at once.

        Raises:
            InputError: the key is missing.
        """
        self.api = api
        variable = f"{api.upper()}_API_KEY"
        if not (key := os.environ.get(variable)):
            raise InputError(f"the engine {api} needs its key in the environment variable {variable}")
        headers = {"authorization": f"Bearer {key}"} if api == "tavily" else {"x-api-key": key}
        self._server = JsonApi(url or ADDRESSES[api], timeout_s, concurrency, headers)

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Search; see `Retriever`."""
        return list(await asyncio.gather(*(self._one(query, k) for query in queries)))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._server.aclose()

    async def _one(self, query: str, k: int) -> list[Hit]:
        asked: Row = {"query": query, "max_results": min(k, 20)} if self.api == "tavily" else {"q": query, "num": min(k, 100)}
        if not query.strip():
            return []
        answer = await self._server.call("POST", "/search", asked)
        try:
            rows = answer["results"] if self.api == "tavily" else answer["organic"]
            return [_hit(row, rank) for rank, row in enumerate(rows, 1)][:k]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RetrievalError(f"{self._server.url} did not answer as {self.api} does: {error!r}") from error


def _hit(row: Any, rank: int) -> Hit:  # noqa: ANN401 - whatever JSON held
    """Read a result of either API; Serper's have no score and get 1 / rank."""
    text = row["content"] if "content" in row else row.get("snippet") or ""
    address = str(row.get("url") or row.get("link") or "")
    return Hit(Passage(address, str(row.get("title") or ""), str(text), source=address), float(row.get("score") or 1 / rank))
