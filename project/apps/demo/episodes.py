"""Episodes of the past: of a results file, or of a run in MLflow, whose results were kept or whose traces show them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from project.apps.demo.drawing import draw_past
from project.apps.demo.story import past_cards
from project.errors import InputError, TrackingError
from project.evaluation.report_data import Results, find_results, whole_rows
from project.evaluation.results import RESULTS
from project.records import Message, Row
from project.tracking.select import select_run
from project.tracking.store import client

MOST = 500
"""Episodes that are listed."""


@dataclass(frozen=True)
class Episodes:
    """A list of episodes, each of which can be drawn."""

    name: str
    labels: tuple[str, ...]
    """What people choose from, one an episode."""
    rows: tuple[Row, ...]
    """Columns of a results file: question, answers, prediction, finish, messages, scores."""
    total: int
    """How many there are; more than are listed, perhaps."""

    @property
    def summary(self) -> str:
        """How many of how many are listed."""
        few = len(self.rows) < self.total
        return f"{self.name}: {f'the first {len(self.rows):,} of ' if few else ''}{self.total:,} episodes"

    def draw(self, place: int) -> str:
        """Return an episode as HTML."""
        row = self.rows[place]
        messages = [Message.from_row(message) for message in row.get("messages") or ()]
        cards = past_cards(messages, row.get("prediction"))
        facts = [f"{name} {value:.3g}" for name in ("em", "f1", "reward") if isinstance(value := row.get(name), float)]
        facts = [f"answer: {row.get('prediction') or 'none'}", f"finish: {row.get('finish') or '?'}", *facts]
        return draw_past(self.name, str(row["question"]), [str(one) for one in row.get("answers") or ()], facts, cards)


def find_episodes(where: str, *, files: bool = True) -> Episodes:
    """Return the episodes of a results file or folder, or of a tracked run.

    Args:
        where: a path, or a run's name or id.
        files: whether paths may be read.

    Raises:
        InputError: it is neither, or holds no episode.
        TrackingError: MLflow has no such run.
    """
    where = where.strip()
    if not where:
        raise InputError("nothing was given; write a run's name, or the path of a results folder")
    is_path = files and Path(where).exists()
    with tempfile.TemporaryDirectory(prefix="seeker-demo-") as folder:
        if is_path or _keeps_results(where):
            return _of_results(find_results(where, Path(folder)))
    return _of_traces(where)


def _keeps_results(word: str) -> bool:
    return any(entry.path == RESULTS for entry in client().list_artifacts(select_run(word).info.run_id))


def _of_results(results: Results) -> Episodes:
    held = whole_rows(results, range(min(results.n, MOST)))
    rows = tuple(held[place] for place in sorted(held))
    return Episodes(results.name, tuple(_label(i, row) for i, row in enumerate(rows, 1)), rows, results.n)


def _label(number: int, row: Mapping[str, Any]) -> str:
    value = row.get("em")
    score = f"EM {value:.0f}" if isinstance(value, float) and not math.isnan(value) else str(row.get("finish") or "")
    return f"{number}. {score}: {str(row['question'])[:100]}"


def _of_traces(word: str) -> Episodes:
    """Return the episodes that MLflow's trace view shows of a run: the first of a test, the sampled ones of PPO."""
    run = select_run(word)
    found = client().search_traces(locations=[run.info.experiment_id], run_id=run.info.run_id, max_results=MOST)
    rows = tuple(_row(trace) for trace in found)
    if not rows:
        raise TrackingError(f"the run '{word}' kept no episodes; give one of `seeker test`, or of PPO")
    return Episodes(str(run.info.run_name), tuple(_label(i, row) for i, row in enumerate(rows, 1)), rows, len(rows))


def _row(trace: Any) -> Row:  # noqa: ANN401 - MLflow's Trace
    root, *spans = trace.data.spans
    messages: list[Row] = []
    for span in spans:
        if span.name.startswith("turn "):
            messages += [*span.inputs["messages"], span.outputs]
    asked, got = root.inputs, root.outputs
    known = {"reward": float(got["reward"])} if got.get("reward") is not None else {}
    return {**asked, "prediction": got.get("answer"), "finish": got.get("finish"), "messages": messages, **known}
