"""The tasks of `seeker test` beside the loss of an SFT, by a process of its own."""

import json
from pathlib import Path

import pytest
from pytest import CaptureFixture

from project.cli import main
from project.tracking.store import find_run, metric_curve, run_metrics

DEBUG = Path(__file__).resolve().parents[2] / "experiments" / "debug"


def _config(tmp_path: Path, *options: str) -> Path:
    path = tmp_path / "validate.yaml"
    arguments = {"config": str(DEBUG / "test.yaml"), "options": list(options)}
    callback = {"class_path": "project.modules.validate_agent.ValidateAgent", "init_args": arguments}
    path.write_text(json.dumps({"trainer": {"callbacks": [callback], "max_epochs": 2}}))
    return path


@pytest.mark.slow
def test_the_agent_is_measured_after_each_validation(with_facts: Path) -> None:
    words = ["fit", "--config", str(DEBUG / "sft.yaml"), "--config", str(_config(with_facts, "--data.limit", "3"))]
    assert main([*words, "--trainer.default_root_dir", "sft"]) == 0
    run = find_run("sft")
    curve = metric_curve(run.info.run_id, "agent/em")
    assert len(curve) == 2, "one a validation, and none of the sanity check"
    assert list(curve) == list(metric_curve(run.info.run_id, "val/loss"))
    last = json.loads(next(iter(sorted(Path("sft/agent_validation").glob("step-*/summary.json")))).read_text())
    assert last["n"] == last["metrics"]["em"]["n"] == 3
    assert run_metrics(run)["agent/turns"] >= 1


@pytest.mark.slow
def test_a_measurement_that_cannot_be_made_ends_the_training_at_once(with_facts: Path, capsys: CaptureFixture[str]) -> None:
    config = _config(with_facts, "--data.test_file", "gone.jsonl")
    assert main(["fit", "--config", str(DEBUG / "sft.yaml"), "--config", str(config)]) == 1
    said = capsys.readouterr().err
    assert "the agent could not be measured at step" in said
    assert "gone.jsonl" in said


def test_bad_options(with_facts: Path, capsys: CaptureFixture[str]) -> None:
    config = _config(with_facts)
    config.write_text(config.read_text().replace("test.yaml", "gone.yaml"))
    assert main(["fit", "--config", str(DEBUG / "sft.yaml"), "--config", str(config)]) == 2
    assert "gone.yaml must be a file" in capsys.readouterr().err
