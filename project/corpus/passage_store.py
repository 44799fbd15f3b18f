"""Passages on disk that are read one at a time: `passages.jsonl` and the byte offset of each line.

Both files are memory-mapped, so that opening costs nothing and only the passages that are found are parsed.
JSON is written in ASCII: any string that Python holds comes back as it was.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

from project.errors import InputError
from project.records import Passage

ROWS_FILE = "passages.jsonl"
OFFSETS_FILE = "passages.offsets.npy"


def write_passages(folder: Path, passages: Iterable[Passage]) -> int:
    """Write the two files into an existing folder and return how many passages they hold."""
    import numpy as np

    offsets = [0]
    with (folder / ROWS_FILE).open("wb") as out:
        for passage in passages:
            offsets.append(offsets[-1] + out.write(json.dumps(passage.to_row()).encode("ascii") + b"\n"))
    np.save(folder / OFFSETS_FILE, np.asarray(offsets, dtype=np.int64))
    return len(offsets) - 1


def distinct(passages: Iterable[Passage]) -> Iterator[Passage]:
    """Yield the passages; none at all, and an id that occurs twice, is an `InputError`."""
    numbers: dict[int, int] = {}
    for number, passage in enumerate(passages, 1):
        if (first := numbers.setdefault(hash(passage.id), number)) != number:
            raise InputError(f"passage {number}: field 'id' is '{passage.id}' as in passage {first}; ids must differ")
        yield passage
    if not numbers:
        raise InputError("there are no passages; an index needs at least one")


class Texts(Sequence[str]):
    """What of each passage is searched: its title and its text."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = passages

    def __len__(self) -> int:
        return len(self.passages)

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> list[str]: ...
    def __getitem__(self, position: int | slice) -> str | list[str]:
        """Return one text, or those of a slice."""
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        passage = self.passages[position]
        return f"{passage.title}\n{passage.text}"


class PassageStore(Sequence[Passage]):
    """The passages of a folder that `write_passages` wrote, in their order. Safe to read from several threads."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        try:
            self._offsets = np.load(folder / OFFSETS_FILE, mmap_mode="r")
            with (folder / ROWS_FILE).open("rb") as rows:
                self._rows = mmap.mmap(rows.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{folder} is a damaged index ({error}); build it again with 'seeker index build'") from error
        if len(self._offsets) < 2 or int(self._offsets[-1]) != len(self._rows):
            raise InputError(f"{folder / ROWS_FILE} does not match its offsets; build it again with 'seeker index build'")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, position: int) -> Passage: ...
    @overload
    def __getitem__(self, position: slice) -> list[Passage]: ...
    def __getitem__(self, position: int | slice) -> Passage | list[Passage]:
        """Read and parse one passage, or those of a slice."""
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        if not -len(self) <= position < len(self):
            msg = f"passage {position} of {len(self)}"
            raise IndexError(msg)
        position %= len(self)
        row = self._rows[int(self._offsets[position]) : int(self._offsets[position + 1])]
        return Passage.from_row(json.loads(row))
