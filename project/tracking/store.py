"""Where runs are tracked, and how one is found: MLflow on SQLite in the project's `lightning_logs/` by default.

The store is found from the project's root or `MLFLOW_TRACKING_URI`, never from the current folder, and its artifacts lie
beside it. Everything that reads runs goes through `find_run`, `run_params`, `run_metrics` and `metric_curve`: MLflow only
appends, so after a resume a step can hold two values, and the last one written counts.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import logging
import math
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from project.errors import TrackingError
from project.records import Row

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from mlflow.tracking import MlflowClient

SQLITE = "sqlite:///"
BULK_HISTORY, MOST_ROWS = "/ajax-api/2.0/mlflow/metrics/get-history-bulk", 25_000
"""Where a server gives a metric's whole history as plain JSON, and the most values that it gives."""
RUN_ID_FILE = "mlflow_run_id"
"""The file in a training run's folder that holds its MLflow run id."""
MANIFESTS = "datasets"
"""The folder of a run's artifacts that holds the manifests of its datasets, `NAME.json`."""
ANSWER_SECONDS = 5.0
"""How long a tracking server may take to say that it is there."""
LEAST_PREFIX = 8
"""Characters of an id that can stand for it."""
MAX_PARAM = 6000
"""Characters that MLflow stores of a parameter."""
LONG_PARAM = "see artifact params/"
SYSTEM = "system/"
"""What the names of the machine's metrics begin with."""
SHOWN_UNDER = "mlflow.parentRunId"
"""The tag by which MLflow's page shows a run under another."""
CHANGED_PARAM = "seeker.changed."
"""Tags with this prefix hold the values that a resumed run changed: MLflow refuses to change a parameter."""


def project_root() -> Path:
    """Return the folder of Seeker's `pyproject.toml` above the current folder, else the package's, else the current one."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if _is_seeker(folder / "pyproject.toml"):
            return folder
    package = Path(__file__).resolve().parents[2]
    return package if (package / "pyproject.toml").is_file() else here


def _is_seeker(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        name = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {}).get("name")
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError):
        return False
    return bool(name == "seeker")


def tracking_uri() -> str:
    """Return `MLFLOW_TRACKING_URI` (a relative SQLite path is taken from the root), else the SQLite store of the project."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or SQLITE + "lightning_logs/mlflow.db"
    if not uri.startswith(SQLITE):
        return uri
    path = project_root() / uri.removeprefix(SQLITE)
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"{SQLITE}{path}"


def shown_uri(uri: str) -> str:
    """Return a tracking URI, or a text that holds some, as it may be shown: without users and passwords."""
    return re.sub(r"//(?:[^/\s]*|[^/:@\s]*:[^@\s]*)@", "//…@", uri)


def alone() -> None:
    """Have MLflow's client of a server try once and draw no random numbers for its pauses: trying again is `sending`'s.

    Its telemetry draws from Python's random numbers too, in a thread of its own.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_JITTER"] = "0"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


@contextmanager
def reached(uri: str, is_tracking: bool = True) -> Iterator[None]:
    """Have a block, in which the store must answer, end soon and with one sentence where it does not.

    Args:
        uri: the store's.
        is_tracking: whether a run is to be written, and not only read.

    Raises:
        TrackingError: it does not answer.
    """
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        if uri.startswith("http"):
            requests.get(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS)
        yield
    except (MlflowException, requests.RequestException, SQLAlchemyError) as error:
        why = shown_uri(str(error).partition("\n")[0])
        done, without = ("tracked in", ", or train with --trainer.logger false") if is_tracking else ("read from", "")
        raise TrackingError(
            f"runs cannot be {done} {shown_uri(uri)} ({why}); see that it is there{',' if is_tracking else ' or'} set "
            f"MLFLOW_TRACKING_URI to another{without}"
        ) from error


@contextmanager
def reading() -> Iterator[None]:
    """Have a block that reads the project's store end soon and with one sentence where that does not answer.

    Raises:
        TrackingError: it does not answer.
    """
    alone()
    with reached(tracking_uri(), is_tracking=False):
        yield


def artifact_location() -> str | None:
    """Return the folder of artifacts beside a SQLite store; None lets an MLflow server choose."""
    uri = tracking_uri()
    return (Path(uri.removeprefix(SQLITE)).parent / "artifacts").as_uri() if uri.startswith(SQLITE) else None


def runs_folder() -> Path:
    """Return the folder that holds each run's own folder: `runs` beside a SQLite store, else in `lightning_logs/`."""
    uri = tracking_uri()
    beside = Path(uri.removeprefix(SQLITE)).parent if uri.startswith(SQLITE) else project_root() / "lightning_logs"
    return beside / "runs"


def client() -> MlflowClient:
    """Return a client of the project's store."""
    quiet()
    from mlflow.tracking import MlflowClient

    with opening_store():
        return MlflowClient(tracking_uri())


@contextmanager
def opening_store() -> Iterator[None]:
    """Let one process at a time open a SQLite store: MLflow makes its tables and experiments then, and two at once fail."""
    uri = tracking_uri()
    if not uri.startswith(SQLITE):
        yield
        return
    folder = os.open(Path(uri.removeprefix(SQLITE)).parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: then two that start at once may fail, as without this
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def experiment_id(name: str) -> str:
    """Return the id of an experiment, made where it is not there."""
    of = client()
    with opening_store():
        found = of.get_experiment_by_name(name)
        return str(found.experiment_id if found else of.create_experiment(name, artifact_location()))


def quiet() -> None:
    """Keep MLflow's database migrations and hints off the terminal."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("alembic", "mlflow.store", "mlflow.tracking", "mlflow.system_metrics"):
        logging.getLogger(name).setLevel(logging.WARNING)


def all_runs(of: MlflowClient | None = None) -> list[Run]:
    """Return every run of every experiment, newest first."""
    of = of or client()
    ids = [experiment.experiment_id for experiment in of.search_experiments()]
    runs: list[Run] = []
    token = None
    while True:
        page = of.search_runs(ids, order_by=["attributes.start_time DESC"], max_results=1000, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def find_run(name_or_id: str, runs: Sequence[Run] | None = None) -> Run:
    """Return the run with this id, or else the newest run of this name, or the one whose id begins so.

    Args:
        name_or_id: the name, the id, or at least its first 8 characters.
        runs: where to look, newest first; by default all of the store.

    Raises:
        TrackingError: there is none, and the message names the closest runs; or several ids begin so.
    """
    runs = all_runs() if runs is None else runs
    named = [run for run in runs if run.info.run_id == name_or_id] + [run for run in runs if run.info.run_name == name_or_id]
    if named:
        return named[0]
    begun = [run for run in runs if len(name_or_id) >= LEAST_PREFIX and run.info.run_id.startswith(name_or_id)]
    if len(begun) == 1:
        return begun[0]
    if begun:
        held = ", ".join(f"{run.info.run_id} ({run.info.run_name})" for run in begun)
        raise TrackingError(f"the ids of {len(begun)} runs begin with '{name_or_id}': {held}; give more of one")
    close = difflib.get_close_matches(name_or_id, {run.info.run_name for run in runs}, n=3, cutoff=0.4)
    hint = f"closest: {', '.join(close)}" if close else "`seeker runs` lists what there is"
    raise TrackingError(f"there is no run '{name_or_id}' in {shown_uri(tracking_uri())}; {hint}")


def run_of_id(run_id: str) -> Run | None:
    """Return a run by its whole id; None where the store has none, or it was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client().get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def with_parents(run: Run) -> Iterator[Run]:
    """Yield the run, the one that it started from, and so on, as far as the store holds them."""
    seen: set[str] = set()
    found: Run | None = run
    while found is not None and found.info.run_id not in seen:
        yield found
        seen.add(found.info.run_id)
        parent = found.data.tags.get("seeker.parent")
        found = run_of_id(parent) if parent else None


def run_folder_id(path: Path | str | None, levels: int = 2) -> str | None:
    """Return the run id stored in the folder `path` (or that of the file) or up to `levels` folders above it."""
    if path is None or not Path(path).exists():
        return None
    folder = Path(path).resolve()
    folder = folder.parent if folder.is_file() else folder
    for candidate in (folder, *list(folder.parents)[:levels]):
        if (candidate / RUN_ID_FILE).is_file():
            return (candidate / RUN_ID_FILE).read_text(encoding="utf-8").strip()
    return None


def run_params(run: Run) -> dict[str, str]:
    """Return a run's parameters; values that a resume changed count."""
    changed = {k.removeprefix(CHANGED_PARAM): v for k, v in run.data.tags.items() if k.startswith(CHANGED_PARAM)}
    return dict(run.data.params) | changed


def run_metrics(run: Run) -> dict[str, float]:
    """Return each metric's value at its highest step; of two values at that step the one written last.

    Those of the machine (`system/…`), of which no two runs share one, are left out.
    """
    return {name: value for name, value in run.data.metrics.items() if not name.startswith(SYSTEM)}


def metric_curve(run_id: str, name: str) -> dict[int, float]:
    """Return {step: value}, ascending; where a resume wrote a step again the last value counts."""
    return metric_curves([run_id], name)[run_id]


def metric_curves(run_ids: Sequence[str], name: str) -> dict[str, dict[int, float]]:
    """Return each run's {step: value}, ascending; where a resume wrote a step again the last value counts.

    MLflow's `get_metric_history` takes 20 to 200 microseconds a value, its sampled histories do not tell which value of a step
    came last: here two columns are read from a database as they are, and from a server as its own page reads them.
    """
    of = client()
    store = of._tracking_client.store
    if hasattr(store, "ManagedSessionMaker"):
        found = _curves_in_tables(store, run_ids, name)
    else:
        with ThreadPoolExecutor(4) as pool:
            found = dict(zip(run_ids, pool.map(lambda run_id: _curve_of_server(of, run_id, name), run_ids), strict=True))
    return {run_id: dict(sorted(curve.items())) for run_id, curve in found.items()}


def _curves_in_tables(store: SqlAlchemyStore, run_ids: Sequence[str], name: str) -> dict[str, dict[int, float]]:
    from mlflow.store.tracking.dbmodels.models import SqlMetric as Metrics
    from sqlalchemy import case, select

    value: Any = case((Metrics.is_nan.is_(False), Metrics.value))
    wanted: Any = select(Metrics.run_uuid, Metrics.step, value).where(Metrics.key == name, Metrics.run_uuid.in_(run_ids))
    as_indexed = (Metrics.timestamp, Metrics.step, Metrics.run_uuid, Metrics.value)  # the order of the table's primary key
    found: dict[str, dict[int, float]] = {run_id: {} for run_id in run_ids}
    with store.ManagedSessionMaker() as session:
        for run_id, step, number in session.connection().execute(wanted.order_by(*as_indexed)):  # one by one: no garbage
            found[run_id][step] = math.nan if number is None else number
    return found


def _curve_of_server(of: MlflowClient, run_id: str, name: str) -> dict[int, float]:
    """Return what the server's page is given, or MLflow's API where that is cut off or the server has no page."""
    from mlflow.utils.rest_utils import http_request

    store = of._tracking_client.store
    wanted = {"run_id": run_id, "metric_key": name, "max_results": MOST_ROWS}
    answer = http_request(store.get_host_creds(), BULK_HISTORY, "GET", params=wanted)
    rows = answer.json()["metrics"] if answer.status_code == 200 else []
    if 0 < len(rows) < MOST_ROWS:
        return {
            row["step"]: row["value"] for row in sorted(rows, key=lambda row: (row["timestamp"], row["step"], row["value"]))
        }
    history = sorted(of.get_metric_history(run_id, name), key=lambda metric: (metric.timestamp, metric.step, metric.value))
    return {metric.step: metric.value for metric in history}


def dataset_manifests(run_id: str) -> dict[str, Row]:
    """Return what the run's datasets were made from, by their names; those that no data program made have none."""
    found = [artifact.path for artifact in client().list_artifacts(run_id, MANIFESTS)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(client().download_artifacts(run_id, path, folder)) for path in found]
        return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
