"""What each run records of itself: its config, code, packages, data, checkpoints and parent.

It is added by `lightning_cli` in code, so that no `callbacks:` list can remove it. Only rank zero writes. A training leaves
`mlflow_run_id` in its folder; a later run that loads a model or checkpoint from there has it as parent.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from project.tracking.datasets import log_datasets
from project.tracking.logger import SeekerLogger, flatten
from project.tracking.provenance import git_tags, version_tags
from project.tracking.store import RUN_ID_FILE, run_folder_id
from project.writing import write_text

UNLOGGED = "seeker_unlogged"


class TrackRun(Callback):
    """Record where a run comes from and what it leaves.

    Args:
        config: the resolved config, kept as `config.yaml` and as parameters; None without a CLI.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.config = config
        self._unlogged: dict[str, float] = {}
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the run and record config, code, packages, data and parent."""
        from mlflow.entities import RunTag

        logger = _logger(trainer)
        if logger is None:
            return
        logger.start()
        verb = str(getattr(stage, "value", stage))
        tags = {"seeker.verb": verb, "seeker.folder": trainer.default_root_dir, **git_tags(), **version_tags()}
        logger.experiment.log_batch(logger.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        if self.config is not None:
            logger.experiment.log_text(logger.run_id, yaml.safe_dump(dict(self.config), sort_keys=False), "config.yaml")
            logger.log_config(flatten(self.config))
        for source in (getattr(trainer, "datamodule", None), pl_module):
            files = dict(getattr(source, "data_files", {}) or {})
            log_datasets(logger.experiment, str(logger.run_id), {name: Path(path) for name, path in files.items()})
        parent = run_folder_id(getattr(pl_module, "start_from", None)) or run_folder_id(getattr(pl_module, "model_path", None))
        if parent and not logger.parent_run:
            logger.set_parent(parent)
        if verb == "fit":
            write_text(Path(trainer.default_root_dir) / RUN_ID_FILE, f"{logger.run_id}\n")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the metrics of a step whose hooks save: Lightning logs them after that, and a kill may come between."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        connector = trainer._logger_connector
        begun = progress["total"]["completed"] < progress["total"]["processed"] == progress["total"]["ready"]
        if begun and progress["current"]["ready"] % trainer.accumulate_grad_batches == 0 and connector.should_update_logs:
            metrics = {name: float(value) for name, value in connector.metrics["log"].items()}
            checkpoint[UNLOGGED] = {"epoch": float(checkpoint["epoch"]), **metrics}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take what the step of the checkpoint may have left unlogged."""
        if trainer.state.fn == "fit" and UNLOGGED in checkpoint:
            self._unlogged = checkpoint[UNLOGGED]
            self._step = checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log it; where it was logged already, a reader takes the last of two values of a step, which are the same."""
        self._log_rest(trainer)

    def _log_rest(self, trainer: Trainer) -> None:
        if self._unlogged and trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(self._unlogged, self._step)
        self._unlogged = {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the checkpoints of a training that ended; one whose last step was done did not start."""
        self._log_rest(trainer)
        self._track_checkpoints(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Record the checkpoints of a training that was stopped, and why."""
        logger = _logger(trainer)
        if logger is not None:
            logger.experiment.set_tag(logger.run_id, "seeker.error", f"{type(exception).__name__}: {exception}"[:5000])
            self._track_checkpoints(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Record the most memory that the process held."""
        logger = _logger(trainer)
        if logger is not None:
            logger.experiment.log_metric(logger.run_id, "memory/peak_gib", peak_memory_gib())

    def _track_checkpoints(self, trainer: Trainer) -> None:
        logger = _logger(trainer)
        kept = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
        if logger is None or not kept:
            return
        last = next((one.last_model_path for one in kept if one.last_model_path), f"{kept[0].dirpath}/last.ckpt")
        best = next((one.best_model_path for one in kept if one.monitor), kept[0].best_model_path)
        for name, path in {"best": best, "last": last}.items():
            if path and Path(path).is_file():
                logger.experiment.set_tag(logger.run_id, f"checkpoint.{name}", str(path))


def _logger(trainer: Trainer) -> SeekerLogger | None:
    """Return the run's logger on rank zero, None elsewhere or with `logger: false`."""
    if not trainer.is_global_zero:
        return None
    return next((logger for logger in trainer.loggers if isinstance(logger, SeekerLogger)), None)


def peak_memory_gib() -> float:
    """Return the largest resident set of this process so far, in GiB: anonymous memory and mapped files."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
