"""BM25: bm25s makes, stores and memory-maps the scores of terms in passages; `kernel.py` adds them up.

Lucene's form, whose inverse document frequency is never 0: a shared word always gives a score above 0.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from project.corpus.engines.settings import Bm25Settings
from project.corpus.retrievers import Ranking, best
from project.corpus.words import stems, stop_words_of, words
from project.errors import InputError

if TYPE_CHECKING:  # without bm25s: jsonargparse runs this block for --help, and bm25s takes half a second to load
    import numpy as np

PACKAGES = ("bm25s", "PyStemmer")
SMALL_K = 256
"""Up to here the best are kept sorted while they are found; above, they are selected afterwards."""
QUERIES_A_THREAD = 8


class Bm25:
    """The scores of terms in passages. Threads may share one."""

    def __init__(self, engine: Any, settings: Bm25Settings) -> None:  # noqa: ANN401 - a bm25s.BM25
        self._engine, self.settings = engine, settings
        self._stop_words = stop_words_of(settings.stop_words)
        self._threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads, "bm25")

    @classmethod
    def of(cls, texts: Iterable[str], settings: Bm25Settings | None = None) -> Self:
        """Index texts.

        Raises:
            InputError: no text holds a word, or a setting cannot be.
        """
        import bm25s

        settings = settings or Bm25Settings()
        settings.check()
        ids, vocabulary = _term_ids(texts, settings)
        if not vocabulary:
            raise InputError(f"none of the {len(ids)} passages holds a word to search for; check their title and text")
        engine = bm25s.BM25(k1=settings.k1, b=settings.b, method="lucene")
        engine.index((ids, vocabulary), create_empty_token=False, show_progress=False)
        return cls(engine, settings)

    def save(self, folder: Path) -> None:
        """Write the scores into a new folder."""
        self._engine.save(folder, show_progress=False)

    @classmethod
    def load(cls, folder: Path, settings: Bm25Settings) -> Self:
        """Open the scores, memory-mapped; what `numpy` and `json` raise where they are damaged goes through."""
        import bm25s

        return cls(bm25s.BM25.load(folder, mmap=True, show_progress=False), settings)

    def __len__(self) -> int:
        return int(self._engine.scores["num_docs"])

    def terms(self, text: str) -> Counter[int]:
        """Return how often a text holds each known term."""
        found = stems(words(text, self._stop_words), self.settings.stemmer)
        known: Mapping[str, int] = self._engine.vocab_dict
        return Counter(known[stem] for stem in found if stem in known)

    def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """Return for each query the places of at most `k` passages that share a word with it."""
        return self.rank_terms([self.terms(query) for query in queries], k)

    def rank_terms(self, queries: Sequence[Mapping[int, float]], k: int) -> list[Ranking]:
        """Return the same for queries given as terms with weights."""
        k = min(k, len(self))
        if k > SMALL_K:
            return [self._rank_one(query, k) for query in queries]
        parts = min(self._threads, -(-len(queries) // QUERIES_A_THREAD))
        if parts < 2:
            return self._rank(queries, k)
        size = -(-len(queries) // parts)
        pieces = [queries[start : start + size] for start in range(0, len(queries), size)]
        return [ranking for found in self._pool.map(lambda piece: self._rank(piece, k), pieces) for ranking in found]

    @property
    def _arrays(self) -> tuple[Any, ...]:
        scores = self._engine.scores
        return scores["data"], scores["indices"], scores["indptr"], len(self)

    def _rank(self, queries: Sequence[Mapping[int, float]], k: int) -> list[Ranking]:
        import numpy as np

        from project.corpus.engines.kernel import rank

        terms = np.fromiter((term for query in queries for term in query), np.int64)
        weights = np.fromiter((weight for query in queries for weight in query.values()), np.float32)
        ends = np.fromiter(accumulate(len(query) for query in queries), np.int64)
        positions, scores, found = rank(*self._arrays, terms, weights, ends, k)
        return [Ranking(positions[i, :hits], scores[i, :hits]) for i, hits in enumerate(found)]

    def _rank_one(self, query: Mapping[int, float], k: int) -> Ranking:
        import numpy as np

        from project.corpus.engines.kernel import score

        terms, weights = np.fromiter(query, np.int64), np.fromiter(query.values(), np.float32)
        scores: np.ndarray[Any, np.dtype[np.float32]] = score(*self._arrays, terms, weights)
        places = best(scores, k)
        return Ranking(places, scores[places])


def _term_ids(texts: Iterable[str], settings: Bm25Settings) -> tuple[list[Sequence[int]], dict[str, int]]:
    """Return the stem ids of each text, and the ids by stem, numbered as they first occur."""
    stop_words = stop_words_of(settings.stop_words)
    by_word: dict[str, int] = {}
    word_ids = [array("i", (by_word.setdefault(word, len(by_word)) for word in words(text, stop_words))) for text in texts]
    vocabulary: dict[str, int] = {}
    stem_of = [vocabulary.setdefault(stem, len(vocabulary)) for stem in stems(list(by_word), settings.stemmer)]
    return [array("i", (stem_of[i] for i in ids)) for ids in word_ids], vocabulary
