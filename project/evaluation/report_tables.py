"""The figures of a report: means side by side with paired differences, breakdowns, calibration, and which questions to show."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from project.errors import InputError
from project.evaluation.decisions import BINS, calibration_error
from project.evaluation.metrics import Estimate, Numbers, estimate, estimate_of
from project.evaluation.paired_decisions import Decisions, decisions_of, paired_decisions
from project.evaluation.report_data import Results, Shared
from project.evaluation.results import SUMMARY
from project.tracking.paired import PairedResult, Sample, paired_results

MAIN = ("em", "f1", "reward", "own_em", "own_f1", "answer_kept", "rouge_l")
"""What questions are ordered by, as far as the results have it: by the first, ties by the next."""
BROKEN_DOWN = ("em", "f1", "evidence_recall", "searches", "compression", "answer_kept", "rouge_l", "own_action", "own_em")
LENGTHS = ("generated_tokens", "peak_context", "own_tokens", "compression")
"""Metrics whose distribution is drawn; those in tokens are broken down by, too."""
NOT_LISTED = ("search_probability",)
MOST_SEARCHES, MOST_WORDS = 5, 4
"""From which on numbers of searches, and lengths of answers in words, are counted together."""
MEANING = {
    "em": "exact match with a gold answer",
    "f1": "token F1 with the nearest gold answer",
    "cover_em": "a gold answer stands in the prediction",
    "verdict": "right, as a judge said",
    "supported": "what was shown states the answer, as a judge said",
    "reward": "what training maximises",
    "decision_accuracy": "searched where it had to, and only there",
    "searches": "searches an episode",
    "repeated_queries": "queries asked before in the episode",
    "evidence_recall": "share of the gold passages that were shown",
    "evidence_precision": "share of the shown passages that are gold",
    "answered_without_evidence": "answered though no gold passage was shown",
    "abstained": "refused a question that the corpus cannot answer",
    "refused_wrongly": "refused a question that it can",
    "decision_macro_f1": "mean F1 of searching and answering",
    "decision_majority": "accuracy of always deciding the commoner way",
    "decision_always_search": "accuracy of always searching",
    "decision_auroc": "how well the probability of a search ranks the need for one",
    "decision_ece": "calibration error of that probability",
    "turns": "the agent's messages an episode",
    "contexts": "contexts an episode, one more than folds",
    "read_tokens": "tokens put before it",
    "generated_tokens": "tokens it wrote",
    "peak_context": "tokens of its longest context",
    "history_tokens": "what that would be without folding",
    "summarised": "wrote a summary",
    "parts": "share of the summary's parts that are there",
    "compression": "tokens of the summary a token of the context",
    "quoted": "share of its sentences that stand in the context",
    "unsupported": "share of its numbers and names found nowhere",
    "answer_kept": "holds the answer where the context does",
    "rouge_l": "ROUGE-L with the reference",
}
_OF_TURN = {
    "action": "searches or answers as the expert does",
    "em": "exact match",
    "f1": "token F1",
    "tokens": "tokens of the prompt",
    "lost_f1": "F1 less than after the whole context",
}
_TURN = {"own": "after its own summary", "given": "after the reference summary", "full": "after the whole context"}


@dataclass(frozen=True)
class Line:
    """A metric of each of the results, and the difference of each further one from the first."""

    metric: str
    estimates: tuple[Estimate | None, ...]
    changes: tuple[PairedResult | None, ...]


@dataclass(frozen=True)
class Part:
    """The rows of a category in one of the results."""

    n: int
    estimates: tuple[Estimate, ...]
    """One a metric of the breakdown."""


@dataclass(frozen=True)
class Breakdown:
    """Metrics by category; a category has a part for each of the results."""

    name: str
    title: str
    metrics: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Part, ...]], ...]


@dataclass(frozen=True)
class Bin:
    """Forecasts of one size, from `low` to `high`."""

    low: float
    high: float
    forecast: float
    """Their mean; NaN for none."""
    observed: Estimate
    """The share that did need a search."""


@dataclass(frozen=True)
class Calibration:
    """The probability of searching at the first decision, against whether a search was needed."""

    n: int
    error: float
    """Expected calibration error (Guo et al. 2017)."""
    bins: tuple[Bin, ...]


def meaning(metric: str) -> str:
    """Return what a metric says, empty for one that speaks for itself.

    >>> meaning("own_em")
    'exact match, after its own summary'
    """
    turn, _, of_turn = metric.partition("_")
    said = f"{_OF_TURN[of_turn]}, {_TURN[turn]}" if turn in _TURN and of_turn in _OF_TURN else ""
    return MEANING.get(metric, said)


def is_significant(change: PairedResult) -> bool:
    """Return whether a difference would come by chance in less than one comparison of twenty."""
    return change.p < 0.05


def main_metrics(results: Sequence[Results]) -> list[str]:
    """Return those of `MAIN` that apply to a row of each of the results."""
    return [metric for metric in MAIN if all(applies(one, metric) for one in results)]


def applies(results: Results, metric: str) -> bool:
    """Return whether a metric applies to any row."""
    return metric in results.scores and not bool(np.isnan(results.scores[metric]).all())


def lines(results: Sequence[Results], shared: Shared) -> list[Line]:
    """Return the table of means: the metrics of the rows, then figures that only `summary.json` has, as pass@k."""
    of_rows = dict.fromkeys(metric for one in results for metric in one.scores if applies(one, metric))
    listed = [metric for metric in of_rows if metric not in NOT_LISTED and not metric.startswith("finish_")]
    changes = [_changes(shared, number, listed) for number in range(1, len(results))]
    found = [Line(metric, _means(results, metric), tuple(of.get(metric) for of in changes)) for metric in listed]
    summaries = [_figures_of_summary(one) for one in results]
    further = dict.fromkeys(name for one in summaries for name in one)
    decided = [_decision_changes(results[0], other, shared) for other in results[1:]]
    return found + [
        Line(name, tuple(one.get(name) for one in summaries), tuple(of.get(name) for of in decided)) for name in further
    ]


def _means(results: Sequence[Results], metric: str) -> tuple[Estimate | None, ...]:
    return tuple(_mean(one, metric) if applies(one, metric) else None for one in results)


def _mean(results: Results, metric: str, is_in: Numbers | None = None) -> Estimate:
    chosen = slice(None) if is_in is None else is_in
    if metric not in results.scores:
        return estimate([])
    return estimate_of(metric, results.scores[metric][chosen], results.groups[chosen])


def _changes(shared: Shared, other: int, metrics: Sequence[str]) -> dict[str, PairedResult]:
    """Return the differences of the `other` results from the first, by metric."""
    keys = [*map(Sample, shared.groups, shared.ids)]
    first, further = ({metric: _known(keys, shared.means[number].get(metric)) for metric in metrics} for number in (0, other))
    return {result.metric: result for result in paired_results(first, further)}


def _decision_changes(first: Results, other: Results, shared: Shared) -> dict[str, PairedResult]:
    """Return the differences of the figures of decisions, by their names in the summary."""
    ids = set(shared.ids)

    def of(one: Results) -> Decisions:
        decisions = decisions_of({**one.columns, **{name: values.tolist() for name, values in one.scores.items()}})
        return decisions.rows(np.asarray([key.question in ids for key in decisions.keys], dtype=bool))

    return {result.metric: result for result in paired_decisions(of(first), of(other))}


def _known(keys: Sequence[Sample], means: Numbers | None) -> dict[Sample, float]:
    return {} if means is None else {key: value for key, value in zip(keys, means.tolist(), strict=True) if value == value}


def _figures_of_summary(results: Results) -> dict[str, Estimate]:
    """Return the figures that the rows do not give: not the metrics themselves, nor those of one kind of question."""
    by_kind = {f"{metric}_{kind}" for metric in results.scores for kind in set(results.columns["kind"])}
    of = results.about.get("metrics") or {}
    try:
        return {
            name: Estimate(**{end: math.nan if value is None else value for end, value in one.items()})  # type: ignore[arg-type]
            for name, one in of.items()
            if name not in results.scores and name not in by_kind
        }
    except (TypeError, AttributeError) as error:
        raise InputError(
            f"the metrics of {results.path.with_name(SUMMARY)} are no {{name: {{mean, low, high, n}}}}; test again"
        ) from error


def breakdowns(results: Sequence[Results]) -> list[Breakdown]:
    """Return the main metrics by kind of question, gold passages, searches, lengths, and words of the answer.

    What puts all rows into one category is left out.
    """
    found = [_by_kind(results), _by_passages(results), _by_searches(results)]
    found += [_by_length(results, metric) for metric in LENGTHS if metric.endswith(("_tokens", "_context"))]
    found.append(_by_words(results))
    return [one for one in found if one is not None and len(one.rows) > 1]


def _broken_down(
    results: Sequence[Results], name: str, title: str, places: Sequence[Numbers], labels: Sequence[str]
) -> Breakdown:
    """Return a breakdown, given for each of the results its rows' categories: (N,), places in `labels`, -1 for none."""
    metrics = tuple(m for m in BROKEN_DOWN if m != name and any(applies(one, m) for one in results))
    rows = []
    for number, label in enumerate(labels):
        parts = tuple(_part(one, metrics, at == number) for one, at in zip(results, places, strict=True))
        if any(part.n for part in parts):
            rows.append((label, parts))
    return Breakdown(name, title, metrics, tuple(rows))


def _part(results: Results, metrics: Sequence[str], is_in: Numbers) -> Part:
    return Part(int(is_in.sum()), tuple(_mean(results, metric, is_in) for metric in metrics))


def _by_kind(results: Sequence[Results]) -> Breakdown | None:
    kinds = sorted({str(kind or "") for one in results for kind in one.columns["kind"]}, key=lambda kind: (not kind, kind))
    if kinds == [""]:
        return None
    places = [np.asarray([kinds.index(str(kind or "")) for kind in one.columns["kind"]]) for one in results]
    return _broken_down(results, "kind", "kind of question", places, [kind or "not given" for kind in kinds])


def _by_passages(results: Sequence[Results]) -> Breakdown | None:
    places = [np.asarray([len(ids or []) for ids in one.columns.get("evidence", [[]] * one.n)]) for one in results]
    most = max(int(at.max()) for at in places)
    labels = ["none known", *map(str, range(1, most + 1))]
    return _broken_down(results, "passages", "gold passages (hops)", places, labels) if most else None


def _by_searches(results: Sequence[Results]) -> Breakdown | None:
    if not all(applies(one, "searches") for one in results):
        return None
    numbers = [np.nan_to_num(one.scores["searches"], nan=-1).astype(int) for one in results]
    labels = [*map(str, range(MOST_SEARCHES)), f"{MOST_SEARCHES} and more"]
    return _broken_down(results, "searches", "number of searches", [np.minimum(at, MOST_SEARCHES) for at in numbers], labels)


def _by_length(results: Sequence[Results], metric: str) -> Breakdown | None:
    if not all(applies(one, metric) for one in results):
        return None
    pooled = np.concatenate([one.scores[metric] for one in results])
    edges = np.unique(np.nanquantile(pooled, [0.25, 0.5, 0.75], method="inverted_cdf"))
    places = [np.where(np.isnan(v), -1, np.searchsorted(edges, v)) for v in (one.scores[metric] for one in results)]
    bounds = [f"{edge:,.0f}" for edge in edges]
    labels = [f"up to {bounds[0]}", *(f"over {low} to {high}" for low, high in pairwise(bounds))]
    title = f"{metric.replace('_', ' ')}, quarters of all episodes"
    return _broken_down(results, metric, title, places, [*labels, f"over {bounds[-1]}"])


def _by_words(results: Sequence[Results]) -> Breakdown:
    places = [np.asarray([_words(answers) for answers in one.columns["answers"]]) for one in results]
    labels = ["no answer", *map(str, range(1, MOST_WORDS)), f"{MOST_WORDS} and more"]
    return _broken_down(results, "words", "words of the first gold answer", places, labels)


def _words(answers: Sequence[str] | None) -> int:
    return min(len(answers[0].split()), MOST_WORDS) if answers else 0


def calibration(results: Results) -> Calibration | None:
    """Return how good the forecasts of a needed search are; None where no row has both forecast and label."""
    needed = np.asarray([np.nan if need is None else float(need) for need in results.columns.get("needs_search", [])])
    forecast = results.scores.get("search_probability", np.empty(0))
    if len(needed) != len(forecast):
        return None
    known = ~np.isnan(needed) & ~np.isnan(forecast)
    if not known.any():
        return None
    needed, forecast, groups = needed[known], forecast[known], results.groups[known]
    place = np.minimum((forecast * BINS).astype(int), BINS - 1)
    bins = tuple(_bin(number, needed, forecast, groups, place == number) for number in range(BINS))
    return Calibration(len(needed), float(calibration_error(np.ones((1, len(needed))), needed, forecast)[0]), bins)


def _bin(number: int, needed: Numbers, forecast: Numbers, groups: Numbers, is_in: Numbers) -> Bin:
    mean = float(forecast[is_in].mean()) if is_in.any() else math.nan
    return Bin(number / BINS, (number + 1) / BINS, mean, estimate(needed[is_in], share=True, groups=groups[is_in]))


def finishes(results: Sequence[Results]) -> list[tuple[str, list[Estimate]]]:
    """Return each reason for which an episode ended, the commonest first, with its share in each of the results."""
    counts = Counter(str(end) for one in results for end in one.columns.get("finish", ()))
    return [(end, [_ended(one, end) for one in results]) for end in sorted(counts, key=lambda end: (-counts[end], end))]


def _ended(results: Results, end: str) -> Estimate:
    is_end = [float(str(given) == end) for given in results.columns.get("finish", ())]
    return estimate(is_end, share=True, groups=results.groups[: len(is_end)])


def worst(shared: Shared, metrics: Sequence[str], n: int) -> list[str]:
    """Return the n questions with the lowest mean over the results; ties by the next metric, then by id."""
    columns = [np.nan_to_num(np.mean([of[m] for of in shared.means], axis=0), nan=np.inf) for m in metrics]
    order = sorted(range(len(shared.ids)), key=lambda q: (*(float(column[q]) for column in columns), shared.ids[q]))
    return [shared.ids[q] for q in order[:n]]


def changed(shared: Shared, metrics: Sequence[str], other: int, n: int) -> tuple[list[str], list[str]]:
    """Return the questions that became better and worse the most from the first results to the `other`: n in all.

    A question's change is that of the first metric, ties by the next, then by id. Half of the n are for each side; what one
    side has no questions for goes to the other.
    """
    steps = [np.nan_to_num(shared.means[other][m] - shared.means[0][m]) for m in metrics]
    change = {ident: tuple(float(step[q]) for step in steps) for q, ident in enumerate(shared.ids)}
    nothing = (0.0,) * len(metrics)
    down: Callable[[str], tuple[object, ...]] = lambda ident: (change[ident], ident)  # noqa: E731
    up: Callable[[str], tuple[object, ...]] = lambda ident: (tuple(-step for step in change[ident]), ident)  # noqa: E731
    worse = sorted((ident for ident in change if change[ident] < nothing), key=down)
    better = sorted((ident for ident in change if change[ident] > nothing), key=up)
    losses = min(len(worse), max(n // 2, n - len(better)))
    return better[: n - losses], worse[:losses]
