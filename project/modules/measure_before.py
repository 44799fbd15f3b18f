"""What the weights measure that a training starts from: the row of a pipeline's losses before its first phase."""

from __future__ import annotations

import json
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from project.modules.hand_over import BEFORE, measured
from project.writing import write_text


class MeasureBefore(Callback):
    """Keep what the sanity check measures, which is all validation sets with `trainer.num_sanity_val_steps: -1`."""

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it into the run's folder."""
        if trainer.is_global_zero and (found := measured(trainer)):
            write_text(Path(trainer.default_root_dir) / BEFORE, json.dumps(found) + "\n")
