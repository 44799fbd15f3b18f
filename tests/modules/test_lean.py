"""Lean norms and MLPs: the same values and gradients as transformers' own, less kept, and only where they are the same."""

import pytest
import torch
from torch import nn

from project.modules.lean import make_lean


def layers(name, dtype=torch.float32, **changes):
    from importlib import import_module

    from transformers import AutoConfig

    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16}
    config = AutoConfig.for_model(name, **sizes, **changes)
    prefix = {"llama": "Llama", "qwen3": "Qwen3", "gemma": "Gemma"}[name]
    module = import_module(f"transformers.models.{name}.modeling_{name}")
    torch.manual_seed(0)
    both = nn.ModuleDict({"norm": getattr(module, f"{prefix}RMSNorm")(24), "mlp": getattr(module, f"{prefix}MLP")(config)})
    nn.init.normal_(both["norm"].weight, 1.0, 0.3)
    return both.to(dtype)


def passes(module, x):
    """The output, and the gradients of the input and of every weight."""
    x = x.clone().requires_grad_()
    out = module(x)
    upstream = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad(out, [x, *module.parameters()], upstream)]


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize(("dtype", "noise"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("part", ["norm", "mlp"])
def test_values_and_gradients_are_those_of_transformers(name, dtype, noise, mixed, part):
    """Mixed = under autocast, as full training in bf16-mixed runs float32 weights."""
    modules = layers(name, dtype)
    x = torch.randn(1, 7, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        expected = passes(modules[part], x)
        assert sum(make_lean(modules).values()) == 2
        found = passes(modules[part], x)
    assert torch.equal(found[0], expected[0])
    for gradient, wanted in zip(found[1:], expected[1:], strict=True):
        assert gradient.dtype is wanted.dtype
        assert float((gradient - wanted).float().norm() / wanted.float().norm()) < (0.01 if mixed else noise)


def test_gradients_are_right_in_finite_differences():
    modules = layers("llama", torch.float64)
    make_lean(modules)
    x = torch.randn(2, 24, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(modules["mlp"], (x,))
    # The norm computes in float32, as transformers' does: differences over a longer way.
    assert torch.autograd.gradcheck(modules["norm"], (x,), eps=1e-2, atol=1e-2)


def test_a_norm_by_hand():
    """x = (3, 4) has rms sqrt(12.5); with the weight (1, 2) the output is (3, 8) / sqrt(12.5)."""
    module = nn.ModuleDict({"norm": layers("llama")["norm"]})
    module["norm"].weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    module["norm"].variance_epsilon = 0.0
    assert make_lean(module) == {"LlamaRMSNorm": 1}
    torch.testing.assert_close(module["norm"](torch.tensor([[3.0, 4.0]])), torch.tensor([[3.0, 8.0]]) / 12.5**0.5)


def test_modules_of_another_formula_stay_as_they_are():
    gemma = layers("gemma")  # 1 + weight, and a GELU
    assert make_lean(gemma) == {}
    assert not any("forward" in vars(module) for module in gemma.modules())
    assert make_lean(layers("llama", hidden_act="gelu")) == {"LlamaRMSNorm": 1}


def test_a_default_device_does_not_confuse_the_check():
    modules = layers("llama")
    with torch.device("meta"):  # as Lightning loads models under the GPU's
        assert sum(make_lean(modules).values()) == 2


def test_less_is_kept_for_backward():
    def kept(modules):
        blocks = {}
        x = torch.randn(1, 64, 24, dtype=torch.bfloat16, requires_grad=True)
        for weight in modules.parameters():
            weight.requires_grad_(False)

        def note(tensor):
            blocks[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            modules["mlp"](modules["norm"](x))
        weights = {w.untyped_storage().data_ptr() for w in modules.parameters()}
        return sum(t.untyped_storage().nbytes() for at, t in blocks.items() if at not in weights) / 64

    plain, lean = layers("llama", torch.bfloat16), layers("llama", torch.bfloat16)
    make_lean(lean)
    # Lean, a token: x 48 bytes, 1 / rms 4, gate and up 80 each. Plain: x in float32 96, 4 more, gate, silu(gate) and up.
    assert kept(lean) == 48 + 4 + 160
    assert kept(plain) >= 96 + 4 + 240
