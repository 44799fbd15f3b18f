"""What a test leaves in its run's folder: `results.parquet`, a row an episode, and `summary.json`, its figures.

A row holds the question, all that was said, how it ended, and a column a metric (float; NaN = does not apply). Readers take
every float column for a metric. `seeker report` and `seeker compare` read both files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from project.evaluation.decisions import decision_scores
from project.evaluation.metrics import Estimate, GroupedRows, estimate, group_numbers, is_share
from project.records import Episode, Row
from project.writing import Sink, dumps, write_text

RESULTS, SUMMARY = "results.parquet", "summary.json"
BY_KIND = ("em", "f1", "decision_accuracy", "own_em", "own_action")
"""Metrics that are given for each kind of question, too."""
_KIND, _NEEDED, _SEARCHED = "kind", "needed", "searched"


def episode_row(episode: Episode, sample: int, scores: Mapping[str, float]) -> Row:
    """Return an episode's row; `scores` are all NaN where the environment failed."""
    q = episode.question
    return {
        "question_id": q.id,
        "group": q.group or q.id,
        "kind": q.kind,
        "sample": sample,
        "question": q.question,
        "answers": list(q.answers),
        "needs_search": q.needs_search,
        "prediction": episode.answer,
        "finish": str(episode.finish),
        "error": episode.error,
        "evidence": list(q.evidence),
        "retrieved": list(episode.retrieved),
        "messages": [message.to_row() for message in episode.messages],
        **scores,
    }


class ResultMetrics(GroupedRows):
    """All figures of a test, from all ranks' rows: means, those of each kind of question, and the decision's.

    `kinds` must be the same on all ranks before it computes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__((*names, _KIND, _NEEDED, _SEARCHED))
        self.kinds: tuple[str, ...] = ()

    def take(self, row: Row) -> None:
        """Take a row of the results."""
        needs = row.get("needs_search")
        needed = math.nan if needs is None else float(needs)
        searched = float(row["decision_accuracy"] == needed) if needs is not None else math.nan
        values = [row[name] for name in self.names[:-3]]
        self.update([*values, float(group_numbers([row["kind"]])[0]), needed, searched], row["group"])

    def compute(self) -> tuple[dict[str, Estimate], int]:
        """Return {name: estimate} of what applied to at least one row, and the number of rows; `NAME_KIND` is of one kind."""
        groups, columns = self.columns()
        kind, needed, searched = (columns.pop(name) for name in (_KIND, _NEEDED, _SEARCHED))
        found = {name: estimate(column, share=is_share(name), groups=groups) for name, column in columns.items()}
        for name in (name for name in BY_KIND if name in columns):
            for label, number in zip(self.kinds, group_numbers(self.kinds), strict=True):
                is_it = kind == number
                found[f"{name}_{label}"] = estimate(columns[name][is_it], share=is_share(name), groups=groups[is_it])
        known = needed == needed
        if known.any():
            decisions = decision_scores(searched[known], needed[known], columns["search_probability"][known], groups[known])
            found |= {f"decision_{name}": one for name, one in decisions.items()}
        return {name: one for name, one in found.items() if one.n}, len(groups)


class ResultsFile:
    """`results.parquet` while it is written, batch by batch; it appears with `summary.json` once it is `finish`ed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._sink: Sink | None = None

    def extend(self, rows: Iterable[Row]) -> None:
        """Write rows."""
        if self._sink is None:
            self._sink = self._stack.enter_context(Sink(self.folder / RESULTS))
        self._sink.extend(rows)

    def finish(self, figures: Mapping[str, Estimate], about: Row) -> list[Path]:
        """Complete both files and return them.

        Args:
            figures: by name.
            about: task, run, model, test file with its digest, settings.
        """
        assert self._sink is not None
        self._sink.keep()
        self._stack.close()
        self._sink = None
        metrics = {name: one._asdict() for name, one in figures.items()}
        write_text(self.folder / SUMMARY, json.dumps({**json.loads(dumps(about)), "metrics": metrics}, indent=1) + "\n")
        return [self.folder / RESULTS, self.folder / SUMMARY]

    def close(self) -> None:
        """Remove what was not finished."""
        self._stack.close()
        self._sink = None
