"""The retrieval server: `seeker serve retrieval --index DIR`, and a handle that starts and stops one.

`POST /retrieve` (`wire.py`) and `GET /health`. Searching blocks, so it runs in a thread and the event loop stays free.
Bad requests get status 422 and one sentence. `ServerHandle` is how a run gets its own server: a child process on a free
port, checked, stopped by its handle, and gone when the run dies.
"""

# No `from __future__ import annotations` here: FastAPI reads the endpoints' annotations, whose types are imported locally.

import errno
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from project.corpus.index import Index, read_manifest
from project.errors import InputError, RetrievalError
from project.records import Row

if TYPE_CHECKING:
    from fastapi import FastAPI, Response

PROJECT_ROOT = Path(__file__).parents[2]
LOG_LINES = 15
"""How much of a dead server's log the error shows."""


def create_app(index: Index) -> "FastAPI":
    """Return the web application that searches `index`."""
    from fastapi import FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError

    from project.corpus.wire import RetrieveRequest, response

    app = FastAPI(title="Seeker retrieval", strict_content_type=False)  # `curl -d` sends JSON as a form

    async def retrieve(body: RetrieveRequest) -> Response:
        hits = await index.search(body.texts, body.limit)
        return _json(response(body, hits))

    async def health() -> Response:
        return _json({"status": "ok", "passages": len(index), "digest": index.digest, "pid": os.getpid()})

    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _json({"detail": _sentence(error.errors()[0])}, status=422)

    app.add_api_route("/retrieve", retrieve, methods=["POST"], response_class=Response)
    app.add_api_route("/health", health, methods=["GET"], response_class=Response)
    app.add_exception_handler(RequestValidationError, refuse)
    return app


def _json(value: Row, status: int = 200) -> "Response":
    """Return a JSON response in ASCII, so that a lone surrogate in a passage cannot fail."""
    from fastapi import Response

    return Response(json.dumps(value), status_code=status, media_type="application/json")


def _sentence(error: Row) -> str:
    where = ".".join(str(part) for part in error["loc"] if part != "body")
    if error["type"] == "json_invalid":
        return f"the body is not JSON: {error.get('ctx', {}).get('error', error['msg'])}"
    message = error["msg"].removeprefix("Value error, ")
    return f"field '{where}': {message}" if where else message


def retrieval(index: Path, host: str = "127.0.0.1", port: int = 8001, parent_pid: int | None = None) -> None:
    """Serve POST /retrieve from an index until interrupted.

    Args:
        index: the folder that `seeker index build` wrote.
        host: address to listen on; the default is this machine only.
        port: TCP port.
        parent_pid: stop when this process, which must be the parent, is gone.
    """
    import uvicorn

    if parent_pid is not None:
        _stop_with_parent(parent_pid)
    listener = _listener(host, port)
    try:
        loaded = Index.load(index)
        print(f"serving {len(loaded)} passages at http://{host}:{port}/retrieve", flush=True)
        uvicorn.Server(uvicorn.Config(create_app(loaded), log_level="warning")).run(sockets=[listener])
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    finally:
        listener.close()


def _listener(host: str, port: int) -> socket.socket:
    """Return a bound socket, before anything is loaded, so that a port in use is known at once."""
    if not 0 < port < 65536:
        raise InputError(f"--port is {port}; give a number from 1 to 65535")
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        if listener:
            listener.close()
        raise _cannot_listen(host, port, error) from error
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> InputError:
    if error.errno == errno.EADDRINUSE:
        return InputError(f"port {port} on {host} is in use; stop what listens there or give another --port")
    return InputError(f"cannot listen on {host}, port {port} ({error}); give another --host or --port")


def _stop_with_parent(parent_pid: int) -> None:
    """End this process within a second of its parent's end, even if the parent was killed."""

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


class ServerHandle:
    """A retrieval server of one's own: `with ServerHandle(index) as server: … server.url`.

    The child has its own process group (an interrupt in the terminal reaches only the run, which then stops it), writes
    to a log file, and ends by itself when this process is gone.
    """

    def __init__(self, index: Path, log_file: Path | None = None, deadline_s: float = 60.0) -> None:
        """Prepare; nothing starts before `start` or `with`.

        Args:
            index: the folder that `seeker index build` wrote.
            log_file: where the server's output goes; default: a temporary file that is kept only if the start fails.
            deadline_s: seconds until /health must answer.
        """
        self.index = index
        self.deadline_s = deadline_s
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
        command += ["--port", str(self.port), "--parent_pid", str(os.getpid())]
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
