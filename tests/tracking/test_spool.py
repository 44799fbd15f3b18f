"""What is logged while a store is away: nothing is lost, nothing counts twice, and nobody waits for it."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException, RestException
from mlflow.utils.validation import _validate_metric_name
from pytest import CaptureFixture, MonkeyPatch

from project.cli import main
from project.errors import InputError, TrackingError
from project.tracking import sending, spool
from project.tracking.names import Names, sanitised
from project.tracking.sending import Sender
from project.tracking.spool import Spool
from project.tracking.store import alone
from tracking.fake_server import FakeServer

ROWS = [{"metrics": {"loss": step / 8}, "step": step, "time": 1000 + step} for step in range(60)]
EXPECTED = {("loss", step, 1000 + step, step / 8) for step in range(60)}


@pytest.fixture(autouse=True)
def quick(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "PAUSE", 0.02)
    monkeypatch.setattr(sending, "LONGEST_PAUSE", 0.05)
    alone()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    fake = FakeServer(tmp_path / "artifacts")
    fake.start()
    yield fake
    fake.hang.set()
    fake.stop()


def sender_to(server: FakeServer, tmp_path: Path) -> Sender:
    return Sender(Spool(tmp_path, "r", server.uri))


def wait_until(happened: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("outage", ["refuses", "503", "loses answers"])
def test_an_outage_loses_and_doubles_nothing(
    server: FakeServer, tmp_path: Path, capsys: CaptureFixture[str], outage: str
) -> None:
    sender, state = sender_to(server, tmp_path), random.getstate()
    for row in ROWS[:20]:
        sender.put(row)
    wait_until(lambda: len(server.metrics) == 20)
    if outage == "refuses":
        server.stop()
    else:
        server.mode = outage
    for row in ROWS[20:40]:
        sender.put(row)
    wait_until(lambda: sender.trouble)
    if outage == "refuses":
        server.start()
    server.mode = "up"
    for row in ROWS[40:]:
        sender.put(row)
    assert sender.finish(10)
    assert set(server.metrics) == EXPECTED
    # an answer that is lost has its lines sent again: the same rows, which MLflow keeps once
    assert (max(server.metrics.values()) == 2) == (outage == "loses answers")
    said = capsys.readouterr().err.splitlines()
    assert [f"{server.uri} does not take" in said[0], f"{server.uri} takes what" in said[1], len(said)] == [True, True, 2]
    assert [path.name for path in tmp_path.iterdir() if "tracking" in path.name] == []
    assert random.getstate() == state  # which are the training's


def test_the_same_rows_again_change_nothing_in_a_real_store(tmp_path: Path) -> None:
    from project.tracking.store import client, metric_curve

    store = client()
    run_id = store.create_run(store.create_experiment("e", str(tmp_path / "a"))).info.run_id
    rows = [*ROWS, {"metrics": {"loss": float("nan"), "up": float("inf")}, "step": 60, "time": 2000}]
    text = {"text": "a: 1\n", "name": "config.yaml"}
    for _ in range(2):
        sending.deliver(store, run_id, [*rows, {"tags": {"a": "b"}}, text, {"status": "FINISHED", "time": 5000}])
    assert len(store.get_metric_history(run_id, "loss")) == 61
    assert metric_curve(run_id, "loss")[8] == 1.0
    run = store.get_run(run_id)
    assert (run.info.status, run.info.end_time, run.data.tags["a"]) == ("FINISHED", 5000, "b")
    assert Path(store.download_artifacts(run_id, "config.yaml")).read_text() == "a: 1\n"


def test_nobody_waits_for_a_server_that_hangs(server: FakeServer, tmp_path: Path) -> None:
    sender = sender_to(server, tmp_path)
    server.mode = "hangs"
    started = time.monotonic()
    for row in ROWS * 10:
        sender.put(row)
    assert time.monotonic() - started < 0.5
    server.mode = "up"
    server.hang.set()
    assert sender.finish(10)
    assert set(server.metrics) == EXPECTED


def test_one_call_holds_no_more_than_mlflow_takes(server: FakeServer, tmp_path: Path) -> None:
    sender = sender_to(server, tmp_path)
    server.stop()
    for step in range(150):
        sender.put({"metrics": {f"m{n}": 1.0 for n in range(20)}, "step": step, "time": 1})
        sender.put({"tags": {f"t{step}": "x"}})
    sender.put({"metrics": {f"wide{n}": 1.0 for n in range(2500)}, "step": 0, "time": 1})
    sender.put({"tags": {f"w{n}": "x" for n in range(250)}})
    server.start()
    assert sender.finish(10)
    assert (len(server.metrics), len(server.tags)) == (150 * 20 + 2500, 400)
    assert max(metrics for metrics, _ in server.batches) <= 1000
    assert max(tags for _, tags in server.batches) <= 100
    assert len(server.batches) < 20


def test_a_line_that_mlflow_refuses_is_set_aside(server: FakeServer, tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    sender = sender_to(server, tmp_path)
    for row in [*ROWS[:5], {"metrics": {"bad": 1.0}, "step": 5, "time": 1005}, *ROWS[5:]]:
        sender.put(row)
    sender.put({"file": str(tmp_path / "gone.txt"), "folder": None})
    assert sender.finish(10)
    assert set(server.metrics) == EXPECTED
    held = [json.loads(line) for line in (tmp_path / "tracking.r.refused").read_text().splitlines()]
    assert [row["line"].get("metrics") for row in held] == [{"bad": 1.0}, None]
    assert "a bad name" in held[0]["why"]
    assert capsys.readouterr().err.count("MLflow refuses a line of the run") == 2


KILLED = """
import os, signal, sys
from pathlib import Path
from project.tracking.sending import Sender
from project.tracking.spool import Spool
sender = Sender(Spool(Path(sys.argv[1]), "r", sys.argv[2]))
for step in range(60):
    sender.put({"metrics": {"loss": step / 8}, "step": step, "time": 1000 + step})
sender.put({"status": "FAILED", "time": 9})
os.write(sender.spool._lines, b'{"metrics": {"lo')  # it dies while it writes
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_loses_nothing_and_sync_sends_the_rest(
    server: FakeServer, tmp_path: Path, capsys: CaptureFixture[str], monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # the file says where the run is
    server.stop()
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, server.uri], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    words = ["sync", str(tmp_path), "--wait_minutes", "0.001"]
    assert main(words) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"seeker: {server.uri} does not take what run r logged")
    assert "run this again when the server is there" in said
    server.start()
    assert main(["sync", str(tmp_path)]) == 0
    assert set(server.metrics) == EXPECTED
    assert server.statuses == ["FAILED"]
    assert capsys.readouterr().out == f"sent 61 lines of run r to {server.uri}\n"
    assert main(words) == 0
    assert "nothing that is still to be sent" in capsys.readouterr().out
    assert main(["sync", str(tmp_path / "none")]) == 2


def test_what_a_process_left_goes_before_what_the_next_logs(server: FakeServer, tmp_path: Path) -> None:
    first = Spool(tmp_path, "r", server.uri)
    first.open()
    for row in ROWS[:30]:
        first.append(row)
    first.close()
    sender = sender_to(server, tmp_path)
    for row in ROWS[30:]:
        sender.put(row)
    assert sender.finish(10)
    assert [step for _, step, _, _ in server.metrics] == list(range(60))


HOLDS = """
import sys, time
from pathlib import Path
from project.tracking.spool import Spool
Spool(Path(sys.argv[1]), "r", "x").open()
print("open", flush=True)
time.sleep(60)
"""


def test_two_processes_do_not_send_the_same_lines(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "LOCK_SECONDS", 0.2)
    with subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(TrackingError, match="in use by another process"):
            Spool(tmp_path, "r", "x").open()
        holder.kill()
    Spool(tmp_path, "r", "x").open()


def test_a_full_disk_is_waited_out_in_memory(tmp_path: Path, monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]) -> None:
    held, write = Spool(tmp_path, "r", "x"), os.write
    held.open()

    def full(file: int, data: bytes) -> int:
        if len(data) > 10:
            return write(file, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    held.append(ROWS[0])
    held.append(ROWS[1])
    monkeypatch.setattr(os, "write", write)
    held.append(ROWS[2])
    assert [row for row, _ in held.unsent()][1:] == ROWS[:3]
    assert capsys.readouterr().err.count("No space left on device") == 1


@given(st.lists(st.one_of(st.integers(0, 4), st.just("close")), max_size=20))
def test_a_spool_holds_exactly_what_is_not_sent(tmp_path_factory: pytest.TempPathFactory, steps: list[int | str]) -> None:
    """Lines are appended, and after each some of the rest (a number of lines) are sent, or the process ends."""
    folder = tmp_path_factory.mktemp("spool")
    held, waiting = Spool(folder, "r", "x"), []
    held.open()
    for number, step in enumerate(steps):
        if step == "close":
            held.close()
            held = Spool(folder, "r", "x")
            held.open()
        else:
            held.append({"tags": {"n": str(number)}})
            waiting.append(number)
            for _, end in list(zip(range(step), [end for row, end in held.unsent() if "tags" in row], strict=False)):
                held.note_sent(end)
                waiting.pop(0)
        assert [int(row["tags"]["n"]) for row, _ in held.unsent() if "tags" in row] == waiting
    held.close()


@given(st.text(max_size=260))
def test_a_sanitised_name_is_one_that_mlflow_takes(name: str) -> None:
    _validate_metric_name(sanitised(name))
    assert sanitised(sanitised(name)) == sanitised(name)
    if name and len(name) < 200 and all(char.isalnum() or char in "_-/ " for char in name) and "//" not in name:
        assert sanitised(name) == (name.strip("/") or "_")


def test_two_names_that_become_one_are_refused() -> None:
    names = Names("metrics")
    assert [names.stored(name) for name in ("val/a@3", "val/b", "val/a@3")] == ["val/a_3", "val/b", "val/a_3"]
    with pytest.raises(InputError, match=r"the metrics 'val/a@3' and 'val/a#3' would both be 'val/a_3' in MLflow"):
        names.stored("val/a#3")


def test_threads_append_whole_lines(tmp_path: Path) -> None:
    held = Spool(tmp_path, "r", "x")
    held.open()
    rows = [{"tags": {"t": f"{n}" * 5000}} for n in range(4)]
    threads = [threading.Thread(target=lambda row=row: [held.append(row) for _ in range(50)]) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [row for row, _ in held.unsent() if "tags" in row]
    assert [found.count(row) for row in rows] == [50] * 4


@pytest.mark.parametrize(
    "line",
    [
        {"metrics": {"broken": 1.0}, "step": 1, "time": 1},
        {"file": ".", "folder": None},  # a folder: an OSError of the artifacts
        {"unreadable": "zeros"},
        {"metrics": {"x": "no number"}, "step": 1, "time": 1},
    ],
)
def test_what_mlflow_never_takes_blocks_nothing_not_even_in_sync(
    server: FakeServer, tmp_path: Path, monkeypatch: MonkeyPatch, line: dict[str, object]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    held = Spool(tmp_path, "r", server.uri)
    held.open()
    for row in [ROWS[0], line, ROWS[1]]:
        held.append(row)
    held.close()
    assert main(["sync", str(tmp_path), "--wait_minutes", "0.1"]) == 0
    assert set(server.metrics) == {("loss", step, 1000 + step, step / 8) for step in (0, 1)}
    assert json.loads((tmp_path / "tracking.r.refused").read_text())["line"] == line


@pytest.mark.parametrize("name, value", [("step", 2**63), ("text", "𝄞 and half a pair: \ud83d")])
def test_a_real_store_takes_what_is_behind_a_step_too_great_and_half_a_character(
    tmp_path: Path, name: str, value: int | str
) -> None:
    from project.tracking.store import client, tracking_uri

    store = client()
    run_id = store.create_run(store.create_experiment("e", str(tmp_path / "a"))).info.run_id
    sender = Sender(Spool(tmp_path, run_id, tracking_uri()))
    sender.put({"metrics": {"x": 1.0}, "step": value, "time": 1} if name == "step" else {"tags": {"x": value}})
    sender.put(ROWS[0])
    assert sender.finish(20)
    data = store.get_run(run_id).data
    assert (data.metrics["loss"], data.tags.get("x")) == (0.0, None if name == "step" else "𝄞 and half a pair: ?")
    assert (tmp_path / f"tracking.{run_id}.refused").exists() == (name == "step")


def _chained(error: Exception) -> Exception:
    """As MLflow's client wraps what `requests` raises."""
    try:
        raise error
    except Exception as inner:  # noqa: BLE001 - as MLflow does
        try:
            raise MlflowException(f"API request to http://h failed with exception {inner}")
        except MlflowException as outer:
            return outer


def _answered(status: int, text: str = "") -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status} Error. Response text: {text}", response=response)


@pytest.mark.parametrize(
    "error, expected",
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (_chained(requests.ConnectionError("refused")), True),
        (_chained(requests.exceptions.RetryError("too many 503 error responses")), True),
        (_chained(requests.exceptions.RetryError("too many 500 error responses")), False),
        (_chained(UnicodeEncodeError("utf-8", "a", 0, 1, "surrogates not allowed")), False),
        (_answered(429), True),
        (_answered(500), True),
        (_answered(500, '{"error_code": "INTERNAL_ERROR"}'), False),
        (_answered(413), False),
        (_answered(403), False),
        (MlflowException("failed with error code 502 != 200"), True),
        (MlflowException("failed with error code 413 != 200"), False),
        (MlflowException("(sqlite3.OperationalError) database is locked"), True),
        (MlflowException("Python int too large to convert to SQLite INTEGER"), False),
        (RestException({"error_code": "TEMPORARILY_UNAVAILABLE"}), True),
        (RestException({"error_code": "INVALID_PARAMETER_VALUE"}), False),
        (PermissionError("the artifacts' folder"), False),
        (InputError("no JSON"), False),
    ],
)
def test_what_is_an_outage(error: Exception, expected: bool) -> None:
    assert sending.is_outage(error) == expected


def test_a_server_that_refuses_everything_is_waited_for(server: FakeServer, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    sender = sender_to(server, tmp_path)
    server.stage, server.mode = "active", "500"
    monkeypatch.setattr("mlflow.tracking.MlflowClient.get_run", lambda *_: (_ for _ in ()).throw(_answered(401)))
    sender.put(ROWS[0])
    wait_until(lambda: sender.trouble)
    server.mode = "up"
    assert sender.finish(10)
    assert set(server.metrics) == {("loss", 0, 1000, 0.0)}
    assert not (tmp_path / "tracking.r.refused").exists()


def test_a_run_deleted_while_it_lasts_is_given_up_and_kept(
    server: FakeServer, tmp_path: Path, capsys: CaptureFixture[str], monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    sender = sender_to(server, tmp_path)
    server.stage = "deleted"
    for row in ROWS[:20]:
        sender.put(row)
    wait_until(lambda: sender.trouble)
    sender.put(ROWS[20])
    started = time.monotonic()
    assert not sender.finish(60)
    assert time.monotonic() - started < 3
    assert capsys.readouterr().err.count("run r was deleted there") == 1
    assert sender.spool.left == 21
    server.stage = "active"
    assert main(["sync", str(tmp_path)]) == 0
    assert len(server.metrics) == 21


def test_the_end_waits_anew_only_for_lines_that_arrive(server: FakeServer, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "PAUSE", 0.1)
    sender = sender_to(server, tmp_path)
    for step in range(200):
        sender.put({"metrics": {"bad": 1.0}, "step": step, "time": 1})
    started = time.monotonic()
    assert not sender.finish(0.7)
    assert time.monotonic() - started < 4


def test_no_trouble_of_the_machine_ends_the_thread(
    server: FakeServer, tmp_path: Path, monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]
) -> None:
    sender = sender_to(server, tmp_path)
    note_sent, unsent = Spool.note_sent, Spool.unsent

    monkeypatch.setattr(Spool, "note_sent", full)
    monkeypatch.setattr(Spool, "unsent", full)
    monkeypatch.setattr(sys, "stderr", open(os.devnull))  # noqa: SIM115 - which takes nothing
    sender.put(ROWS[0])
    wait_until(lambda: sender.trouble)
    assert not sender.finish(0.1)
    monkeypatch.setattr(Spool, "note_sent", note_sent)
    monkeypatch.setattr(Spool, "unsent", unsent)
    sender.put(ROWS[1])
    assert sender.finish(10)
    assert set(server.metrics) == {("loss", step, 1000 + step, step / 8) for step in (0, 1)}


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_a_full_disk_kept_in_memory_is_sent_at_the_end(
    server: FakeServer, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    sender, write = sender_to(server, tmp_path), os.write
    sender.put(ROWS[0])

    monkeypatch.setattr(os, "write", full)
    sender.put(ROWS[1])
    assert sender.spool._unwritten
    monkeypatch.setattr(os, "write", write)
    assert sender.finish(10)
    assert [step for _, step, _, _ in server.metrics] == [0, 1]


def test_what_a_disk_never_takes_is_not_called_sent(server: FakeServer, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    sender = sender_to(server, tmp_path)
    sender.put(ROWS[0])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        sender.put(ROWS[1])
        assert not sender.finish(1)


def test_progress_beyond_the_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "tracking.r.sent").write_text("99999")
    (tmp_path / "tracking.r.jsonl").write_text('{"tags": {"a": "b"}}\n')
    held = Spool(tmp_path, "r", "x")
    held.open()
    assert held.sent == held.path.stat().st_size
    held.append(ROWS[0])
    assert [row for row, _ in held.unsent()] == [ROWS[0]]
    held.path.unlink()
    assert not held.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_wait_and_keeps_the_spool(server: FakeServer, tmp_path: Path, number: signal.Signals) -> None:
    sender, before = sender_to(server, tmp_path), signal.getsignal(number)
    server.stop()
    sender.put(ROWS[0])
    timer = threading.Timer(0.5, os.kill, (os.getpid(), number))
    signal.signal(number, signal.SIG_IGN)  # as Lightning does for an interrupt
    try:
        timer.start()
        started = time.monotonic()
        assert not sender.finish(30)
        assert time.monotonic() - started < 10
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        timer.join()
        signal.signal(number, before)
    assert sender.spool.left == 1


def test_no_password_is_said_or_kept(tmp_path: Path, server: FakeServer, capsys: CaptureFixture[str]) -> None:
    sender = Sender(Spool(tmp_path, "r", server.uri.replace("http://", "http://me:sec@ret@")))
    server.stop()
    sender.put(ROWS[0])
    wait_until(lambda: sender.trouble)
    sender.finish(0.05)
    assert "http://…@127.0.0.1" in sender.trouble
    assert "ret" not in (sender.trouble + capsys.readouterr().err).replace("retries", "").replace("pytest", "")
