"""Paired comparison of two runs on the same questions: difference, confidence interval by bootstrap, p by sign flips.

A metric from a few hundred questions is noise without this: two runs are compared question by question, and the questions
are resampled (Efron and Tibshirani 1993, chapters 13 and 16).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from project.errors import InputError
from project.files import read_rows
from project.intervals import widened
from project.records import Row

FILES = ("results.parquet", "scores.jsonl")
"""Artifacts of a test run that hold one row an episode: `question_id`, `group` and the metrics; the second of older runs."""
NOT_PAIRED = ("finish_", "pass_at_", "avg_at_")
"""Beginnings of metrics that are not compared question by question: what they say others say, or few rows hold them."""
RESAMPLES = 10_000
BLOCK = 500
EXACT = 13
"""Groups up to which all signs are tried."""
DRAWS = 1_000_000
"""Most numbers that are drawn at once."""


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
    groups: int
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

    The interval's ends are as far out as the number of groups makes them (`intervals.widened`). p is by sign flips (Fisher
    1935): the share of all ways to give the groups' sums signs, or of 10,000 drawn ones where there are over 13 groups, that
    leave a sum at least as far from 0 as the one measured.
    """
    return _bootstrap(np.asarray([differences], dtype=np.float64), groups, seed)[0]


def _bootstrap(
    differences_KN: NDArray[np.float64], groups: Sequence[str] | None = None, seed: int = 0
) -> list[tuple[float, float, float, float]]:
    """Return mean, interval and p of each of K metrics on the same N questions, all by the same resamples."""
    count = differences_KN.shape[1]
    if count == 0:
        raise InputError("the runs share no question; compare runs that were tested on the same questions")
    generator = np.random.default_rng(seed)
    _, of_group = np.unique(np.arange(count) if groups is None else np.asarray(groups), return_inverse=True)
    sizes_G = np.bincount(of_group).astype(np.float64)
    sums_GK: NDArray[np.float64] = np.stack([np.bincount(of_group, weights=of) for of in differences_KN], axis=1)
    block = max(1, min(BLOCK, DRAWS // len(sizes_G)))
    drawn = (generator.integers(0, len(sizes_G), (block, len(sizes_G))) for _ in range(-(-RESAMPLES // block)))
    counts = (np.apply_along_axis(np.bincount, 1, draw, minlength=len(sizes_G)).astype(np.float64) for draw in drawn)
    means_RK = np.concatenate([of @ sums_GK / (of @ sizes_G)[:, None] for of in counts])
    ends_2K, p_K = np.quantile(means_RK, [0.025, 0.975], axis=0), _sign_flips(sums_GK, generator, block)
    means_K = differences_KN.mean(1)
    found = zip(means_K.tolist(), *ends_2K.tolist(), p_K.tolist(), strict=True)
    return [(mean, *widened(mean, low, high, len(sizes_G)), p) for mean, low, high, p in found]


def _sign_flips(sums_GK: NDArray[np.float64], generator: np.random.Generator, block: int) -> NDArray[np.float64]:
    """Return the p (K) of no difference by the signs that the groups' sums might have had."""
    count, measured_K = len(sums_GK), np.abs(sums_GK.sum(0))
    if count <= EXACT:
        signs = 1.0 - 2.0 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return np.asarray(np.mean(np.abs(signs @ sums_GK) >= measured_K - 1e-12, axis=0))
    extreme_K = np.zeros(sums_GK.shape[1])
    rounds = -(-RESAMPLES // block)
    for _ in range(rounds):
        signs = 1.0 - 2.0 * generator.integers(0, 2, (block, count))
        extreme_K += (np.abs(signs @ sums_GK) >= measured_K - 1e-12).sum(0)
    return np.asarray((1 + extreme_K) / (1 + rounds * block))


def read_scores(path: Path) -> Scores:
    """Return {metric: {question id: mean over its episodes}} of the metrics that the file holds."""
    values: dict[str, dict[Any, list[float]]] = {}
    for number, row in _score_rows(path):
        if not isinstance(row.get("question_id"), str | int):
            raise InputError(f"{path}, row {number}: no question_id, so that runs cannot be paired")
        key = _key(row)
        for metric, value in row.items():
            if isinstance(value, float) and value == value and not metric.startswith(NOT_PAIRED):
                values.setdefault(metric, defaultdict(list))[key].append(value)
    return {metric: {key: sum(v) / len(v) for key, v in of.items()} for metric, of in values.items()}


def _score_rows(path: Path) -> Iterable[tuple[int, Row]]:
    """Yield numbered rows; of a Parquet file without what was said."""
    if path.suffix != ".parquet":
        return read_rows(path)
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    columns = [f.name for f in file.schema_arrow if str(f.type) == "double" or f.name in ("question_id", "group")]
    return enumerate((row for batch in file.iter_batches(columns=columns) for row in batch.to_pylist()), 1)


def _key(row: Row) -> str | Sample:
    question = str(row["question_id"])
    return Sample(str(row["group"]), question) if row.get("group") else question


def paired_results(first: Mapping[str, Mapping[Any, float]], other: Mapping[str, Mapping[Any, float]]) -> list[PairedResult]:
    """Return `other - first` for every metric that both runs hold for at least one common question."""
    common = {metric: tuple(sorted(set(of) & set(first.get(metric, {})))) for metric, of in other.items()}
    alike: dict[tuple[Any, ...], list[str]] = {}
    for metric, keys in common.items():
        if keys:
            alike.setdefault(keys, []).append(metric)
    found = {}
    for keys, metrics in alike.items():
        groups = [key.group if isinstance(key, Sample) else key for key in keys]
        differences = np.asarray([[other[metric][key] - first[metric][key] for key in keys] for metric in metrics])
        for metric, of in zip(metrics, _bootstrap(differences, groups), strict=True):
            found[metric] = PairedResult(metric, len(keys), len(set(groups)), *of)
    return [found[metric] for metric in other if metric in found]
