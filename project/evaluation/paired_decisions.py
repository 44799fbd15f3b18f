"""Paired tests of how two runs decide on the same questions: of figures that are no means, as macro-F1, AUROC and ECE.

The interval is of resampled groups of questions, the same in both runs; p is by approximate randomisation (Noreen 1989; for
F1 Yeh 2000): the share of ways to give each group's rows to the other run that leave the figures as far apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from project.evaluation.decisions import auroc, calibration_error, class_figures, count
from project.evaluation.metrics import BLOCK, RESAMPLES, Numbers, resamples
from project.intervals import widened
from project.tracking.paired import EXACT, PairedResult, Sample

COMPARED = (
    "macro_f1", "search_precision", "search_recall", "search_f1", "answer_precision", "answer_recall", "answer_f1",
)  # fmt: skip
"""Figures of decisions alone; accuracy is a mean, and the baselines are the questions' own."""


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

    A figure that one of the two does not have (the precision of what it never did) is left out.
    """
    forecasts = {"auroc": auroc, "ece": calibration_error}
    found = _paired(*_shared(first, other), lambda weights, of: class_figures(weights, of.searched, of.needed), COMPARED, seed)
    forecast = [one.rows(~np.isnan(one.probability)) for one in (first, other)]

    def figures(weights_RN: Numbers, of: Decisions) -> dict[str, Numbers]:
        return {name: figure(weights_RN, of.needed, of.probability) for name, figure in forecasts.items()}

    return found + _paired(*_shared(*forecast), figures, tuple(forecasts), seed)


def _shared(first: Decisions, other: Decisions) -> tuple[Decisions, Decisions]:
    common = set(first.keys) & set(other.keys)
    return tuple(one.rows(np.asarray([key in common for key in one.keys], dtype=bool)) for one in (first, other))  # type: ignore[return-value]


def _paired(
    first: Decisions,
    other: Decisions,
    figures: Callable[[Numbers, Decisions], dict[str, Numbers]],
    names: Sequence[str],
    seed: int,
) -> list[PairedResult]:
    """Return the tests of some figures, each a function of the rows' weights (R, N) and the rows."""
    if not first.keys:
        return []
    both = Decisions([*first.keys, *other.keys], *(np.concatenate(pair) for pair in zip(first[1:], other[1:], strict=True)))
    _, of_group = np.unique([key.group for key in both.keys], return_inverse=True)
    size, is_first = int(of_group.max()) + 1, (np.arange(len(both.keys)) < len(first.keys)).astype(np.float64)

    def differences(counts_RG: Numbers, swapped_RG: Numbers) -> dict[str, Numbers]:
        """Return the figures' differences with groups counted so often and given to the other run (1) or not (0)."""
        counts_RN, swapped_RN = counts_RG[:, of_group], swapped_RG[:, of_group]
        in_first_RN = np.abs(is_first - swapped_RN)
        before, after = figures(counts_RN * in_first_RN, both), figures(counts_RN * (1 - in_first_RN), both)
        return {name: after[name] - before[name] for name in names}

    ones, none = np.ones((1, size)), np.zeros((1, size))
    measured = {name: float(value[0]) for name, value in differences(ones, none).items()}
    drawn = [differences(counts, np.zeros_like(counts)) for counts in resamples(size, seed)]
    swapped = [differences(np.ones_like(swaps), swaps) for swaps in _swaps(size, seed)]
    questions = len(set(first.keys))
    found = []
    for name, difference in measured.items():
        if difference != difference or not all(count(name, *one[1:]) for one in (first, other)):
            continue
        spread, chance = (np.concatenate([block[name] for block in blocks]) for blocks in (drawn, swapped))
        low, high = np.nanquantile(spread, [0.025, 0.975])
        low, high = widened(difference, float(low), float(high), size)
        extreme, ways = int(np.sum(np.abs(chance) >= abs(difference) - 1e-12)), int(np.sum(~np.isnan(chance)))
        p = extreme / ways if size <= EXACT else (1 + extreme) / (1 + ways)
        found.append(PairedResult(f"decision_{name}", questions, size, difference, low, high, p))
    return found


def _swaps(groups: int, seed: int) -> list[Numbers]:
    """Return which groups (R, G) are given to the other run: all ways, or `RESAMPLES` drawn ones, in blocks."""
    if groups <= EXACT:
        ways = (np.arange(2**groups)[:, None] >> np.arange(groups) & 1).astype(np.float64)
        return np.array_split(ways, -(-len(ways) // BLOCK))
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 2, (BLOCK, groups)).astype(np.float64) for _ in range(RESAMPLES // BLOCK)]
