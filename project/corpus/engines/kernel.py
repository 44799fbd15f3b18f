"""The inner loop of BM25, compiled: sums the terms' scores and keeps the best, without the GIL.

bm25s's own selection leaves equal scores in an order that depends on `k`; here they stand in the order of the corpus.
Compiled once a machine (numba keeps it beside this file), which takes some seconds.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@njit(nogil=True, cache=True)
def score(data: Floats, indices: Ints, starts: Ints, passages: int, terms: Ints, weights: Floats) -> Floats:
    """Return each passage's score: the sum over terms of weight x the term's score in it.

    Args:
        data: the scores of terms in passages, term by term.
        indices: the passage of each score.
        starts: where each term's scores begin.
        passages: how many there are.
        terms: of the query.
        weights: of each term, as many.
    """
    scores = np.zeros(passages, np.float32)
    for number in range(len(terms)):
        for place in range(starts[terms[number]], starts[terms[number] + 1]):
            scores[indices[place]] += weights[number] * data[place]
    return scores


@njit(nogil=True, cache=True)
def keep_best(scores: Floats, positions: Ints, values: Floats) -> int:
    """Fill both, of shape (k,), with the places and values of the highest scores above 0; return how many there are."""
    found, k = 0, len(positions)
    for place in range(len(scores)):
        value = scores[place]
        if value <= 0 or (found == k and value <= values[k - 1]):
            continue
        if found < k:
            found += 1
        at = found - 1
        while at > 0 and values[at - 1] < value:
            values[at], positions[at] = values[at - 1], positions[at - 1]
            at -= 1
        values[at], positions[at] = value, place
    return found


@njit(nogil=True, cache=True)
def rank(
    data: Floats, indices: Ints, starts: Ints, passages: int, terms: Ints, weights: Floats, ends: Ints, k: int
) -> tuple[Ints, Floats, Ints]:
    """Rank several queries; `ends` says where each one's terms end. Return places and scores, (queries, k), and how many."""
    positions, values = np.zeros((len(ends), k), np.int64), np.zeros((len(ends), k), np.float32)
    found, start = np.zeros(len(ends), np.int64), 0
    for number in range(len(ends)):
        query = slice(start, ends[number])
        scores = score(data, indices, starts, passages, terms[query], weights[query])
        found[number] = keep_best(scores, positions[number], values[number])
        start = ends[number]
    return positions, values, found
