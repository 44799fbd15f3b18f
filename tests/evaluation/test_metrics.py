"""Metrics of one episode, their means with n and an interval, and binary scores by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from project.dialects import SEARCH_TOKEN
from project.evaluation.metrics import SCORES, did_search, estimate, estimate_of, is_share, score_episode
from project.records import Episode, FinishReason, Message, Question, Turn
from project.rewards.answer import AnswerReward

REWARD = AnswerReward()


def episode(question: Question, answer=None, **changes) -> Episode:
    turns = (Turn((1, 2), (3, 4, 5), (-1.0,) * 3, 0, True), Turn((6,), (7,), (-1.0,), 0, True))
    return Episode(question, turns, (), FinishReason.ANSWER, answer, **changes)


def test_score_episode_by_hand():
    question = Question("q", "?", ("the red fox",), ("a", "b"), True)
    scores = score_episode(episode(question, "a red fox jumps", queries=("x", "x"), found=(("b", "c", "d"),)), REWARD, 0.75)
    # Without articles "red fox" against "red fox jumps": F1 = 2 * 2 / 5. Reward: 0.2 * 0.8 * (1 + 0.1 / 2).
    assert scores["em"] == 0
    assert scores["f1"] == pytest.approx(0.8)
    assert scores["cover_em"] == 1
    assert scores["reward"] == pytest.approx(0.168)
    assert scores["evidence_recall"] == 0.5
    assert scores["evidence_precision"] == pytest.approx(1 / 3)
    assert scores["searches"] == 2
    assert scores["repeated_queries"] == scores["decision_accuracy"] == 1
    assert scores["search_probability"] == 0.75
    assert scores["generated_tokens"] == 4  # context is not generated
    assert scores["read_tokens"] == 3
    assert scores["turns"] == 2
    assert scores["finish_answer"] == 1
    assert sum(value for name, value in scores.items() if name.startswith("finish_")) == 1
    assert tuple(scores) == SCORES


def test_lengths_with_and_without_folding():
    # Contexts: 10 + 3, then 5 + 2 on it = 20; folded: 8 + 1 = 9. Unfolded it would be 10 + 3 + 5 and the answer's 1: the
    # summary's 2 tokens and the new context's 8 are left out.
    turns = (Turn((1,) * 10, (2,) * 3, (), 0, True, True), Turn((1,) * 5, (2,) * 2, (), 0, True))
    turns += (Turn((1,) * 8, (2,), (), 0, True, True),)
    folded = replace(episode(Question("q", "?", ("x",)), "x"), turns=turns)
    scores = score_episode(folded, REWARD)
    assert (scores["peak_context"], scores["history_tokens"], scores["contexts"]) == (20, 19, 2)
    whole = score_episode(replace(folded, turns=turns[:2]), REWARD)
    assert whole["peak_context"] == whole["history_tokens"] == 20


@pytest.mark.parametrize(
    ("answers", "answer", "shown", "expected"),
    [
        (("x",), "x", ("a",), {"refused_wrongly": 0}),  # evidence was shown: answering is no guess
        (("x",), "x", ("c",), {"refused_wrongly": 0, "answered_without_evidence": 1}),
        (("x",), "Unknown.", ("c",), {"refused_wrongly": 1, "answered_without_evidence": 0}),
        (("x",), None, (), {"refused_wrongly": 0, "answered_without_evidence": 0}),
        ((), "unknown", (), {"abstained": 1, "answered_without_evidence": 0}),
        ((), "x", (), {"abstained": 0, "answered_without_evidence": 1}),
    ],
)
def test_refusals_and_answers_without_evidence(answers, answer, shown, expected):
    scores = score_episode(episode(Question("q", "?", answers, ("a",)), answer, found=(shown,)), REWARD)
    names = ("abstained", "refused_wrongly", "answered_without_evidence")
    assert {name: scores[name] for name in names if not math.isnan(scores[name])} == expected


def test_what_does_not_apply_is_nan():
    scores = score_episode(episode(Question("q", "?", ("x",)), "x"), REWARD)
    assert {name for name, value in scores.items() if math.isnan(value)} == {
        "decision_accuracy", "evidence_recall", "evidence_precision", "verdict", "supported", "search_probability",
        "answered_without_evidence", "abstained",
    }  # fmt: skip
    judged = score_episode(replace(episode(Question("q", "?", ("x",)), "x"), verdict=0.0, supported=1.0), REWARD)
    assert judged == pytest.approx(scores | {"verdict": 0.0, "supported": 1.0}, nan_ok=True)


@pytest.mark.parametrize(("needs", "queries", "right"), [(True, 1, 1), (True, 0, 0), (False, 1, 0), (False, 0, 1)])
def test_decision_accuracy(needs, queries, right):
    made = episode(Question("q", "?", ("x",), (), needs), "x", queries=("a",) * queries)
    assert score_episode(made, REWARD)["decided"] == 1
    assert score_episode(made, REWARD)["decision_accuracy"] == right


def test_the_decision_token_alone_is_a_search():
    made = Episode(Question("q", "?", ("x",)), (), (Message("assistant", SEARCH_TOKEN),), FinishReason.LENGTH)
    assert did_search(made)
    quoted = Episode(Question("q", "?", ("x",)), (), (Message("user", SEARCH_TOKEN),), FinishReason.LENGTH)
    assert not did_search(quoted)


def test_trap_19_a_mean_has_n_and_an_interval():
    # 16 of 32: standard error sqrt(0.25 / 32) = 0.0884, so 95 % is about 0.5 ± 0.173: two digits are worth nothing.
    found = estimate([1.0] * 16 + [0.0] * 16, share=True)
    assert (found.mean, found.n) == (0.5, 32)
    assert found.low == pytest.approx(0.5 - 0.173, abs=0.03)
    assert found.high == pytest.approx(0.5 + 0.173, abs=0.03)


def test_trap_19_more_questions_make_the_interval_narrower():
    few, many = estimate([0.0, 1.0] * 16, share=True), estimate([0.0, 1.0] * 1600, share=True)
    # The width falls with the root of n: 10 times.
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(10, rel=0.15)


def test_nan_is_left_out_of_mean_and_n():
    found = estimate([math.nan, 1.0, math.nan, 0.0])
    assert (found.mean, found.n) == (0.5, 2)
    none = estimate([math.nan])
    assert none.n == 0
    assert math.isnan(none.mean)
    assert math.isnan(none.low)
    assert estimate([]).n == 0


def test_the_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    found = [estimate(rng.normal(1, 2, 50).tolist(), seed=i) for i in range(200)]
    covered = sum(e.low <= 1 <= e.high for e in found)
    assert 178 <= covered <= 198  # 95 % of 200 is 190, less a little for n = 50


def test_no_success_in_200_is_not_certainty():
    # Wilson at p = 0: high = z^2 / (n + z^2) = 3.84146 / 203.84146 = 0.018845
    found = estimate([0.0] * 200, share=True)
    assert (found.mean, found.low, found.n) == (0.0, 0.0, 200)
    assert found.high == pytest.approx(0.018845, abs=1e-6)
    # 200 times no search at all is a count that did not vary, not a share: [0, 0.0188] would be no number of searches.
    assert estimate([0.0] * 200).high == 0.0


def test_what_is_a_share():
    assert all(map(is_share, ("em", "cover_em", "decision_accuracy", "finish_answer")))
    assert not any(map(is_share, ("f1", "searches", "reward", "evidence_recall", "generated_tokens")))


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_the_interval_holds_the_mean_and_depends_only_on_the_values(values):
    found, again = estimate(values), estimate(values)
    assert str(found) == str(again)
    if len(values) == 1:
        assert math.isnan(found.low) and math.isnan(found.high), "one value says nothing of the spread"
    else:
        assert found.low - 1e-9 <= found.mean <= found.high + 1e-9


def test_groups_of_one_are_no_groups():
    values = [1.0, 0.0, 1.0, 1.0]
    assert estimate(values, share=True, groups=["a", "b", "c", "d"]) == estimate(values, share=True)
    assert estimate([1.5, 0.0, 1.0, 1.0], groups=["a", "a", "c", "d"]) != estimate([1.5, 0.0, 1.0, 1.0])


def test_trap_19_nothing_right_in_three_is_not_certainty_of_f1_either():
    # Wilson at p = 0, n = 3: 3.84146 / 6.84146
    none = estimate_of("f1", [0.0] * 3, ["a", "b", "c"])
    assert none[:3] == (0.0, 0.0, pytest.approx(0.561497, abs=1e-6))
    some = estimate_of("f1", [0.0, 0.5, 0.5], ["a", "b", "c"])
    assert (some.low, some.high) == (0.0, pytest.approx(estimate([0.0, 0.5, 0.5]).high)), "else it is the bootstrap's"
    assert estimate_of("own_lost_f1", [0.0] * 3, ["a", "b", "c"]).high == 0.0, "a difference has no such bounds"
    assert estimate_of("searches", [1.0] * 3, ["a", "b", "c"]).low == 1.0


def test_trap_19_few_groups_make_a_wide_interval():
    """Of six groups of 33 the plain bootstrap's 95 % held the truth in 85 of 100; Student's t and G / (G - 1) mend that."""
    rng = np.random.default_rng(1)
    groups = [str(i // 33) for i in range(198)]
    truths = 0
    for _ in range(200):
        values = np.repeat(rng.normal(0, 1, 6), 33) + rng.normal(0, 0.3, 198)
        found = estimate(values, groups=groups)
        truths += found.low <= 0 <= found.high
    assert truths >= 184
    assert found.groups == 6
    assert math.isnan(estimate([1.0, 2.0], groups=["a", "a"]).low), "one group"
    assert estimate_of("f1", [0.5, 0.4], ["a", "a"])[1:3] == (0.0, 1.0)


def test_an_agent_that_decides_nothing_is_wrong_either_way():
    for needs in (True, False):
        made = Episode(Question("q", "?", ("x",), (), needs), (), (Message("assistant", "hm"),), FinishReason.MALFORMED)
        scores = score_episode(made, REWARD)
        assert (scores["decided"], scores["decision_accuracy"]) == (0, 0)
