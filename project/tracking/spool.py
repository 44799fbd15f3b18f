"""What a run has to tell MLflow, as lines of a file in the run's own folder, from which `Sender` takes them.

A line is in the file before anything else happens to it, so that a process which is killed loses none (a machine that stops may
lose the last seconds: nothing is forced on to the disk). Beside it stands how far MLflow has the lines; both files go when it
has all. A line holds one of: `metrics` with their `step` and `time`, `tags`, the path of a `file`, a `text`, a `trace`, a
`model` to register, or the run's `status`.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from project.errors import TrackingError
from project.records import Row
from project.writing import json_bytes

PATTERN = "tracking.*.jsonl"
LOCK_SECONDS = 5.0
"""How long a process that is about to end may keep a spool from the next one."""


class Spool:
    """The lines of one run. Lines may come from several threads; they are read by one.

    Args:
        folder: of the run.
        run_id: the run's.
        tracking_uri: where the run is, for `seeker sync`.
    """

    def __init__(self, folder: Path, run_id: str, tracking_uri: str) -> None:
        self.path = folder / PATTERN.replace("*", run_id)
        self.run_id, self.tracking_uri = run_id, tracking_uri
        self._progress = folder / f"tracking.{run_id}.sent"
        self._lines = self._lock = -1
        self._guard = threading.RLock()  # what a signal's handler logs may come inside another line
        self._unwritten = b""
        self.sent = 0
        """Bytes of the file that MLflow has."""

    def open(self) -> None:
        """Open the file, made where it is not there, and keep other processes from it.

        Raises:
            TrackingError: another process is still sending from it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self._progress)
        noted = os.pread(self._lock, 32, 0)
        self._lines = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        size = _whole_lines(self.path)
        os.ftruncate(self._lines, size)
        self.sent = min(int(noted), size) if noted.strip().isdigit() else 0
        if not size:
            self.append({"run_id": self.run_id, "tracking_uri": self.tracking_uri})

    def append(self, line: Row) -> None:
        """Write a line; what a full disk does not take is kept in memory and written with the next."""
        with self._guard:
            if self._lines < 0:
                raise ValueError(f"{self.path} is closed")
            was_full = bool(self._unwritten)
            self._unwritten += _encoded(line) + b"\n"
            if (error := self.flush()) is not None and not was_full:
                say(f"{self.path} takes no more of what the run logs ({error}); make room")

    def flush(self) -> OSError | None:
        """Write what is kept in memory; return why the disk does not take it."""
        with self._guard:
            try:
                while self._unwritten:
                    self._unwritten = self._unwritten[os.write(self._lines, self._unwritten) :]
            except OSError as error:
                return error
            return None

    def unsent(self) -> Iterator[tuple[Row, int]]:
        """Yield the lines that MLflow does not have, each with the number of bytes up to its end."""
        with self.path.open("rb") as file:
            end = file.seek(self.sent)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield parsed(line), end

    @property
    def left(self) -> int:
        """How many lines MLflow does not have."""
        return sum(1 for line, _ in self.unsent() if "run_id" not in line) + self._unwritten.count(b"\n")

    def note_sent(self, end: int) -> None:
        """Note that MLflow has all up to that byte. Should this be lost, lines go twice, which changes nothing in MLflow."""
        self.sent = end
        os.pwrite(self._lock, f"{end:<31}\n".encode(), 0)

    def set_aside(self, line: Row, why: str) -> None:
        """Keep a line that MLflow does not take in a file beside, and say so."""
        path = self.path.with_suffix(".refused")
        with path.open("ab") as file:
            file.write(json_bytes({"why": why, "line": line}) + b"\n")
        say(f"MLflow refuses a line of the run ({why}); it is kept in {path}")

    def close(self) -> bool:
        """Let other processes have the file; it goes if MLflow has all of it. Return whether MLflow has."""
        with self._guard:
            self.flush()
            has_all = self.sent == os.fstat(self._lines).st_size and not self._unwritten
            if has_all:
                self.path.unlink(missing_ok=True)
                self._progress.unlink(missing_ok=True)
            os.close(self._lines)
            os.close(self._lock)
            self._lines = self._lock = -1
            return has_all


def say(sentence: str) -> None:
    """Write to the terminal; a training goes on where that is gone."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"seeker: {sentence}\n")


def _encoded(line: Row) -> bytes:
    """Return a line as JSON, with `?` for the halves of surrogate pairs, which no database takes."""
    encoded = json_bytes(line)
    if b"\\ud" not in encoded:
        return encoded
    return json.dumps(json.loads(encoded), separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


def _locked(path: Path) -> int:
    """Return an open file that no other process has locked. The lock is the process's own: children do not inherit it."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            if time.monotonic() > deadline:
                raise TrackingError(f"{path} is in use by another process that tracks this run; wait until it ends") from error
        except OSError:  # a file system without locks
            return file
        else:
            if os.fstat(file).st_nlink:
                return file
        os.close(file)
        time.sleep(0.1)


def _whole_lines(path: Path) -> int:
    """Return the bytes up to the end of the last whole line: a process that was killed may have begun another."""
    return path.read_bytes().rfind(b"\n") + 1


def parsed(line: bytes) -> Row:
    """Return a line's object; of one that is none, its text as `unreadable`."""
    try:
        row = json.loads(line)
    except ValueError:  # a machine that stopped can leave zeros
        row = None
    return row if isinstance(row, dict) else {"unreadable": line.decode(errors="replace")}
