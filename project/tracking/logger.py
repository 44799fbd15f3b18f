"""Lightning's MLflow logger on the project's store: one run per training, resumed or not, and parameters kept whole.

What it changes in Lightning's: the store is the project's, a resumed training goes on in its run (Lightning opens a new
one), parameters keep MLflow's 6,000 characters (Lightning cuts them at 250; longer ones become artifacts), and names that
MLflow does not take are changed, never two to the same. All that is logged while a training runs goes through a file in the
run's folder (`spool.py`) to a thread that sends it (`sending.py`): a store that is slow or away neither stops nor ends a
training. Only the opening of a run waits for the store. Metrics are only appended: after a resume readers take the last value
per step (`store.metric_curve`).
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from project.errors import InputError
from project.tracking.models import line_of, name_and_alias, packed
from project.tracking.names import Names
from project.tracking.sending import Sender
from project.tracking.spool import PATTERN, Spool, say
from project.tracking.store import (
    CHANGED_PARAM,
    LONG_PARAM,
    MAX_PARAM,
    SHOWN_UNDER,
    alone,
    artifact_location,
    find_run,
    opening_store,
    quiet,
    reached,
    runs_folder,
    shown_uri,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from project.tracking.machine import MachineMonitor

CHUNK = 100
"""Parameters that MLflow takes in one call."""
MAX_TAG = 8000
"""Characters that MLflow stores of a tag."""
SECONDS_AFTER_FAILURE = 5.0
"""How long the end of a run that failed, or was interrupted, waits for a store that takes nothing."""


class SeekerLogger(MLFlowLogger):
    """Track a run in the project's MLflow store.

    Args:
        experiment_name: MLflow experiment that the run belongs to.
        run_name: name to find the run by; by default that of its folder.
        parent_run: name or id of the run that this one starts from; by default the run that made the model it loads.
        resume_run_id: id of a run to continue; set when training resumes from its checkpoint.
        pipeline_run: id of the run that MLflow's page shows this one under; by default the parent.
        register: name of a registered model, or `name@alias`, of which the trained model becomes a version; its files are
            copied to the store. By default the run holds only the paths of its checkpoints.
        machine_seconds: from one sample of processor, memory, disk, network and GPUs to the next; 0 takes none.
        wait_minutes: how long the end of a run waits for a store that is away; `seeker sync` sends what is left after that.
    """

    def __init__(
        self,
        experiment_name: str = "seeker",
        run_name: str | None = None,
        parent_run: str | None = None,
        resume_run_id: str | None = None,
        pipeline_run: str | None = None,
        register: str | None = None,
        machine_seconds: float = 10.0,
        wait_minutes: float = 10.0,
    ) -> None:
        quiet()
        alone()
        if register is not None:
            name_and_alias(register)
        self.uri = tracking_uri()
        with reached(self.uri), opening_store():
            super().__init__(
                experiment_name=experiment_name,
                run_name=run_name,
                tracking_uri=self.uri,
                artifact_location=artifact_location(),
                run_id=resume_run_id,
            )
        self.parent_run, self.pipeline_run, self.register = parent_run, pipeline_run, register
        self.machine_seconds, self.wait_minutes = machine_seconds, wait_minutes
        self._metric_names, self._param_names = Names("metrics"), Names("parameters")
        self._sender: Sender | None = None
        self._monitor: MachineMonitor | None = None
        self._config_logged = self._is_final = False

    # --- the run ---------------------------------------------------------------------------------------------------------

    def name_run(self, name: str) -> None:
        """Name the run unless it has a name; only before it exists."""
        self._run_name = self._run_name or name

    @rank_zero_only
    def continue_run(self, run_id: str) -> None:
        """Go on in the run `run_id`, or in a new one (saying so) where the store no longer has it.

        Raises:
            TrackingError: the store cannot be reached.
        """
        from mlflow.exceptions import MlflowException

        with reached(self.uri):
            try:
                is_there = self._mlflow_client.get_run(run_id).info.lifecycle_stage == "active"
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                is_there = False
        if is_there:
            self._run_id = run_id
            return
        self.tags = (self.tags or {}) | {"seeker.resumed_from": run_id}
        sys.stderr.write(f"seeker: {shown_uri(self.uri)} has no run {run_id}; going on in a new run\n")

    @property
    @rank_zero_experiment
    def experiment(self) -> MlflowClient:  # type: ignore[override]
        """Return MLflow's client. What asks for the run's id opens the run; Lightning asks for this before data are read."""
        return self._mlflow_client

    @property
    def run_id(self) -> str | None:
        """The run's id; the run is opened for it. Other ranks than the first have what they were told."""
        self._open()
        return self._run_id

    @property
    def experiment_id(self) -> str | None:
        """The experiment's id; the run is opened for it."""
        self._open()
        return self._experiment_id

    @rank_zero_only
    def _open(self) -> None:
        """Make the run, or look it up, once.

        Raises:
            TrackingError: the store cannot be reached.
        """
        from mlflow.exceptions import MlflowException

        if self._initialized:
            return
        with reached(self.uri), opening_store():  # the experiment is made now, unless it is there
            try:
                _ = super().experiment
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                _ = super().experiment  # another process has just made it

    @property
    def ids(self) -> tuple[str, str]:
        """The run's and its experiment's, which only the first rank has until the others are told."""
        return str(self.run_id), str(self.experiment_id)

    @property
    def run_name(self) -> str | None:
        """The run's name, once it is open."""
        return self._run_name

    @property
    def is_started(self) -> bool:
        """Whether this process has opened the run and writes to it."""
        return self._sender is not None

    def be_told(self, ids: tuple[str, str]) -> None:
        """Take the first rank's `ids`."""
        self._run_id, self._experiment_id = ids

    @rank_zero_only
    def start(self, folder: Path | None = None) -> None:
        """Open the run (or mark it running again), store its parent and print where it is tracked.

        Args:
            folder: the run's own, for what the store does not have yet; by default one of the run's id.

        Raises:
            TrackingError: the store cannot be reached, or another process tracks this run.
        """
        self._is_final = False
        if self._sender is not None:
            return
        with reached(self.uri):
            client, run_id = self.experiment, str(self.run_id)
            run = client.get_run(run_id)
            self._run_name = run.info.run_name
            if self.pipeline_run:
                client.set_tag(run_id, SHOWN_UNDER, self.pipeline_run)
            if self.parent_run:
                self.set_parent(find_run(self.parent_run).info.run_id)
        folder = folder or runs_folder() / run_id
        self._sender = Sender(Spool(folder, run_id, self.uri))
        self._put({"status": "RUNNING"})
        if self.machine_seconds > 0:
            self._watch_machine(run.info.start_time)
        uri = shown_uri(self.uri)
        sys.stderr.write(f"seeker: tracking run '{run.info.run_name}' ({run_id}) in {uri}\n")
        if left := [path for path in folder.glob(PATTERN) if run_id not in path.name]:
            sys.stderr.write(f"seeker: {len(left)} other runs have left what they logged in {folder}; `seeker sync {folder}`\n")

    def _watch_machine(self, began_ms: int) -> None:
        from project.tracking.machine import MachineMonitor

        self._monitor = MachineMonitor(*self.ids[:1], self.uri, began_ms, self.machine_seconds, self._put_metrics)
        self._monitor.start()

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Close the run once the store has all that was logged; see `wait_minutes`. Of a stage the first status stands."""
        if self._sender is None:
            return
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        has_failed, wait = status == "failed", 60 * self.wait_minutes
        if not self._is_final:
            self._is_final = True
            self._put({"status": "FAILED" if has_failed else "FINISHED", "time": _now_ms()})
        if not self._sender.finish(min(wait, SECONDS_AFTER_FAILURE) if has_failed else wait):
            spool = self._sender.spool
            say(
                f"{shown_uri(self.uri)} has not taken the last {spool.left} lines of what the run logged "
                f"({self._sender.trouble or 'it is slow'}); `seeker sync {spool.path.parent}` sends them"
            )

    # --- what it holds ---------------------------------------------------------------------------------------------------

    def _put(self, line: dict[str, Any]) -> None:
        if self._sender is None:
            self.start()
        assert self._sender is not None
        self._sender.put(line)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers of a step.

        Raises:
            InputError: two names would be one in MLflow.
        """
        self._put_metrics({self._metric_names.stored(name): float(value) for name, value in metrics.items()}, step or 0)

    def _put_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._put({"metrics": metrics, "step": step, "time": _now_ms()})

    @rank_zero_only
    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run; one that is longer than MLflow's 8,000 characters is kept as a text."""
        for name, value in tags.items():
            if len(value) > MAX_TAG:
                self.keep_text(f"tags/{name}.txt", value)
        self._put({"tags": {n: v if len(v) <= MAX_TAG else f"see artifact tags/{n}.txt" for n, v in tags.items()}})

    @rank_zero_only
    def keep_file(self, path: Path, folder: str | None = None) -> None:
        """Store a file, which must stay where it is until it is sent, among the run's artifacts.

        Args:
            path: of the file.
            folder: of the run's artifacts; by default their top.
        """
        self._put({"file": str(path.resolve()), "folder": folder})

    @rank_zero_only
    def keep_text(self, name: str, text: str) -> None:
        """Store a text among the run's artifacts, under this name."""
        self._put({"text": text, "name": name})

    @rank_zero_only
    def keep_trace(self, trace: Mapping[str, Any]) -> None:
        """Store a trace of the run (`episodes.trace_of`)."""
        self._put({"trace": trace})

    @rank_zero_only
    def keep_model(self, folder: Path) -> None:
        """Register a trained model, where the logger's `register` says so: its files are copied.

        Args:
            folder: of the model and its tokenizer.
        """
        if self.register is None:
            return
        if self._sender is None:
            self.start()
        assert self._sender is not None
        made = self._sender.spool.path.parent / "registered"
        packed(folder, made)
        self._put({"model": line_of(self.register, made)})

    @rank_zero_only
    def set_parent(self, run_id: str) -> None:
        """Store which run this one starts from."""
        if run_id != self.run_id:
            self.experiment.set_tag(self.run_id, "seeker.parent", run_id)
            if not self.pipeline_run:
                self.experiment.set_tag(self.run_id, SHOWN_UNDER, run_id)

    @rank_zero_only
    def log_config(self, params: Mapping[str, str]) -> None:
        """Log the resolved config's flat parameters; `log_hyperparams` then has nothing to add."""
        self._log_params(params)
        self._config_logged = True

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:  # type: ignore[override]
        """Log a module's hyper-parameters, unless the config that holds them is logged already."""
        if not self._config_logged:
            values = vars(params) if isinstance(params, Namespace) else params
            self._log_params(flatten(values))

    def _log_params(self, params: Mapping[str, str]) -> None:
        with reached(self.uri):
            self._store_params({self._param_names.stored(name): value for name, value in params.items()})

    def _store_params(self, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        client, run_id = self.experiment, str(self.run_id)
        data = client.get_run(run_id).data
        known, changed = data.params, data.tags
        new: list[Param] = []
        for key, value in params.items():
            if len(value) > MAX_PARAM:
                client.log_text(run_id, value, f"params/{key}.txt")
                value = f"{LONG_PARAM}{key}.txt"
            if key not in known:
                new.append(Param(key, value))
            elif changed.get(CHANGED_PARAM + key, known[key]) != value:
                client.set_tag(run_id, CHANGED_PARAM + key, value)
        for start in range(0, len(new), CHUNK):
            client.log_batch(run_id=run_id, params=new[start : start + CHUNK])


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as `a.b.c: text`; lists of settings are numbered, `init_args` and `class_path` left out of names.

    Raises:
        InputError: two of them would have one name.

    `{"model": {"class_path": "x.SFT", "init_args": {"lr": 0.1}}}` -> `{"model": "x.SFT", "model.lr": "0.1"}`.
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = prefix if key in ("init_args", "class_path") and prefix else f"{prefix}.{key}".removeprefix(".")
        if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        found = flatten(value, name) if isinstance(value, Mapping) else {name: str(value)}
        if both := flat.keys() & found.keys():
            raise InputError(f"two settings are called '{min(both)}'; rename one of them")
        flat |= found
    return flat


def _now_ms() -> int:
    return int(time.time() * 1000)
