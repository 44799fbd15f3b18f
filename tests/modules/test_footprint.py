"""Memory worked out on shapes: counted by hand for a tiny model, and against what lives in a real step."""

import pytest
import torch
from tiny import tiny_model_folder

from project.modules.footprint import NF4_BYTES, LiveBytes, Step, footprint
from project.modules.policy import AgentSettings, LoRA, load_tokenizer

LENGTHS = [40, 24]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = str(tiny_model_folder(tmp_path_factory.mktemp("footprint") / "model"))
    return (folder, *load_tokenizer(folder, AgentSettings().make_dialect()))


def test_bytes_live_from_the_making_of_a_storage_to_its_end():
    with LiveBytes() as live:
        one = torch.zeros(1000)  # 4,000 bytes
        view = one[10:]
        assert live.live == 4000
        two = one + 1
        assert (live.live, live.peak) == (8000, 8000)
        del one
        assert live.live == 8000, "the view holds it"
        del view, two
        assert (live.live, live.peak) == (0, 8000)


def test_parts_by_hand(tiny):
    """All weights in float32: 4 bytes each, as many for gradients, twice for AdamW's moments and a step count a tensor."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny[0])
    added = len(tiny[2]) * 32  # the new tokens' rows, tied
    weights = sum(parameter.numel() for parameter in model.parameters()) + added
    tensors = len(list(model.parameters()))
    found = footprint(*tiny, None, Step(LENGTHS, "float32", autocast=False))
    assert (found.parameters, found.trainable) == (weights, weights)
    buffers = 4 * 2 * 4  # 4 frequencies of heads of 8, twice
    assert found.weights == 4 * weights + buffers
    assert found.gradients == 4 * weights
    assert found.optimizer == 2 * 4 * weights + 4 * tensors
    assert found.activations > 64 * 32 * 4 * 2, "at least what goes into each of the two layers"
    assert found.total == found.weights + found.gradients + found.optimizer + found.activations


def test_what_saves_memory_does(tiny):
    step = Step(LENGTHS * 8, "float32", autocast=False)
    whole = footprint(*tiny, None, step)
    adapter = footprint(*tiny, LoRA(2, 4), step)
    checkpointing = footprint(*tiny, None, Step(step.lengths, "float32", autocast=False, gradient_checkpointing=True))
    accumulating = footprint(*tiny, None, Step(step.lengths, "float32", autocast=False, accumulates=True))
    half = footprint(*tiny, LoRA(2, 4), Step(step.lengths, "bfloat16"))
    assert adapter.optimizer < whole.optimizer / 2
    assert checkpointing.activations < 0.8 * whole.activations
    assert whole.total < accumulating.total <= whole.total + whole.gradients
    assert half.weights < 0.8 * adapter.weights


def test_four_bits_are_counted_as_they_are_held(tiny):
    step = Step(LENGTHS, "float32", autocast=False)
    plain, nf4 = footprint(*tiny, LoRA(2, 4), step), footprint(*tiny, LoRA(2, 4, nf4=True), step)
    # q and o 32 x 32, k and v 16 x 32, gate, up and down 32 x 64; two layers
    linear = 2 * (2 * 1024 + 2 * 512 + 3 * 2048)
    assert plain.weights - nf4.weights == pytest.approx(linear * (4 - NF4_BYTES), abs=20)
    assert nf4.activations - plain.activations == 4 * 2048, "the largest is whole while it is computed"
    assert (nf4.parameters, nf4.gradients, nf4.optimizer) == (plain.parameters, plain.gradients, plain.optimizer)


def test_shards_and_what_is_gathered(tiny):
    found = footprint(*tiny, None, Step(LENGTHS, "float32", autocast=False))
    own = found.sharded(4, whole=1000)
    assert own.weights == found.weights // 4 + 1000
    assert (own.gradients, own.optimizer) == (found.gradients // 4, found.optimizer // 4)
    assert own.activations == found.activations


def test_nothing_but_the_config_is_read(tiny, tmp_path):
    """As for a model of 7 billion parameters on a laptop."""
    import shutil

    bare = shutil.copytree(tiny[0], tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    step = Step(LENGTHS, "float32", autocast=False)
    assert footprint(str(bare), *tiny[1:], None, step) == footprint(*tiny, None, step)
