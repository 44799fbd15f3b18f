"""Paired comparison of two runs on the same questions: difference, confidence interval and p by bootstrap.

A metric from a few hundred questions is noise without this: two runs are compared question by question, and the questions
are resampled (Efron and Tibshirani 1993, chapters 13 and 16).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from project.errors import InputError
from project.files import read_rows
from project.records import Row

FILES = ("episodes.parquet", "scores.jsonl")
"""Artifacts of a test run that hold one row an episode: `question_id` and the metrics."""
PAIRED_METRICS = (
    "reward", "em", "f1", "cover_em", "verdict", "supported", "decision_accuracy", "evidence_recall", "searches",
    "generated_tokens", "summarised", "parts", "compression", "quoted", "unsupported", "answer_kept", "rouge_l",
    *(f"{start}_{metric}" for start in ("own", "given", "full") for metric in ("em", "f1", "action", "tokens")),
)  # fmt: skip
RESAMPLES = 10_000
BLOCK = 500


class Sample(NamedTuple):
    """One of several samples of a group, such as a trace's, which hang together."""

    group: str
    question: str


Scores = dict[str, dict[Any, float]]
"""Metric -> question's id, or `Sample`, -> value."""


@dataclass(frozen=True)
class PairedResult:
    """`other - first` on the questions that both answered."""

    metric: str
    n: int
    difference: float
    low: float
    high: float
    p: float

    def to_row(self) -> dict[str, str | int | float]:
        """Return the result as a JSON object."""
        return asdict(self)


def mean_scores(runs: Sequence[Scores]) -> Scores:
    """Return each question's mean over the runs, of the metrics and questions that all of them have."""
    metrics = [metric for metric in runs[0] if all(metric in run for run in runs)]
    shared = {metric: set(runs[0][metric]).intersection(*(run[metric] for run in runs[1:])) for metric in metrics}
    return {metric: {q: sum(run[metric][q] for run in runs) / len(runs) for q in shared[metric]} for metric in metrics}


def paired_bootstrap(
    differences: Sequence[float], *, groups: Sequence[str] | None = None, seed: int = 0
) -> tuple[float, float, float, float]:
    """Return the mean difference, its 95 % interval (percentiles) and the two-sided p of "no difference".

    With `groups`, one a difference, groups are resampled in place of differences.

    p is the share of resampled means, moved so that their centre is 0, at least as far from 0 as the mean measured;
    the measured one counts as a resample, so p is never 0.
    """
    values_N = np.asarray(differences, dtype=np.float64)
    if values_N.size == 0:
        raise InputError("the runs share no question; compare runs that were tested on the same questions")
    generator = np.random.default_rng(seed)
    mean = float(values_N.mean())
    _, of_group = np.unique(np.arange(values_N.size) if groups is None else np.asarray(groups), return_inverse=True)
    sums_G, sizes_G = np.bincount(of_group, weights=values_N), np.bincount(of_group)
    drawn = (generator.integers(0, sums_G.size, (BLOCK, sums_G.size)) for _ in range(RESAMPLES // BLOCK))
    means_R = np.concatenate([sums_G[draw].sum(axis=1) / sizes_G[draw].sum(axis=1) for draw in drawn])
    low, high = (float(q) for q in np.quantile(means_R, [0.025, 0.975]))
    extreme = int(np.sum(np.abs(means_R - mean) >= abs(mean) - 1e-12))
    return mean, low, high, (1 + extreme) / (1 + RESAMPLES)


def read_scores(path: Path) -> Scores:
    """Return {metric: {question id: mean over its episodes}} of the metrics that the file holds."""
    values: dict[str, dict[Any, list[float]]] = {metric: defaultdict(list) for metric in PAIRED_METRICS}
    for number, row in read_rows(path):
        if not isinstance(row.get("question_id"), str | int):
            raise InputError(f"{path}, row {number}: no question_id, so that runs cannot be paired")
        for metric, of in values.items():
            value = row.get(metric)
            if isinstance(value, bool | int | float) and value == value:
                of[_key(row)].append(float(value))
    means = {metric: {key: sum(v) / len(v) for key, v in of.items()} for metric, of in values.items()}
    return {metric: of for metric, of in means.items() if of}


def _key(row: Row) -> str | Sample:
    question = str(row["question_id"])
    return Sample(str(row["group"]), question) if row.get("group") else question


def paired_results(first: Mapping[str, Mapping[Any, float]], other: Mapping[str, Mapping[Any, float]]) -> list[PairedResult]:
    """Return `other - first` for every metric that both runs hold for at least one common question."""
    results = []
    for metric, values in other.items():
        common = sorted(set(values) & set(first.get(metric, {})))
        if common:
            groups = [key.group if isinstance(key, Sample) else key for key in common]
            mean, low, high, p = paired_bootstrap([values[key] - first[metric][key] for key in common], groups=groups)
            results.append(PairedResult(metric, len(common), mean, low, high, p))
    return results
