"""What each run records of itself: its config, command, code, packages, data, checkpoints and parent.

It is added by `lightning_cli` in code, so that no `callbacks:` list can remove it. Only rank zero writes; the others know the
run's id. A training leaves `mlflow_run_id` in its folder and its checkpoints; a later run that loads a model or checkpoint from
there has it as parent.
"""

from __future__ import annotations

import resource
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from project.ranks import gathered_or_raised
from project.tracking.datasets import log_datasets
from project.tracking.logger import SeekerLogger, flatten
from project.tracking.provenance import git_diff, git_tags, pip_freeze, version_tags
from project.tracking.store import RUN_ID_FILE, reached, run_folder_id, shown_uri
from project.writing import write_text

UNLOGGED = "seeker_unlogged"
RUN_ID = "seeker_run_id"
"""The key of a checkpoint that holds the id of the run that wrote it."""


class TrackRun(Callback):
    """Record where a run comes from and what it leaves.

    Args:
        config: the resolved config, kept as `config.yaml` and as parameters; None without a CLI.
        command: the words of the command line, kept as the tag `seeker.command`.
    """

    def __init__(self, config: Mapping[str, Any] | None = None, command: Sequence[str] = ()) -> None:
        super().__init__()
        self.config, self.command = config, command
        self._unlogged: dict[str, float] = {}
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the run, tell all ranks its id, and record config, code, packages, data and parent.

        Raises:
            TrackingError: the store cannot be reached; on all ranks, which would else wait for the first.
        """
        logger = _logger(trainer)
        if logger is None:
            return
        verb = str(getattr(stage, "value", stage))
        first, *_ = gathered_or_raised(lambda: self._opened(logger, trainer, pl_module, verb))
        logger.be_told(first)

    def _opened(self, logger: SeekerLogger, trainer: Trainer, pl_module: LightningModule, verb: str) -> tuple[str, str]:
        if trainer.is_global_zero:
            logger.start(Path(trainer.default_root_dir))
            with reached(logger.uri):
                self._record(logger, trainer, pl_module, verb)
        return logger.ids

    def _record(self, logger: SeekerLogger, trainer: Trainer, pl_module: LightningModule, verb: str) -> None:
        tags = {"seeker.verb": verb, "seeker.folder": trainer.default_root_dir, **git_tags(), **version_tags()}
        logger.tag(tags | ({"seeker.command": shlex.join(self.command)} if self.command else {}))
        logger.keep_text("pip_freeze.txt", pip_freeze())
        if (diff := git_diff()) is not None:
            logger.keep_text("git.diff", diff)
        if self.config is not None:
            logger.keep_text("config.yaml", yaml.safe_dump(dict(self.config), sort_keys=False))
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
        """Keep the run's id, and the metrics of a step whose hooks save: Lightning logs them later, a kill may come between."""
        if (logger := _logger(trainer)) is not None:
            checkpoint[RUN_ID] = logger.run_id
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
        if logger is not None and logger.is_started:
            logger.tag({"seeker.error": shown_uri(f"{type(exception).__name__}: {exception}")[:5000]})
            self._track_checkpoints(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Record the most memory that the process held."""
        logger = _logger(trainer)
        if logger is not None:
            logger.log_metrics({"memory/peak_gib": peak_memory_gib()}, 0)

    def _track_checkpoints(self, trainer: Trainer) -> None:
        logger = _logger(trainer)
        kept = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
        if logger is None or not kept:
            return
        last = next((one.last_model_path for one in kept if one.last_model_path), f"{kept[0].dirpath}/last.ckpt")
        best = next((one.best_model_path for one in kept if one.monitor), kept[0].best_model_path)
        found = {"checkpoint.best": best, "checkpoint.last": last}
        logger.tag({name: str(path) for name, path in found.items() if path and Path(path).is_file()})


def _logger(trainer: Trainer) -> SeekerLogger | None:
    """Return the run's logger, None with `logger: false`. It writes on rank zero only."""
    return next((logger for logger in trainer.loggers if isinstance(logger, SeekerLogger)), None)


def checkpoint_run_id(path: Path | None) -> str | None:
    """Return the id of the run that wrote a checkpoint; where the checkpoint does not say, that of its folder."""
    held: Any = None
    if path is not None and path.is_file():
        with suppress(EOFError, OSError, RuntimeError, UnpicklingError):  # a damaged one is refused when it is loaded
            held = torch.load(path, map_location="cpu", mmap=True, weights_only=True).get(RUN_ID)
    return held or run_folder_id(path)


def peak_memory_gib() -> float:
    """Return the largest resident set of this process so far, in GiB: anonymous memory and mapped files."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
