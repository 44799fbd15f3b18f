"""What modules that measure an agent share: rows are scored on each rank, written by the first, and reported with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule

from project.evaluation.grouped import ResultMetrics
from project.evaluation.metrics import Estimate
from project.evaluation.results import ResultsFile
from project.files import file_digest
from project.ranks import gathered
from project.records import Row
from project.tracking.logger import SeekerLogger

CHOSEN = ("limit", "seed", "kinds", "leave_out", "answers_only")
"""Options of the data that say which of the test file's questions are used."""


class MeasuringModule(LightningModule):
    """Takes rows of results (`evaluation/results.py`), of each rank its own, and reports on all ranks' together."""

    task: str
    """What is measured, as the results say it."""

    def measure(self, names: Sequence[str]) -> None:
        """Say which metrics each row holds; once, before any is taken."""
        self._measured = ResultMetrics(names)
        self._kinds: set[str] = set()
        self._left_out = 0
        self._results: ResultsFile | None = None

    def take(self, row: Row, *, counts: bool = True) -> None:
        """Take a row; one that does not count (the environment failed, it was too long) has no score but how it ended."""
        self._left_out += not counts
        self._kinds |= {row["kind"]} if row["kind"] else set()
        self._measured.take(row)

    def write(self, mine: list[Row]) -> None:
        """Append all ranks' rows to the results, on the first."""
        rows = [row for of_rank in gathered(mine) for row in of_rank]
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            self._results = self._results or ResultsFile(Path(self.trainer.default_root_dir))
            self._results.extend(rows)

    def report(self, stage: str, left_out: str) -> dict[str, Estimate]:
        """Log what was taken since the last report, on all ranks together, and complete the results' files if any.

        Args:
            stage: `val` or `test`; a test logs intervals and n (`NAME_low`, `NAME_high`, `NAME_n`) too.
            left_out: name of the number of rows that did not count.
        """
        self._measured.kinds = tuple(sorted(set().union(*gathered(self._kinds))))
        figures, count = self._measured.compute()
        without = sum(gathered(self._left_out))
        count -= without
        numbers = {"n": float(count), left_out: float(without)}
        self._measured.reset()
        self._kinds, self._left_out = set(), 0
        if count:
            self.log_dict({f"{stage}/{name}": number for name, number in numbers.items()}, rank_zero_only=True)
            self._log_figures(stage, figures)
            if stage == "test" and self.trainer.is_global_zero:
                print_figures(figures, count)
        if self._results is not None:
            for path in self._results.finish(figures, self._about() | numbers):
                self.keep(path)
            self._results = None
        return figures if count else {}

    def _log_figures(self, stage: str, figures: Mapping[str, Estimate]) -> None:
        for name, one in figures.items():
            self.log(f"{stage}/{name}", one.mean, rank_zero_only=True)
            if stage == "test":
                ends = {"low": one.low, "high": one.high, "n": float(one.n)}
                self.log_dict({f"test/{name}_{end}": value for end, value in ends.items()}, rank_zero_only=True)

    def about(self) -> Row:
        """Return what decided the figures, for the results' summary."""
        raise NotImplementedError

    def _about(self) -> Row:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        logger, file = self.logger, data.data_files["test"]
        run = {"run": Path(self.trainer.default_root_dir).name, "run_id": None}
        if isinstance(logger, SeekerLogger):
            run = {"run": logger.run_name, "run_id": logger.run_id}
        chosen = {name: getattr(data, name) for name in CHOSEN if getattr(data, name, None)}
        origin = run | {
            "test_file": str(file),
            "test_digest": file_digest(file),
            "chosen": {n: str(of) for n, of in chosen.items()},
        }
        return {"task": self.task} | origin | self.about()

    def keep(self, path: Path) -> None:
        """Store a file beside the run's metrics."""
        if isinstance(self.logger, SeekerLogger):
            self.logger.keep_file(path)

    def teardown(self, stage: str) -> None:
        """Remove results that were not completed."""
        del stage
        if self._results is not None:
            self._results.close()
            self._results = None


def print_figures(figures: Mapping[str, Estimate], count: int) -> None:
    """Print a table of means with their intervals; ways to finish that never came are left out."""
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "mean", "95 % interval", "n", title=f"{count} episodes or samples", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, one in figures.items():
        if one.mean or not name.startswith("finish_"):
            table.add_row(name, f"{one.mean:.4g}", f"[{one.low:.3g}, {one.high:.3g}]", str(one.n))
    Console().print(table, markup=False)


def sample_metrics(times: int) -> tuple[str, ...]:
    """Return the names of avg@k and pass@k, for k samples of a question; none for one sample."""
    return (f"avg_at_{times}", f"pass_at_{times}") if times > 1 else ()


def over_samples(scores: Sequence[Mapping[str, float]], times: int) -> list[dict[str, float]]:
    """Return avg@k (mean EM) and pass@k (whether one is right) of each question beside its first sample that did not fail.

    They are NaN beside its others; so is pass@k where one of the k failed.

    Args:
        scores: with `em`, a question's samples in a row.
        times: k, the samples of a question.
    """
    names = sample_metrics(times)
    found = [dict.fromkeys(names, math.nan) for _ in scores]
    for start in range(0, len(scores), times):
        hits = {i: scores[i]["em"] for i in range(start, start + times) if not math.isnan(scores[i]["em"])}
        if hits:
            best = max(hits.values()) if len(hits) == times else math.nan
            found[min(hits)] = dict(zip(names, (sum(hits.values()) / len(hits), best), strict=False))
    return found
