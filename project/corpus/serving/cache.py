"""Answers kept in memory; the least recently used goes first. As first hits do not depend on `k`, a deeper answer serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cachetools import LRUCache

from project.corpus.retrievers import Retriever
from project.records import Hit


@dataclass(frozen=True, slots=True)
class _Kept:
    k: int
    hits: list[Hit]
    size: int


class Cached:
    """A `Retriever` over another one, for one event loop. Failures are not kept."""

    def __init__(self, retriever: Retriever, most_hits: int, observe: Callable[[int, int], None] = lambda *_: None) -> None:
        """Take what is searched.

        Args:
            retriever: what answers, always the same way.
            most_hits: hits that are kept; an answer counts for one more, and a long query for some.
            observe: is told how many queries were found here, and how many not.
        """
        self.retriever, self.observe = retriever, observe
        self._kept: LRUCache[str, _Kept] = LRUCache(most_hits, lambda kept: kept.size)

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Search for what is not known; see `Retriever`."""
        known = {query: kept.hits[:k] for query in queries if (kept := self._kept.get(query)) and k <= kept.k}
        missing = [query for query in dict.fromkeys(queries) if query not in known]
        self.observe(len(known), len(missing))
        if missing:
            for query, hits in zip(missing, await self.retriever.search(missing, k), strict=True):
                known[query] = hits
                kept = _Kept(k, hits, 1 + len(hits) + len(query) // 500)
                if kept.size <= self._kept.maxsize:
                    self._kept[query] = kept
        return [known[query] for query in queries]

    async def aclose(self) -> None:
        """Close what answers."""
        await self.retriever.aclose()
