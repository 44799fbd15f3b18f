"""A callback for trainings in processes of their own: what each optimizer step logged, and its gradient's norms, in a file."""

import json
from pathlib import Path

import torch
from lightning import Callback
from torch.distributed.tensor import DTensor

from project.modules.sharding import whole


class WatchSteps(Callback):
    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_start(self, trainer, pl_module) -> None:
        self.steps = trainer.global_step

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.norm = norm(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.steps:
            return
        self.steps = trainer.global_step
        sharded = [p.to_local().numel() < p.numel() for p in pl_module.policy.parameters() if isinstance(p, DTensor)]
        row = {"step": self.steps, "loss": float(trainer.callback_metrics["train/loss"]), "norm": self.norm}
        row |= {"tokens": float(trainer.callback_metrics["train/tokens"]), "clipped": norm(pl_module), "sharded": sum(sharded)}
        if trainer.is_global_zero:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def norm(module) -> float:
    return float(whole(torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])))
