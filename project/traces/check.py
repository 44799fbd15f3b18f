"""`seeker data split --check`: show that files of two or three sides share nothing (`overlap.py`, DESIGN §8.8).

Of each file's marks 64 bits are kept, eight bytes a mark, worked out on all cores. Where two sides share some, the files are
read once more for the marks themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from project.errors import InputError
from project.overlap import record_marks, refuse_overlap
from project.streams import ROW_ERRORS, Readable, chunked, in_processes
from project.writing import stem_of

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "validation", "test")


def check_files(paths: Sequence[Path]) -> dict[str, int]:
    """Return the rows of each side of files that are split.

    Raises:
        InputError: a file's name does not say its side, there is one side only, or two share something.
    """
    import numpy as np

    sides: dict[str, list[np.ndarray]] = {}
    rows: Counter[str] = Counter()
    for path in paths:
        side_of(path)
    with in_processes("seeker data split --check", _marked, chunked(paths)) as found:
        for one in found:
            sides.setdefault(one.side, []).append(one.hashes)
            rows[one.side] += one.rows
    if len(sides) < 2:
        raise InputError(f"the files are all of one side, {', '.join(sides)}; give those of two or three")
    held = [np.unique(np.concatenate(hashes)) for hashes in sides.values()]
    shared = [np.intersect1d(a, b, assume_unique=True) for number, a in enumerate(held) for b in held[:number]]
    if crossing := set(np.concatenate(shared).tolist()):
        refuse_overlap(_named(paths, crossing))
    return dict(rows)


def side_of(path: Path) -> str:
    """Return the side that a file's name ends with."""
    side = stem_of(path).rpartition("_")[2]
    if side not in SPLITS:
        raise InputError(f"{path} does not say which side it is; its name must end with _train, _validation or _test")
    return side


@dataclass(frozen=True, slots=True)
class Marked:
    """What a chunk's rows must not share with another side."""

    side: str
    hashes: np.ndarray
    """Of each distinct mark (marks,) uint64."""
    rows: int
    share: float
    """How much of all files ends with this chunk, from 0 to 1."""


def _marked(chunk: Readable) -> Marked:
    import numpy as np

    found, rows = set(), 0
    for held in _marks(chunk):
        found |= set(map(_hash, held))
        rows += 1
    return Marked(side_of(chunk.path), np.fromiter(found, np.uint64, len(found)), rows, chunk.share)


def _marks(chunk: Readable) -> Iterator[set[str]]:
    """Yield the marks of each row; one that is neither a conversation nor a question is an `InputError`."""
    for number, row, reason in chunk.rows():
        if not isinstance(row, dict):
            raise InputError(f"{chunk.path}, line {number}: {reason}")
        try:
            yield record_marks(row)
        except ROW_ERRORS as error:
            raise InputError(f"{chunk.path}, line {number}: {error}") from error


def _hash(mark: str) -> int:
    """Return 64 bits of a mark, the same in every process."""
    from xxhash import xxh3_64_intdigest

    return xxh3_64_intdigest(mark.encode(errors="surrogatepass"))


def _named(paths: Sequence[Path], crossing: set[int]) -> dict[str, set[str]]:
    """Return those of each side's marks that another side may hold too."""
    sides: dict[str, set[str]] = {}
    for chunk in chunked(paths):
        found = (mark for held in _marks(chunk) for mark in held)
        sides.setdefault(side_of(chunk.path), set()).update(mark for mark in found if _hash(mark) in crossing)
    return sides
