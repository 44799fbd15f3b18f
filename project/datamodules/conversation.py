"""Conversations for supervised fine-tuning: rendered once, weighted by span kind, planned into exact optimizer steps."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, Trainer

from project.datamodules.plan import PlannedLoader, draw
from project.datamodules.samples import Samples, join, tokenised
from project.errors import InputError
from project.files import local_file
from project.overlap import refuse_overlap
from project.rendering import DEFAULT_WEIGHTS, Renderer

logger = logging.getLogger(__name__)


class ConversationDataModule(LightningDataModule):
    """Training and validation conversations. The tokenizer, dialect and history come from the model that is trained."""

    def __init__(
        self,
        train_file: Path | dict[str, float],
        validation_file: Path,
        micro_tokens: int = 2048,
        weights: dict[str, float] | None = None,
        row_weight: str | None = None,
        limit: int | None = None,
        seed: int = 0,
        check_split: bool = True,
        also_validate: dict[str, Path] | None = None,
    ) -> None:
        """Take the files and how to batch them.

        Args:
            train_file: conversations (`.jsonl`, `.parquet`; `.gz` too), here or on the hub
                (`hf://datasets/OWNER/NAME@REVISION/FILE`); or a mixture of files, each with how many times an epoch goes
                through it: 2 shows every sample twice, 0.25 a quarter of them, drawn by the seed.
            validation_file: conversations for validation.
            micro_tokens: most tokens in one micro-batch, into which conversations are packed whole; an optimizer step is
                accumulate_grad_batches x ranks of them. A longer conversation is dropped and counted; no label is ever cut off.
            weights: loss weight per span kind, over the defaults (think 1.5, decision 2, the rest the agent writes 1). A
                message's own `weight` in the file multiplies it.
            row_weight: an SQL expression that multiplies the weights of each training conversation, over its columns `id`,
                `question`, `group`, `turns`, `answers` and those of `extra_info`: `case when turns > 3 then 2.0 else 1.0 end`.
                Conversations of weight 0 are left out.
            limit: use only so many training conversations, drawn by the seed.
            seed: of the order of the samples.
            check_split: refuse training and validation conversations that share a group, a trace, what comes before the agent's
                first word, or a question with its answer.
            also_validate: further conversations for validation, by name, such as those of earlier phases, which a training may
                forget: their loss is logged as `val_NAME/loss`. They too must share nothing with the training conversations.
        """
        super().__init__()
        given = train_file if isinstance(train_file, dict) and train_file else {str(train_file): 1.0}
        self.mixture = {local_file(name): times for name, times in given.items()}
        if limit is not None and len(self.mixture) > 1:
            raise InputError(f"limit={limit} has no meaning for {len(self.mixture)} files; lower their times in train_file")
        self.validation_file = local_file(validation_file)
        self.also_validate = {name: local_file(path) for name, path in (also_validate or {}).items()}
        self.micro_tokens, self.row_weight, self.limit, self.seed = micro_tokens, row_weight, limit, seed
        self.check_split = check_split
        self.weights: Mapping[str, float] = {**DEFAULT_WEIGHTS, **(weights or {})}
        _check_numbers("weights", self.weights)
        _check_numbers("train_file", {str(path): times for path, times in self.mixture.items()})
        self.dropped: dict[str, int] = {}
        self._sets: dict[str, Samples] = {}
        self._train_loader: PlannedLoader | None = None
        self._resume_at: dict[str, Any] = {}

    @property
    def data_files(self) -> dict[str, Path]:
        """The files by what they are for, which tracking logs as the run's datasets."""
        names = ["train", *(f"train_{number}" for number in range(2, len(self.mixture) + 1))]
        return dict(zip(names, self.mixture, strict=True)) | self._validation_files

    @property
    def _validation_files(self) -> dict[str, Path]:
        also = {f"validation_{name}": path for name, path in self.also_validate.items()}
        return {"validation": self.validation_file} | also

    def prepare_data(self) -> None:
        """Tokenise what is not in the cache, in one process of each machine."""
        renderer = self._renderer()
        for path in self.mixture:
            tokenised(path, renderer, self.row_weight)
        for path in self._validation_files.values():
            tokenised(path, renderer)

    def setup(self, stage: str) -> None:
        """Map the samples into memory, check that no group is shared, and draw those of an epoch."""
        del stage
        if self._sets:
            return
        renderer = self._renderer()
        train = [tokenised(path, renderer, self.row_weight) for path in self.mixture]
        validation = {name: tokenised(path, renderer) for name, path in self._validation_files.items()}
        if self.check_split:
            self._refuse_overlap(train, validation)
        mixed = join([self._times(part, times) for part, times in zip(train, self.mixture.values(), strict=True)])
        self._pad_id = int(renderer.tokenizer.pad_token_id)
        self._sets = {"train": self._fitting("train", self._drawn(mixed))}
        self._sets |= {name: self._fitting(name, samples) for name, samples in validation.items()}

    def _refuse_overlap(self, train: list[Samples], validation: dict[str, Samples]) -> None:
        trained = set().union(*(part.marks() for part in train))
        for name, path in self._validation_files.items():
            if path.resolve() in map(Path.resolve, self.mixture):
                raise InputError(f"training and validation are the same file {path}; give two that share no question")
            which = "those for validation" if name == "validation" else f"those of {path.name}"
            refuse_overlap({"the training conversations": trained, which: validation[name].marks()})

    def marks(self, name: str) -> set[str]:
        """Return the marks of the samples used for `train` or `validation`; see `overlap.marks`."""
        return self._sets[name].marks()

    def _renderer(self) -> Renderer:
        module: Any = self.trainer.lightning_module if self.trainer else None
        return module.make_renderer(self.weights)  # type: ignore[no-any-return]

    def _times(self, part: Samples, times: float) -> Samples:
        """Return a part as often as the mixture asks."""
        whole = list(range(len(part))) * int(times)
        return part.take([*whole, *draw(range(len(part)), round(times % 1 * len(part)), self.seed)]) if times != 1 else part

    def _drawn(self, samples: Samples) -> Samples:
        if self.limit is None:
            return samples
        by_conversation: dict[int, list[int]] = {}
        for index, number in enumerate(samples.column("conversation")):
            by_conversation.setdefault(number, []).append(index)
        drawn = draw(list(by_conversation), self.limit, self.seed)
        return samples.take([index for number in drawn for index in by_conversation[number]])

    def _fitting(self, name: str, samples: Samples) -> Samples:
        if not len(samples):
            raise InputError(f"no {name} sample is left of {self.data_files[name]}; raise its times in train_file")
        kept = [index for index, tokens in enumerate(samples.column("tokens")) if tokens <= self.micro_tokens]
        self.dropped[name] = len(samples) - len(kept)
        if not kept:
            raise InputError(
                f"all {len(samples)} samples of {self.data_files[name]} are longer than micro_tokens={self.micro_tokens}"
            )
        if self.dropped[name]:
            logger.warning(
                "dropped %d of %d %s samples over %d tokens", self.dropped[name], len(samples), name, self.micro_tokens
            )
        return samples.take(kept)

    def train_dataloader(self) -> PlannedLoader:
        """Return this rank's planned micro-batches."""
        accumulate, rank, world = 1, 0, 1
        if self.trainer:
            accumulate = self.trainer.accumulate_grad_batches
            rank, world = self.trainer.global_rank, self.trainer.world_size
        samples = self._sets["train"]
        loader = PlannedLoader(samples, self._pad_id, self.micro_tokens, accumulate, self.seed, rank, world)
        if self.trainer:
            _check_limit(self.trainer, len(loader))
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

    def val_dataloader(self) -> list[PlannedLoader]:
        """Return the validation samples of each file, all ranks the same number of batches."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sets = [self._sets[name] for name in self._validation_files]
        return [PlannedLoader(one, self._pad_id, self.micro_tokens, 1, self.seed, rank, world, False) for one in sets]


def _check_limit(trainer: Trainer, batches: int) -> None:
    limit: int | float = trainer.limit_train_batches
    parts = trainer.accumulate_grad_batches
    taken = min(limit, batches) if isinstance(limit, int) else int(batches * limit)
    if taken % parts and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise InputError(
            f"trainer.limit_train_batches={limit} ends an epoch after {taken} micro-batches, inside an optimizer step of "
            f"{parts}; give a multiple of accumulate_grad_batches"
        )


def _check_numbers(name: str, values: Mapping[str, float]) -> None:
    for key, value in values.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{name}.{key}={value} must be a finite number from 0")
    if not any(values.values()):
        raise InputError(f"{name} are all 0; nothing would be trained")
