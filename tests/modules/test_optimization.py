"""The optimizer: what decays, its step by hand, and what is refused."""

import pytest
import torch
from torch import nn

from project.errors import InputError
from project.modules.optimization import check_rates, make_optimizer


def test_norms_and_biases_do_not_decay():
    """With a gradient of 0 AdamW only shrinks what decays: by learning rate x weight decay = 0.1 x 0.5."""
    module = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Embedding(4, 2))
    nn.init.ones_(module[0].bias)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = make_optimizer(module, 0.1, 0.5)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    shrunk = {name: 0.95 if name in ("0.weight", "2.weight") else 1.0 for name in before}
    for name, p in module.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * shrunk[name])


def test_a_first_step_by_hand():
    """Adam's first step is learning rate x sign(gradient), whatever the gradient's size."""
    module = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(module.weight)
    module.weight.grad = torch.tensor([[3.0, -0.01]])
    make_optimizer(module, 0.25).step()
    torch.testing.assert_close(module.weight.detach(), torch.tensor([[-0.25, 0.25]]), rtol=0, atol=1e-5)


def test_frozen_parameters_are_left_out():
    module = nn.Linear(2, 2)
    module.weight.requires_grad_(False)
    assert [p for group in make_optimizer(module, 0.1).param_groups for p in group["params"]] == [module.bias]
    module.bias.requires_grad_(False)
    with pytest.raises(InputError, match="no parameter of the model is trained"):
        make_optimizer(module, 0.1)


def test_eight_bits_need_a_gpu():
    with pytest.raises(InputError, match="adamw_8bit needs a GPU, and the parameters are on cpu; take adamw"):
        make_optimizer(nn.Linear(2, 2), 0.1, name="adamw_8bit")


@pytest.mark.gpu
def test_eight_bits_on_a_gpu_take_the_same_first_step():
    module = nn.Linear(256, 256, device="cuda")
    before = module.weight.detach().clone()
    module(torch.ones(1, 256, device="cuda")).sum().backward()
    make_optimizer(module, 0.25, name="adamw_8bit").step()
    torch.testing.assert_close(module.weight.detach(), before - 0.25, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ({"learning_rate": -1.0}, "model.learning_rate=-1.0 must be a number from 0"),
        ({"learning_rate": 1e-3, "weight_decay": float("nan")}, "model.weight_decay=nan must be a number from 0"),
        ({"critic_learning_rate": float("inf")}, "model.critic_learning_rate=inf must be a number from 0"),
        ({"warmup_share": 1.5}, "model.warmup_share=1.5 must be from 0 to 1"),
    ],
)
def test_rates_that_cannot_be_are_refused(rates, words):
    check_rates(learning_rate=0.0, warmup_share=1.0)
    with pytest.raises(InputError) as refused:
        check_rates(**rates)
    assert str(refused.value) == words
