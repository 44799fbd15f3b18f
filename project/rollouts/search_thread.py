"""Searches from a thread of their own, so that an engine that holds the event loop while it computes never delays them.

An in-process engine blocks the loop for a whole step; a request on that loop needs several turns of it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from project.environment.search import SearchTool
from project.records import Document


class _ThreadedSearch:
    def __init__(self, tool: SearchTool, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._tool, self._loop, self._seconds = tool, loop, seconds

    async def search(self, queries: Sequence[str], seed: str) -> list[list[Document]]:
        """Search on the other thread's loop and wait for it on this one."""

        async def ask() -> list[list[Document]]:
            return await asyncio.wait_for(self._tool.search(queries, seed), self._seconds)

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(ask(), self._loop))


@contextmanager
def search_thread(tool: SearchTool | None, seconds: float) -> Iterator[SearchTool | None]:
    """Give a tool that searches on a thread of its own until the block ends; None stays None.

    Its time limit, `seconds`, is counted there too: here a search would look late that came back while the engine computed.
    """
    if tool is None:
        yield None
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="seeker-search", daemon=True)
    thread.start()
    try:
        yield _ThreadedSearch(tool, loop, seconds)
    finally:
        close = getattr(tool, "aclose", None)
        if close is not None:
            asyncio.run_coroutine_threadsafe(close(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
