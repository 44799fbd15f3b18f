"""What an index's engines are set to. Here, and not beside the engines: the command line reads this file for `--help`."""

from __future__ import annotations

from dataclasses import dataclass

from project.corpus.words import NONE, check_stemmer, stop_words_of
from project.errors import InputError

STEMMERS = (
    *("arabic", "danish", "dutch", "english", "finnish", "french", "german", "greek", "hungarian", "italian", "norwegian"),
    *("portuguese", "romanian", "russian", "spanish", "swedish", "tamil", "turkish"),
)
"""LanceDB's."""


@dataclass(frozen=True)
class Bm25Settings:
    """How BM25 counts."""

    k1: float = 1.5
    """How much a repeated word adds; 0 counts it once."""
    b: float = 0.75
    """How much longer passages lose, from 0 to 1."""
    stemmer: str = "english"
    """A Snowball stemmer by name, or none."""
    stop_words: str = "english"
    """The language whose stop words are left out, or none."""

    def check(self) -> None:
        """Refuse values that cannot be."""
        if not (self.k1 >= 0 and 0 <= self.b <= 1):
            raise InputError(f"k1={self.k1}, b={self.b}: k1 must be 0 or more and b from 0 to 1")
        check_stemmer(self.stemmer)
        stop_words_of(self.stop_words)


@dataclass(frozen=True)
class DenseSettings:
    """How passages and queries become vectors."""

    model: str | None = None
    """A sentence-transformers model: a folder, or a name on the hub; by default all-MiniLM-L6-v2 from the installed package."""
    query_prompt: str | None = None
    """What is put before a query ('query: '); by default what the model's own config says."""
    passage_prompt: str | None = None
    """What is put before a passage; by default what the model's own config says."""
    batch: int = 32
    """Texts that go through the model together."""

    def check(self) -> None:
        """Refuse values that cannot be."""
        if self.batch < 1:
            raise InputError(f"dense.batch is {self.batch}; give 1 or more")


@dataclass(frozen=True)
class LanceSettings:
    """What LanceDB indexes."""

    stemmer: str = "english"
    """A Snowball stemmer by name, or none."""
    stop_words: str = "english"
    """The language whose stop words are left out, or none."""
    vectors: bool = False
    """Encode the passages too (by the settings of dense), and search by words and vectors."""
    index_from: int = 20_000
    """Passages from which on vectors are searched by IVF-PQ; fewer are compared one by one."""
    nprobes: int = 20
    """Partitions of the vectors that a query looks into."""
    refine: int = 10
    """Candidates a hit that are compared by their whole vectors."""

    def check(self) -> None:
        """Refuse values that cannot be."""
        if self.stemmer not in (NONE, *STEMMERS):
            raise InputError(f"LanceDB has no stemmer '{self.stemmer}'; give one of none, {', '.join(STEMMERS)}")
        stop_words_of(self.stop_words)
        if min(self.index_from, self.nprobes, self.refine) < 1:
            raise InputError("lance.index_from, nprobes and refine must each be 1 or more")
