"""`seeker ui`: MLflow's own page on the project's store, as a group of processes that ends with this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import FrameType

from project.errors import TrackingError
from project.ports import listen
from project.tracking.store import artifact_location, shown_uri, tracking_uri

GRACE_S = 5.0
"""Seconds that MLflow's processes have to end by themselves."""


def ui(port: int = 5000) -> None:
    """Open MLflow's page on the project's store, until Ctrl-C or SIGTERM.

    Args:
        port: the port of http://127.0.0.1.
    """
    listen("127.0.0.1", port).close()
    uri, location = tracking_uri(), artifact_location()
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port)]
    command += ["--default-artifact-root", location] if location else []
    before = signal.signal(signal.SIGTERM, _end)
    try:
        status = _run(command)
    except KeyboardInterrupt:  # how a page is closed
        return
    finally:
        signal.signal(signal.SIGTERM, before)
    if status:
        raise TrackingError(f"MLflow's page on {shown_uri(uri)} ended with an error; its own message is above")


def _run(command: list[str]) -> int:
    # MLflow starts servers of its own and does not end them with itself: in a group of their own all can be asked to.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            end = time.monotonic() + GRACE_S
            while time.monotonic() < end:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)
