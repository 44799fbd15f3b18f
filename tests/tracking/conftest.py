"""A tracking store per test, copied from one that is made once (making the tables takes seconds)."""

import shutil
from pathlib import Path

import pytest

import tracking.boring  # noqa: F401 - registers the classes that configs name
from project.tracking.store import client


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        client().search_experiments()
    return path


@pytest.fixture(autouse=True)
def store(empty_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    data, path = tmp_path / "train.jsonl", tmp_path / "a.yaml"
    data.write_text('{"id": 1}\n')
    path.write_text(
        "model: {class_path: BoringAgent}\n"
        f"data: {{class_path: BoringData, init_args: {{data_file: {data}}}}}\n"
        "trainer: {accelerator: cpu, max_epochs: 1, enable_progress_bar: false, logger: {init_args: {run_name: first}}}\n"
    )
    return path
