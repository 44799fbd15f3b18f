"""Runs side by side: `seeker compare RUN RUN…`, in the terminal, as a page (`--html`) and as JSON (`--output_file`).

Of parameters and metrics what differs is shown; what they cost and their data are always. Metrics are the last value logged,
with n and the 95 % interval where the run logged them (`n`, `NAME_low`, `NAME_high`); runs that kept scores per question are
tested in pairs.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from project.errors import InputError, TrackingError
from project.records import Row
from project.tracking.costs import SHOWN, costs
from project.tracking.curves import Curves, Histories, read_curves
from project.tracking.select import select_runs
from project.tracking.store import client, reading, run_metrics, run_params
from project.tracking.trend import TRAINED, Trend, trained_reward
from project.writing import write_text

if TYPE_CHECKING:
    from mlflow.entities import Run

    from project.evaluation.kept import Kept
    from project.tracking.paired import PairedResult

    Paired = dict[tuple[int, int], list[PairedResult]]

ORIGIN = ("seeker.verb", "seeker.parent", "git.commit", "git.dirty", "seeker.command")
"""Tags that say where a run comes from."""
FIGURES = (
    "macro_f1",
    "auroc",
    "ece",
    *(f"{action}_{of}" for action in ("search", "answer") for of in ("precision", "recall", "f1")),
)
"""Of decisions, which are tested in seconds where questions are thousands, and only if they are to be shown."""
Rows = dict[str, list[str]]
"""A text a run, by what it says."""


def compare(run: list[str], metric: list[str] | None = None, html: Path | None = None, output_file: Path | None = None) -> None:
    """Show runs side by side, with the paired test of each and the one before it: `seeker compare RUN RUN…`.

    Args:
        run: names or ids of the runs (a name means its newest run, 8 characters of an id are enough), tag:KEY=VALUE for all
            with a tag, or last:N for the newest N that finished.
        metric: only this metric and its curve; give it again for more; test/* means all that begin so. By default the metrics
            that differ, and the curves of losses and rewards that the runs share.
        html: also write it as one page, with the curves drawn and the paired tests of all pairs.
        output_file: also write it as JSON, with the paired tests of all pairs.

    Raises:
        InputError: the words mean fewer than two runs.
        TrackingError: a word means no run, no run has such a metric, or the store does not answer.
    """
    with reading():
        runs = select_runs(run)
        if len(runs) < 2:
            raise InputError(f"compare takes two runs or more, got {len(runs)}; `seeker runs` lists them")
        found = Comparison(runs, metric)
        found.check_metrics()
        if output_file is not None:
            write_text(output_file, json.dumps(found.report(), indent=2) + "\n")
        if html is not None:
            from project.tracking.page import page

            write_text(html, page(found))
        found.show()


@dataclass(frozen=True)
class Comparison:
    """What runs have in common and what not."""

    runs: Sequence[Run]
    wanted: Sequence[str] | None
    """Metrics that were asked for, as patterns."""

    @property
    def names(self) -> list[str]:
        """The runs' names."""
        return [str(one.info.run_name) for one in self.runs]

    @cached_property
    def histories(self) -> Histories:
        """The runs' curves, as they are asked for."""
        return Histories(self.runs)

    @cached_property
    def curves(self) -> list[Curves]:
        """What is drawn."""
        return read_curves(self.histories, self.wanted)

    @cached_property
    def costs(self) -> Rows:
        """Time, tokens and memory."""
        return costs(self.runs, self.histories)

    @property
    def parameters(self) -> Rows:
        """Those that differ."""
        rows = _all_rows([run_params(one) for one in self.runs])
        return {key: values for key, values in rows.items() if len(set(values)) > 1}

    @property
    def origins(self) -> Rows:
        """Ids, code and commands."""
        return _all_rows([_tags(one, ORIGIN) | {"id": one.info.run_id, "status": one.info.status} for one in self.runs])

    @property
    def datasets(self) -> Rows:
        """Digests of the data, by what it was for."""
        return _all_rows([_tags(one, ("dataset.",)) for one in self.runs])

    @cached_property
    def kept(self) -> list[Kept | None]:
        """What each run kept of each question."""
        return [run_kept(one) for one in self.runs]

    @cached_property
    def paired(self) -> Paired:
        """The paired test of each run and the one before it."""
        return self._tests(pairwise(range(len(self.runs))))

    @cached_property
    def all_paired(self) -> Paired:
        """The paired tests of all pairs."""
        return self.paired | self._tests(p for p in combinations(range(len(self.runs)), 2) if p[1] - p[0] > 1)

    @cached_property
    def trends(self) -> list[tuple[str, Trend] | None]:
        """Whether the training reward rose in each run, or in what it was made from."""
        return [trained_reward(one) for one in self.runs]

    def _tests(self, pairs: Iterable[tuple[int, int]]) -> Paired:
        """Return {(position, later position): results} of the pairs of runs that kept something of common questions."""
        decisions = self.wanted is None or any(fnmatchcase(f"test/decision_{name}", w) for name in FIGURES for w in self.wanted)
        found = {}
        for earlier, later in pairs:
            first, other = self.kept[earlier], self.kept[later]
            if first is not None and other is not None:
                found[earlier, later] = first.against(other, decisions=decisions)
        return {pair: results for pair, results in found.items() if results}

    def check_metrics(self) -> None:
        """Refuse patterns that no metric fits."""
        names = {name for metrics in self.histories.metrics for name in metrics}
        for pattern in self.wanted or ():
            if not any(fnmatchcase(name, pattern) for name in names):
                held = ", ".join(sorted(names)[:8])
                raise TrackingError(
                    f"no run has a metric '{pattern}'; there are {held or 'none'}{'…' if len(names) > 8 else ''}"
                )

    def metrics(self) -> Rows:
        """Return the metrics that were asked for, else those that differ or were tested, and the training reward's trend."""
        rows = metric_rows([run_metrics(one) for one in self.runs])
        if self.wanted is not None:
            return {key: texts for key, texts in rows.items() if any(fnmatchcase(key, pattern) for pattern in self.wanted)}
        tested = {f"test/{result.metric}" for results in self.paired.values() for result in results}
        rows = {key: texts for key, texts in rows.items() if not key.startswith(SHOWN)}
        return {key: texts for key, texts in rows.items() if key in tested or len(set(texts)) > 1} | _training_rows(self.trends)

    def show(self) -> None:
        """Print it."""
        from project.tracking.terminal import console, curves_table, side_by_side

        sections = {
            "origin": self.origins,
            "data": self.datasets,
            "cost": self.costs,
            "parameters that differ": self.parameters,
            "metrics": self.metrics(),
        }
        to = console(len(self.runs))
        to.print(side_by_side(self.names, sections, self.paired))
        if self.curves:
            to.print(curves_table(self.names, self.curves))

    def report(self) -> dict[str, Any]:
        """Return it as JSON."""
        rising = [found and {"run": found[0], **asdict(found[1])} for found in self.trends]
        costs = [{name: texts[place] for name, texts in self.costs.items()} for place in range(len(self.runs))]
        return {
            "runs": [
                {"name": one.info.run_name, "id": one.info.run_id, **_tags(one, (*ORIGIN, "dataset."))}
                | {"metrics": run_metrics(one), TRAINED: trained, "cost": cost}
                for one, trained, cost in zip(self.runs, rising, costs, strict=True)
            ],
            "parameters": self.parameters,
            "paired": self.paired_rows(),
        }

    def paired_rows(self) -> list[Row]:
        """Return the paired tests of all pairs."""
        return [
            {"run": self.names[later], "against": self.names[earlier]} | result.to_row()
            for (earlier, later), results in sorted(self.all_paired.items())
            for result in results
        ]


def metric_rows(metrics: list[dict[str, float]]) -> Rows:
    """Return a row a metric; `em` with `em_low`, `em_high` and `n` becomes `0.812 [0.75, 0.87] n=200`."""
    held = {name for of in metrics for name in of}
    folded = {f"{base}{end}" for base in held for end in ("_low", "_high", "_n")}
    return {key: [_metric_text(of, key) for of in metrics] for key in sorted(held - folded)}


def _training_rows(trends: list[tuple[str, Trend] | None]) -> Rows:
    """Return the row of the training reward's trend in the runs or what they were made from; none if none has it."""
    texts = ["-" if found is None else f"{found[1]} of {found[0]}" for found in trends]
    return {f"{TRAINED}, slope an update": texts} if any(trends) else {}


def _metric_text(metrics: Mapping[str, float], key: str) -> str:
    if key not in metrics:
        return "-"
    text = f"{metrics[key]:.4g}"
    low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
    n = metrics.get(f"{key}_n", metrics.get(f"{key.rpartition('/')[0]}/n", metrics.get("n")))
    if low is not None and high is not None:
        text += f" [{low:.3g}, {high:.3g}]" + (f" n={n:.0f}" if n is not None else "")
    return text


def run_kept(run: Run) -> Kept | None:
    """Return what a test run kept of each question; None for a run that kept nothing."""
    store = client()
    held = {entry.path for entry in store.list_artifacts(run.info.run_id)}
    if not held:
        return None
    from project.evaluation.kept import read_kept
    from project.tracking.paired import FILES

    for name in FILES:
        if name in held:
            with tempfile.TemporaryDirectory() as folder:
                return read_kept(Path(store.download_artifacts(run.info.run_id, name, folder)))
    return None


def _all_rows(of: list[dict[str, str]]) -> Rows:
    keys: Iterable[str] = dict.fromkeys(key for one in of for key in one)
    return {key: [one.get(key, "-") for one in of] for key in sorted(keys)}


def _tags(run: Run, wanted: Sequence[str]) -> dict[str, str]:
    """Return the run's tags of these names, or that begin so where they end with a full stop."""
    return {
        key: value
        for key, value in run.data.tags.items()
        if any(key == w or (w[-1] == "." and key.startswith(w)) for w in wanted)
    }
