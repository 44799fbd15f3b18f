"""What SFT and PPO do when a training ends: the merged folders of the last and of the best weights, and `hand_over.json`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors import SafetensorError

from project.errors import TrainingError
from project.modules.adapter_checkpoint import load_weights
from project.modules.hand_over import MEASURED, HandedOn, measured, note_run, write_hand_over
from project.modules.policy import AgentSettings, Policy, export_merged
from project.tracking.logger import SeekerLogger

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class HandsOn:
    """For a LightningModule with a policy, before `AdapterCheckpoint` among its bases."""

    policy: Policy | None
    tokenizer: PreTrainedTokenizerBase
    settings: AgentSettings
    export_dir: Path | None
    trainer: Any
    logger: Any
    _at_last_validation: Mapping[str, float] = {}
    """What the last validation before the checkpoint that is resumed measured."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what the last validation measured."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        trainer = getattr(self, "_trainer", None)  # `trainer` raises where there is none
        checkpoint[MEASURED] = (measured(trainer) if trainer is not None else {}) or self._at_last_validation

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what it measured: a training that was done resumes without a validation."""
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        self._at_last_validation = checkpoint.get(MEASURED, {})

    def on_fit_end(self) -> None:
        """Write the merged folder that others start from, and the best checkpoint's; the module holds the last weights still.

        Raises:
            TrainingError: there is no room for them; the last checkpoint, which is saved first, goes on from here.
        """
        if self.trainer.interrupted:
            return
        try:
            self._hand_over()
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"the trained model cannot be written ({error}); make room and go on with the same command and --ckpt_path last"
            ) from error

    def _hand_over(self) -> None:
        trainer, folder = self.trainer, self.export_dir or Path(self.trainer.default_root_dir) / "merged"
        last = last_checkpoint(trainer)
        self._export(folder)
        hands_on = {"last": HandedOn(str(folder), last, trainer.global_step, measured(trainer) or self._at_last_validation)}
        self._note(hands_on)
        if (best := best_checkpoint(trainer)) is not None:
            folder = folder.with_name(f"{folder.name}_best")
            load_weights(self, best)
            self._export(folder)
            held = torch.load(best, map_location="cpu", weights_only=True, mmap=True)
            hands_on["best"] = HandedOn(str(folder), str(best), held["global_step"], held.get(MEASURED, {}))
            self._note(hands_on)
            assert last is not None, "what keeps the best keeps the last"
            load_weights(self, Path(last))  # which an engine has
        if isinstance(self.logger, SeekerLogger):
            self.logger.keep_model(folder)
        if trainer.is_global_zero:
            sys.stderr.write(f"seeker: step {trainer.global_step} was the last; the trained model is {folder}\n")

    def _note(self, hands_on: Mapping[str, HandedOn]) -> None:
        if self.trainer.is_global_zero:
            write_hand_over(Path(self.trainer.default_root_dir), hands_on)

    def _export(self, folder: Path) -> None:
        assert self.policy is not None
        export_merged(self.policy, self.tokenizer, self.settings, folder, write=self.trainer.is_global_zero)
        if self.trainer.is_global_zero:
            note_run(folder, self.logger)


def best_checkpoint(trainer: Any) -> Path | None:  # noqa: ANN401 - Lightning's own
    """Return the checkpoint that was best by the metric that a `ModelCheckpoint` monitors; None where none does."""
    monitored = (one for one in trainer.checkpoint_callbacks if getattr(one, "monitor", None) and one.best_model_path)
    return next((path for one in monitored if (path := Path(one.best_model_path)).is_file()), None)


def last_checkpoint(trainer: Any) -> str | None:  # noqa: ANN401 - Lightning's own
    """Return the checkpoint of the last step, saved as `last.ckpt` unless it is there; None without a `ModelCheckpoint`."""
    keep = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint) and one.dirpath]
    if not keep:
        return None
    path = Path(str(keep[0].dirpath)) / "last.ckpt"
    # Of a callback with `save_last` this is its last.ckpt, of one that keeps the best only that.
    saved = {str(one._last_checkpoint_saved) for one in keep if one._last_global_step_saved == trainer.global_step}
    if str(path) not in saved:
        trainer.save_checkpoint(path)
    return str(path)
