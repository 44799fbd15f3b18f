"""The `facts` data set as a whole: build it in memory, then write it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from project.corpus.facts.candidates import Candidate
from project.corpus.facts.card import LICENCES, write_card
from project.corpus.facts.expert import write_conversations
from project.corpus.facts.passages import write_passages
from project.corpus.facts.sources import load_table
from project.corpus.facts.splits import split_questions
from project.corpus.facts.table import FactTable
from project.dialects import Dialect
from project.errors import InputError
from project.manifests import plan, write_outputs
from project.records import Conversation, Passage
from project.writing import write_text


@dataclass(frozen=True, slots=True)
class Settings:
    """What the data set depends on."""

    sizes: dict[str, int]
    """Questions by split: train, validation, test."""
    train_conversations: int
    dialect: Dialect
    topk: int
    """Search results shown for a query."""
    seed: int
    missed: float = 0.0
    """Share of lookups whose first results come without their evidence in the conversations."""

    def check(self) -> None:
        """Refuse numbers that make no data set.

        Raises:
            InputError: a number is too small, or there are more conversations than training questions.
        """
        for split, size in self.sizes.items():
            if size < 1:
                raise InputError(f"--{split}_questions is {size}; give at least 1")
        if not 1 <= self.train_conversations <= self.sizes["train"]:
            most = self.sizes["train"]
            raise InputError(f"--train_conversations is {self.train_conversations}; give 1 to --train_questions ({most})")
        if self.topk < 1:
            raise InputError(f"--topk is {self.topk}; give at least 1")
        if not 0 <= self.missed < 1:
            raise InputError(f"--missed is {self.missed}; give a share from 0 to below 1")


@dataclass(frozen=True, slots=True)
class Dataset:
    """Everything that is written."""

    table: FactTable
    passages: list[Passage]
    splits: dict[str, list[Candidate]]
    conversations: dict[str, list[Conversation]]
    dropped: int
    """Conversations left out because no query found the evidence."""


def build(settings: Settings) -> Dataset:
    """Build the data set; the same settings give the same data set."""
    from project.corpus.index import Index

    settings.check()
    table = load_table()
    passages = write_passages(table, settings.seed)
    splits = split_questions(table, settings.sizes, settings.seed)
    index = Index.from_passages(passages)
    planned = {"train": splits["train"][: settings.train_conversations], "validation": splits["validation"]}
    conversations, dropped = {}, 0
    for split, candidates in planned.items():
        conversations[split], lost = write_conversations(
            candidates, index, settings.dialect, topk=settings.topk, seed=settings.seed, missed=settings.missed
        )
        dropped += lost
    return Dataset(table, passages, splits, conversations, dropped)


def write(data: Dataset, settings: Settings, folder: Path, *, force: bool = False) -> str:
    """Write every file with its manifest, the card last, and return a summary of one line a file.

    Raises:
        InputError: a file is there that was made otherwise, or changed since, and `force` is False.
    """
    outputs = {folder / "passages.jsonl": [passage.to_row() for passage in data.passages]}
    for split, candidates in data.splits.items():
        outputs[folder / f"questions_{split}.jsonl"] = [c.question.to_row() for c in candidates]
    for split, conversations in data.conversations.items():
        outputs[folder / f"conversations_{split}.jsonl"] = [conversation.to_row() for conversation in conversations]
    packages = {name: version(name) for name in LICENCES}
    parameters = asdict(settings) | {"dialect": settings.dialect.identity, "packages": packages}
    counts = {"conversations left out, no query found their evidence": data.dropped}
    write_outputs(plan("seeker data facts", parameters, []), outputs, counts, force=force)
    files = {path: len(rows) for path, rows in outputs.items()}
    kinds = {split: Counter(c.question.kind for c in candidates) for split, candidates in data.splits.items()}
    write_text(folder / "README.md", write_card(data.table, files, kinds, data.dropped, settings.seed, settings.dialect.name))
    return "\n".join(f"{path}: {count:,} rows" for path, count in files.items())
