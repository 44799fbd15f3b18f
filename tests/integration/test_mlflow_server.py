"""Four trainings that write at once to MLflow's own server on PostgreSQL, which is killed in the middle and started again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from stores import BINARIES, free_port, postgresql, wait

from project.tracking.store import metric_curve

RUNS, STEPS, METRICS = 4, 1500, 5
OUTAGE_SECONDS = 15
TESTS = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture
def database(missing: Callable[[str], None]) -> Iterator[str]:
    """The address of an empty database of a PostgreSQL that lives as long as the test."""
    if not BINARIES:
        missing("PostgreSQL: apt-get install postgresql")
    with postgresql() as (port, binaries):
        subprocess.run([binaries / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "seeker", "mlflow"], check=True)
        yield f"postgresql+psycopg2://seeker@127.0.0.1:{port}/mlflow"


class Server:
    """`mlflow server`, in a process group of its own."""

    def __init__(self, database: str, artifacts: Path) -> None:
        self.port = free_port()
        self.words = ["--backend-store-uri", database, "--artifacts-destination", str(artifacts), "--workers", "2"]
        self.log = artifacts.with_suffix(".log").open("ab")

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), *self.words]
        self.process = subprocess.Popen(command, start_new_session=True, stdout=self.log, stderr=self.log)
        wait(self._answers, 180)

    def _answers(self) -> bool:
        assert self.process.poll() is None, Path(self.log.name).read_text()[-2000:]
        try:
            return requests.get(f"{self.uri}/health", timeout=1).ok
        except requests.RequestException:
            return False

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    found = Server(database, tmp_path / "artifacts")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
    found.start()
    yield found
    found.kill()
    found.log.close()


def rows_of(client: MlflowClient) -> list[int]:
    experiment = client.get_experiment_by_name("seeker")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return [int(run.data.metrics.get("m0", 0)) for run in runs]


@pytest.fixture
def trainings(server: Server, tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "OMP_NUM_THREADS": "1"}
    words = ["--model=tracking.boring.SlowAgent", "--data=tracking.boring.BoringData", "--trainer.accelerator=cpu"]
    words += [f"--trainer.max_steps={STEPS}", "--trainer.max_epochs=1", f"--data.rows={4 * STEPS}"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "project", "fit", *words, f"--trainer.default_root_dir={tmp_path / f'run{n}'}"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(RUNS)
    ]
    yield started
    for process in started:
        process.kill()
        print(process.communicate()[1])


@pytest.mark.timeout(1200)
def test_four_runs_and_a_server_that_is_killed(server: Server, trainings: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    client = MlflowClient(server.uri)

    def all_have_begun() -> bool:
        assert [process.poll() for process in trainings] == [None] * RUNS
        return len(rows := rows_of(client)) == RUNS and min(rows) > 50

    wait(all_have_begun, 180)
    assert max(rows_of(client)) < STEPS - 1
    server.kill()
    time.sleep(OUTAGE_SECONDS)
    assert any(process.poll() is None for process in trainings)
    server.start()
    said = [process.communicate(timeout=400)[1] for process in trainings]
    assert [process.returncode for process in trainings] == [0] * RUNS, said
    assert all("does not take what the run logs" in one and "takes what the run logs again" in one for one in said)
    runs = client.search_runs([client.get_experiment_by_name("seeker").experiment_id])
    assert sorted(run.info.run_name for run in runs) == [f"run{n}" for n in range(RUNS)]
    for run in runs:
        assert run.info.status == "FINISHED"
        for n in range(METRICS):
            history = client.get_metric_history(run.info.run_id, f"m{n}")
            assert len(history) == STEPS  # none is lost and none is twice
            assert {row.step: row.value for row in history} == {step: float(step * (n + 1)) for step in range(STEPS)}
        assert metric_curve(run.info.run_id, "m4")[STEPS - 1] == 5 * (STEPS - 1)
        kept = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
        assert {"config.yaml", "pip_freeze.txt"} <= kept
        assert "memory/peak_gib" in run.data.metrics
        assert list((tmp_path / run.info.run_name).glob("tracking.*")) == []
