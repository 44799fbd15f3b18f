"""Overrides of verl's SFT trainer as options of `seeker fit`: each has one, or is refused with what there is instead."""

import pytest

from project.errors import InputError
from project.lightning_cli import resolved
from project.progressive.hydra import NAMES, OTHERWISE, main, translate

NUMBERS = {"data.max_length", "model.lora_rank", "model.lora_alpha", "trainer.total_epochs", "trainer.total_training_steps",
           "trainer.seed", "trainer.nnodes", "trainer.n_gpus_per_node"}  # fmt: skip
FILES = {"data.train_files", "data.val_files", "model.partial_pretrain", "model.path"}


def test_every_translated_name_is_an_option_of_fit() -> None:
    words = []
    for name in NAMES:
        value = "2" if name in NUMBERS else "tiny-random" if name in FILES else "true" if "enable" in name else "0.5"
        words.append(translate(f"{name}={value}"))
    found = resolved(["--config", "experiments/debug/phase.yaml", *words])
    assert found.settings.model.init_args.learning_rate == 0.5
    assert found.settings.model.init_args.lora.rank == 2
    assert found.settings.trainer.gradient_clip_val == 0.5


@pytest.mark.parametrize(
    ("word", "option"),
    [
        ("trainer.total_epochs=10", "--trainer.max_epochs=10"),
        ("+data.max_length=4096", "--data.micro_tokens=4096"),
        ("model.lora_rank=0", "--model.lora=null"),
        ("phase2.optim.lr=5e-6", "--phase2.model.learning_rate=5e-6"),
        ("--data.limit=3", "--data.limit=3"),
    ],
)
def test_translations(word: str, option: str) -> None:
    assert translate(word) == option


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_has_no_counterpart_is_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(InputError, match="has no counterpart; in its place Seeker has"):
        translate(f"{name}=1")
    assert name not in NAMES


def test_the_table_is_printed_and_options_with_values_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--phases", "2,3", "optim.lr=1e-5"]) == 0
    said = capsys.readouterr()
    assert said.out == "--phases\n2,3\n--model.learning_rate=1e-5\n"
    assert said.err.split() == ["optim.lr=1e-5", "->", "--model.learning_rate=1e-5"]
    assert main(["optim.lrr=1"]) == 2
    assert "optim.lr is --model.learning_rate" in capsys.readouterr().err
    assert main(["fast"]) == 2
