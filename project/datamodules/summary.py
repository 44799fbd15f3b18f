"""Conversations to test summaries on: `summary_prefix` samples, in the file's order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lightning import LightningDataModule

from project.datamodules.plan import draw
from project.datamodules.question import WAVES
from project.errors import InputError
from project.files import local_file, read_records
from project.overlap import marks
from project.records import Conversation


@dataclass
class Batches:
    """Yields lists of conversations, the same on every rank."""

    conversations: list[Conversation]
    size: int

    def __len__(self) -> int:
        return -(-len(self.conversations) // self.size)

    def __iter__(self) -> Iterator[list[Conversation]]:
        for start in range(0, len(self.conversations), self.size):
            yield self.conversations[start : start + self.size]


class SummaryDataModule(LightningDataModule):
    """A file of `summary_prefix` conversations for `seeker test` with `SummaryAgent`."""

    def __init__(
        self, test_file: Path, eval_batch: int = 64, limit: int | None = None, answers_only: bool = False, seed: int = 0
    ) -> None:
        """Take the file.

        Args:
            test_file: conversations of the set summary_prefix (`seeker data phases`), here or on the hub.
            eval_batch: samples that run at once.
            limit: use only so many of them, drawn by the seed.
            answers_only: use only samples whose next turn is the answer, the last of each trace.
            seed: of the draw.
        """
        super().__init__()
        self.data_files = {"test": local_file(test_file)}
        self.eval_batch, self.limit, self.answers_only, self.seed = eval_batch, limit, answers_only, seed
        self._conversations: list[Conversation] = []

    def setup(self, stage: str) -> None:
        """Read the file.

        Raises:
            InputError: the verb is not `test`, or no sample is left.
        """
        if stage != "test":
            raise InputError(f"SummaryDataModule is for seeker test, not seeker {stage}")
        found = read_records(self.data_files["test"], Conversation.from_row)
        found = [one for one in found if not one.extra_info.get("again")]  # their context is not the whole one
        if self.answers_only:
            found = [one for one in found if one.extra_info.get("split_index") == one.extra_info.get("total_splits")]
        if not found:
            raise InputError(f"{self.data_files['test']} holds no sample to test on")
        drawn = sorted(draw(range(len(found)), self.limit, f"{self.seed}/test"))
        self._conversations = [found[i] for i in drawn]

    def marks(self, name: str) -> set[str]:
        """Return the marks of the samples; see `overlap.marks`."""
        del name
        return set().union(*map(marks, self._conversations))

    def test_dataloader(self) -> Batches:
        """Return batches of conversations."""
        return Batches(self._conversations, WAVES * self.eval_batch)
