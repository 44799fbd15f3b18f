"""A cross-encoder over the best of another engine: it reads query and passage together, and its score decides their order."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

from project.corpus.retrievers import Ranker, Ranking
from project.errors import InputError
from project.runtime import quiet_transformers


class Reranked:
    """An engine whose first `depth` places a cross-encoder orders; what stands behind them stays. Threads may share one."""

    def __init__(self, ranker: Ranker, texts: Sequence[str], model: str, depth: int) -> None:
        """Load the model.

        Raises:
            InputError: it cannot be had, or gives more than one score a pair.
        """
        self.ranker, self.texts, self.depth, self._lock = ranker, texts, depth, Lock()
        self._model = _load(model)

    def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """Return for each query at most `k` places; the scores are the model's, from 0 to 1, of those it has read."""
        found = self.ranker.rank(queries, max(k, self.depth))
        pairs = [
            (query, self.texts[place])
            for query, ranking in zip(queries, found, strict=True)
            for place in ranking.positions[: self.depth].tolist()
        ]
        if not pairs:
            return found
        with self._lock:
            scores = self._model.predict(pairs, show_progress_bar=False)
        rankings, start = [], 0
        for ranking in found:
            count = min(len(ranking), self.depth)
            rankings.append(_ordered(ranking, scores[start : start + count], k))
            start += count
        return rankings


def _ordered(ranking: Ranking, scores: Any, k: int) -> Ranking:  # noqa: ANN401 - an array
    """Return the ranking with its first places in the order of the scores, the others behind, scored below them."""
    import numpy as np

    read = np.maximum(np.asarray(scores, np.float32), np.finfo(np.float32).tiny)
    order = np.lexsort((ranking.positions[: len(read)], -read))
    return Ranking(ranking.positions[: len(read)][order], read[order]).followed_by(ranking, k)


def _load(model: str) -> Any:  # noqa: ANN401 - a CrossEncoder
    quiet_transformers()
    from sentence_transformers import CrossEncoder
    from torch.nn import Sigmoid

    try:
        loaded = CrossEncoder(model, activation_fn=Sigmoid())
    except (OSError, ValueError, RuntimeError, LookupError, TypeError) as error:  # what transformers raises
        cause = str(error).partition("\n")[0]
        raise InputError(f"{model} is no cross-encoder that can be had ({cause})") from error
    if loaded.num_labels != 1:
        raise InputError(f"{model} gives {loaded.num_labels} scores a pair, expected 1; give a cross-encoder for ranking")
    return loaded
