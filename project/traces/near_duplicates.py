"""Texts that say nearly the same: MinHash (Broder 1997) in bands (Indyk and Motwani 1998), by `datasketch`.

The likeness of two texts is the Jaccard index of their character 5-grams, case, punctuation and articles aside. Texts that
are alike share one of their bands almost surely (`bands`); `groups_of` then compares the 5-grams themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from project.answers import normalise_answer

if TYPE_CHECKING:
    import numpy as np

LENGTH = 5
"""Characters of a shingle."""
SIGNATURE = 128
"""Hashes of a text."""
DOUBT = 0.1
"""How far under the threshold the share of hashes that agree may be before a pair is not compared: about three standard
deviations."""
LEAST, MOST = 0.3, 0.99
"""The thresholds between which bands find nearly all pairs."""


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


def signature(text: str) -> np.ndarray:
    """Return a text's MinHash (128,) uint32: two texts agree at about as many places as they are alike."""
    import numpy as np
    from datasketch import MinHash
    from xxhash import xxh32_intdigest

    hashes = MinHash(SIGNATURE, hashfunc=xxh32_intdigest)
    hashes.update_batch(shingle.encode(errors="surrogatepass") for shingle in shingles(text))
    return np.asarray(hashes.hashvalues)


def bands(hashes: np.ndarray, count: int, size: int) -> list[bytes]:
    """Return a signature's bands: `count` runs of `size` of its hashes."""
    return [bytes([n]) + hashes[n * size : (n + 1) * size].tobytes() for n in range(count)]


def groups_of(texts: Mapping[str, str], threshold: float) -> dict[str, str]:
    """Return, for each name whose text is like another's, the alphabetically first name of those that go together.

    Texts go together where a chain of them is, each like the next by at least `threshold`. A pair that is just that like is
    found 96 to 99 times in 100, according to the threshold; one that is not is never taken for one.

    Args:
        texts: by name.
        threshold: from `LEAST` to `MOST`.
    """
    import numpy as np

    if not texts:
        return {}
    names = sorted(texts)
    signatures = np.stack([signature(texts[name]) for name in names])
    shape = bands_for(threshold, 0.99)
    keys = np.array([[hash(band) for band in bands(hashes, *shape)] for hashes in signatures], dtype=np.int64)
    held = lru_cache(maxsize=16_384)(lambda number: shingles(texts[names[number]]))
    group = np.arange(len(names))
    for alike in _sharing(keys):
        for position, one in enumerate(alike[:-1]):
            others = alike[position + 1 :]
            others = others[group[others] != group[one]]
            agreeing = (signatures[others] == signatures[one]).mean(axis=1)
            for other in others[agreeing > threshold - DOUBT]:
                if group[other] != group[one] and likeness(held(one), held(other)) >= threshold:
                    first, last = sorted((group[one], group[other]))
                    group[group == last] = first
    sizes = np.bincount(group)
    return {name: names[first] for name, first in zip(names, group.tolist(), strict=True) if sizes[first] > 1}


def _sharing(keys: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the numbers of the rows that share a key, for each column (rows, bands) of keys."""
    import numpy as np

    for column in keys.T:
        order = np.argsort(column, kind="stable")
        starts = np.flatnonzero(np.diff(column[order], prepend=column[order[:1]] - 1))
        sizes = np.diff(starts, append=len(order))
        for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
            yield order[start : start + size]
