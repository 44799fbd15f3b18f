"""Paired tests of how two runs decide on the same questions: of figures that are no means, as macro-F1, AUROC and ECE.

The interval is of resampled groups of questions, the same in both runs; p is by approximate randomisation (Noreen 1989; for
F1 Yeh 2000): the share of ways to give each group's rows to the other run that leave the figures as far apart. For AUROC ranks
are exchanged, each forecast's in its own run (Venkatraman and Begg 1996), as two runs' probabilities may lie apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from project.evaluation.decisions import auroc, calibration_error, class_figures
from project.evaluation.metrics import BLOCK, RESAMPLES, Numbers, resamples
from project.intervals import widened
from project.tracking.paired import EXACT, PairedResult, Sample

COMPARED = (
    "macro_f1", "search_precision", "search_recall", "search_f1", "answer_precision", "answer_recall", "answer_f1",
)  # fmt: skip
"""Figures of decisions alone; accuracy is a mean, and the baselines are the questions' own."""
NUMBERS = 1_000_000
"""Most weights that are worked on at once."""
Figures = Callable[[Numbers, "Decisions"], dict[str, Numbers]]
"""Each figure's values, one for each row of weights (R, N)."""


class Decisions(NamedTuple):
    """Rows in which a run had to decide, a sample of a question each (N); those without a known right decision are left out."""

    keys: Sequence[Sample]
    searched: Numbers
    """1 where it searched, else 0; one that decided nothing counts as the wrong one."""
    needed: Numbers
    """1 where it had to."""
    probability: Numbers
    """That it gave to searching, from 0 to 1, or NaN."""

    def rows(self, is_in: Numbers) -> Decisions:
        """Return some of the rows."""
        return Decisions([key for key, here in zip(self.keys, is_in, strict=True) if here], *(of[is_in] for of in self[1:]))

    def weights(self) -> Numbers:
        """Return each row's weight (N): a question counts once, however many samples it has."""
        samples = Counter(self.keys)
        return np.asarray([1 / samples[key] for key in self.keys])


def decisions_of(columns: Mapping[str, Sequence[object]]) -> Decisions:
    """Return the decisions in columns of results, of rows in which `needs_search` is known; none where a column lacks."""
    names = ("group", "question_id", "needs_search", "decision_accuracy", "search_probability")
    found = []
    if all(name in columns for name in names):
        for group, question, needs, is_right, probability in zip(*(columns[name] for name in names), strict=True):
            if needs is not None and is_right == is_right and is_right is not None:
                searched = float(is_right == float(bool(needs)))
                forecast = float("nan") if probability is None else probability
                found.append((Sample(str(group), str(question)), searched, float(bool(needs)), forecast))
    keys = [row[0] for row in found]
    return Decisions(keys, *(np.asarray([row[place] for row in found], dtype=np.float64) for place in (1, 2, 3)))


def paired_decisions(first: Decisions, other: Decisions, seed: int = 0) -> list[PairedResult]:
    """Return `other - first` of each figure, on the questions that both decided; of a forecast's where both made one.

    A figure that one of the two does not have (the precision of searches where it never searched) is left out.
    """
    found = _paired(*_shared(first, other), _class_figures, COMPARED, seed)
    known = _shared(*(one.rows(~np.isnan(one.probability)) for one in (first, other)))
    ranked = [one._replace(probability=_ranks(one)) for one in known]
    found += _paired(ranked[0], ranked[1], lambda w, of: {"auroc": auroc(w, of.needed, of.probability)}, ("auroc",), seed)
    return found + _paired(*known, lambda w, of: {"ece": calibration_error(w, of.needed, of.probability)}, ("ece",), seed)


def _shared(first: Decisions, other: Decisions) -> tuple[Decisions, Decisions]:
    common = set(first.keys) & set(other.keys)
    return tuple(one.rows(np.asarray([key in common for key in one.keys], dtype=bool)) for one in (first, other))  # type: ignore[return-value]


def _class_figures(weights_RN: Numbers, of: Decisions) -> dict[str, Numbers]:
    """Return the figures of decisions; NaN for the precision or recall of what did not come."""
    found = class_figures(weights_RN, of.searched, of.needed)
    for name, is_in in _of_some(of).items():
        found[name] = np.where(weights_RN @ is_in > 0, found[name], np.nan)
    return found


def _of_some(of: Decisions) -> dict[str, Numbers]:
    """Return the rows that precision and recall are of."""
    precision = {"search_precision": of.searched, "answer_precision": 1 - of.searched}
    return precision | {"search_recall": of.needed, "answer_recall": 1 - of.needed}


def _ranks(of: Decisions) -> Numbers:
    """Return the forecasts' places in their order, from 0 to 1, ties in the middle."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(of.probability) / max(1, len(of.keys)))


def _paired(first: Decisions, other: Decisions, figures: Figures, names: Sequence[str], seed: int) -> list[PairedResult]:
    """Return the tests of some figures."""
    if not first.keys:
        return []
    both = Decisions([*first.keys, *other.keys], *(np.concatenate(pair) for pair in zip(first[1:], other[1:], strict=True)))
    weight_N = np.concatenate([first.weights(), other.weights()])
    _, of_group = np.unique([key.group for key in both.keys], return_inverse=True)
    size, cut = int(of_group.max()) + 1, len(first.keys)
    is_first = (np.arange(len(both.keys)) < cut).astype(np.float64)

    def drawn(counts_RG: Numbers) -> dict[str, Numbers]:
        """Return the differences with groups counted so often."""
        counts_RN = counts_RG[:, of_group] * weight_N
        before, after = figures(counts_RN[:, :cut], first), figures(counts_RN[:, cut:], other)
        return {name: after[name] - before[name] for name in names}

    def exchanged(swaps_RG: Numbers) -> dict[str, Numbers]:
        """Return the differences with groups given to the other run (1) or not (0)."""
        in_first_RN = np.abs(is_first - swaps_RG[:, of_group])
        before, after = figures(in_first_RN * weight_N, both), figures((1 - in_first_RN) * weight_N, both)
        return {name: after[name] - before[name] for name in names}

    def over(blocks: Iterator[Numbers], work: Callable[[Numbers], dict[str, Numbers]]) -> dict[str, Numbers]:
        done = [work(part) for block in blocks for part in np.array_split(block, -(-len(block) * len(both.keys) // NUMBERS))]
        return {name: np.concatenate([one[name] for one in done]) for name in names}

    measured, spreads, chances = (
        drawn(np.ones((1, size))),
        over(resamples(size, seed), drawn),
        over(_swaps(size, seed), exchanged),
    )
    found = []
    for name in names:
        difference, spread, chance = float(measured[name][0]), spreads[name], chances[name]
        if difference != difference:
            continue
        low, high = np.nanquantile(spread, [0.025, 0.975])
        if name == "ece":  # resamples are further from calibrated than the sample: the basic interval turns that round
            low, high = 2 * difference - high, 2 * difference - low
        low, high = widened(difference, float(low), float(high), size)
        extreme, ways = int(np.sum(np.abs(chance) >= abs(difference) - 1e-12)), int(np.sum(~np.isnan(chance)))
        p = extreme / ways if size <= EXACT else (1 + extreme) / (1 + ways)
        n = min(_questions(name, one) for one in (first, other))
        found.append(PairedResult(f"decision_{name}", n, min(n, size), difference, low, high, p))
    return found


def _questions(name: str, one: Decisions) -> int:
    """Return how many questions a figure is of."""
    is_in = _of_some(one).get(name, np.ones(len(one.keys)))
    return len({key for key, here in zip(one.keys, is_in, strict=True) if here})


def _swaps(groups: int, seed: int) -> Iterator[Numbers]:
    """Yield which groups (R, G) are given to the other run: all ways, or `RESAMPLES` drawn ones, in blocks."""
    if groups <= EXACT:
        yield (np.arange(2**groups)[:, None] >> np.arange(groups) & 1).astype(np.float64)
        return
    generator = np.random.default_rng(seed)
    for _ in range(RESAMPLES // BLOCK):
        yield generator.integers(0, 2, (BLOCK, groups)).astype(np.float64)
