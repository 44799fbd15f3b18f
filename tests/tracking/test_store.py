"""The store: where it is, how a run is found, and which of two values at one step counts."""

from pathlib import Path

import pytest

from project.errors import TrackingError
from project.tracking.store import artifact_location, client, find_run, metric_curve, project_root, runs_folder, tracking_uri

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
    for step, value, time in ((1, 5.0, 10), (2, 4.0, 20), (2, 3.0, 30), (3, 2.0, 40)):
        store.log_metric(run_id, "loss", value, timestamp=time, step=step)
    assert metric_curve(run_id, "loss") == {1: 5.0, 2: 3.0, 3: 2.0}
