"""What a run leaves in the store, through the real command line and a real SQLite store."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from pytest import CaptureFixture

from project.cli import main
from project.files import file_digest, read_rows
from project.manifests import plan, read_manifest, write_outputs
from project.tracking.logger import SeekerLogger
from project.tracking.store import all_runs, client, dataset_manifests, find_run, metric_curve, run_params


def test_a_run_records_what_its_data_was_made_from(config: Path, tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    train, table, raw = (tmp_path / f"{name}.jsonl" for name in ("train", "table", "raw"))
    raw.write_text('{"id": "1"}\n')
    rows = [row for _, row in read_rows(train)]
    write_outputs(plan("seeker data traces", {"filters": ["correct"]}, [raw]), {table: [{"id": "1"}]})
    write_outputs(plan("seeker data split", {"seed": 7}, [table]), {train: rows}, force=True)
    made = {"rows": len(rows), "digest": file_digest(train)}
    assert main(["fit", "--config", str(config)]) == 0
    (found,) = dataset_manifests(find_run("first").info.run_id).values()
    assert found == read_manifest(train)
    assert json.loads(find_run("first").inputs.dataset_inputs[0].dataset.profile) == made
    capsys.readouterr()
    assert main(["lineage", "first"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    parts = [
        "dataset train",
        "made by seeker data split",
        "seed=7",
        "table.jsonl",
        "seeker data traces",
        "['correct']",
        "raw.jsonl",
    ]
    assert [shown.index(part) for part in parts] == sorted(shown.index(part) for part in parts)


def test_a_run_records_config_code_data_and_checkpoints(config: Path, tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(config)]) == 0
    run = find_run("first")
    tags, folder = run.data.tags, tmp_path / "runs" / "first"
    assert f"tracking run 'first' ({run.info.run_id}) in sqlite:///{tmp_path}/mlflow.db" in capsys.readouterr().err
    assert (folder / "mlflow_run_id").read_text().strip() == run.info.run_id
    assert tags["dataset.train"] == file_digest(tmp_path / "train.jsonl")
    assert run.inputs.dataset_inputs[0].dataset.digest == tags["dataset.train"]
    assert tags["checkpoint.last"] == str(folder / "checkpoints" / "last.ckpt")
    assert Path(tags["checkpoint.best"]).is_file()
    assert tags["version.torch"] == torch.__version__
    assert run.info.status == "FINISHED"
    assert run_params(run)["model.learning_rate"] == "0.1"
    artifact = client().download_artifacts(run.info.run_id, "config.yaml", str(tmp_path))
    assert yaml.safe_load(Path(artifact).read_text())["model"]["init_args"]["learning_rate"] == 0.1


def test_trap_13_last_checkpoint_is_by_name(config: Path, tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(config)]) == 0
    checkpoints = tmp_path / "runs" / "first" / "checkpoints"
    newer = checkpoints / "last-v1.ckpt"
    newer.write_bytes((checkpoints / "last.ckpt").read_bytes())
    assert main(["fit", "--config", str(config), "--ckpt_path", "last"]) == 2
    assert "last.ckpt" in capsys.readouterr().err


def test_trap_15_resume_goes_on_in_the_same_run(config: Path, tmp_path: Path) -> None:
    words = ["fit", "--config", str(config)]
    with pytest.raises(RuntimeError, match="killed"):
        main([*words, "--trainer.max_epochs", "2", "--model.stop_at", "3"])
    killed = find_run("first")
    assert killed.info.status == "FAILED"
    assert main([*words, "--trainer.max_epochs", "3", "--ckpt_path", "last"]) == 0
    assert [run.info.run_id for run in all_runs()] == [killed.info.run_id]
    run = find_run("first")
    assert run.info.status == "FINISHED"
    assert run_params(run)["trainer.max_epochs"] == "3"
    assert run_params(run)["model.stop_at"] == "-1"
    assert list(metric_curve(run.info.run_id, "loss")) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("steps", [4, 3], ids=["inside", "at the last step"])
def test_trap_15_a_kill_between_checkpoint_and_log_loses_no_metric(config: Path, tmp_path: Path, steps: int) -> None:
    """Lightning saves inside a step's hooks and logs after them."""
    words = ["fit", "--config", str(config), "--trainer.max_epochs", "2", "--trainer.max_steps", str(steps)]
    words += ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=1"]
    log = SeekerLogger.log_metrics

    def die(self: SeekerLogger, metrics: dict[str, float], step: int) -> None:
        if step == 2:
            raise RuntimeError("killed")
        log(self, metrics, step)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(SeekerLogger, "log_metrics", die)
        main(words)
    run_id = find_run("first").info.run_id
    assert list(metric_curve(run_id, "loss")) == [0, 1]
    checkpoint = next((tmp_path / "runs" / "first" / "checkpoints").glob("epoch=1-step=3*.ckpt"))
    assert main([*words, "--ckpt_path", str(checkpoint)]) == 0
    assert list(metric_curve(run_id, "loss")) == list(range(steps))
    assert metric_curve(run_id, "epoch")[2] == 1


def test_trap_15_parameters_are_not_cut(config: Path, tmp_path: Path) -> None:
    long, longer = "x" * 5000, "y" * 6001
    for name, prompt in {"long": long, "longer": longer}.items():
        words = ["--trainer.logger.run_name", name, "--model.prompt", prompt]
        assert main(["fit", "--config", str(config), *words]) == 0
    assert run_params(find_run("long"))["model.prompt"] == long
    run = find_run("longer")
    assert run_params(run)["model.prompt"] == "see artifact params/model.prompt.txt"
    artifact = client().download_artifacts(run.info.run_id, "params/model.prompt.txt", str(tmp_path))
    assert Path(artifact).read_text() == longer


def test_the_run_that_made_the_model_is_the_parent(config: Path, tmp_path: Path) -> None:
    assert main(["fit", "--config", str(config)]) == 0
    parent = find_run("first").info.run_id
    model = tmp_path / "runs" / "first" / "model"
    model.mkdir()
    words = ["--config", str(config), "--trainer.logger.run_name", "measured"]
    assert main(["test", *words, "--model.model_path", str(model)]) == 0
    run = find_run("measured")
    assert run.data.tags["seeker.parent"] == parent
    assert run.data.metrics["test/em"] == 0.5
    assert main(["fit", *words, "--ckpt_path", str(model.parent / "checkpoints" / "last.ckpt")]) == 0
    assert find_run("measured").data.tags["seeker.parent"] == parent
    assert (model.parent / "mlflow_run_id").read_text().strip() == parent
