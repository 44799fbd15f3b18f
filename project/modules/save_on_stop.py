"""Ctrl-C and SIGTERM end a training after the micro-batch or validation at hand, saved, with the words that continue it."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException


class SaveOnStop(Callback):
    """Saves `last.ckpt` and stops; a second Ctrl-C stops at once. Ranks that share a training stop together."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: int | None = None
        """The signal that came."""
        self._before: dict[int, Any] = {}
        self._is_saved = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over both signals: Ctrl-C would end the training anywhere, SIGTERM also inside a validation, unsaved."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ANN401
        """Save and stop where that was asked for.

        Raises:
            KeyboardInterrupt, SIGTERMException: it was; Lightning then ends the run.
        """
        self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do so after a validation too."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        asked = self._asked is not None or trainer.received_sigterm  # Lightning heard one before training started
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if not asked:
            return
        folders = [c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.dirpath]
        path = Path(folders[0] if folders else Path(trainer.default_root_dir) / "checkpoints") / "last.ckpt"
        trainer.save_checkpoint(path)
        self._is_saved = True
        if trainer.is_global_zero:
            step = trainer.global_step
            sys.stderr.write(
                f"seeker: stopped after step {step}; go on with the same command and --ckpt_path {shlex.quote(str(path))}\n"
            )
        raise KeyboardInterrupt if self._asked == signal.SIGINT else SIGTERMException

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say where Ctrl-C came when nothing could be saved: before the first step, at once, or outside a training."""
        if not isinstance(exception, KeyboardInterrupt) or self._is_saved or not trainer.is_global_zero:
            return
        steps = f" after step {trainer.global_step}, unsaved" if trainer.global_step else " before its first step"
        where = steps if trainer.state.fn == "fit" else ""
        verb = getattr(trainer.state.fn, "value", "the run")
        sys.stderr.write(f"\nseeker: {verb} was interrupted{where}\n")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, before in self._before.items():
            if signal.getsignal(number) == self._interrupt:
                signal.signal(number, before)
        self._before, self._asked = {}, None

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self._asked == signal.SIGINT:
            raise KeyboardInterrupt
        if self._asked is None:
            again = "; press again to stop at once, unsaved" if number == signal.SIGINT else ""
            sys.stderr.write(f"\nseeker: stopping after this micro-batch, update or validation{again}\n")
        self._asked = number
