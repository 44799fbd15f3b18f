"""Several engines' rankings as one: reciprocal rank fusion, or a weighted sum of scores.

RRF (Cormack, Clarke and Buettcher 2009) adds 1 / (60 + rank). The weighted sum takes each ranking's scores as shares of its
highest, so that BM25 and cosines can be added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from project.corpus.retrievers import Ranker, Ranking

Fusion = Literal["rrf", "weighted"]
RRF_CONSTANT = 60
DEPTH = 200
"""Places of each engine that are fused; what lies deeper stands behind them, so that the first places do not depend on `k`."""


class Hybrid:
    """Engines of one corpus, fused. Threads may share one."""

    def __init__(self, rankers: Sequence[Ranker], weights: Sequence[float], fusion: Fusion = "rrf") -> None:
        """Take as many weights as engines; RRF takes them as factors."""
        self.rankers, self.weights, self.fusion = rankers, weights, fusion

    def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """Return for each query at most `k` places that any engine found."""
        found = [ranker.rank(queries, max(k, DEPTH)) for ranker in self.rankers]
        return [self._fused(rankings, k) for rankings in zip(*found, strict=True)]

    def _fused(self, rankings: Sequence[Ranking], k: int) -> Ranking:
        first = fuse([ranking.first(DEPTH) for ranking in rankings], self.weights, self.fusion, k)
        if k <= len(first) or k <= DEPTH:
            return first
        return first.followed_by(fuse(rankings, self.weights, self.fusion, k), k)


def fuse(rankings: Sequence[Ranking], weights: Sequence[float], fusion: Fusion, k: int) -> Ranking:
    """Return the `k` places of the highest sums, ties by place."""
    import numpy as np

    places = np.unique(np.concatenate([ranking.positions for ranking in rankings]))
    sums = np.zeros(len(places), np.float32)
    for ranking, weight in zip(rankings, weights, strict=True):
        if not len(ranking):
            continue
        parts = 1 / (RRF_CONSTANT + np.arange(1, len(ranking) + 1)) if fusion == "rrf" else ranking.scores / ranking.scores[0]
        sums[np.searchsorted(places, ranking.positions)] += weight * parts
    order = np.argsort(-sums, kind="stable")[:k]
    return Ranking(places[order], sums[order])
