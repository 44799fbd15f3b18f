"""From a run's spool to MLflow: a thread while the run lasts, `seeker sync` for what it had to leave.

A server that is away is asked again, with growing pauses, for as long as the run lasts; what is logged waits on the disk. A
line may go twice, where an answer is lost or a process killed: MLflow keeps one of two metrics that are the same in key, step,
time and value, and all else overwrites itself. Nothing here may touch `torch` or any global random numbers, which are the
training's: `alone` keeps MLflow's HTTP client from Python's.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from project.errors import InputError, TrackingError
from project.records import Row
from project.tracking.episodes import store_trace
from project.tracking.models import store_model
from project.tracking.spool import PATTERN, Spool, parsed, say
from project.tracking.store import alone, quiet, shown_uri, tracking_uri

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MOST_METRICS = 1000
MOST_TAGS = 100
"""What MLflow takes in one call."""
PAUSE = 1.0
"""Seconds from one look for new lines to the next."""
LONGEST_PAUSE = 15.0
LONGEST_PAUSE_AT_END = 3.0
TRIES = 3
"""How often a line is refused before it is set aside: a database behind a server refuses some while it starts again."""
LONGEST_WHY = 160
"""Characters of an error that are said."""
LOST = {"ConnectionError", "HTTPClientError", "Timeout", "TimeoutError", "ProtocolError", "OperationalError"}
"""Names of the errors, Python's, those of the clients of servers and buckets, and SQL's, of a store that does not answer."""
AWAY = ("TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED")
AWAY_STATUS = (408, 429, 500, 502, 503, 504)
STATUS = re.compile(r"failed with error code (\d{3}) |too many (?!500)(\d{3}) error responses")
"""How MLflow's client says the HTTP status of an answer. Of a 500 that it would ask again it hides the body, with its code."""
BUSY = re.compile("database is locked|deadlock", re.IGNORECASE)


def is_outage(error: BaseException | None) -> bool:
    """Return whether a store is away for now; any other error is of the lines, if it answers else."""
    if error is None:
        return False
    is_lost = not LOST.isdisjoint(kind.__name__ for kind in type(error).__mro__)
    return is_lost or _says_away(error) or is_outage(error.__cause__ or error.__context__)


def _says_away(error: BaseException) -> bool:
    text, answer = str(error), getattr(error, "response", None)
    if (status := getattr(answer, "status_code", None)) is not None:
        return status in AWAY_STATUS and not (status == 500 and "error_code" in text)
    if (found := STATUS.search(text)) is not None:
        return int(found[1] or found[2]) in AWAY_STATUS
    body = getattr(error, "json", None)
    is_unnamed = isinstance(body, dict) and not body.get("error_code")
    return is_unnamed or getattr(error, "error_code", None) in AWAY or bool(BUSY.search(text))


def _said(error: Exception) -> str:
    return shorten(shown_uri(f"{type(error).__name__}: {error}"), LONGEST_WHY, placeholder=" …")


class Sender:
    """Sends a run's lines from a thread that lives from the first line to `finish`.

    Args:
        spool: closed.
    """

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self._thread: threading.Thread | None = None
        self._store: MlflowClient | None = None
        self._ending, self._given_up = threading.Event(), threading.Event()
        self._has_all = True
        self._alone_until = 0
        self._failures = 0
        self.delivered = 0
        """Lines that MLflow has taken."""
        self.trouble = ""
        """Why it takes none just now."""

    def put(self, line: Row) -> None:
        """Take a line to send.

        Raises:
            TrackingError: another process sends lines of this run.
        """
        if self._thread is None:
            self.start()
        self.spool.append(line)

    def start(self) -> None:
        """Start the thread, which begins with what an earlier process left.

        Raises:
            TrackingError: another process sends lines of this run.
        """
        self.spool.open()
        self._ending.clear()
        self._given_up.clear()
        self._thread = threading.Thread(target=self._run, name="seeker-tracking", daemon=True)
        self._thread.start()

    def finish(self, seconds: float) -> bool:
        """Wait until all is sent, and return whether it is; what is not stays on the disk. An interrupt ends the wait.

        Args:
            seconds: to wait at most for MLflow to take a line; each that it takes begins them anew.
        """
        if self._thread is None:
            return self._has_all
        self.spool.flush()
        self._ending.set()
        with _ended_by_signals(self._given_up):
            self._wait(seconds)
        if self._thread.is_alive():
            self._given_up.set()
            self._thread.join(PAUSE)
            if self._thread.is_alive():  # a request that hangs ends with the process
                return False
        self._thread = None
        self._has_all = self.spool.close()
        return self._has_all

    def _wait(self, seconds: float) -> None:
        assert self._thread is not None
        delivered, deadline, is_said = self.delivered, time.monotonic() + seconds, False
        while self._thread.is_alive() and not self._given_up.is_set() and (left := deadline - time.monotonic()) > 0:
            self._thread.join(min(PAUSE, left))
            if self.delivered != delivered:
                delivered, deadline = self.delivered, time.monotonic() + seconds
            elif self.trouble and not is_said and self._thread.is_alive():
                is_said = True
                say(f"waiting up to {seconds:.0f} s for {self._where} to take the rest; Ctrl-C leaves it to `seeker sync`")

    @property
    def _where(self) -> str:
        return shown_uri(self.spool.tracking_uri)

    def _run(self) -> None:
        while not self._given_up.is_set():
            try:
                pause = self.send_next()
            except Exception as error:  # noqa: BLE001 - a full disk, no more open files: a thread that ends would send nothing
                self._note_trouble(_said(error))
                pause = PAUSE
            if pause is None and self._ending.is_set():
                return
            if self._ending.is_set():
                self._given_up.wait(min(pause or 0.0, LONGEST_PAUSE_AT_END))
            else:
                self._ending.wait(PAUSE if pause is None else pause)

    def send_next(self) -> float | None:
        """Send the next lines; return the seconds to wait before those after them, None if there are none."""
        from mlflow.tracking import MlflowClient

        lines = self._next()
        if not lines:
            return None
        try:
            self._store = self._store or MlflowClient(self.spool.tracking_uri)
            deliver(self._store, self.spool.run_id, [line for line, _ in lines])
        except Exception as error:  # noqa: BLE001 - a store may raise anything, and none of it may stop a training
            if not self._is_done_with(lines, error):
                return float(min(2 ** min(self._failures - 1, 9), LONGEST_PAUSE))
        else:
            self.delivered += sum("run_id" not in line for line, _ in lines)
        self._failures = 0
        self.spool.note_sent(lines[-1][1])
        if self.trouble:
            say(f"{self._where} takes what the run logs again")
            self.trouble = ""
        return 0.0

    def _next(self) -> list[tuple[Row, int]]:
        """Return lines that go together: metrics and tags up to what MLflow takes, or one of another kind."""
        lines: list[tuple[Row, int]] = []
        metrics = tags = 0
        for line, end in self.spool.unsent():
            metrics, tags = metrics + len(line.get("metrics", ())), tags + len(line.get("tags", ()))
            is_single = not line.keys() & {"metrics", "tags", "run_id"}
            if lines and (is_single or metrics > MOST_METRICS or tags > MOST_TAGS or self.spool.sent < self._alone_until):
                break
            lines.append((line, end))
            if is_single:
                break
        return lines

    def _is_done_with(self, lines: Sequence[tuple[Row, int]], error: Exception) -> bool:
        """Return whether lines that did not arrive are set aside, as those are that MLflow will never take."""
        if self._store is None or is_outage(error):
            self._failures += 1
            self._note_trouble(_said(error))
            return False
        if len(lines) > 1:
            self._alone_until, self._failures = lines[-1][1], 1
            return False
        self._failures += 1
        if self._failures > TRIES and self._is_run_there():
            self.spool.set_aside(lines[0][0], _said(error))
            return True
        return False

    def _note_trouble(self, why: str) -> None:
        if not self.trouble:
            self.trouble = why
            say(f"{self._where} does not take what the run logs ({why}); it is kept in {self.spool.path}")

    def _is_run_there(self) -> bool:
        """Return whether the store has the run; send no more of one that was deleted: what it logs stays in the spool."""
        assert self._store is not None
        try:
            is_gone = self._store.get_run(self.spool.run_id).info.lifecycle_stage == "deleted"
        except Exception as error:  # noqa: BLE001 - as in `send_next`
            is_gone = getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"
            if not is_gone:  # it refuses more than the line
                self._note_trouble(_said(error))
                return False
        if is_gone:
            self.trouble = ""
            self._note_trouble(f"run {self.spool.run_id} was deleted there; `mlflow runs restore` brings it back")
            self._given_up.set()
        return not is_gone


@contextmanager
def _ended_by_signals(given_up: threading.Event) -> Iterator[None]:
    """Have an interrupt or a termination set the event, and not end the process, within a block of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: given_up.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def deliver(store: MlflowClient, run_id: str, lines: Sequence[Row]) -> None:
    """Give MLflow lines that go together, in their order; raise what its client raises."""
    from mlflow.entities import Metric, RunTag

    metrics = [
        Metric(name, value, line["time"], line["step"]) for line in lines for name, value in line.get("metrics", {}).items()
    ]
    tags = [RunTag(name, value) for line in lines for name, value in line.get("tags", {}).items()]
    for start in range(0, len(metrics), MOST_METRICS):
        store.log_batch(run_id, metrics=metrics[start : start + MOST_METRICS], synchronous=True)
    for start in range(0, len(tags), MOST_TAGS):
        store.log_batch(run_id, tags=tags[start : start + MOST_TAGS], synchronous=True)
    for line in lines:
        _deliver_one(store, run_id, line)


def _deliver_one(store: MlflowClient, run_id: str, line: Row) -> None:
    match line:
        case {"text": text, "name": name}:
            store.log_text(run_id, text, name)
        case {"file": path, "folder": folder}:
            store.log_artifact(run_id, path, folder)
        case {"trace": trace}:
            store_trace(store, trace)
        case {"model": model}:
            store_model(store, run_id, model)
        case {"status": "RUNNING"}:
            store.update_run(run_id, status="RUNNING")
        case {"status": status, "time": ended}:
            store.set_terminated(run_id, status, ended)
        case {"unreadable": _}:
            raise InputError("the line is no JSON")


def sync(folder: Path, wait_minutes: float = 5.0) -> None:
    """Send MLflow what the runs of a folder could not, as after an outage that lasted longer than they waited.

    Args:
        folder: of a run.
        wait_minutes: how long to wait for a server that does not answer.

    Raises:
        InputError: there is no such folder.
        TrackingError: the server does not answer, or a process is still sending.
    """
    if not folder.is_dir():
        raise InputError(f"--folder {folder} is no folder; give that of a run, such as lightning_logs/runs/NAME")
    quiet()
    alone()
    found = sorted(folder.glob(PATTERN))
    for path in found:
        _sync_one(path, wait_minutes)
    if not found:
        sys.stdout.write(f"{folder} holds nothing that is still to be sent\n")


def _sync_one(path: Path, wait_minutes: float) -> None:
    run_id = path.name.split(".")[1]
    with path.open("rb") as file:
        made_in = parsed(file.readline()).get("tracking_uri")
    uri = tracking_uri() if os.environ.get("MLFLOW_TRACKING_URI") or not made_in else str(made_in)
    sender = Sender(Spool(path.parent, run_id, uri))
    sender.start()
    if not sender.finish(60 * wait_minutes):
        raise TrackingError(
            f"{shown_uri(uri)} does not take what run {run_id} logged ({sender.trouble}); it stays in {path}: "
            "run this again when the server is there"
        )
    sys.stdout.write(f"sent {sender.delivered} lines of run {run_id} to {shown_uri(uri)}\n")
