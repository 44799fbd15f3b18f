"""Time `seeker compare` of runs with long histories, as a whole process.

    python scripts/benchmarks/compare.py --runs 10 --metrics 20 --steps 5000
    python scripts/benchmarks/compare.py --server        # the same store behind MLflow's own server

The store is made in a temporary folder by rows put into its tables, as fast as a disk takes them: `--metrics` curves of
`--steps` values a run, of which the last tenth is written twice, as a training that was resumed leaves it. Prints one JSON
line: wall and CPU seconds of each of `--times` processes, and of `import mlflow`, which is part of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

NAMES = ("train/loss", "val/loss", "train/reward", "val/em", "ppo/kl", "ppo/entropy", "train/tokens", "speed/trained_tokens_s")


def fill(store: Path, runs: int, metrics: int, steps: int) -> list[str]:
    """Make a store of runs with histories and return their names."""
    from project.tracking.store import client

    experiment = client().create_experiment("seeker", artifact_location=(store.parent / "artifacts").as_uri())
    keys = [NAMES[number] if number < len(NAMES) else f"metric_{number}" for number in range(metrics)]
    names = [f"run{number}" for number in range(runs)]
    for number, name in enumerate(names):
        run_id = client().create_run(experiment, run_name=name).info.run_id
        client().log_param(run_id, "model.learning_rate", 1e-4 * (number + 1))
        with closing(sqlite3.connect(store)) as database, database:
            for key in keys:
                _insert(database, run_id, key, steps)
        client().set_terminated(run_id)
    return names


def _insert(database: sqlite3.Connection, run_id: str, key: str, steps: int) -> None:
    again = steps - steps // 10
    times = [(step, step) for step in range(steps)] + [(step, steps + step) for step in range(again, steps)]
    rows = [(key, 1 / (1 + 5 * step / steps) + random.gauss(0, 0.02), moment, run_id, step, 0) for step, moment in times]
    database.executemany("INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) VALUES (?, ?, ?, ?, ?, ?)", rows)
    columns = "(key, value, timestamp, step, is_nan, run_uuid)"
    last = (key, rows[-1][1], rows[-1][2], steps - 1, 0, run_id)
    database.execute(f"INSERT INTO latest_metrics {columns} VALUES (?, ?, ?, ?, ?, ?)", last)


def timed(words: Sequence[str]) -> tuple[float, float]:
    """Run a command; return its wall seconds and its CPU seconds."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(wall, 2), round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2)


@contextmanager
def served(uri: str) -> Iterator[str]:
    """Serve a store by MLflow and yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def main() -> None:
    """Print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"runs": 10, "metrics": 20, "steps": 5000, "times": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--server", action="store_true", help="ask through MLflow's server")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "mlflow.db"
        uri = os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{store}"
        names = fill(store, given.runs, given.metrics, given.steps)
        words = [sys.executable, "-m", "project", "compare", *names]
        found: dict[str, object] = {
            "import_mlflow_s": timed([sys.executable, "-c", "from mlflow.tracking import MlflowClient"])
        }
        for name, more in {"compare_s": [], "compare_html_s": ["--html", f"{scratch}/compare.html"]}.items():
            if given.server:
                with served(uri) as address:
                    os.environ["MLFLOW_TRACKING_URI"] = address
                    found[name] = [timed([*words, *more]) for _ in range(given.times)]
            else:
                found[name] = [timed([*words, *more]) for _ in range(given.times)]
    rows = given.metrics * (given.steps + given.steps // 10)
    print(json.dumps({"runs": given.runs, "rows_a_run": rows, **found}))


if __name__ == "__main__":
    main()
