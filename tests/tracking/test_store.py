"""The store: where it is, how a run is found, and which of two values at one step counts."""

import errno
import fcntl
import math
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from project.errors import TrackingError
from project.tracking.logger import SeekerLogger
from project.tracking.store import (
    artifact_location,
    client,
    find_run,
    metric_curve,
    metric_curves,
    project_root,
    run_of_id,
    runs_folder,
    tracking_uri,
    with_parents,
)

ROOT = Path(__file__).resolve().parents[2]


def test_store_is_not_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for folder in (tmp_path, ROOT / "project" / "tracking"):
        monkeypatch.chdir(folder)
        assert tracking_uri() == f"sqlite:///{ROOT}/lightning_logs/mlflow.db"
        assert artifact_location() == f"file://{ROOT}/lightning_logs/artifacts"
        assert runs_folder() == ROOT / "lightning_logs" / "runs"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///lightning_logs/mlflow.db")
    assert tracking_uri() == f"sqlite:///{ROOT}/lightning_logs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert (tracking_uri(), artifact_location()) == ("http://127.0.0.1:5000", None)


def test_root_is_the_seeker_project_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "seeker"\n')
    (tmp_path / "a" / "pyproject.toml").write_text('[project]\nname = "other"\n')
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert project_root() == tmp_path


def test_find_run_by_id_and_newest_name() -> None:
    store = client()
    old = store.create_run("0", run_name="sft", start_time=1).info.run_id
    new = store.create_run("0", run_name="sft", start_time=2).info.run_id
    assert find_run("sft").info.run_id == new
    assert find_run(old).info.run_id == old
    with pytest.raises(TrackingError, match=r"no run .sft2.*closest: sft"):
        find_run("sft2")


def test_last_value_per_step_counts() -> None:
    store = client()
    run_id = store.create_run("0").info.run_id
    for step, value, moment in ((1, 5.0, 10), (2, 4.0, 20), (2, 3.0, 30), (3, 2.0, 40)):
        store.log_metric(run_id, "loss", value, timestamp=moment, step=step)
    assert metric_curve(run_id, "loss") == {1: 5.0, 2: 3.0, 3: 2.0}


def _two_histories() -> list[str]:
    """Write two runs: of the first, steps 1 and 2 twice and out of order; of the second, one value that is no number."""
    store = client()
    ids = [str(store.create_run("0").info.run_id) for _ in range(2)]
    for step, value, moment in ((2, 3.0, 40), (1, 5.0, 30), (2, 4.0, 20), (1, 6.0, 10), (3, 2.0, 50)):
        store.log_metric(ids[0], "loss", value, timestamp=moment, step=step)
    store.log_metric(ids[1], "loss", float("nan"), timestamp=1, step=7)
    store.log_metric(ids[1], "other", 1.0)
    return ids


def _check_histories(ids: list[str]) -> None:
    found = metric_curves(ids, "loss")
    assert found[ids[0]] == {1: 5.0, 2: 3.0, 3: 2.0}
    assert list(found[ids[0]]) == [1, 2, 3]
    assert math.isnan(found[ids[1]][7])
    assert metric_curves(ids, "other") == {ids[0]: {}, ids[1]: {0: 1.0}}


def test_histories_of_several_runs() -> None:
    _check_histories(_two_histories())


@pytest.mark.slow
def test_histories_by_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from the tables: by the page's own request, and by MLflow's API where that is cut off."""
    ids, folder = _two_histories(), Path(sys.executable).parent
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [folder / "mlflow", "server", "--backend-store-uri", tracking_uri(), "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        with socket.socket() as probe:
            while probe.connect_ex(("127.0.0.1", port)):
                assert time.monotonic() < deadline
                time.sleep(0.2)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        _check_histories(ids)
        monkeypatch.setattr("project.tracking.store.MOST_ROWS", 5)
        _check_histories(ids)
        monkeypatch.setattr("project.tracking.store.BULK_HISTORY", "/nowhere")
        _check_histories(ids)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def test_parents_as_far_as_the_store_holds_them() -> None:
    store = client()
    first, second, third = (store.create_run("0", run_name=name).info.run_id for name in ("first", "second", "third"))
    store.set_tag(third, "seeker.parent", second)
    store.set_tag(second, "seeker.parent", first)
    store.set_tag(first, "seeker.parent", third)  # a circle ends
    assert [run.info.run_id for run in with_parents(store.get_run(third))] == [third, second, first]
    store.delete_run(first)
    assert run_of_id(first) is None
    assert run_of_id("0123456789abcdef0123456789abcdef") is None
    assert [run.info.run_id for run in with_parents(store.get_run(third))] == [third, second]


def start_run(logger_first: bool, together: Barrier) -> None:
    """Start a run as a training does, one part of it at the same moment as the other process."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - slow

    logger = SeekerLogger() if logger_first else None
    together.wait(60)
    (logger or SeekerLogger()).start()


@pytest.mark.parametrize("logger_first", [True, False])
def test_two_runs_can_make_the_store_at_once(tmp_path: Path, logger_first: bool) -> None:
    (tmp_path / "mlflow.db").unlink()
    context = get_context("spawn")
    together = context.Barrier(2)
    processes = [context.Process(target=start_run, args=(logger_first, together)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(client().search_runs([experiment.experiment_id for experiment in client().search_experiments()])) == 2


def test_a_file_system_without_locks_has_a_store_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert client().search_experiments()
