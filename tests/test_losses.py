"""Losses against values worked by hand, against plain float64, and against their definitions on any input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from project import losses
from project.losses import (
    chunked_logprobs,
    chunked_logprobs_and_entropy,
    explained_variance,
    k1_kl,
    k3_kl,
    length_weights,
    ppo_policy_loss,
    token_entropy,
    token_logprobs,
    value_loss,
    weighted_cross_entropy,
)

LOG2 = math.log(2)
logs = st.lists(st.floats(-8, 0), min_size=1, max_size=12)


def test_token_logprobs_by_hand():
    # softmax([0, ln 3]) = [1/4, 3/4]; at temperature 1/2 the logits double: softmax([0, ln 9]) = [1/10, 9/10].
    logits = torch.tensor([[0.0, math.log(3)]])
    label = torch.tensor([1])
    assert float(token_logprobs(logits, label)) == pytest.approx(math.log(3 / 4))
    assert float(token_logprobs(logits, label, 0.5)) == pytest.approx(math.log(9 / 10))


def test_token_entropy_by_hand():
    # Four equal logits: ln 4. [1/4, 3/4]: -(1/4 ln 1/4 + 3/4 ln 3/4) = 0.562335.
    assert float(token_entropy(torch.zeros(1, 4))) == pytest.approx(math.log(4))
    assert float(token_entropy(torch.tensor([[0.0, math.log(3)]]))) == pytest.approx(0.562335, abs=1e-6)


def test_weighted_cross_entropy_by_hand():
    # The table is the identity, so hidden states are logits: softmax([0, ln 3]) = [1/4, 3/4], and [1/2, 1/2].
    hidden = torch.tensor([[0.0, math.log(3)], [1.0, 1.0], [0.0, math.log(3)]])
    loss, logprobs, right = weighted_cross_entropy(hidden, torch.eye(2), torch.tensor([1, 0, 0]), torch.tensor([1.5, 0.0, 2.0]))
    # 1.5 * ln(4/3) + 0 * ln 2 + 2 * ln 4
    assert float(loss) == pytest.approx(1.5 * math.log(4 / 3) + 2 * math.log(4))
    assert logprobs.tolist() == pytest.approx([-math.log(4 / 3), -math.log(2), -math.log(4)])
    assert right.tolist() == [True, True, False]  # of two alike the first is taken


def test_trap_02_a_weighted_loss_weighs():
    hidden = torch.zeros(2, 2, requires_grad=True)
    weighted_cross_entropy(hidden, torch.eye(2), torch.tensor([0, 0]), torch.tensor([1.5, 0.5]))[0].backward()
    # w * (softmax - onehot) = w * [-1/2, 1/2].
    assert hidden.grad.tolist() == [[-0.75, 0.75], [-0.25, 0.25]]


@pytest.mark.parametrize("frozen", ["neither", "table", "hidden"])
@pytest.mark.parametrize("chunk", [1, 11, 33, 44, 1 << 20])  # of 11 logits a position: 1, 1, 3, 4 and all 7 at once
def test_weighted_cross_entropy_equals_plain_float64_forward_and_backward(monkeypatch, chunk, frozen):
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(7, 6, dtype=torch.float64, requires_grad=frozen != "hidden")
    table = torch.randn(11, 6, dtype=torch.float64, requires_grad=frozen != "table")
    labels, weights = torch.randint(0, 11, (7,)), torch.rand(7, dtype=torch.float64)
    loss, logprobs, right = weighted_cross_entropy(hidden, table, labels, weights)
    (3 * loss).backward()
    found = {name: t.grad for name, t in (("hidden", hidden), ("table", table))}
    hidden.grad = table.grad = None

    logits = hidden @ table.T
    expected = functional.log_softmax(logits, -1)[torch.arange(7), labels]
    (3 * -(weights * expected).sum()).backward()
    torch.testing.assert_close(loss, -(weights * expected).sum(), rtol=0, atol=1e-12)
    torch.testing.assert_close(logprobs, expected.detach(), rtol=0, atol=1e-12)
    assert torch.equal(right, logits.argmax(-1) == labels)
    assert not logprobs.requires_grad
    for name, tensor in (("hidden", hidden), ("table", table)):
        if name == frozen:
            assert found[name] is tensor.grad is None
        else:
            torch.testing.assert_close(found[name], tensor.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("autocast", [False, True])
def test_weighted_cross_entropy_in_bf16_is_near_float64(autocast):
    torch.manual_seed(0)
    hidden, table = torch.randn(300, 64), 0.1 * torch.randn(500, 64)
    if not autocast:
        hidden, table = hidden.bfloat16(), table.bfloat16()
    hidden.requires_grad_()
    table.requires_grad_()
    labels, weights = torch.randint(0, 500, (300,)), torch.rand(300)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, *_ = weighted_cross_entropy(hidden, table, labels, weights)
    loss.backward()
    hidden64, table64 = (t.detach().bfloat16().double().requires_grad_() for t in (hidden, table))
    expected = (weights.double() * functional.cross_entropy(hidden64 @ table64.T, labels, reduction="none")).sum()
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=2e-3)
    for found, wanted in ((hidden.grad, hidden64.grad), (table.grad, table64.grad)):
        assert float((found.double() - wanted).norm() / wanted.norm()) < 0.01


def test_the_slope_of_the_loss_is_not_rounded_to_bf16():
    """Ranks of 3 with a step's weight of 301: the slope 3 / 301 rounded to bf16 is 0.2 % off for all gradients."""
    torch.manual_seed(0)
    hidden, table = torch.randn(400, 32).bfloat16().requires_grad_(), torch.randn(50, 32).bfloat16()
    arguments = hidden, table, torch.randint(0, 50, (400,)), torch.rand(400)
    (unscaled,) = torch.autograd.grad(weighted_cross_entropy(*arguments)[0], hidden)
    (scaled,) = torch.autograd.grad(weighted_cross_entropy(*arguments)[0] * (3 / 301), hidden)
    ratio = (scaled.double() * unscaled.double()).sum() / unscaled.double().square().sum()
    assert float(ratio) == pytest.approx(3 / 301, rel=2e-4)


def test_validation_makes_no_gradient_of_the_table(monkeypatch):
    table = torch.randn(11, 6, requires_grad=True)
    made, zeros_like = [], torch.zeros_like
    monkeypatch.setattr(torch, "zeros_like", lambda *a, **k: made.append(a) or zeros_like(*a, **k))
    arguments = torch.randn(3, 6), table, torch.tensor([1, 2, 3]), torch.ones(3)
    with torch.no_grad():
        weighted_cross_entropy(*arguments)
    assert made == []
    weighted_cross_entropy(*arguments)
    assert len(made) == 1  # in training it is


@given(st.integers(0, 8), st.integers(0, 5))
def test_weighted_cross_entropy_is_the_same_however_it_is_cut(cut, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden, table = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (8, 5))
    labels, weights = torch.randint(0, 5, (8,), generator=generator), torch.rand(8, generator=generator, dtype=torch.float64)
    parts = [weighted_cross_entropy(hidden[s], table, labels[s], weights[s])[0] for s in (slice(cut), slice(cut, None))]
    assert float(sum(parts)) == pytest.approx(float(weighted_cross_entropy(hidden, table, labels, weights)[0]))


def test_weighted_cross_entropy_never_holds_all_logits(monkeypatch):
    """Of 64 x 4,000 logits no more than 4 rows of 4,000 at once, forward and backward."""
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 4 * 4000)
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, torch.Tensor))
            return out

    hidden, table = torch.randn(64, 2, requires_grad=True), torch.randn(4000, 2, requires_grad=True)
    with Sizes():
        weighted_cross_entropy(hidden, table, torch.zeros(64, dtype=torch.long), torch.ones(64))[0].backward()
    assert max(sizes) == 4 * 4000
    assert hidden.grad.any()
    assert table.grad.any()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 3, 4, 1024])  # 7 positions: 1 and 3 make the logits again in backward
def test_chunked_logprobs_equal_plain_float64_forward_and_backward(monkeypatch, chunk, temperature):
    monkeypatch.setattr(losses, "CHUNK", chunk)
    torch.manual_seed(0)
    head = torch.nn.Linear(6, 11, bias=False)
    hidden = torch.randn(7, 6, requires_grad=True)
    labels, upstream = torch.randint(0, 11, (7,)), torch.randn(7)
    found = chunked_logprobs(head, hidden, labels, temperature)
    (found * upstream).sum().backward()

    weight64 = head.weight.detach().double().requires_grad_()
    hidden64 = hidden.detach().double().requires_grad_()
    logits = hidden64 @ weight64.T
    expected = functional.log_softmax(logits / temperature, -1)[torch.arange(7), labels]
    (expected * upstream.double()).sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(hidden.grad.double(), hidden64.grad, rtol=0, atol=1e-5)
    torch.testing.assert_close(head.weight.grad.double(), weight64.grad, rtol=0, atol=1e-5)


def test_chunked_logprobs_never_hold_all_logits(monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", 2)
    seen = []

    def head(hidden):
        seen.append(len(hidden))
        return hidden @ torch.ones(3, 4)

    hidden, labels = torch.zeros(5, 3, requires_grad=True), torch.zeros(5, dtype=torch.long)
    with torch.no_grad():
        chunked_logprobs(head, hidden, labels)
    assert seen == [2, 2, 1]
    seen.clear()
    chunked_logprobs(head, hidden, labels).sum().backward()  # more than two chunks: each is made again
    assert seen[:3] == [2, 2, 1]
    assert sorted(seen[3:]) == [1, 2, 2]
    seen.clear()
    chunked_logprobs(head, hidden[:4], labels[:4]).sum().backward()
    assert seen == [2, 2]


def test_k1_and_k3_by_hand():
    # p = 1/2, reference = 1/4: k1 = ln(1/2) - ln(1/4) = ln 2; r = -ln 2: k3 = 1/2 + ln 2 - 1.
    policy, reference = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert float(k1_kl(policy, reference)) == pytest.approx(LOG2)
    assert float(k3_kl(policy, reference)) == pytest.approx(0.5 + LOG2 - 1)


@given(logs, st.data())
def test_k3_is_never_negative_and_both_are_zero_for_equal_models(policy, data):
    reference = data.draw(st.lists(st.floats(-8, 0), min_size=len(policy), max_size=len(policy)))
    p, r = torch.tensor(policy, dtype=torch.float64), torch.tensor(reference, dtype=torch.float64)
    assert (k3_kl(p, r) >= -1e-12).all()
    assert not k1_kl(p, p).any()
    assert not k3_kl(p, p).any()


@given(st.lists(st.floats(0.05, 1), min_size=2, max_size=6), st.data())
def test_k1_and_k3_are_unbiased(first, data):
    # The mean under p of either estimate is KL(p || q) = sum p ln(p / q).
    second = data.draw(st.lists(st.floats(0.05, 1), min_size=len(first), max_size=len(first)))
    p, q = (torch.tensor(x, dtype=torch.float64) / sum(x) for x in (first, second))
    exact = float((p * (p / q).log()).sum())
    assert float((p * k1_kl(p.log(), q.log())).sum()) == pytest.approx(exact, abs=1e-9)
    assert float((p * k3_kl(p.log(), q.log())).sum()) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "gradient"),
    [
        # min(rA, clip(r, 0.8, 1.2)A); d/dlogp of rA is rA where the unclipped term is the smaller one, else 0.
        (1.0, 2.0, 2.0, 2.0),
        (1.5, 2.0, 2.4, 0.0),  # 1.2 * 2: a good action is not pushed beyond the clip
        (0.5, 2.0, 1.0, 1.0),  # min(1.0, 1.6): pulled back up
        (1.5, -2.0, -3.0, -3.0),  # min(-3.0, -2.4): pushed back down
        (0.5, -2.0, -1.6, 0.0),  # min(-1.0, -1.6): a bad action is not pushed beyond the clip
    ],
)
def test_ppo_clip_cases(ratio, advantage, surrogate, gradient):
    old = torch.tensor([-2.0])
    new = (old + math.log(ratio)).requires_grad_()
    loss, metrics = ppo_policy_loss(new, old, torch.tensor([advantage]), 4, 0.2)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-surrogate / 4)
    assert float(new.grad) == pytest.approx(-gradient / 4)
    assert float(metrics["clip_fraction"]) == (0.25 if abs(ratio - 1) > 0.2 else 0)
    assert float(metrics["ratio"]) == pytest.approx(ratio / 4)


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "gradient", "is_clipped"),
    [
        (1.25, 2.0, 2.5, 2.5, False),  # clip-higher: up to 1.28 what is rare may grow
        (1.5, 2.0, 2.56, 0.0, True),
        (0.75, 2.0, 1.5, 1.5, True),  # below 1 the clip is still 0.2; pulled back up
        (2.0, -1.0, -2.0, -2.0, True),
        (4.0, -1.0, -3.0, 0.0, True),  # dual clip: a bad action pushes by at most 3
        (0.5, -1.0, -0.8, 0.0, True),
    ],
)
def test_clip_higher_and_dual_clip_cases(ratio, advantage, surrogate, gradient, is_clipped):
    old = torch.tensor([-2.0])
    new = (old + math.log(ratio)).requires_grad_()
    loss, metrics = ppo_policy_loss(new, old, torch.tensor([advantage]), 1, 0.2, clip_high=0.28, dual_clip=3.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-surrogate)
    assert float(new.grad) == pytest.approx(-gradient)
    assert bool(metrics["clip_fraction"]) == is_clipped


def test_the_kl_of_a_step_is_the_old_policys_from_the_new():
    # sampled from the old policy: mean of r - 1 - log r. One token of three that lost most of its probability weighs little.
    old = torch.log(torch.tensor([0.5, 0.5, 0.5]))
    new = torch.log(torch.tensor([0.5, 1.0, 0.0005]))
    _, metrics = ppo_policy_loss(new, old, torch.zeros(3), 3)
    expected = ((2 - 1 - math.log(2)) + (0.001 - 1 - math.log(0.001))) / 3
    assert float(metrics["approx_kl"]) == pytest.approx(expected, rel=1e-4)


def test_length_weights_by_hand():
    # two episodes of 3 and 1 tokens; the second token of the first counts double
    weights, episodes = torch.tensor([1.0, 2.0, 1.0, 1.0]), torch.tensor([7, 7, 7, 9])
    assert length_weights(weights, episodes, "token").tolist() == pytest.approx([0.8, 1.6, 0.8, 0.8])  # they sum to 4
    # each episode has half of 4
    assert length_weights(weights, episodes, "episode").tolist() == pytest.approx([0.5, 1.0, 0.5, 2.0])
    # each token counts as one of 10 of one of 2 episodes; over 4 tokens: 4 / 20
    assert length_weights(weights, episodes, "constant", 10).tolist() == pytest.approx([0.2, 0.4, 0.2, 0.2])


@given(st.lists(st.tuples(st.floats(0.1, 5), st.integers(0, 3)), min_size=1, max_size=20), st.randoms())
def test_length_weights_sum_to_the_tokens_in_any_order(tokens, dice):
    shuffled = tokens[:]
    dice.shuffle(shuffled)
    for norm in ("token", "episode"):
        weights, episodes = (torch.tensor(column) for column in zip(*shuffled, strict=True))
        found = length_weights(weights.double(), episodes, norm)
        assert float(found.sum()) == pytest.approx(len(tokens))
        if norm == "episode":
            sums = torch.zeros(4, dtype=torch.float64).index_add_(0, episodes, found)
            held = sums[episodes.unique()]
            assert held.tolist() == pytest.approx([float(held[0])] * len(held))


def test_logprobs_and_entropy_equal_each_alone(monkeypatch):
    monkeypatch.setattr("project.losses.CHUNK", 3)
    head, hidden, labels = torch.nn.Linear(4, 7), torch.randn(11, 4, requires_grad=True), torch.randint(7, (11,))
    logprobs, entropy = chunked_logprobs_and_entropy(head, hidden, labels, 0.7)
    torch.testing.assert_close(logprobs, token_logprobs(head(hidden), labels, 0.7))
    torch.testing.assert_close(entropy, token_entropy(head(hidden), 0.7))
    (gradient,) = torch.autograd.grad((logprobs + entropy).sum(), hidden)
    (expected,) = torch.autograd.grad(
        (token_logprobs(head(hidden), labels, 0.7) + token_entropy(head(hidden), 0.7)).sum(), hidden
    )
    torch.testing.assert_close(gradient, expected)


def test_ppo_importance_weighs_each_token():
    # r = 1, A = 2 and -1, importance 0.5 and 2: -(0.5 * 2 + 2 * -1) / 2 = 0.5.
    old = torch.zeros(2)
    loss, _ = ppo_policy_loss(old, old, torch.tensor([2.0, -1.0]), 2, weights_N=torch.tensor([0.5, 2.0]))
    assert float(loss) == pytest.approx(0.5)


@given(logs, st.data())
def test_ppo_at_the_start_of_an_update(logprobs, data):
    advantages = data.draw(st.lists(st.floats(-3, 3), min_size=len(logprobs), max_size=len(logprobs)))
    new = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    a = torch.tensor(advantages, dtype=torch.float64)
    loss, metrics = ppo_policy_loss(new, new.detach(), a, len(a))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-float(a.mean()))  # every ratio is 1
    torch.testing.assert_close(new.grad, -a / len(a))  # the plain policy gradient
    assert (float(metrics["ratio"]), float(metrics["clip_fraction"]), float(metrics["approx_kl"])) == (1, 0, 0)


def test_value_loss_by_hand():
    # old 0, clip 0.2. value 1, return 1: clipped to 0.2, max(0, 0.8^2) = 0.64. value 0.1, return 1: 0.9^2 = 0.81.
    # value -1, return 1: max(2^2, 1.2^2) = 4. Half the sum over 3: 0.5 * 5.45 / 3.
    values = torch.tensor([1.0, 0.1, -1.0], requires_grad=True)
    loss, metrics = value_loss(values, torch.zeros(3), torch.ones(3), 3, clip=0.2)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.5 * 5.45 / 3)
    # No gradient where the clipped error is the larger; else (v - R) / 3.
    assert values.grad.tolist() == pytest.approx([0, -0.9 / 3, -2 / 3])
    assert float(metrics["value_change"]) == pytest.approx(2.1 / 3)
    # Without clipping: (0 + 0.81 + 4) / 6, and the gradient (v - R) / 3 everywhere.
    plain, _ = value_loss(values, torch.zeros(3), torch.ones(3), 3)
    assert float(plain.detach()) == pytest.approx(4.81 / 6)


def test_explained_variance_by_hand():
    returns = torch.tensor([0.0, 2.0])  # variance 1
    assert float(explained_variance(returns, returns)) == 1
    assert float(explained_variance(torch.tensor([5.0, 5.0]), returns)) == 0
    assert float(explained_variance(torch.tensor([2.0, 0.0]), returns)) == -3  # errors -2, 2: 1 - 4 / 1
    assert float(explained_variance(torch.tensor([0.0, 3.0]), torch.ones(2))) == 0  # returns do not vary
