"""What a job has finished: killed at any moment, it goes on from there and repeats nothing.

One JSON object a line, `{"key": …}` and what was found, appended in one write. Only keys and places are held in memory. The
file is locked while it is open; the system lets go of the lock of a killed process.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from project.errors import InputError
from project.records import Row
from project.writing import json_bytes

_LENGTH_BITS = 32
_ENTRY = re.compile(rb'\{"key":"([0-9a-f]{32})"[,}]')
"""How each line begins."""


def key_of(*parts: Any) -> str:  # noqa: ANN401 - any JSON
    """Return the key of what is decided by these parts, as JSON."""
    return hashlib.sha256(json_bytes(parts)).hexdigest()[:32]


class Journal:
    """An append-only file of what was found, by key."""

    def __init__(self, path: Path) -> None:
        """Take the file, which may be there already."""
        self.path = path
        self._places: dict[bytes, int] = {}
        self._end = 0

    def __enter__(self) -> Self:
        """Open and lock the file, and cut away a line that a kill has left half-written.

        Raises:
            InputError: another job has it open, or a line is no entry.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            self._read()
        except BaseException:
            os.close(self._file)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the file, which gives the lock back."""
        os.close(self._file)

    def __contains__(self, key: str) -> bool:
        return bytes.fromhex(key) in self._places

    def get(self, key: str) -> Row | None:
        """Return what was found under a key."""
        place = self._places.get(bytes.fromhex(key))
        if place is None:
            return None
        line = os.pread(self._file, place & ((1 << _LENGTH_BITS) - 1), place >> _LENGTH_BITS)
        found: Row = json.loads(line)
        return found

    def add(self, key: str, found: Row) -> None:
        """Append what was found under a key.

        Raises:
            InputError: it cannot be written whole; then nothing of it stays.
        """
        line = json_bytes({"key": key} | found) + b"\n"
        try:
            if os.write(self._file, line) < len(line):
                os.ftruncate(self._file, self._end)
                raise OSError("no space is left")
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({error}); make room, and run the same command again to go on"
            ) from error
        self._note(key, len(line))

    def _note(self, key: str, length: int) -> None:
        self._places[bytes.fromhex(key)] = self._end << _LENGTH_BITS | length
        self._end += length

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another job writes {self.path}; wait for it to end, or give another output") from error

    def _read(self) -> None:
        with open(os.dup(self._file), "rb") as lines:
            lines.seek(0)
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break
                entry = _ENTRY.match(line)
                if entry is None:
                    raise InputError(f"{self.path}, line {number}: no entry of a journal; delete the line, and go on")
                self._note(entry[1].decode(), len(line))
        os.ftruncate(self._file, self._end)
