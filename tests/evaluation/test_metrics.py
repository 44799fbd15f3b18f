"""Metrics of one episode, their means with n and an interval, and binary scores by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from project.dialects import SEARCH_TOKEN
from project.evaluation.metrics import binary_scores, did_search, estimate, is_share, score_episode
from project.records import Episode, FinishReason, Message, Question, Turn
from project.rewards.answer import AnswerReward

REWARD = AnswerReward()


def episode(question: Question, answer=None, **changes) -> Episode:
    turns = (Turn((1, 2), (3, 4, 5), (-1.0,) * 3, 0, True), Turn((6,), (7,), (-1.0,), 0, True))
    return Episode(question, turns, (), FinishReason.ANSWER, answer, **changes)


def test_score_episode_by_hand():
    question = Question("q", "?", ("the red fox",), ("a", "b"), True)
    scores = score_episode(episode(question, "a red fox jumps", queries=("x",), found=(("b",),)), REWARD)
    # Without articles "red fox" against "red fox jumps": F1 = 2 * 2 / 5. Reward: 0.2 * 0.8 * (1 + 0.1 / 2).
    assert scores["em"] == 0
    assert scores["f1"] == pytest.approx(0.8)
    assert scores["cover_em"] == 1
    assert scores["reward"] == pytest.approx(0.168)
    assert scores["evidence_recall"] == 0.5
    assert scores["searches"] == scores["decision_accuracy"] == 1
    assert scores["generated_tokens"] == 4  # context is not generated
    assert scores["finish_answer"] == 1
    assert sum(value for name, value in scores.items() if name.startswith("finish_")) == 1


def test_what_does_not_apply_is_nan():
    scores = score_episode(episode(Question("q", "?", ("x",)), "x"), REWARD)
    assert math.isnan(scores["decision_accuracy"])
    assert math.isnan(scores["evidence_recall"])
    assert not any(math.isnan(v) for k, v in scores.items() if k not in ("decision_accuracy", "evidence_recall"))
    assert not {"verdict", "supported"} & set(scores)
    judged = score_episode(replace(episode(Question("q", "?", ("x",)), "x"), verdict=0.0, supported=1.0), REWARD)
    assert judged == pytest.approx(scores | {"verdict": 0.0, "supported": 1.0}, nan_ok=True)


@pytest.mark.parametrize(("needs", "queries", "right"), [(True, 1, 1), (True, 0, 0), (False, 1, 0), (False, 0, 1)])
def test_decision_accuracy(needs, queries, right):
    made = episode(Question("q", "?", ("x",), (), needs), "x", queries=("a",) * queries)
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
    found = estimate(values)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found == estimate(values)


def test_binary_scores_by_hand():
    # Predicted 3, gold 4, hits 2: precision 2/3, recall 1/2, F1 = 2 * (1/3) / (7/6) = 4/7; majority 6/10.
    gold = [True] * 4 + [False] * 6
    predicted = [True, True, False, False, True] + [False] * 5
    expected = {"precision": 2 / 3, "recall": 0.5, "f1": 4 / 7, "majority": 0.6}
    assert binary_scores(predicted, gold) == pytest.approx(expected)


def test_binary_scores_of_nothing():
    assert binary_scores([False], [True]) == {"precision": 0, "recall": 0, "f1": 0, "majority": 1}


def test_trap_04_the_majority_stands_beside_the_scores():
    always = binary_scores([True] * 10, [True] * 9 + [False])
    assert always["majority"] == 0.9
