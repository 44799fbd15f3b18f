"""A search engine made worse on purpose: for agents that are to notice a bad result and search again.

Every decision is drawn from the noise's seed, the request's own seed (an agent's client sends question and turn) and the query:
the same request gets the same noise, also after a resume. Requests without a seed are told apart by how often the query came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

from cachetools import LRUCache

from project.corpus.retrievers import Retriever
from project.errors import InputError, RetrievalError
from project.files import read_rows
from project.records import Hit

MOST_ASKED = 100_000
"""Requests without a seed that are told apart."""


@dataclass(frozen=True)
class Noise:
    """How much worse. All shares are from 0 to 1."""

    seed: int = 0
    """Another seed is other noise."""
    drop_best: float = 0.0
    """Share of queries whose best hit is left out."""
    shuffle: float = 0.0
    """Share of queries whose hits come in a random order."""
    swap: float = 0.0
    """Share of hits in whose place stands a paraphrase, or where there is none the passage that is likest to it."""
    paraphrases: Path | None = None
    """Rows with a passage's `id` and another `text` for it; several for an id are drawn from."""
    truncate: float = 0.0
    """Share of hits whose text ends at a random place."""
    delay_s: float = 0.0
    """Mean seconds that a request waits, exponentially distributed."""
    fail: float = 0.0
    """Share of requests that fail."""

    def check(self) -> None:
        """Refuse values that cannot be."""
        for name, value in asdict(self).items():
            if name in ("drop_best", "shuffle", "swap", "truncate", "fail") and not 0 <= value <= 1:
                raise InputError(f"noise.{name} is {value}; give a share from 0 to 1")
        if self.delay_s < 0:
            raise InputError(f"noise.delay_s is {self.delay_s}; give 0 or more seconds")

    @property
    def is_on(self) -> bool:
        """Whether anything is made worse."""
        return any((self.drop_best, self.shuffle, self.swap, self.truncate, self.delay_s, self.fail))


class Noisy:
    """One or several engines, one of which is drawn for each request, and what becomes of their hits."""

    def __init__(self, retrievers: Sequence[Retriever], noise: Noise) -> None:
        """Take engines over the same corpus.

        Raises:
            InputError: the noise cannot be, or its file of paraphrases cannot be read.
        """
        noise.check()
        self.retrievers, self.noise = retrievers, noise
        self._paraphrases = _read_paraphrases(noise.paraphrases) if noise.paraphrases else {}
        self._asked: LRUCache[int, int] = LRUCache(MOST_ASKED)

    async def search(self, queries: Sequence[str], k: int, seed: str = "") -> list[list[Hit]]:
        """Search, and make the answer worse; see `Retriever`.

        Args:
            queries: of one request.
            k: hits a query, at most.
            seed: what tells this request from others.
        """
        if not self.noise.is_on and len(self.retrievers) == 1:
            return await self.retrievers[0].search(queries, k)
        key = f"seed {seed}" if seed else self._count(queries)
        rng = self._random("request", key, *queries)
        if self.noise.delay_s:
            await asyncio.sleep(rng.expovariate(1 / self.noise.delay_s))
        if rng.random() < self.noise.fail:
            raise RetrievalError("this search fails by noise.fail")
        engine = self.retrievers[rng.randrange(len(self.retrievers))]
        found = await engine.search(queries, k + (self.noise.drop_best > 0))  # one more, for the best that is left out
        worse = zip(queries, found, strict=True)
        return [await self._worse(hits, k, engine, self._random("query", key, query)) for query, hits in worse]

    async def aclose(self) -> None:
        """Close the engines."""
        for retriever in self.retrievers:
            await retriever.aclose()

    def _count(self, queries: Sequence[str]) -> str:
        asked = hash(tuple(queries))
        self._asked[asked] = self._asked.get(asked, 0) + 1
        return f"time {self._asked[asked]}"

    def _random(self, *key: str) -> Random:
        return Random("\x00".join((str(self.noise.seed), *key)).encode(errors="surrogatepass").hex())

    async def _worse(self, hits: list[Hit], k: int, engine: Retriever, rng: Random) -> list[Hit]:
        dropped, shuffled = rng.random() < self.noise.drop_best, rng.random() < self.noise.shuffle
        hits = hits[1:] if dropped else hits[:k]
        hits = [await self._other(hit, engine, rng) if rng.random() < self.noise.swap else hit for hit in hits]
        hits = [_cut(hit, rng) if rng.random() < self.noise.truncate else hit for hit in hits]
        if shuffled:
            rng.shuffle(hits)
        return hits

    async def _other(self, hit: Hit, engine: Retriever, rng: Random) -> Hit:
        """Return another wording of a hit, or the passage that is likest to it; the hit itself where there is neither."""
        if texts := self._paraphrases.get(hit.passage.id):
            return Hit(replace(hit.passage, text=rng.choice(texts)), hit.score)
        (near,) = await engine.search([f"{hit.passage.title}\n{hit.passage.text}"], 2)
        others = [other for other in near if other.passage.id != hit.passage.id]
        return Hit(others[0].passage, hit.score) if others else hit


def _cut(hit: Hit, rng: Random) -> Hit:
    return Hit(replace(hit.passage, text=hit.passage.text[: rng.randrange(len(hit.passage.text) + 1)]), hit.score)


def _read_paraphrases(path: Path) -> Mapping[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for line, row in read_rows(path):
        if not isinstance(row.get("id"), (str, int)) or not isinstance(row.get("text"), str):
            raise InputError(f"{path}, line {line}: a paraphrase needs `id` and `text`")
        texts.setdefault(str(row["id"]), []).append(row["text"])
    return texts
