"""Figures of two runs' decisions tested in pairs: by hand, and against the figures themselves."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from project.evaluation.decisions import decision_scores
from project.evaluation.paired_decisions import decisions_of, paired_decisions

NAN = math.nan
NEEDED = (True, True, False, False)


def decisions(searched, probability=(NAN,) * 4, needed=NEEDED, groups=None):
    """One row a question, each a group of its own where none are given."""
    names = [f"q{number}" for number in range(len(searched))]
    return decisions_of({
        "group": groups or names,
        "question_id": names,
        "needs_search": needed,
        "decision_accuracy": [float(did == needs) for did, needs in zip(searched, needed, strict=True)],
        "search_probability": probability,
    })  # fmt: skip


def changes(first, other):
    return {result.metric.removeprefix("decision_"): result for result in paired_decisions(first, other)}


def test_macro_f1_by_hand():
    # First searches always: F1 of searching 4/6, of answering 0, macro 1/3. Other is always right: 1. Of the 16 ways to swap,
    # those of the first two questions change nothing, and one of the last two alone makes both alike: 8 are as far apart.
    found = changes(decisions([1, 1, 1, 1]), decisions([1, 1, 0, 0]))
    assert found["macro_f1"].difference == pytest.approx(2 / 3)
    assert found["macro_f1"].p == 0.5
    assert (found["macro_f1"].n, found["macro_f1"].groups) == (4, 4)
    assert found["search_precision"].difference == pytest.approx(0.5)
    assert "answer_precision" not in found, "the first never answered"
    assert "auroc" not in found
    assert found["macro_f1"].low <= found["macro_f1"].difference <= found["macro_f1"].high


def test_auroc_and_calibration_by_hand():
    # First says 0.5 of all: AUROC 1/2, ECE 0. Other 0.9 where needed, else 0.1: AUROC 1, ECE 0.1. All other swaps than none
    # and all bring them nearer (one needed: 3/4 and 1, 0.15 and 0.2; both: 1 and 1; one of each: 7/8 and 7/8): 2 of 16.
    found = changes(decisions([1] * 4, (0.5,) * 4), decisions([1, 1, 0, 0], (0.9, 0.9, 0.1, 0.1)))
    assert (found["auroc"].difference, found["auroc"].p) == (0.5, 0.125)
    assert (found["ece"].difference, found["ece"].p) == (pytest.approx(0.1), 0.125)


def test_forecasts_are_of_questions_on_which_both_made_one():
    found = changes(decisions([1] * 4, (0.5, NAN, 0.5, 0.5)), decisions([1, 1, 0, 0], (0.9, 0.9, NAN, 0.1)))
    assert (found["auroc"].n, found["auroc"].difference) == (2, 0.5)
    assert found["macro_f1"].n == 4


def test_groups_are_swapped_whole():
    # With two groups, each of a question that needs a search and one that does not: swapping one of them makes both alike.
    groups = ["a", "b", "a", "b"]
    found = changes(decisions([1] * 4, groups=groups), decisions([1, 1, 0, 0], groups=groups))
    assert (found["macro_f1"].groups, found["macro_f1"].p) == (2, 0.5)


def test_what_only_one_run_decided_is_left_out():
    first = decisions([1, 1, 1, 1])
    assert paired_decisions(first, decisions_of({})) == []
    other = decisions_of({
        "group": ["q0", "q9", "q3"],
        "question_id": ["q0", "q9", "q3"],
        "needs_search": [True, True, None],
        "decision_accuracy": [1.0, 0.0, NAN],
        "search_probability": [NAN] * 3,
    })  # fmt: skip
    assert changes(first, other)["search_recall"].n == 1


def test_auroc_does_not_depend_on_where_a_runs_probabilities_lie():
    generator = np.random.default_rng(0)
    needed = generator.random(120) < 0.5
    logits = [generator.normal(size=120) + strength * needed for strength in (0.5, 1.5)]
    searched = [1] * 120

    def forecast(logit, shift):
        return (1 / (1 + np.exp(-logit - shift))).tolist()

    before = decisions(searched, forecast(logits[0], 0), needed.tolist())
    found = [changes(before, decisions(searched, forecast(logits[1], s), needed.tolist()))["auroc"] for s in (0, 6)]
    assert found[0] == found[1]
    assert found[0].p < 0.05
    assert found[0].low > 0


def test_the_interval_of_a_difference_in_calibration_holds_the_truth():
    """The first says each question's own chance, the other 0.9: they are 0.4 apart. Percentiles would seldom hold that."""
    generator = np.random.default_rng(0)
    held = []
    for _ in range(20):
        chance = generator.random(200)
        needed = (generator.random(200) < chance).tolist()
        one = changes(decisions([1] * 200, chance.tolist(), needed), decisions([1] * 200, [0.9] * 200, needed))["ece"]
        held.append(one.low <= 0.4 <= one.high)
    assert sum(held) >= 14


def test_precision_is_of_what_came():
    """The first searched twice, rightly; the other 20 times, half of them so. Resamples without the two tell nothing."""
    needed = [number % 2 == 0 for number in range(40)]
    first = decisions([number in (0, 2) for number in range(40)], [NAN] * 40, needed)
    found = changes(first, decisions([number < 20 for number in range(40)], [NAN] * 40, needed))["search_precision"]
    assert (found.n, found.difference) == (2, -0.5)
    assert found.high < 0


def test_a_question_counts_once_however_many_samples_it_has():
    def run(samples, searched):
        names = [f"q{number}" for number in range(4) for _ in range(samples)]
        needed = [need for need in NEEDED for _ in range(samples)]
        right = [float(did == need) for did, need in zip([s for s in searched for _ in range(samples)], needed, strict=True)]
        rows = {"group": names, "question_id": names, "needs_search": needed, "decision_accuracy": right}
        return decisions_of(rows | {"search_probability": [NAN] * len(names)})

    one = changes(run(1, [1] * 4), run(1, [1, 1, 0, 0]))
    assert changes(run(1, [1] * 4), run(8, [1, 1, 0, 0])) == one
    assert changes(run(8, [1] * 4), run(1, [1, 1, 0, 0])) == one


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(*[st.booleans()] * 3, *[st.integers(0, 99)] * 2), min_size=2, max_size=18))
def test_differences_are_those_of_the_figures(rows):
    needed, did, then, before, after = zip(*rows, strict=True)
    first = decisions(did, [(number + 0.5) / 100 for number in before], needed)
    other = decisions(then, [(number + 0.5) / 100 for number in after], needed)
    whole = [decision_scores(*one[1:], np.arange(float(len(rows)))) for one in (first, other)]
    found = changes(first, other)
    assert set(found) == (set(whole[0]) & set(whole[1])) - {"accuracy", "majority", "always_search"}
    assert all(result.n == min(of[name].n for of in whole) for name, result in found.items())
    for name, result in found.items():
        assert result.difference == pytest.approx(whole[1][name].mean - whole[0][name].mean, abs=1e-9)
        assert 0 < result.p <= 1
    assert all(result.p == 1 and abs(result.difference) < 1e-12 for result in changes(first, first).values())


def test_chance_is_not_found_significant():
    # Two runs that guess alike: p is below 0.05 about once in twenty times.
    generator = np.random.default_rng(0)
    needed = [bool(number % 2) for number in range(40)]
    ps = [
        changes(*(decisions(generator.integers(0, 2, 40).tolist(), [NAN] * 40, needed) for _ in "ab"))["macro_f1"].p
        for _ in range(100)
    ]
    assert 0.005 <= np.mean(np.asarray(ps) < 0.05) <= 0.12
