"""What every search engine offers. Engines are interchangeable: the server, the benchmark and the agents see only this.

A hit shares something with its query (score above 0), so fewer than `k` hits, or none, is a right answer. The first hits
do not depend on `k`, nor on the other queries of a batch: equal scores stand in the order of the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from project.records import Hit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@runtime_checkable
class Retriever(Protocol):
    """A corpus that can be searched, from any event loop and from several at once."""

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return for each query at most `k` hits, best first; any `k` >= 1 is allowed.

        Raises:
            RetrievalError: the engine failed: it is not reached, too slow, or damaged.
        """

    async def aclose(self) -> None:
        """Give up connections and memory."""


class SeededRetriever(Protocol):
    """A `Retriever` whose noise, if it has any, is drawn from a request's seed."""

    async def search(self, queries: Sequence[str], k: int, seed: str = "") -> list[list[Hit]]:
        """Search; see `Retriever`."""

    async def aclose(self) -> None:
        """Give up connections and memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """What an engine of an index found for a query, best first."""

    positions: NDArray[np.int64]
    """Places in the corpus, shape (hits,)."""
    scores: NDArray[np.float32]
    """As many, above 0 and falling, equal ones by place."""

    def __len__(self) -> int:
        return len(self.positions)

    def first(self, k: int) -> Ranking:
        """Return the first `k`."""
        return Ranking(self.positions[:k], self.scores[:k])

    def followed_by(self, other: Ranking, k: int) -> Ranking:
        """Return these, and behind them what else another ranking has, scored below them; `k` at most."""
        import numpy as np

        new = ~np.isin(other.positions, self.positions)
        positions, scores = other.positions[new], other.scores[new]
        if len(scores) and len(self):
            scores = (scores * (self.scores[-1] / (2 * scores[0]))).astype(np.float32)
        return Ranking(np.concatenate([self.positions, positions]), np.concatenate([self.scores, scores])).first(k)


class Ranker(Protocol):
    """An engine of an index: it knows the passages by their places only. Threads may share one."""

    def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """Return for each query at most `k` places."""


def best(scores: NDArray[np.float32], k: int, floor: float = 0.0) -> NDArray[np.int64]:
    """Return the places of the `k` highest scores above `floor`, best first, ties by place.

    Args:
        scores: one score a passage, shape (passages,).
        k: how many at most, >= 1.
        floor: scores up to it are left out.
    """
    import numpy as np

    found = np.flatnonzero(scores > floor)
    if k < len(found):
        values = scores[found]
        found = found[values >= np.partition(values, -k)[-k]]
    order = np.argsort(-scores[found], kind="stable")[:k]
    return found[order]
