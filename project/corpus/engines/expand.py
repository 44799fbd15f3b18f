"""Query expansion for BM25 by pseudo-relevance feedback: RM3 (Abdul-Jaleel and others, TREC 2004).

The best passages of a first ranking say which further terms belong to the query: a term's weight is the sum over them of its
share of the passage times the passage's share of the scores. The ten heaviest are mixed half and half with the query's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from project.corpus.engines.bm25 import Bm25
from project.corpus.retrievers import Ranker, Ranking

PASSAGES, TERMS, OWN = 10, 10, 0.5
"""Passages that are looked at, terms that are added, and the share of the query's own terms: RM3's usual values."""


class Expanded:
    """BM25 with further terms. Threads may share one."""

    def __init__(self, bm25: Bm25, first: Ranker, texts: Sequence[str]) -> None:
        """Take what gives the first ranking, and the texts of all passages."""
        self.bm25, self.first, self.texts = bm25, first, texts

    def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """Return for each query at most `k` places; what the first ranking finds nothing for stays without a hit."""
        asked = [self.bm25.terms(query) for query in queries]
        firsts = self.first.rank(queries, PASSAGES)
        return self.bm25.rank_terms([self._expanded(terms, first) for terms, first in zip(asked, firsts, strict=True)], k)

    def _expanded(self, terms: Mapping[int, int], first: Ranking) -> dict[int, float]:
        if not terms or not len(first):
            return dict(terms)
        total = float(first.scores.sum())
        model: Counter[int] = Counter()
        for place, score in zip(first.positions.tolist(), first.scores.tolist(), strict=True):
            held = self.bm25.terms(self.texts[place])
            for term, count in held.items():
                model[term] += score / total * count / held.total()
        kept = dict(sorted(model.items(), key=lambda item: (-item[1], item[0]))[:TERMS])
        own, further = sum(terms.values()), sum(kept.values())
        return {
            term: OWN * terms.get(term, 0) / own + (1 - OWN) * kept.get(term, 0) / further
            for term in dict.fromkeys([*terms, *kept])
        }
