"""PPO killed with `kill -9` during a rollout, an update and a checkpoint: resumed, it ends in the same bits and MLflow run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from metals import PASSAGES, QUESTIONS
from safetensors.torch import load_file
from tiny import tiny_model_folder

from project.corpus.build import write_index
from project.tracking.store import client, find_run, metric_curve
from project.writing import write_rows

ROOT = Path(__file__).resolve().parents[2]
UPDATES = 4
CURVES = ("train/reward", "train/searches", "ppo/kl", "ppo/entropy", "ppo/kl_coef", "ppo/value_loss", "ppo/grad_norm")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    write_index(folder / "index", PASSAGES)
    tiny_model_folder(folder / "model")
    write_rows(folder / "questions.jsonl", (question.to_row() for question in QUESTIONS))
    ppo = {"episodes_per_question": 3, "inner_epochs": 2, "minibatch_episodes": 4, "micro_episodes": 2, "kl_target": 0.01}
    saving = {"filename": "last", "every_n_train_steps": 1, "save_last": False, "auto_insert_metric_name": False}
    limits = {"max_turns": 2, "turn_tokens": 12, "context_tokens": 2048, "max_malformed": 9}
    made = {
        "model": {
            "class_path": "ppo_killed.Killed",
            "init_args": {
                "model_path": str(folder / "model"), "index": str(folder / "index"), "engine": "transformers", "limits": limits,
                "deterministic": True, "ppo": ppo, "lora": {"rank": 4, "alpha": 8}, "precision": "float32",
                "learning_rate": 0.01, "settings": {"dialect": "tags", "decision_tokens": False},
            },
        },
        "data": {
            "class_path": "QuestionDataModule",
            "init_args": {"train_file": str(folder / "questions.jsonl"), "batch_questions": 2, "train_passes": 2},
        },
        "trainer": {
            "accelerator": "cpu", "max_epochs": 1, "plugins": {"class_path": "ppo_killed.DyingIO"},
            "callbacks": [{
                "class_path": "ModelCheckpoint",
                "init_args": saving | {"enable_version_counter": False},
            }, {"class_path": "project.modules.alarms.Alarms", "init_args": {"action": "warn"}}],
        },
    }  # fmt: skip
    (folder / "config.yaml").write_text(json.dumps(made))
    return folder / "config.yaml"


def fit(config: Path, folder: Path, *words: str, kill: str = "never:-1") -> subprocess.CompletedProcess:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "SEEKER_KILL": kill}
    store = f"sqlite:///{config.parent}/mlflow.db"
    command = [
        sys.executable,
        "-m",
        "project",
        "fit",
        "--config",
        str(config),
        "--trainer.default_root_dir",
        str(folder),
        *words,
    ]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=500, env=environment | {"MLFLOW_TRACKING_URI": store}
    )


OVERLAP = ("--model.ppo.overlap", "true")


@pytest.fixture(scope="module")
def whole(config) -> Path:
    folder = config.parent / "whole"
    done = fit(config, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("where", ["rollout", "update", "checkpoint"])
def test_a_killed_run_goes_on_to_the_same_bits(config, whole, where, monkeypatch):
    folder = config.parent / where
    kill_and_resume(config, folder, where)
    same_bits_and_curves(folder, whole, monkeypatch, UPDATES)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["rollout", "update"])
def test_so_does_one_that_rolls_out_beside_its_updates(config, where, monkeypatch):
    """The episodes that were due are in the checkpoint: nothing could write them again."""
    folder, whole = config.parent / f"beside-{where}", config.parent / f"beside-whole-{where}"
    assert fit(config, whole, *OVERLAP).returncode == 0
    kill_and_resume(config, folder, where, *OVERLAP)
    same_bits_and_curves(folder, whole, monkeypatch, UPDATES - 1)


def kill_and_resume(config: Path, folder: Path, where: str, *words: str) -> None:
    killed = fit(config, folder, *words, kill=f"{where}:2")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (folder / "merged").exists()
    resumed = fit(config, folder, "--ckpt_path", "last", *words)
    assert resumed.returncode == 0, resumed.stderr


def same_bits_and_curves(folder: Path, whole: Path, monkeypatch, updates: int) -> None:
    mine, theirs = (load_file(path / "merged" / "model.safetensors") for path in (folder, whole))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    states = [torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for path in (folder, whole)]
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder.parent}/mlflow.db")
    runs = [run for run in client().search_runs(["1"]) if run.data.tags["seeker.folder"] == str(folder)]
    assert len(runs) == 1  # it went on in the same run
    for name in CURVES:
        curve = metric_curve(find_run(whole.name).info.run_id, name)
        assert metric_curve(runs[0].info.run_id, name) == curve
        assert len(curve) == updates
    assert len(set(metric_curve(runs[0].info.run_id, "train/reward").values())) > 1
