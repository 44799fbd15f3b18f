"""`seeker doctor`: each thing that can be wrong with a machine has its line, and its mend."""

import json
import re
import socket
import sqlite3
import subprocess
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from project.apps import doctor
from project.cli import main


@pytest.fixture(autouse=True)
def without_vllm(monkeypatch):
    """Importing vLLM takes many seconds; its own test does."""
    monkeypatch.setattr(doctor, "check_vllm", lambda: iter([doctor.Finding("ok", "vLLM")]))
    monkeypatch.setenv("COLUMNS", "300")


def told(capsys, *words):
    status = main(["doctor", *words])
    said = capsys.readouterr()
    found = [re.split(r"\s{2,}", line.strip()) for line in said.out.splitlines()[1:]]
    return status, [tuple(line) for line in found], said.err


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_machine_that_is_well(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
    port = free_port()
    status, found, said = told(capsys, f"--retrieval_url=http://127.0.0.1:{port}", f"--ports=[{port}]")
    assert (status, said) == (0, "")
    lines = {line[1]: line for line in found}
    assert lines["packages"][0] == "ok"
    assert "torch" in lines["packages"][2]
    assert lines["retrieval"] == (
        "note", "retrieval", f"no server at http://127.0.0.1:{port}", "seeker serve retrieval --index DIR",
    )  # fmt: skip
    assert lines["MLflow"][2] == f"{tmp_path / 'store' / 'mlflow.db'}, which the first run makes"
    assert lines["ports"][:3] == ("ok", "ports", f"{port} is free")


@pytest.fixture
def server():
    class Health(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"status": "ok", "engine": "bm25", "passages": 7}).encode())

        def log_message(self, *_):
            pass

    http = HTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield http.server_port
    http.shutdown()
    http.server_close()


def test_a_server_that_is_up_has_its_port(capsys, server):
    status, found, _ = told(capsys, f"--retrieval_url=http://127.0.0.1:{server}", f"--ports=[{server}]")
    lines = {line[1]: line for line in found}
    assert lines["retrieval"][2] == f"http://127.0.0.1:{server}: engine bm25, passages 7"
    assert lines["ports"][2].startswith(f"{server} is in use")
    assert len(lines["ports"]) == 3, "there is nothing to mend: it is the server's own"
    assert status == 0


def test_what_is_wrong_is_a_problem_with_its_mend(capsys, tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    version = doctor.metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "0.1" if name == "peft" else version(name))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(1e9))
    monkeypatch.setattr("project.runtime.free_memory", lambda: 1_500_000_000)
    monkeypatch.setattr(doctor, "_gpus", lambda: ["GPU 0: H200"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    status, found, said = told(capsys, "--ports=[]")
    problems = [line[1:] for line in found if line[0] == "problem"]
    assert status == 1
    assert said == f"seeker: {len(problems)} of {len(found)} lines are problems: packages, devices, MLflow, disk, memory\n"
    whats = {what: (found, mend) for what, found, mend in problems}
    assert whats["packages"] == (
        "of another version than is asked for: peft 0.1 (>=0.21)", "bash scripts/setup.sh",
    )  # fmt: skip
    assert whats["devices"][1] == "bash scripts/setup.sh --cuda"
    assert "cannot be read" in whats["MLflow"][0]
    assert whats["disk"][0].startswith("runs: 1.0 GB free")
    assert whats["memory"][0] == "1.5 GB free"


def test_a_store_with_runs_and_a_server_that_is_not_there(tmp_path, monkeypatch):
    with sqlite3.connect(tmp_path / "other.db") as store:
        store.execute("create table runs (a)")
        store.execute("insert into runs values (1)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    [finding] = doctor.check_tracking()
    assert (finding.state, finding.what) == ("ok", f"{tmp_path / 'other.db'}, 1 runs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    [finding] = doctor.check_tracking()
    assert finding.state == "problem"
    assert finding.mend == "start it, or unset MLFLOW_TRACKING_URI"


def test_what_speaks_no_http_and_what_is_no_address(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet():
            other, _ = server.accept()
            other.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            other.close()

        threading.Thread(target=greet, daemon=True).start()
        [finding] = doctor.check_retrieval(f"http://127.0.0.1:{server.getsockname()[1]}")
    assert finding.what.startswith("no server at")
    [finding] = doctor.check_retrieval("http://127.0.0.1:80x1")
    assert finding.state == "note"
    [finding] = doctor.check_ports([70000], "http://127.0.0.1:8001")
    assert (finding.state, finding.what) == ("problem", "70000 is no port")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/nowhere/m.db")
    [finding] = doctor.check_tracking()
    assert finding.state == "problem"
    assert {one.what.split(":")[0] for one in doctor.check_disk()} == {"cache", "temporary"}
    folder = tmp_path / "a#b %41"
    folder.mkdir()
    with sqlite3.connect(folder / "m.db") as store:
        store.execute("create table runs (a)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'm.db'}")
    [finding] = doctor.check_tracking()
    assert finding.what.endswith("m.db, 0 runs")


def test_a_vllm_that_cannot_be_imported(monkeypatch):
    check = vars(doctor)["check_vllm"]
    monkeypatch.undo()
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nImportError: no torch of that kind\n")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setattr(doctor, "_version", lambda _: "0.32.0")
    [finding] = doctor.check_vllm()
    assert (finding.state, finding.what) == ("problem", "vLLM 0.32.0 cannot be imported: ImportError: no torch of that kind")
    assert check is not doctor.check_vllm
