"""How far a training is, in a log."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
from pytest import CaptureFixture, MonkeyPatch
from tracking.boring import BoringAgent, BoringData

from project.lightning_cli import run
from project.modules import log_lines

FIT = ["fit", "--model", BoringAgent.__name__, "--data", BoringData.__name__, "--trainer.logger", "false"]
FIT += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "2"]


def test_a_line_now_and_then(monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]) -> None:
    monkeypatch.setattr(log_lines, "FIRST_S", 0.0)
    monkeypatch.setattr(log_lines, "EVERY_S", 0.0)
    run(FIT)
    out, error = capsys.readouterr()
    lines = [line for line in error.splitlines() if "epoch" in line]
    assert len(lines) == 4  # two epochs of two batches
    assert re.match(r"seeker: epoch 2 of 2, batch 1 of 2, [\d.e-]+ s each, about \d+ s left", lines[2])
    assert "about 0 s left" in lines[3]
    assert "\r" not in out + error


def test_a_short_training_says_nothing(capsys: CaptureFixture[str]) -> None:
    run(FIT)
    assert "epoch" not in "".join(capsys.readouterr())


def test_the_first_line_comes_early_and_the_next_after_a_minute(monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]) -> None:
    monkeypatch.setattr(log_lines, "FIRST_S", 0.0)
    run(FIT)
    assert capsys.readouterr().err.count("epoch") == 1


@pytest.mark.parametrize(
    ("max_steps", "accumulate", "left"),
    [(-1, 1, "35 s"), (3, 1, "10 s"), (3, 2, "20 s"), (99, 1, "35 s")],
    ids=["epochs", "steps", "steps of two batches", "the epochs end first"],
)
def test_the_time_left_is_to_the_last_step(max_steps: int, accumulate: int, left: str) -> None:
    """After the first of two epochs' four batches, each of five seconds."""
    trainer: Any = SimpleNamespace(num_training_batches=4, max_epochs=2, current_epoch=0, global_step=1, callback_metrics={})
    trainer.max_steps, trainer.accumulate_grad_batches = max_steps, accumulate
    assert log_lines.LogLines().line(trainer, 1, 5.0).endswith(f"about {left} left")
