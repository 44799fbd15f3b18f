"""`seeker demo` as it is typed: what it opens, what it refuses, who may log in, and that Ctrl-C ends it."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from stores import free_port

from project.apps.demo.command import read_examples
from project.cli import main
from project.tracking import store
from project.writing import write_rows

ROWS = [
    {"id": "1", "question": "One?", "answers": ["a"], "kind": "one_hop"},
    {"id": "2", "question": "Two?", "answers": ["b"], "kind": "one_hop"},
    {"id": "3", "question": "Three?", "answers": [], "kind": "unanswerable"},
]


@pytest.fixture
def index(tmp_path):
    write_rows(tmp_path / "passages.jsonl", [{"id": "a", "title": "Oslo", "text": "Oslo is the capital of Norway."}])
    folder = tmp_path / "my index"
    assert main(["index", "build", "--passages", str(tmp_path / "passages.jsonl"), "--output_dir", str(folder)]) == 0
    return folder


def test_examples_are_one_of_each_kind_first(tmp_path):
    write_rows(tmp_path / "questions.jsonl", ROWS)
    assert [one.id for one in read_examples(tmp_path / "questions.jsonl")] == ["1", "3", "2"]


def refused(capsys, *words):
    status = main(["demo", *words])
    said = capsys.readouterr().err
    assert status == 2 and said.count("\n") == 1, said
    return said


def test_what_cannot_be_opened_is_one_sentence(capsys, tmp_path, monkeypatch, index):
    monkeypatch.setattr(store, "project_root", lambda: tmp_path)
    for module in ("corpora", "command"):
        monkeypatch.setattr(f"project.apps.demo.{module}.project_root", lambda: tmp_path, raising=False)
    assert "no quickstart has left a model" in refused(capsys)
    tiny = ("--model_path", "tiny-random")
    assert "give one of them" in refused(capsys, *tiny, "--index", str(index), "--retrieval_url", "http://127.0.0.1:1")
    assert "is not an index" in refused(capsys, *tiny, "--index", str(tmp_path))
    assert "is no model folder" in refused(capsys, "--model_path", "nowhere", "--index", str(index))
    (tmp_path / "people").write_text("anna\n")
    assert "user:password" in refused(capsys, *tiny, "--index", str(index), "--auth_file", str(tmp_path / "people"))
    assert "cannot be read" in refused(capsys, *tiny, "--index", str(index), "--auth_file", str(tmp_path / "none"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port}" in refused(capsys, *tiny, "--index", str(index), "--port", str(port))


@pytest.fixture
def running(tmp_path, index):
    """The command in a process of its own, with one person who may log in."""
    (tmp_path / "people").write_text("anna:s3cret:with colon\n")
    write_rows(tmp_path / "questions.jsonl", ROWS)
    port = free_port()
    words = ["--model_path", "tiny-random", "--index", str(index), "--questions", str(tmp_path / "questions.jsonl")]
    command = [sys.executable, "-m", "project", "demo", *words, "--port", str(port), "--auth_file", str(tmp_path / "people")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    address = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{address}/", timeout=5)
            break
        except (urllib.error.URLError, ConnectionError) as error:
            if isinstance(error, urllib.error.HTTPError):
                break
            assert process.poll() is None and time.monotonic() < until, process.stdout.read()
            time.sleep(0.3)
    yield process, address
    if process.poll() is None:
        process.kill()
    process.wait()


def test_it_asks_for_a_password_and_ends_with_ctrl_c(running):
    process, address = running
    with pytest.raises(urllib.error.HTTPError) as told:
        urllib.request.urlopen(f"{address}/config", timeout=10)
    assert told.value.code == 401
    login = urllib.request.Request(f"{address}/login", data=b"username=anna&password=s3cret%3Awith+colon", method="POST")
    answer = urllib.request.urlopen(login, timeout=10)
    assert json.load(answer)["success"] is True
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert "Traceback" not in said
    assert process.returncode in (0, 1)
    assert f"demo at {address}" in said
