"""What a test run kept of each question, and the paired tests of two runs by it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from project.evaluation.paired_decisions import Decisions, decisions_of, paired_decisions
from project.tracking.paired import PairedResult, Scores, paired_results, read_scores

COLUMNS = ["question_id", "group", "needs_search", "decision_accuracy", "search_probability"]


class Kept(NamedTuple):
    """A run's metrics question by question, and its decisions."""

    scores: Scores
    decisions: Decisions

    def against(self, other: Kept, *, decisions: bool = True) -> list[PairedResult]:
        """Return `other - self` of every metric, then of the `decisions`' figures, on the questions that both hold."""
        found = paired_results(self.scores, other.scores)
        return found + (paired_decisions(self.decisions, other.decisions) if decisions else [])


def read_kept(path: Path) -> Kept:
    """Read the results file of a test; decisions are in Parquet files only."""
    return Kept(read_scores(path), _read_decisions(path))


def _read_decisions(path: Path) -> Decisions:
    if path.suffix != ".parquet":
        return decisions_of({})
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = [name for name in COLUMNS if name in file.schema_arrow.names]
        return decisions_of(file.read(names).to_pydict() if len(names) == len(COLUMNS) else {})
