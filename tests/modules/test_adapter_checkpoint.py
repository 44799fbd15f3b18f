"""Checkpoints leave the frozen base out, pin it, and are refused on another."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_model_folder

from project.environment.search import EpisodeLimits
from project.errors import InputError
from project.modules.adapter_checkpoint import BASE_DIGEST, base_digest, frozen_state
from project.modules.agent import SearchAgent
from project.modules.policy import AgentSettings, LoRA
from project.modules.sft import SFT


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("base")
    return tiny_model_folder(base / "a"), tiny_model_folder(base / "b", seed=1)


def module(folder, lora=LoRA(4, 8.0)):  # noqa: B008 - frozen
    made = SFT(str(folder), AgentSettings("tags", False), lora, "float32")
    made.configure_model()
    return made


def saved(of):
    checkpoint = {"state_dict": {name: value.clone() for name, value in of.state_dict().items()}}
    of.on_save_checkpoint(checkpoint)
    return checkpoint


def test_a_checkpoint_holds_the_adapter_and_what_its_base_was(folders):
    of = module(folders[0])
    checkpoint = saved(of)
    assert checkpoint["state_dict"]
    assert all("lora_" in name for name in checkpoint["state_dict"])
    assert checkpoint[BASE_DIGEST] == base_digest(str(folders[0])) != base_digest(str(folders[1]))
    again = module(folders[0])
    with torch.no_grad():
        next(p for p in again.parameters() if p.requires_grad).add_(1)
    again.on_load_checkpoint(checkpoint)
    again.load_state_dict(checkpoint["state_dict"], strict=True)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in of.state_dict().items())


def test_another_base_is_refused(folders):
    checkpoint = saved(module(folders[0]))
    with pytest.raises(InputError, match="give the base it was trained on"):
        module(folders[1]).on_load_checkpoint(checkpoint)


def test_the_base_is_pinned_as_it_was_loaded(folders, tmp_path):
    folder = shutil.copytree(folders[0], tmp_path / "base")
    of = module(folder)
    shutil.copytree(folders[1], folder, dirs_exist_ok=True)  # another training exports into it meanwhile
    checkpoint = saved(of)
    assert checkpoint[BASE_DIGEST] == base_digest(str(folders[0]))
    with pytest.raises(InputError, match="give the base it was trained on"):
        module(folder).on_load_checkpoint(checkpoint)


def test_a_resumed_optimizer_with_other_numbers_is_refused(folders):
    of = module(folders[0])
    checkpoint = saved(of)
    again = module(folders[0])
    again.learning_rate = 2 * of.learning_rate
    again.on_load_checkpoint(dict(checkpoint))  # a test of the checkpoint trains nothing
    again._trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"))
    with pytest.raises(InputError, match=f"learning_rate={again.learning_rate}.* goes on with {of.learning_rate}; give that"):
        again.on_load_checkpoint(checkpoint)


def test_full_training_keeps_every_weight_and_pins_nothing(folders):
    of = module(folders[0], lora=None)
    checkpoint = saved(of)
    assert not frozen_state(of)
    assert set(checkpoint["state_dict"]) == set(of.state_dict())
    assert BASE_DIGEST not in checkpoint


def test_rollouts_refuse_a_model_that_was_trained_on_rewritten_history(folders):
    settings = AgentSettings("tags", False, "template")
    with pytest.raises(InputError, match="train it with history: append"):
        SearchAgent(str(folders[0]), settings, retrieval_url="http://127.0.0.1:1")
    SearchAgent(str(folders[0]), settings, limits=EpisodeLimits(max_turns=1))  # one turn has no history
