"""The tiny random model: made once, the same everywhere, and good for any text."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from project.dialects import get_dialect
from project.modules.policy import load_tokenizer, resolve_model_path
from project.tiny_model import SPECIAL_TOKENS, byte_tokenizer, tiny_model


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_made_once_from_the_seed(tmp_path: Path) -> None:
    rng = torch.random.get_rng_state()
    folder = tiny_model()
    assert folder == tmp_path / "cache/seeker/models/tiny-random"
    assert torch.equal(rng, torch.random.get_rng_state())
    weights = (folder / "model.safetensors").read_bytes()
    stamp = (folder / "model.safetensors").stat().st_ino
    assert tiny_model() == folder
    assert (folder / "model.safetensors").stat().st_ino == stamp
    assert tiny_model(1) != folder
    assert (tiny_model(1) / "model.safetensors").read_bytes() != weights
    (folder / "tiny.json").unlink()  # a folder that was not completed is made again
    assert (tiny_model() / "model.safetensors").read_bytes() == weights
    assert [path.name for path in sorted(folder.parent.iterdir())] == ["tiny-random", "tiny-random-1"]


def test_it_is_a_model_folder_that_configs_can_name() -> None:
    folder = resolve_model_path("tiny-random")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer, new = load_tokenizer(folder, get_dialect("tags"))
    assert model.config.num_hidden_layers == 2
    assert model.get_input_embeddings().num_embeddings == 256 + len(SPECIAL_TOKENS)
    assert new == [259, 260]  # <|SEARCH|> and <|ANSWER|>, after 256 bytes and three special tokens
    assert tokenizer.eos_token == "<|im_end|>"


def test_every_byte_is_a_token() -> None:
    tokenizer = byte_tokenizer()
    text = "Tögrög – 東京\n\t \U0001f600<|im_start|>user\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode()) - len("<|im_start|>") + 1
    assert tokenizer.decode(ids) == text
    folder = tiny_model()
    assert AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"] == ids
