"""The tasks of `seeker test` while SFT trains: what an agent does says more than a loss.

    trainer:
      callbacks+:
        class_path: project.modules.validate_agent.ValidateAgent
        init_args: {config: experiments/summary/test.yaml, options: [--data.limit, "50"]}

At the end of a validation the weights at hand are written as a merged folder, and a process of its own runs `seeker test` on
it: the same prompts, engine and metrics as afterwards. Its figures are logged beside the loss as `agent/NAME`, which a
`ModelCheckpoint` may monitor. The process takes the memory of the model and its engine beside the training's. Other ranks wait
for the first: give the strategy a `timeout` above the test's time.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from project.errors import InputError, TrainingError
from project.evaluation.results import SUMMARY
from project.modules.policy import export_merged
from project.modules.sft import SFT
from project.ranks import gathered_or_raised

FOLDER = "agent_validation"
OF_A_LAUNCHER = (
    "RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "NODE_RANK", "SLURM_", "SEEKER_RUN",
)  # fmt: skip
"""Beginnings of variables that would make the test a rank of the training."""


class ValidateAgent(Callback):
    """Measure an SFT's agent after validations.

    Args:
        config: of `seeker test`, with the questions or conversations to measure it on.
        options: further words of that command, such as `[--data.limit, "50", --model.engine_memory, "0.3"]`.
        every: validations from one measurement to the next; the first is measured, those between log NaN.
    """

    def __init__(self, config: Path, options: Sequence[str] = (), every: int = 1) -> None:
        super().__init__()
        if every < 1 or not Path(config).is_file():
            raise InputError(f"ValidateAgent: config={config} must be a file and every={every} at least 1")
        self.config, self.options, self.every = config, list(options), every
        self._validations = 0
        self._names: list[str] = []
        """Of the figures that the last measurement gave."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, on the first rank, and log.

        Raises:
            InputError: the module is no SFT.
            TrainingError: the first measurement failed; a later failure is told, and training goes on.
        """
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if not isinstance(pl_module, SFT) or pl_module.policy is None:
            raise InputError(f"ValidateAgent measures SFT, not {type(pl_module).__name__}; PPO's validation does so by itself")
        folder, policy = Path(trainer.default_root_dir) / FOLDER, pl_module.policy
        found = dict.fromkeys(self._names, math.nan)  # else a ModelCheckpoint would rank these weights by earlier figures
        if self._validations % self.every == 0:
            model, is_first = folder / "model", trainer.is_global_zero
            tokenizer, settings = pl_module.tokenizer, pl_module.settings
            gathered_or_raised(lambda: export_merged(policy, tokenizer, settings, model, write=is_first))
            found = gathered_or_raised(lambda: self._measure(folder, trainer.global_step) if is_first else {})[0]
            self._names = list(found)
        self._validations += 1
        pl_module.log_dict({f"agent/{name}": value for name, value in found.items()}, rank_zero_only=True)

    def state_dict(self) -> dict[str, Any]:
        """Return how many validations there were, and what was measured."""
        return {"validations": self._validations, "names": self._names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._validations, self._names = state_dict["validations"], state_dict["names"]

    def _measure(self, folder: Path, step: int) -> dict[str, float]:
        """Return the figures of a test of the folder's model; NaN where one failed after others had worked."""
        out = folder / f"step-{step}"
        words = ["test", "--config", str(self.config), "--model.model_path", str(folder / "model"), "--trainer.logger", "false"]
        words += ["--trainer.default_root_dir", str(out), *self.options]
        variables = {name: value for name, value in os.environ.items() if not name.startswith(OF_A_LAUNCHER)}
        command = [sys.executable, "-m", "project", *words]
        # A session of its own hears no Ctrl-C: the training is stopped after this validation, and saved.
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, start_new_session=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            failed = f"the agent could not be measured at step {step}: {said}"
            if not self._names:
                raise TrainingError(f"{failed}; mend trainer.callbacks' ValidateAgent, or leave it out")
            sys.stderr.write(f"seeker: {failed}; the training goes on\n")
            return dict.fromkeys(self._names, math.nan)
        metrics = json.loads((out / SUMMARY).read_text(encoding="utf-8"))["metrics"]
        return {name: float(one["mean"]) for name, one in metrics.items()}
