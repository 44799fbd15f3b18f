"""`seeker ui` as it is started at a terminal: the page answers, and nothing of it outlives the command."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import requests
from stores import free_port, wait

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_all_its_processes_end_with_the_command(number: signal.Signals, status: int, tmp_path: Path) -> None:
    port = free_port()

    def answers() -> bool:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            return requests.get(f"http://127.0.0.1:{port}/", timeout=1).ok
        except requests.RequestException:
            return False

    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "project", "ui", "--port", str(port)], stdout=file, stderr=file)
    try:
        wait(answers, 120)
        started = psutil.Process(process.pid).children(recursive=True)
        assert started
        process.send_signal(number)
        assert process.wait(20) == status
        assert not psutil.wait_procs(started, timeout=5)[1]
    finally:
        process.kill()
        process.wait()
    assert "seeker:" not in log.read_text(), "that it was stopped is no failure"
