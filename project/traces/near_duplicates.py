"""Texts that say nearly the same: MinHash (Broder 1997) in bands (Indyk and Motwani 1998), by `datasketch`.

The likeness of two texts is the Jaccard index of their character 5-grams, case, punctuation and articles aside. Texts that
are alike share one of their bands almost surely (`bands`); `groups_of` then compares the 5-grams themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from itertools import combinations
from typing import TYPE_CHECKING

from project.answers import normalise_answer

if TYPE_CHECKING:
    import numpy as np

LENGTH = 5
"""Characters of a shingle."""
SIGNATURE = 128
"""Hashes of a text."""


def shingles(text: str) -> frozenset[str]:
    """Return a text's character 5-grams; a shorter text is its own."""
    text = normalise_answer(text) or text
    return frozenset(text[start : start + LENGTH] for start in range(max(1, len(text) - LENGTH + 1)))


def likeness(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the Jaccard index: the share of all 5-grams of two texts that both have."""
    return len(one & other) / len(one | other)


@cache
def bands_for(threshold: float, missing: float) -> tuple[int, int]:
    """Return the number of bands and the hashes of each that suit a likeness.

    Args:
        threshold: the likeness from which on two texts should share a band, over 0 and under 1.
        missing: what a pair that shares none counts beside one below the threshold that does, from 0 to 1. With 0.99 and a
            threshold of 0.8 pairs of that likeness share a band 98.6 times in 100, of 0.7 79 times; with 0.5 40 and 8 times.
    """
    from datasketch import MinHashLSH

    lsh = MinHashLSH(threshold=threshold, num_perm=SIGNATURE, weights=(1.0 - missing, missing))
    return lsh.b, lsh.r


def bands(text: str, count: int, size: int) -> list[bytes]:
    """Return a text's bands: `count` runs of `size` of its hashes."""
    from datasketch import MinHash
    from xxhash import xxh32_intdigest

    signature = MinHash(SIGNATURE, hashfunc=xxh32_intdigest)
    signature.update_batch(shingle.encode(errors="surrogatepass") for shingle in shingles(text))
    return [bytes([n]) + signature.hashvalues[n * size : (n + 1) * size].tobytes() for n in range(count)]


def groups_of(texts: Mapping[str, str], threshold: float) -> dict[str, str]:
    """Return, for each name whose text is like another's, the alphabetically first name of those that go together.

    Texts go together where a chain of them is, each like the next by at least `threshold` (0 to 1, 1 not included).
    """
    import numpy as np
    from scipy.cluster.hierarchy import DisjointSet

    names = sorted(texts)
    of = lru_cache(maxsize=10_000)(lambda number: shingles(texts[names[number]]))
    shape = bands_for(threshold, 0.99)  # what is found is looked at again below
    keys = np.array([[hash(band) for band in bands(texts[name], *shape)] for name in names], dtype=np.int64)
    together = DisjointSet(range(len(names)))
    for alike in _sharing(keys):
        for one, other in combinations(alike, 2):
            if not together.connected(one, other) and likeness(of(one), of(other)) >= threshold:
                together.merge(one, other)
    sets = (sorted(subset) for subset in together.subsets() if len(subset) > 1)
    return {names[number]: names[first] for first, *rest in sets for number in (first, *rest)}


def _sharing(keys: np.ndarray) -> Iterator[Iterable[int]]:
    """Yield the numbers of the rows that share a key, for each column (rows, bands) of keys."""
    import numpy as np

    for column in keys.T:
        order = np.argsort(column, kind="stable")
        starts = np.flatnonzero(np.diff(column[order], prepend=column[order[:1]] - 1))
        sizes = np.diff(starts, append=len(order))
        for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
            yield order[start : start + size].tolist()
