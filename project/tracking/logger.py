"""Lightning's MLflow logger on the project's store: one run per training, resumed or not, and parameters kept whole.

What it changes in Lightning's: the store is the project's, a resumed training goes on in its run (Lightning opens a new
one), and parameters keep MLflow's 6,000 characters (Lightning cuts them at 250); longer ones become artifacts. Metrics are
only appended: after a resume readers take the last value per step (`store.metric_curve`).
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from project.tracking.store import (
    CHANGED_PARAM,
    LONG_PARAM,
    MAX_PARAM,
    SHOWN_UNDER,
    artifact_location,
    find_run,
    opening_store,
    quiet,
    tracking_uri,
)

CHUNK = 100
"""Parameters that MLflow takes in one call."""


class SeekerLogger(MLFlowLogger):
    """Track a run in the project's MLflow store.

    Args:
        experiment_name: MLflow experiment that the run belongs to.
        run_name: name to find the run by; by default that of its folder.
        parent_run: name or id of the run that this one starts from; by default the run that made the model it loads.
        resume_run_id: id of a run to continue; set when training resumes from its checkpoint.
        pipeline_run: id of the run that MLflow's page shows this one under; by default the parent.
    """

    def __init__(
        self,
        experiment_name: str = "seeker",
        run_name: str | None = None,
        parent_run: str | None = None,
        resume_run_id: str | None = None,
        pipeline_run: str | None = None,
    ) -> None:
        quiet()
        with opening_store():
            super().__init__(
                experiment_name=experiment_name,
                run_name=run_name,
                tracking_uri=tracking_uri(),
                artifact_location=artifact_location(),
                run_id=resume_run_id,
            )
        self.parent_run, self.pipeline_run = parent_run, pipeline_run
        self._announced = False
        self._config_logged = False

    def name_run(self, name: str) -> None:
        """Name the run unless it has a name; only before it exists."""
        self._run_name = self._run_name or name

    def continue_run(self, run_id: str) -> None:
        """Go on in the run `run_id`, or in a new one (saying so) where the store no longer has it."""
        from mlflow.exceptions import MlflowException

        try:
            self._mlflow_client.get_run(run_id)
        except MlflowException:
            self.tags = (self.tags or {}) | {"seeker.resumed_from": run_id}
            sys.stderr.write(f"seeker: {self._tracking_uri} has no run {run_id}; going on in a new run\n")
            return
        self._run_id = run_id

    @rank_zero_only
    def start(self) -> None:
        """Open the run (or mark it running again), store its parent and print where it is tracked."""
        if self._announced:
            return
        self._announced = True
        with opening_store():  # the experiment is made now, unless it is there
            client, run_id = self.experiment, str(self.run_id)
        client.update_run(run_id, status="RUNNING")
        if self.pipeline_run:
            client.set_tag(run_id, SHOWN_UNDER, self.pipeline_run)
        if self.parent_run:
            self.set_parent(find_run(self.parent_run).info.run_id)
        name = client.get_run(run_id).info.run_name
        sys.stderr.write(f"seeker: tracking run '{name}' ({run_id}) in {self._tracking_uri}\n")

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
        from mlflow.entities import Param

        client, run_id = self.experiment, str(self.run_id)
        known = client.get_run(run_id).data.params
        new: list[Param] = []
        for key, value in params.items():
            if len(value) > MAX_PARAM:
                client.log_text(run_id, value, f"params/{key}.txt")
                value = f"{LONG_PARAM}{key}.txt"
            if key not in known:
                new.append(Param(key, value))
            elif known[key] != value:
                client.set_tag(run_id, CHANGED_PARAM + key, value)
        for start in range(0, len(new), CHUNK):
            client.log_batch(run_id=run_id, params=new[start : start + CHUNK])


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as `a.b.c: text`; lists of settings are numbered, `init_args` and `class_path` left out of names.

    `{"model": {"class_path": "x.SFT", "init_args": {"lr": 0.1}}}` -> `{"model": "x.SFT", "model.lr": "0.1"}`.
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = prefix if key in ("init_args", "class_path") and prefix else f"{prefix}.{key}".removeprefix(".")
        if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= flatten(value, name)
        else:
            flat[name] = str(value)
    return flat
