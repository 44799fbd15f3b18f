"""Conversations for supervised fine-tuning: rendered once, weighted by span kind, planned into exact optimizer steps."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningDataModule

from project.datamodules.plan import PlannedLoader, draw, groups_of
from project.errors import InputError
from project.files import read_records
from project.records import Conversation
from project.rendering import DEFAULT_WEIGHTS, Renderer, Sample

logger = logging.getLogger(__name__)


class ConversationDataModule(LightningDataModule):
    """Training and validation conversations. The tokenizer, dialect and history come from the model that is trained."""

    def __init__(
        self,
        train_file: Path,
        validation_file: Path,
        micro_tokens: int = 2048,
        weights: dict[str, float] | None = None,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        """Take the files and how to batch them.

        Args:
            train_file: conversations (`.jsonl`, `.parquet`; `.gz` too).
            validation_file: conversations that share no group with the training ones.
            micro_tokens: most tokens in one micro-batch, into which conversations are packed whole; an optimizer step is
                accumulate_grad_batches x ranks of them. A longer conversation is dropped and counted; no label is ever cut off.
            weights: loss weight per span kind, over the defaults (think 1.5, decision 2, the rest the agent writes 1).
            limit: use only so many training conversations, drawn by the seed.
            seed: of the order of the samples.
        """
        super().__init__()
        self.data_files = {"train": Path(train_file), "validation": Path(validation_file)}
        self.micro_tokens, self.limit, self.seed = micro_tokens, limit, seed
        self.weights: Mapping[str, float] = {**DEFAULT_WEIGHTS, **(weights or {})}
        self.dropped: dict[str, int] = {}
        self._samples: dict[str, list[Sample]] = {}
        self._train_loader: PlannedLoader | None = None
        self._resume_at: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        """Read, check that no group is shared, and render with the renderer of the trainer's module."""
        del stage
        if self._samples:
            return
        sets = {name: read_records(path, Conversation.from_row) for name, path in self.data_files.items()}
        check_disjoint(sets["train"], sets["validation"], self.data_files)
        module = self.trainer.lightning_module if self.trainer else None
        renderer: Renderer = module.make_renderer(self.weights)  # type: ignore[union-attr,operator]
        for name, conversations in sets.items():
            chosen = draw(conversations, self.limit, self.seed) if name == "train" else conversations
            self._samples[name] = self._render(name, chosen, renderer)

    def _render(self, name: str, conversations: Sequence[Conversation], renderer: Renderer) -> list[Sample]:
        samples = [sample for conversation in conversations for sample in renderer.samples(conversation)]
        kept = [sample for sample in samples if len(sample.ids) <= self.micro_tokens]
        self.dropped[name] = len(samples) - len(kept)
        if not kept:
            raise InputError(
                f"all {len(samples)} samples of {self.data_files[name]} are longer than micro_tokens={self.micro_tokens}"
            )
        if self.dropped[name]:
            logger.warning(
                "dropped %d of %d %s samples over %d tokens", self.dropped[name], len(samples), name, self.micro_tokens
            )
        self._pad_id = int(renderer.tokenizer.pad_token_id)
        return kept

    def train_dataloader(self) -> PlannedLoader:
        """Return this rank's planned micro-batches."""
        accumulate, rank, world = 1, 0, 1
        if self.trainer:
            accumulate = self.trainer.accumulate_grad_batches
            rank, world = self.trainer.global_rank, self.trainer.world_size
        samples = self._samples["train"]
        loader = PlannedLoader(samples, self._pad_id, self.micro_tokens, accumulate, self.seed, rank, world)
        if self._resume_at:
            loader.load_state_dict(self._resume_at)
        self._train_loader, self._resume_at = loader, {}
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Return where training stands in the data."""
        return self._train_loader.state_dict() if self._train_loader else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue there. Lightning itself restores no loader once `configure_optimizers` has asked for the number of steps."""
        self._resume_at = state_dict
        if self._train_loader:
            self._train_loader.load_state_dict(state_dict)

    def val_dataloader(self) -> PlannedLoader:
        """Return the validation samples, all ranks the same number of batches."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return PlannedLoader(self._samples["validation"], self._pad_id, self.micro_tokens, 1, self.seed, rank, world, False)


def check_disjoint(train: Sequence[Conversation], held_out: Sequence[Conversation], files: Mapping[str, Path]) -> None:
    """Raise `InputError` where two sets are one file or share a group or, without groups, an id."""
    paths = [path.resolve() for path in files.values()]
    if len(set(paths)) < len(paths):
        raise InputError(f"training and validation are the same file {paths[0]}; give two that share no question")
    shared = {g for c in train for g in groups_of(c)} & {g for c in held_out for g in groups_of(c)}
    if shared:
        raise InputError(
            f"{len(shared)} groups are in both training and validation, for example '{min(shared)}'; split by group"
        )
