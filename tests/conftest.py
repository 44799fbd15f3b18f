"""What all tests share: where data and the default model are, which tiers run, and a tracking store that is thrown away.

Tiers are markers (`pyproject.toml`): `shared` runs where `../shared/data` exists, `gpu` where there is a CUDA device, `slow`
with SEEKER_SLOW=1, CI=true or an explicit `-m slow`. With CI=true missing data is a failure, not a skip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import settings

from project.errors import InputError
from project.model_cache import default_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
settings.register_profile("seeker", deadline=None, derandomize=True)
settings.load_profile("seeker")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
IN_CI = os.environ.get("CI") == "true"


def _missing(what: str) -> None:
    """Skip the test, or fail it in CI, where every resource must be there."""
    if IN_CI:
        pytest.fail(f"{what} (CI=true: a missing resource is a failure)", pytrace=False)
    pytest.skip(what)


def _has_gpu() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tiers that this run does not include; the reasons say how to include them."""
    slow = IN_CI or os.environ.get("SEEKER_SLOW") == "1" or "slow" in str(config.option.markexpr)
    gpu = any(item.get_closest_marker("gpu") for item in items) and _has_gpu()
    for item in items:
        if item.get_closest_marker("slow") and not slow:
            item.add_marker(pytest.mark.skip(reason="slow: SEEKER_SLOW=1 runs it"))
        if item.get_closest_marker("gpu") and not gpu:
            item.add_marker(pytest.mark.skip(reason="gpu: no CUDA device"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `shared` needs the folder, whether or not it uses the fixture."""
    if item.get_closest_marker("shared") and not SHARED.is_dir():
        _missing(f"shared: there is no {SHARED}")


@pytest.fixture(scope="session")
def _empty_store(request: pytest.FixtureRequest) -> Path:
    """An empty MLflow store to copy: making one takes 5 s, so it is kept in pytest's cache, one for each MLflow version."""
    store = request.config.cache.mkdir("mlflow") / f"{version('mlflow')}.db"
    if not store.exists():
        partial = store.with_suffix(f".{os.getpid()}")
        code = "import sys, mlflow; mlflow.MlflowClient(f'sqlite:///{sys.argv[1]}').search_experiments()"
        subprocess.run([sys.executable, "-c", code, str(partial)], check=True, capture_output=True, cwd=store.parent)
        partial.rename(store)
    return store


@pytest.fixture(autouse=True)
def _throwaway_tracking(_empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has an empty tracking store of its own; none writes to lightning_logs."""
    shutil.copy(_empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets."""
    if not SHARED.is_dir():
        _missing(f"shared: there is no {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def default_model_dir() -> Path:
    """The embedded default model, as scripts/setup.sh converted it."""
    try:
        return default_model()
    except InputError as error:
        _missing(str(error))
        raise


@pytest.fixture(scope="session")
def missing() -> Callable[[str], None]:
    """Skips the test for want of a resource, named; in CI fails it."""
    return _missing
