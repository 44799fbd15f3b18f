"""The trainer verbs: layered configs, errors of one sentence, and checkpoints that never change the config."""

import os
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from pytest import CaptureFixture
from tracking.boring import BoringAgent, BoringData

from project import lightning_cli
from project.cli import main
from project.errors import InputError
from project.lightning_cli import run
from project.tracking.callback import TrackRun

QUIET = ["--trainer.logger", "false", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
BORING = ["--model", BoringAgent.__name__, "--data", BoringData.__name__, *QUIET, "--trainer.max_epochs", "1"]


def test_layers_append_callbacks_and_keep_the_checkpoint(tmp_path: Path) -> None:
    dotted, nested = tmp_path / "dotted.yaml", tmp_path / "nested.yaml"
    dotted.write_text("trainer.callbacks+:\n  - class_path: LearningRateMonitor\n")
    nested.write_text("trainer: {callbacks+: [{class_path: RichModelSummary}]}\n")
    layers = ["--config", str(dotted), "--config", str(nested), "--trainer.logger", "SeekerLogger"]
    trainer = run(["fit", *BORING, *layers]).trainer
    kinds = [type(callback) for callback in trainer.callbacks]
    assert {ModelCheckpoint, LearningRateMonitor, TrackRun} <= set(kinds)
    assert [type(callback) for callback in trainer.checkpoint_callbacks] == [ModelCheckpoint]
    assert trainer.checkpoint_callback.save_last


def test_a_callbacks_list_cannot_remove_tracking(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("trainer: {callbacks: []}\n")
    trainer = run(["fit", "--config", str(path), *BORING]).trainer
    assert any(isinstance(callback, TrackRun) for callback in trainer.callbacks)


def test_trap_15_checkpoint_does_not_override_the_command_line(tmp_path: Path) -> None:
    folder = ["--trainer.default_root_dir", str(tmp_path / "run")]
    run(["fit", *BORING, *folder, "--model.learning_rate", "0.5"])
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=False)["hyper_parameters"]["learning_rate"] == 0.5
    resumed = run(["fit", *BORING, *folder, "--model.learning_rate", "0.25", "--ckpt_path", str(checkpoint)])
    assert resumed.model.learning_rate == 0.25
    assert resumed.trainer.global_step == 2


def test_trap_15_last_without_a_checkpoint_is_an_error(tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    words = ["--trainer.default_root_dir", str(tmp_path / "run"), "--ckpt_path", "last"]
    assert main(["fit", *BORING, *words]) == 2
    assert "there is no last.ckpt" in capsys.readouterr().err


def test_last_without_a_checkpoint_starts_afresh_where_that_is_allowed(tmp_path: Path) -> None:
    words = ["--trainer.default_root_dir", str(tmp_path / "run"), "--ckpt_path", "last", "--allow_fresh", "true"]
    first, second = (run(["fit", *BORING, *words, "--trainer.max_epochs", str(epochs)]) for epochs in (1, 2))
    assert first.trainer.global_step == 2
    assert second.trainer.global_step == 4
    assert second.config_init["fit"]["ckpt_path"] == str(tmp_path / "run" / "checkpoints" / "last.ckpt")


def test_memory_that_ran_out_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: CaptureFixture[str]) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")

    monkeypatch.setattr(BoringAgent, "training_step", fail)
    assert main(["fit", *BORING]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "seeker: the GPU's memory ran out (CUDA out of memory. Tried to allocate 2.00 GiB.); lower data.micro"
    )


def test_a_last_checkpoint_that_was_cut_off_gives_way_to_the_one_before(tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    words = ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.max_epochs", "2"]
    every = [
        "--trainer.callbacks+=ModelCheckpoint",
        "--trainer.callbacks.every_n_train_steps=1",
        "--trainer.callbacks.save_top_k=-1",
    ]
    run(["fit", *BORING, *words, *every])
    folder = tmp_path / "run" / "checkpoints"
    last = folder / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    whole = sorted(folder.glob("epoch*.ckpt"))
    assert [path.name for path in whole] == [
        "epoch=0-step=1.ckpt",
        "epoch=0-step=2.ckpt",
        "epoch=1-step=3.ckpt",
        "epoch=1-step=4.ckpt",
    ]
    whole[3].write_bytes(whole[3].read_bytes()[:1000])
    for path in folder.glob("step=*.ckpt"):
        path.unlink()
    os.utime(whole[0])  # the newest is not the furthest
    torch.save({"state_dict": {}}, folder / "weights.ckpt")
    resumed = run(["fit", *BORING, *words, "--ckpt_path", "last"])
    assert resumed.config_init["fit"]["ckpt_path"] == str(whole[2])
    assert resumed.trainer.global_step == 4
    assert f"last.ckpt is cut off; going on from {whole[2]}" in capsys.readouterr().err
    for path in folder.glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:1000])
    assert main(["fit", *BORING, *words, "--ckpt_path", "last"]) == 2
    assert "last.ckpt is cut off, and no other checkpoint is whole; train anew" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["--config", "{tmp}/unknown.yaml"], "trainer.max_epoch'"),
        (["--config", "{tmp}/broken.yaml"], "broken.yaml, line 2: not YAML"),
        (["--model.learning_rat", "1"], "BoringAgent has no option 'learning_rat'"),
        (["--model.learning_rate", "fast"], "model.learning_rate: 'fast' is not accepted, expected float"),
        (["--trainer.max_epochs", "many"], "trainer.max_epochs: 'many' is not accepted, expected int"),
        (["--ckpt_path", "gone.ckpt"], "gone.ckpt does not exist"),
        (["--model.prompt", "refuse"], "the model folder has no tokenizer"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], message: str, tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    (tmp_path / "unknown.yaml").write_text("trainer: {max_epoch: 3}\n")
    (tmp_path / "broken.yaml").write_text("trainer: [\n")
    assert main(["fit", *BORING, *[word.replace("{tmp}", str(tmp_path)) for word in words]]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert re.fullmatch(r"seeker: [^\n]+\n", error)
    assert not (tmp_path / "runs").exists()


def test_help_works(capsys: CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--help"])
    assert stopped.value.code == 0
    assert "--trainer.max_epochs" in capsys.readouterr().out


def test_the_ranks_that_lightning_starts_share_the_folder_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("SEEKER_RUN", "left by an earlier run")
    first = lightning_cli._run_folder("fit", None, None)
    assert first.name.startswith("fit-")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(os, "getppid", lambda: -1)
    assert lightning_cli._run_folder("fit", None, None) == first
    assert lightning_cli._run_folder("fit", "named", None).name == "named"


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_NTASKS"])
def test_ranks_from_outside_must_be_told_their_folder(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEEKER_RUN", "LOCAL_RANK", "WORLD_SIZE", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    monkeypatch.setenv("SLURM_NTASKS", "4")  # an interactive allocation starts no ranks
    assert lightning_cli._run_folder("fit", None, None).name.startswith("fit-")
    for name in ("SEEKER_RUN", "SLURM_NTASKS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    monkeypatch.setenv(variable, "2")
    with pytest.raises(InputError, match=r"^2 ranks that were started from outside .*; give trainer.default_root_dir or"):
        lightning_cli._run_folder("fit", None, None)
    assert lightning_cli._run_folder("fit", "named", None).name == "named"


@pytest.mark.parametrize(("given", "read"), [("1", "1"), ("1.0", "1.0"), ("0.5", "0.5"), ("20", "20")])
def test_one_batch_is_no_share_of_all(given, read, capsys):
    """`typing` may hand out Lightning's Optional[Union[int, float]] in the other order, and then 1 was read as 1.0: all."""
    config = str(Path(__file__).parents[1] / "experiments" / "debug" / "sft.yaml")
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config", config, "--trainer.limit_train_batches", given, "--print_config"])
    assert f"limit_train_batches: {read}\n" in capsys.readouterr().out
