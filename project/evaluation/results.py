"""What a test leaves in its run's folder: `results.parquet`, a row an episode, and `summary.json`, its figures.

A row holds the question, all that was said, how it ended, and a column a metric (float; NaN = does not apply). Readers take
every float column for a metric. `seeker report` and `seeker compare` read both files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from project.evaluation.metrics import Estimate
from project.records import Episode, Row
from project.writing import Sink, dumps, write_text

RESULTS, SUMMARY = "results.parquet", "summary.json"


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


class RowsFile:
    """A file of rows while it is written, batch by batch; it appears once it is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()
        self._sink: Sink | None = None

    def extend(self, rows: Iterable[Row]) -> None:
        """Write rows."""
        if self._sink is None:
            self._sink = self._stack.enter_context(Sink(self.path))
        self._sink.extend(rows)

    def keep(self) -> Path:
        """Complete the file and return it."""
        assert self._sink is not None
        self._sink.keep()
        self.close()
        return self.path

    def close(self) -> None:
        """Remove what was not kept."""
        self._stack.close()
        self._sink = None


class ResultsFile(RowsFile):
    """`results.parquet` of a folder, and `summary.json` beside it once it is finished."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / RESULTS)

    def finish(self, figures: Mapping[str, Estimate], about: Row) -> list[Path]:
        """Complete both files and return them.

        Args:
            figures: by name.
            about: task, run, model, test file with its digest, settings.
        """
        results, summary = self.keep(), self.path.with_name(SUMMARY)
        metrics = {name: {k: None if v != v else v for k, v in one._asdict().items()} for name, one in figures.items()}
        write_text(summary, json.dumps({**json.loads(dumps(about)), "metrics": metrics}, indent=1) + "\n")
        return [results, summary]
