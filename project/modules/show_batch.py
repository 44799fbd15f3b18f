"""What is trained, as a person can check it: the first micro-batch as text, run by run with kind and weight."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from lightning import Callback, LightningModule, Trainer

from project.datamodules.plan import MicroBatch
from project.errors import InputError
from project.rendering import KINDS


class ShowBatch(Callback):
    """Prints the first micro-batch that training takes."""

    shown = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        """Print it once."""
        del batch_idx
        if not isinstance(batch, dict):
            raise InputError("--show_batch shows what SFT trains on, and this training takes questions; leave it out")
        if trainer.is_global_zero and not self.shown:
            self.shown = True
            sys.stdout.write("\n".join(describe(batch, pl_module.tokenizer)) + "\n")


def describe(batch: MicroBatch, tokenizer: Any) -> Iterator[str]:  # noqa: ANN401 - any tokenizer of transformers
    """Yield a head line for each sample, then a line for each run of tokens of one kind and weight: weight, kind, text."""
    rows = zip(*(batch[name].split(batch["lengths"]) for name in ("input_ids", "kinds", "weights")), strict=True)
    for name, (ids, kinds, weights) in zip(batch["names"], rows, strict=True):
        trained = int((weights > 0).sum())
        yield f"sample {name}: {len(ids)} tokens, {trained} trained, weight {float(weights.sum()):g}"
        at = 0
        for (kind, weight), run in groupby(zip(kinds.tolist(), weights.tolist(), strict=True)):
            end = at + len(list(run))
            yield f"  {weight:<5g}{KINDS[kind]:<9}{tokenizer.decode(ids[at:end])!r}"
            at = end
