"""Advantages worked by hand, and what must not change them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from project.advantages import gae, group_normalise, leave_one_out, scale, whiten
from project.records import Episode, FinishReason, Question, Turn
from project.rollouts.rows import collate_rows, training_rows

floats = st.floats(-3, 3)


def test_gae_of_three_tokens_by_hand():
    # gamma 0.9, lam 0.5, so gamma * lam = 0.45. Rewards 0, 1, 2; values 0.5, 1, 1.5.
    # delta_2 = 2 - 1.5 = 0.5                      A_2 = 0.5
    # delta_1 = 1 + 0.9 * 1.5 - 1 = 1.35           A_1 = 1.35 + 0.45 * 0.5 = 1.575
    # delta_0 = 0 + 0.9 * 1 - 0.5 = 0.4            A_0 = 0.4 + 0.45 * 1.575 = 1.10875
    advantages, returns = gae(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.5, 1.0, 1.5]), 0.9, 0.5)
    assert advantages.tolist() == pytest.approx([1.10875, 1.575, 0.5])
    assert returns.tolist() == pytest.approx([1.60875, 2.575, 2.0])


def test_gae_with_lambda_0_and_1_by_hand():
    rewards, values = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.2, 0.4, 0.8])
    # lam 0: one-step differences 0.4 - 0.2, 0.8 - 0.4, 1 - 0.8. lam 1: the return (1) minus the value.
    assert gae(rewards, values, 1.0, 0.0)[0].tolist() == pytest.approx([0.2, 0.4, 0.2])
    assert gae(rewards, values, 1.0, 1.0)[0].tolist() == pytest.approx([0.8, 0.6, 0.2])


@given(st.lists(st.tuples(floats, floats), min_size=1, max_size=10), st.floats(0.5, 1), st.floats(0, 1))
def test_gae_is_the_discounted_sum_of_differences(tokens, gamma, lam):
    rewards, values = (torch.tensor(column, dtype=torch.float64) for column in zip(*tokens, strict=True))
    following = torch.cat([values[1:], values.new_zeros(1)])
    delta = rewards + gamma * following - values
    count = len(tokens)
    expected = [sum((gamma * lam) ** (k - t) * float(delta[k]) for k in range(t, count)) for t in range(count)]
    advantages, returns = gae(rewards, values, gamma, lam)
    assert advantages.tolist() == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(returns, advantages + values)


def episode(turns: list[tuple[list[int], list[int]]]) -> Episode:
    made = tuple(Turn(tuple(context), tuple(ids), tuple(-float(i) for i in ids), 0, True) for context, ids in turns)
    return Episode(Question("q", "?", ("x",)), made, (), FinishReason.ANSWER)


results = st.lists(st.integers(100, 199), min_size=1, max_size=30)


@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=6), min_size=1, max_size=4), st.data())
def test_gae_is_unaffected_by_tool_results(sampled, data):
    """The value at each sampled token is a function of that token here; results of any length stand between the turns."""

    def advantages(contexts):
        batch = collate_rows(training_rows(episode(list(zip(contexts, sampled, strict=True))), 1.0))
        labels = batch["input_ids"][batch["trained"]]
        rewards = torch.zeros(len(labels))
        rewards[-1] = 1.0
        return gae(rewards, labels / 100, 0.9, 0.8)[0]

    long = [data.draw(results) for _ in sampled]
    torch.testing.assert_close(advantages(long), advantages([[100]] * len(sampled)), rtol=0, atol=0)


def test_whiten_by_hand():
    # Mean 2, deviations -1, 1, standard deviation 1.
    assert whiten(torch.tensor([1.0, 3.0])).tolist() == [-1, 1]
    assert whiten(torch.tensor([5.0, 5.0])).tolist() == [0, 0]


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=30).filter(lambda x: len(set(x)) > 1))
def test_whiten_has_mean_0_and_deviation_1(values):
    whitened = whiten(torch.tensor(values, dtype=torch.float64))
    assert float(whitened.mean()) == pytest.approx(0, abs=1e-9)
    assert float(whitened.std(correction=0)) == pytest.approx(1)


def test_leave_one_out_by_hand():
    # Group 0 holds 1, 0, 0: 1 - 0, 0 - 1/2, 0 - 1/2. Group 1 is one episode alone: 0.7 - (1 + 0 + 0) / 3.
    rewards, groups = torch.tensor([1.0, 0.7, 0.0, 0.0]), torch.tensor([0, 1, 0, 0])
    assert leave_one_out(rewards, groups).tolist() == pytest.approx([1, 0.7 - 1 / 3, -0.5, -0.5])
    assert leave_one_out(torch.tensor([0.7]), torch.tensor([0])).tolist() == pytest.approx([0.7])  # nothing to compare with


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=8), st.floats(-3, 3))
def test_leave_one_out_does_not_see_how_hard_a_question_is(rewards, easier):
    groups = torch.zeros(len(rewards), dtype=torch.long)
    plain, shifted = (leave_one_out(torch.tensor(rewards, dtype=torch.float64) + by, groups) for by in (0.0, easier))
    torch.testing.assert_close(plain, shifted)
    assert float(plain.sum()) == pytest.approx(0, abs=1e-6)


def test_leave_one_out_is_not_rounded_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        found = leave_one_out(torch.tensor([1.1, 1.1, 1.1, 0.0]), torch.zeros(4, dtype=torch.long))
    assert found.tolist() == pytest.approx([1.1 - 2.2 / 3] * 3 + [-1.1], abs=1e-6)


def test_scale_leaves_a_solved_question_alone():
    # Group A: right 2 tokens at +1, wrong 6 at -1; group B, solved: 4 at 0. Root mean square sqrt(8 / 12).
    found = scale(torch.tensor([1.0] * 2 + [-1.0] * 6 + [0.0] * 4))
    assert found.tolist() == pytest.approx([1.5**0.5] * 2 + [-(1.5**0.5)] * 6 + [0.0] * 4)
    assert float(scale(torch.tensor([0.01, -0.01])).abs().max()) == pytest.approx(0.1)  # noise is not blown up


def test_group_normalise_by_hand():
    # Group 7: rewards 0, 1: mean 0.5, deviation 0.5 -> -1, 1. Group 3: 2, 2, 2 -> 0. Group 9 alone -> 0. Order is kept.
    rewards, groups = torch.tensor([0.0, 2.0, 1.0, 2.0, 4.0, 2.0]), torch.tensor([7, 3, 7, 3, 9, 3])
    assert group_normalise(rewards, groups).tolist() == pytest.approx([-1, 0, 1, 0, 0, 0], abs=1e-5)


@given(st.lists(st.tuples(floats, st.integers(0, 3)), min_size=1, max_size=20))
def test_group_normalise_has_no_mean_in_any_group(episodes):
    rewards, groups = (torch.tensor(column) for column in zip(*episodes, strict=True))
    found = group_normalise(rewards.double(), groups)
    for group in groups.unique():
        assert float(found[groups == group].sum()) == pytest.approx(0, abs=1e-3)
