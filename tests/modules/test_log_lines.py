"""How far a training is, in a log."""

import re

from pytest import CaptureFixture, MonkeyPatch
from tracking.boring import BoringAgent, BoringData

from project.lightning_cli import run
from project.modules import log_lines

FIT = ["fit", "--model", BoringAgent.__name__, "--data", BoringData.__name__, "--trainer.logger", "false"]
FIT += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "2"]


def test_a_line_now_and_then(monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]) -> None:
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
