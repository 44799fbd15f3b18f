"""How far a training is, where there is no terminal and so no bar: a log is read line by line.

A line comes after ten seconds and then each minute, on standard error, as does what `seeker` says of the run; what is logged is
MLflow's.
"""

from __future__ import annotations

import sys
import time

from lightning.pytorch import Callback, LightningModule, Trainer

FIRST_S, EVERY_S = 10.0, 60.0
"""To the first line, and between lines."""
SHOWN = ("train/loss", "train/reward", "rollout/reward", "train/trained_share", "val/loss", "val/reward")
"""Metrics of a line, where the training logs them."""


class LogLines(Callback):
    """Writes epoch, batch, speed, the time that is left, and the last loss and reward."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count: what a resumed training has done before took another process's time."""
        self._began = time.monotonic()
        self._due = self._began + FIRST_S
        self._batches = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Write a line, if one is due."""
        self._batches += 1
        now = time.monotonic()
        if trainer.is_global_zero and now >= self._due and not has_bar(trainer):
            self._due = now + EVERY_S
            sys.stderr.write(f"seeker: {self.line(trainer, batch_idx + 1, (now - self._began) / self._batches)}\n")
            sys.stderr.flush()

    def line(self, trainer: Trainer, batch: int, seconds: float) -> str:
        """Return the line after a batch, counted from 1, where one takes so many seconds."""
        batches, epochs = trainer.num_training_batches, trainer.max_epochs or -1
        of_epochs = f" of {epochs}" if epochs > 0 else ""
        parts = [f"epoch {trainer.current_epoch + 1}{of_epochs}, batch {batch} of {batches}, {seconds:.3g} s each"]
        if epochs > 0 and batches != float("inf"):
            to_do = (epochs - trainer.current_epoch) * batches - batch
            if trainer.max_steps > 0:
                to_do = min(to_do, (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches)
            left = to_do * seconds
            parts.append(f"about {left / 60:,.0f} min left" if left >= 60 else f"about {left:.0f} s left")
        metrics = trainer.callback_metrics
        return ", ".join([*parts, *(f"{name} {float(metrics[name]):.4g}" for name in SHOWN if name in metrics)])


def has_bar(trainer: Trainer) -> bool:
    """Return whether a bar shows on a terminal how far the training is."""
    return trainer.progress_bar_callback is not None and sys.stdout.isatty()
