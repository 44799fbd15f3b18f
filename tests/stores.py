"""Stores that tests start for themselves: S3 by moto, PostgreSQL from Debian's package; both on a free port of 127.0.0.1."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
DATABASE_USER = "postgres" if os.geteuid() == 0 else None
"""PostgreSQL refuses to run as root; Debian's package makes this user."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait(happened: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.3)


@contextmanager
def moto_store(bucket: str) -> Iterator[str]:
    """The address of an S3 store with one bucket; any keys are right."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=f"http://{host}:{port}", **keys).create_bucket(Bucket=bucket)
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def postgresql() -> Iterator[tuple[int, Path]]:
    """The port of a PostgreSQL without databases, whose user `seeker` needs no password, and its programs' folder."""
    binaries, port = BINARIES[-1], free_port()
    folder = Path(tempfile.mkdtemp(prefix="seeker-postgres-"))
    options = {"user": DATABASE_USER, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = None
    try:
        if DATABASE_USER:
            shutil.chown(folder, DATABASE_USER)
        made = ["-D", folder / "data", "-U", "seeker", "-A", "trust", "--no-sync", "--no-instructions"]
        subprocess.run([binaries / "initdb", *made], check=True, **options)
        server = subprocess.Popen(
            [binaries / "postgres", "-D", folder / "data", "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-F"], **options
        )
        ready = [binaries / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-U", "seeker"]
        wait(lambda: subprocess.run(ready, check=False, **options).returncode == 0, 60)
        yield port, binaries
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # a fast shutdown
            server.wait(30)
        shutil.rmtree(folder)
