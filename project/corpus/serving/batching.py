"""Searches of many clients in few calls of the engine, with a bound on what waits.

What comes while the engine works is searched together as soon as it is free: nobody waits for a batch to fill, so one client
alone loses no time. Equal queries of a batch are searched once. A batch that fails is tried again request by request, so that
a request suffers from its own queries only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from project.corpus.retrievers import Retriever
from project.errors import BusyError
from project.records import Hit


@dataclass(eq=False, slots=True)
class _Request:
    queries: Sequence[str]
    k: int
    answer: asyncio.Future[list[list[Hit]]] = field(repr=False)


class Batcher:
    """A `Retriever` over another one, for one event loop."""

    def __init__(
        self,
        retriever: Retriever,
        most_queries: int = 64,
        most_waiting: int = 2048,
        at_once: int = 2,
        observe: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Take what is searched.

        Args:
            retriever: the engine.
            most_queries: in a batch; a request with more makes one alone.
            most_waiting: queries that may wait; what comes then is refused.
            at_once: batches that are searched side by side.
            observe: is told the size of each batch.
        """
        self.retriever, self.most_queries, self.most_waiting = retriever, most_queries, most_waiting
        self.at_once, self.observe = at_once, observe
        self._waiting: deque[_Request] = deque()
        self._running: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Queries that wait."""
        return sum(len(request.queries) for request in self._waiting if not request.answer.done())

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Search with what others ask for; see `Retriever`.

        Raises:
            BusyError: too many queries wait.
            RetrievalError: the engine failed.
        """
        if not queries:
            return []
        if self.waiting and self.waiting + len(queries) > self.most_waiting:
            raise BusyError(f"{self.waiting} queries wait already; try again in a second")
        request = _Request(queries, k, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._start()
        return await request.answer

    async def aclose(self) -> None:
        """Wait for what runs, then close the engine."""
        while self._running:
            await asyncio.gather(*self._running)
        await self.retriever.aclose()

    def _start(self) -> None:
        while self._waiting and len(self._running) < self.at_once:
            batch = self._next()
            if not batch:
                return
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    def _next(self) -> list[_Request]:
        """Take the next requests; those that nobody waits for any more are dropped."""
        batch: list[_Request] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0].queries) <= self.most_queries):
            request = self._waiting.popleft()
            if not request.answer.done():
                batch.append(request)
                size += len(request.queries)
        return batch

    async def _run(self, batch: Sequence[_Request]) -> None:
        try:
            found = await self._search(batch)
        except Exception as error:  # noqa: BLE001 - it belongs to the requests
            if len(batch) > 1:
                for request in batch:
                    if not request.answer.done():
                        await self._run([request])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        for request in batch:
            if not request.answer.done():
                request.answer.set_result([found[query][: request.k] for query in request.queries])

    async def _search(self, batch: Sequence[_Request]) -> dict[str, list[Hit]]:
        asked = list(dict.fromkeys(query for request in batch for query in request.queries))
        self.observe(len(asked))
        hits = await self.retriever.search(asked, max(request.k for request in batch))
        return dict(zip(asked, hits, strict=True))
