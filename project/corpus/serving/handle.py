"""A retrieval server of one's own: a child process on a free port.

It is checked before it is used, stopped by its handle, and gone when the run dies.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from project.corpus.index import read_manifest
from project.errors import RetrievalError
from project.records import Row

PROJECT_ROOT = Path(__file__).parents[3]
LOG_LINES = 15
"""How much of a dead server's log the error shows."""


class ServerHandle:
    """A retrieval server of one's own: `with ServerHandle(index) as server: … server.url`.

    The child has its own process group (an interrupt in the terminal reaches only the run, which then stops it), writes
    to a log file, and ends by itself when this process is gone.
    """

    def __init__(
        self, index: Path, log_file: Path | None = None, deadline_s: float = 60.0, options: Sequence[str] = ()
    ) -> None:
        """Prepare; nothing starts before `start` or `with`.

        Args:
            index: the folder that `seeker index build` wrote.
            log_file: where the server's output goes; default: a temporary file that is kept only if the start fails.
            deadline_s: seconds until /health must answer.
            options: further options of `seeker serve retrieval`.
        """
        self.index = index
        self.deadline_s, self.options = deadline_s, tuple(options)
        self.log_file = log_file
        self._is_temporary_log = log_file is None
        self.port = 0
        self._was_ready = False
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Base address, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Start the server and wait until it is healthy.

        Raises:
            InputError: the folder is no index.
            RetrievalError: it died or did not answer in time; the message ends with the last lines of its log.
        """
        read_manifest(self.index)
        for attempt in range(3):
            self._spawn()
            try:
                self._wait()
            except RetrievalError as error:
                self.close()
                if attempt < 2 and "is in use" in str(error):  # another process took the free port first
                    continue
                raise
            except BaseException:
                self.close()
                raise
            break
        return self

    def _spawn(self) -> None:
        if self.log_file is None:
            descriptor, name = tempfile.mkstemp(prefix="seeker-retrieval-", suffix=".log")
            os.close(descriptor)
            self.log_file = Path(name)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self.port, self._was_ready = _free_port(), False
        command = [sys.executable, "-m", "project", "serve", "retrieval", "--index", str(self.index.resolve())]
        command += ["--port", str(self.port), "--parent_pid", str(os.getpid()), *self.options]
        path = os.pathsep.join(filter(None, [str(PROJECT_ROOT), os.environ.get("PYTHONPATH")]))
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,
            )

    def _wait(self) -> None:
        process = self._process
        assert process is not None
        end = time.monotonic() + self.deadline_s
        while time.monotonic() < end:
            if (status := process.poll()) is not None:
                raise RetrievalError(f"the retrieval server ended with status {status} before it was ready; {self._log_tail()}")
            if _health(self.port).get("pid") == process.pid:
                self._was_ready = True
                return
            time.sleep(0.05)
        raise RetrievalError(
            f"the retrieval server did not answer {self.url}/health in {self.deadline_s:g} s; {self._log_tail()}"
        )

    def _log_tail(self) -> str:
        assert self.log_file is not None
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        return f"its log {self.log_file} ends:\n" + "\n".join(lines or ["(nothing)"])

    @property
    def is_alive(self) -> bool:
        """True while the server's process runs."""
        return self._process is not None and self._process.poll() is None

    def close(self, grace_s: float = 5.0) -> None:
        """Stop the server: ask, wait `grace_s` seconds, then kill. Does nothing where none runs."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._is_temporary_log and self._was_ready and self.log_file:
            self.log_file.unlink(missing_ok=True)
            self.log_file = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _health(port: int) -> Row:
    """Ask a local server's /health; an empty object while it does not answer (no proxy is asked, whatever the environment)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/health")
        answer: Row = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    else:
        return answer if isinstance(answer, dict) else {}
    finally:
        connection.close()
