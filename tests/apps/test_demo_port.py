"""A port in use is told before anything is loaded."""

import socket
import time

import pytest

from project.cli import main


def test_a_port_in_use_is_told_first(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        began = time.monotonic()
        assert main(["demo", "--model_path", "nowhere", "--port", str(port)]) == 2
    assert time.monotonic() - began < 5
    assert f"port {port} on 127.0.0.1 is in use" in capsys.readouterr().err
