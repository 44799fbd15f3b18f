"""What a run leaves in the store, through the real command line and a real SQLite store."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from pytest import CaptureFixture

from project import ranks
from project.cli import main
from project.errors import InputError, SeekerError, TrackingError
from project.files import file_digest, read_rows
from project.manifests import plan, read_manifest, write_outputs
from project.tracking import provenance, sending
from project.tracking.callback import RUN_ID, TrackRun, checkpoint_run_id
from project.tracking.logger import SeekerLogger, flatten
from project.tracking.store import (
    all_runs,
    client,
    dataset_manifests,
    find_run,
    metric_curve,
    run_metrics,
    run_params,
    shown_uri,
)
from tracking.boring import BoringData


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


class Outage:
    """A store that is away until it is back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_over, self.asked = False, 0
        self._deliver = sending.deliver
        monkeypatch.setattr(sending, "deliver", self)
        monkeypatch.setattr(sending, "LONGEST_PAUSE", 0.05)

    def __call__(self, *args: object) -> None:
        self.asked += 1
        if not self.is_over:
            raise ConnectionError("no route to the store")
        self._deliver(*args)


def test_a_store_that_dies_for_good_ends_no_training(
    config: Path, tmp_path: Path, capsys: CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, outage = tmp_path / "runs" / "first", Outage(monkeypatch)
    started, words = time.monotonic(), ["--trainer.logger.wait_minutes", "0.02"]
    assert main(["fit", "--config", str(config), *words]) == 0
    assert time.monotonic() - started < 10
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    said = capsys.readouterr().err
    assert said.count("no route to the store") == 2  # when it died, and at the end
    assert f"`seeker sync {folder}` sends them" in said
    assert find_run("first").data.metrics == {}
    outage.is_over = True
    assert main(["sync", str(folder)]) == 0
    run = find_run("first")
    assert list(metric_curve(run.info.run_id, "loss")) == [0, 1]
    assert (run.info.status, run.data.tags["checkpoint.last"]) == ("FINISHED", str(folder / "checkpoints" / "last.ckpt"))
    assert list(folder.glob("tracking.*")) == []


def test_a_resumed_training_sends_first_what_the_killed_one_could_not(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, outage = ["fit", "--config", str(config), "--trainer.logger.wait_minutes", "0.001"], Outage(monkeypatch)
    with pytest.raises(RuntimeError, match="killed"):
        main([*words, "--trainer.max_epochs", "2", "--model.stop_at", "3"])
    outage.is_over = True
    assert main([*words, "--trainer.max_epochs", "3", "--ckpt_path", "last", "--trainer.logger.wait_minutes", "5"]) == 0
    run = find_run("first")
    assert list(metric_curve(run.info.run_id, "loss")) == [0, 1, 2, 3, 4, 5]
    assert (run.info.status, run.data.tags["seeker.error"]) == ("FINISHED", "RuntimeError: killed")


@pytest.mark.parametrize("verb", ["fit", "test"])
def test_what_fails_before_the_data_are_read_leaves_no_run(
    config: Path, verb: str, capsys: CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def setup(self: BoringData, stage: str) -> None:
        raise InputError("test.jsonl does not exist")

    monkeypatch.setattr(BoringData, "setup", setup)
    assert main([verb, "--config", str(config)]) == 2
    assert capsys.readouterr().err == "seeker: test.jsonl does not exist\n"
    assert all_runs() == []


def test_a_logger_without_the_command_line_opens_its_run_where_its_id_is_asked_for() -> None:
    logger = SeekerLogger(run_name="alone")
    logger.experiment.search_experiments()
    assert all_runs() == []
    logger.experiment.set_tag(logger.run_id, "a", "b")
    assert [run.data.tags["a"] for run in all_runs()] == ["b"]
    assert logger.experiment_id == find_run("alone").info.experiment_id


def test_a_server_that_is_down_at_the_start_is_one_sentence(
    config: Path, capsys: CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
    started = time.monotonic()
    assert main(["fit", "--config", str(config), "--trainer.default_root_dir", str(config.parent / "run")]) == 1
    assert time.monotonic() - started < 5
    said = capsys.readouterr().err
    assert said.startswith(f"seeker: runs cannot be tracked in http://…@127.0.0.1:{port} (")
    assert said.endswith("train with --trainer.logger false\n")
    assert "Traceback" not in said


def test_a_training_draws_the_same_random_numbers_tracked_or_not(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for words in ([], ["--trainer.logger", "false"]):
        assert main(["fit", "--config", str(config), *words]) == 0
        states.append((random.getstate(), torch.get_rng_state().tolist()))
    assert states[0] == states[1]


def test_the_machine_is_measured(config: Path) -> None:
    assert main(["fit", "--config", str(config), "--trainer.logger.machine_seconds", "0.2"]) == 0
    run = find_run("first")
    found = {name for name in run.data.metrics if name.startswith("system/")}
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= found
    assert 0 < run.data.metrics["system/system_memory_usage_percentage"] < 100
    assert found.isdisjoint(run_metrics(run))
    words = ["--trainer.logger.machine_seconds", "0", "--trainer.logger.run_name", "without"]
    assert main(["fit", "--config", str(config), *words]) == 0
    assert not any(name.startswith("system/") for name in find_run("without").data.metrics)


def test_two_names_that_would_be_one_are_refused() -> None:
    logger = SeekerLogger(run_name="names")
    logger.log_metrics({"val/recall@3": 0.5}, 1)
    with pytest.raises(InputError, match="'val/recall@3' and 'val/recall#3' would both be 'val/recall_3'"):
        logger.log_metrics({"val/recall#3": 0.5}, 1)
    with pytest.raises(InputError, match="the parameters 'a@b' and 'a#b' would both be 'a_b'"):
        logger.log_hyperparams({"a@b": 1, "a#b": 2})
    with pytest.raises(InputError, match=r"two settings are called 'a\.b'"):
        flatten({"a": {"b": 1}, "a.b": 2})
    logger.finalize()
    assert find_run("names").data.metrics["val/recall_3"] == 0.5


def test_a_run_keeps_its_packages_its_command_and_what_differs_from_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    (repository / "pyproject.toml").write_text('[project]\nname = "seeker"\n')
    (repository / "code.py").write_text("a = 1\n\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.chdir(repository)
    assert provenance.git_diff() is None
    assert provenance.git_tags()["git.dirty"] == "false"
    (repository / "code.py").write_text("a = 2\n\n")
    diff = provenance.git_diff()
    subprocess.run([*git, "checkout", "-q", "code.py"], check=True)
    subprocess.run([*git, "apply"], check=True, input=diff, text=True)
    assert (repository / "code.py").read_text() == "a = 2\n\n"
    monkeypatch.setattr(provenance, "MOST_OF_A_DIFF", 40)
    assert provenance.git_diff() == f"{diff[:40]}\n# cut here: {len(diff) - 40} more characters\n"
    lines = provenance.pip_freeze().splitlines()
    assert f"torch=={torch.__version__}" in lines
    assert lines == sorted(lines, key=lambda line: line.partition("==")[0].lower())


def test_the_command_line_is_kept(config: Path, tmp_path: Path) -> None:
    from lightning import Trainer

    from tracking.boring import BoringAgent, BoringData

    words = ["seeker", "fit", "--data.x", "two words"]
    for name, command in {"short": words, "long": [*words, "x" * 9000]}.items():
        logger = SeekerLogger(run_name=name)
        trainer = Trainer(
            logger=logger,
            callbacks=[TrackRun(command=command)],
            max_epochs=1,
            default_root_dir=tmp_path / name,
            enable_checkpointing=False,
            enable_progress_bar=False,
            accelerator="cpu",
        )
        trainer.fit(BoringAgent(), BoringData())
    assert find_run("short").data.tags["seeker.command"] == "seeker fit --data.x 'two words'"
    run = find_run("long")
    assert run.data.tags["seeker.command"] == "see artifact tags/seeker.command.txt"
    for name in ("tags/seeker.command.txt", "pip_freeze.txt"):
        held = Path(client().download_artifacts(run.info.run_id, name, str(tmp_path))).read_text()
        assert held == ("seeker fit --data.x 'two words' " + "x" * 9000 if "command" in name else provenance.pip_freeze())


def test_a_checkpoint_says_which_run_it_is_of(config: Path, tmp_path: Path) -> None:
    words = ["fit", "--config", str(config), "--trainer.default_root_dir", str(tmp_path / "run")]
    assert main(words) == 0
    one = find_run("first").info.run_id
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)[RUN_ID] == checkpoint_run_id(last) == one
    kept = last.rename(last.with_name("kept.ckpt"))
    assert main([*words, "--trainer.logger.run_name", "second"]) == 0  # another training in the same folder
    assert checkpoint_run_id(last) != one
    assert main([*words, "--trainer.max_epochs", "2", "--ckpt_path", str(kept)]) == 0
    assert list(metric_curve(one, "loss")) == [0, 1, 2, 3]
    assert len(all_runs()) == 2
    last.write_bytes(b"cut off")
    assert checkpoint_run_id(last) == (tmp_path / "run" / "mlflow_run_id").read_text().strip()


def test_the_trainings_of_a_sweep_are_shown_under_one_run(config: Path) -> None:
    store = client()
    sweep = store.create_run(store.create_experiment("sweep"), run_name="sweep").info.run_id
    for rate in ("0.1", "0.2"):
        words = ["--model.learning_rate", rate, "--trainer.logger.run_name", f"rate {rate}"]
        assert main(["fit", "--config", str(config), "--trainer.logger.pipeline_run", sweep, *words]) == 0
    shown = [run for run in all_runs() if run.data.tags.get("mlflow.parentRunId") == sweep]
    assert {run.info.run_name: run_params(run)["model.learning_rate"] for run in shown} == {
        "rate 0.1": "0.1",
        "rate 0.2": "0.2",
    }
    assert "seeker.parent" not in shown[0].data.tags


def test_a_value_that_a_resume_takes_back_counts(config: Path) -> None:
    words = ["fit", "--config", str(config)]
    for number, (rate, more) in enumerate([("0.1", []), ("0.2", ["--ckpt_path", "last"]), ("0.1", ["--ckpt_path", "last"])], 1):
        assert main([*words, "--model.learning_rate", rate, "--trainer.max_epochs", str(number), *more]) == 0
        assert run_params(find_run("first"))["model.learning_rate"] == rate


def test_the_first_status_of_a_stage_stands(tmp_path: Path) -> None:
    logger = SeekerLogger(run_name="twice", machine_seconds=0)
    logger.start(tmp_path / "run")
    logger.finalize("success")
    logger.tag({"seeker.error": "KeyboardInterrupt"})
    logger.finalize("failed")
    run = find_run("twice")
    assert (run.info.status, run.data.tags["seeker.error"]) == ("FINISHED", "KeyboardInterrupt")
    logger.start()  # another stage
    logger.finalize("failed")
    assert find_run("twice").info.status == "FAILED"


def test_a_run_that_failed_waits_seconds_for_a_store_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("project.tracking.logger.SECONDS_AFTER_FAILURE", 0.3)
    Outage(monkeypatch)
    logger = SeekerLogger(run_name="failed", machine_seconds=0, wait_minutes=0.5)
    logger.start(tmp_path / "run")
    started = time.monotonic()
    logger.finalize("failed")
    assert time.monotonic() - started < 10


def test_an_error_is_kept_without_its_password(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no answer of http://user:secret@host/api")

    monkeypatch.setattr("tracking.boring.BoringAgent.training_step", fail)
    with pytest.raises(ValueError, match="no answer"):
        main(["fit", "--config", str(config)])
    assert find_run("first").data.tags["seeker.error"] == "ValueError: no answer of http://…@host/api"


def test_what_fails_on_the_first_rank_fails_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    told = TrackingError("the store is away")
    monkeypatch.setattr(ranks, "world", lambda: (1, 2))
    monkeypatch.setattr(ranks, "gathered", lambda mine: [told, mine])
    logger = SeekerLogger()
    trainer = SimpleNamespace(loggers=[logger], is_global_zero=False, strategy=None)
    monkeypatch.setattr(SeekerLogger, "ids", ("None", "None"))
    with pytest.raises(TrackingError, match="the store is away"):
        TrackRun().setup(trainer, None, "fit")

    def fail(*_: object) -> None:
        raise OSError("the folder takes nothing")

    heard: list[object] = []
    monkeypatch.setattr(ranks, "world", lambda: (0, 2))
    monkeypatch.setattr(ranks, "gathered", lambda mine: heard.append(mine) or [mine])
    monkeypatch.setattr(SeekerLogger, "start", fail)
    trainer = SimpleNamespace(loggers=[logger], is_global_zero=True, default_root_dir=".", strategy=None)
    with pytest.raises(SeekerError, match="rank 0 failed with OSError: the folder takes nothing"):
        TrackRun().setup(trainer, None, "fit")
    assert len(heard) == 1


@pytest.mark.parametrize("words", [["runs"], ["compare", "a", "b"], ["lineage", "a"]])
def test_a_store_that_is_away_is_one_sentence_soon(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
    started = time.monotonic()
    assert main(words) == 1
    assert time.monotonic() - started < 10
    said = capsys.readouterr().err
    assert said.startswith(f"seeker: runs cannot be read from http://…@127.0.0.1:{port} (")
    assert said.endswith("see that it is there or set MLFLOW_TRACKING_URI to another\n")
    assert "secret" not in said


@pytest.mark.parametrize(
    "text, shown",
    [
        ("http://a:b@host:5000/x", "http://…@host:5000/x"),
        ("got http://a:b@c@host/x?y=1 and mysql://u:p/w@h/d", "got http://…@host/x?y=1 and mysql://…@h/d"),
        ("http://host/a@b", "http://host/a@b"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
    ],
)
def test_a_shown_uri_has_no_password(text: str, shown: str) -> None:
    assert shown_uri(text) == shown


@pytest.mark.slow
def test_all_ranks_know_the_run_that_the_first_one_writes(config: Path, tmp_path: Path) -> None:
    folder, tests = tmp_path / "run", Path(__file__).resolve().parents[1]
    words = ["--trainer.devices=2", "--trainer.strategy=ddp", f"--trainer.default_root_dir={folder}"]
    words += ["--model=tracking.boring.ToldAgent", "--data=tracking.boring.BoringData"]
    paths = os.pathsep.join([str(tests), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths}
    command = [sys.executable, "-m", "project", "fit", "--trainer.max_epochs=1", "--trainer.accelerator=cpu", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (run,) = all_runs()
    assert [(folder / f"rank{rank}").read_text() for rank in (0, 1)] == [run.info.run_id] * 2
    assert done.stderr.count("seeker: tracking run") == 1
