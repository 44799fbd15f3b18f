"""Attention over packed samples: each as if alone, however it is computed, and refused where it would be another."""

import pytest
import torch
from torch.nn import functional

from project.errors import InputError
from project.modules import attention
from project.modules.attention import packed_attention

LENGTHS = [5, 1, 9, 3]


def make(dtype=torch.float64, device="cpu", lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, sum(lengths), 8) for heads in (6, 2, 2)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_() for s in shapes]


def alone(query, key, value, lengths=LENGTHS):
    """Each sample by PyTorch's own causal attention, its keys copied for the heads that share them."""
    parts = zip(*(x.split(lengths, 2) for x in (query, key, value)), strict=True)
    outs = []
    for q, k, v in parts:
        k, v = (x.repeat_interleave(3, 1) for x in (k, v))
        outs.append(functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2))
    return torch.cat(outs, 1)


@pytest.mark.parametrize("long", [0, 4, 1024], ids=["flash", "both", "scores"])
def test_each_sample_is_attended_to_as_if_alone(monkeypatch, long):
    monkeypatch.setattr(attention, "LONG", long)
    inputs = make()
    upstream = torch.randn(1, sum(LENGTHS), 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, weights = packed_attention(None, *inputs, None, lengths=LENGTHS)
    assert weights is None
    gradients = torch.autograd.grad(found, inputs, upstream)
    expected = alone(*inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, inputs, upstream), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


def test_in_bf16_the_shares_are_rounded_once():
    """Of rows of 600 equal scores each share is 1 / 600, and their sum in float32: summed in bf16 it would stall at 256."""
    zeros = torch.zeros(1, 2, 600, 8, dtype=torch.bfloat16, requires_grad=True)
    value = torch.ones(1, 2, 600, 8, dtype=torch.bfloat16)
    found, _ = packed_attention(None, zeros, zeros, value, None, lengths=[600])
    torch.testing.assert_close(found.float(), torch.ones(1, 600, 2, 8), rtol=0, atol=2**-8)


def test_no_sample_sees_another():
    """The second sample's gradient reaches nothing of the first, and the first's nothing later in itself."""
    inputs = make()
    found, _ = packed_attention(None, *inputs, None, lengths=LENGTHS)
    for at, seen in ((2, range(3)), (5, [5]), (8, range(6, 9)), (17, range(15, 18))):
        (gradient,) = torch.autograd.grad(found[0, at].sum(), inputs[2], retain_graph=True)
        assert gradient.abs().sum((0, 1, 3)).nonzero().flatten().tolist() == list(seen)


def test_the_scaling_is_the_layers():
    inputs = make()
    found, _ = packed_attention(None, *inputs, None, lengths=LENGTHS, scaling=0.0)
    # Scores of 0: each token takes the mean of the values up to it.
    expected = inputs[2].detach()[0, 0, :5].cumsum(0) / torch.arange(1, 6)[:, None]
    torch.testing.assert_close(found[0, :5, 0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("asked", [{"sliding_window": 64}, {"softcap": 50.0}, {"s_aux": torch.zeros(6)}])
def test_attention_that_is_not_plain_is_refused(asked):
    with pytest.raises(InputError, match=f"the model asks for {next(iter(asked))}; give a model without it"):
        packed_attention(None, *make(), None, lengths=LENGTHS, **asked)


@pytest.mark.gpu
def test_the_cuda_kernel_agrees():
    lengths = [300, 1, 77, 1500]
    inputs = make(torch.bfloat16, "cuda", lengths)
    found, _ = packed_attention(None, *inputs, None, lengths=lengths)
    expected = alone(*(x.double() for x in inputs), lengths)
    upstream = torch.randn_like(expected)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-2)
    pairs = zip(
        torch.autograd.grad(found, inputs, upstream.bfloat16()), torch.autograd.grad(expected, inputs, upstream), strict=True
    )
    for gradient, wanted in pairs:
        assert float((gradient.double() - wanted.double()).norm() / wanted.double().norm()) < 0.02
