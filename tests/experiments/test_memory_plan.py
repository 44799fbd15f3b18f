"""`seeker plan` as a user types it: a fit's options, and what that fit would take."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from project.apps.plan import Setting
from project.cli import main

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def planned(capsys, monkeypatch, config, *words):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["plan", "--config", str(EXPERIMENTS / config), *words]) == 0
    lines = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    return {line[0]: line[-1] for line in lines if len(line) == 2}


def gb(text):
    return float(text.split(" GB")[0])


def test_sft(with_facts, capsys, monkeypatch):
    found = planned(capsys, monkeypatch, "debug/sft.yaml", "--trainer.max_epochs", "3")
    assert re.fullmatch(r"[\d,]+ tokens in \d+ steps of 1 micro-batches", found["an epoch"])
    steps = int(found["an epoch"].split(" in ")[1].split()[0])
    assert found["the training"] == f"{3 * steps} steps, 3 epochs"
    assert found["parameters"].endswith("%)")
    parts = sum(gb(found[name]) for name in ("weights", "gradients", "optimizer", "activations", "between blocks", "libraries"))
    assert gb(found["in all"]) == pytest.approx(parts, abs=0.03)
    assert found["in all"].endswith(": fits")
    assert not (with_facts / "lightning_logs" / "runs").exists(), "nothing is run"


def test_what_does_not_fit_is_said_with_what_would(with_facts, capsys, monkeypatch):
    found = planned(capsys, monkeypatch, "debug/sft.yaml", "--room_gb", "0.2", "--model.lora", "null")
    assert found["in all"].endswith("of 0.20 GB: does not fit")
    names = [re.sub(r"tokens \d+", "tokens N", name.removeprefix("with ")) for name in found if name.startswith("with ")]
    assert names == [
        "model.gradient_checkpointing true",
        "data.micro_tokens N",
        "model.lora {} and model.precision bfloat16",
        "model.lora.nf4 true and gradient_checkpointing",
    ]


@pytest.mark.slow
def test_steps_can_be_measured(with_facts, capsys, monkeypatch):
    found = planned(capsys, monkeypatch, "debug/sft.yaml", "--measure", "true", "--trainer.max_epochs=9")
    assert re.fullmatch(r"[\d.]+ s a step, so .* for all, and [\d.]+ GB at the peak", found["measured"])
    assert gb(found["measured"].split(", and ")[1]) == pytest.approx(gb(found["in all"]), rel=0.5)


@pytest.mark.parametrize(
    ("epochs", "steps", "of_five", "on_gpu"),
    [(3, -1, 15, False), (3, 7, 7, False), (-1, 40, 40, False), (None, 40, 40, False), (None, -1, 5000, False)],
)
def test_the_first_limit_ends_a_training_and_ranks_on_cpus_are_no_gpus(epochs, steps, of_five, on_gpu):
    given = {"devices": 2, "num_nodes": 1, "accumulate_grad_batches": 1, "limit_train_batches": None, "max_epochs": epochs}
    given |= {"max_steps": steps, "strategy": "ddp", "precision": "bf16-mixed", "accelerator": "cpu"}
    setting = Setting.of(None, SimpleNamespace(**given))
    assert (setting.steps(5), setting.on_gpu, setting.world_size) == (of_five, on_gpu, 2)


def test_ppo_counts_its_engine(with_facts, capsys, monkeypatch):
    found = planned(capsys, monkeypatch, "debug/ppo.yaml")
    assert found["the training"] == "2 updates of 4 episodes of at most 4,096 tokens"
    assert "vLLM's weights" not in found, "the engine is transformers'"
    assert found["in all"].endswith(": fits")


GPU_CONFIGS = [f"ppo/{path.name}" for path in sorted((EXPERIMENTS / "ppo").glob("*.yaml"))]


@pytest.mark.parametrize("config", [name for name in GPU_CONFIGS if name != "ppo/agentic.yaml"])
def test_configs_for_gpus_are_planned_without_one(config, with_facts, capsys, monkeypatch):
    """With a random model in the place of one from the hub: devices and strategy are the config's own."""
    files = ["--data.train_file", "data/debug/facts/questions_train.jsonl"]
    files += ["--data.validation_file", "data/debug/facts/questions_validation.jsonl"]
    small = [
        "--model.model_path",
        "tiny-random",
        "--data.batch_questions",
        "2",
        "--room_gb",
        "80",
        "--trainer.accelerator",
        "gpu",
    ]
    found = planned(capsys, monkeypatch, config, *files, *small)
    assert "episodes of at most 4,096 tokens" in found["the training"]
    whole = "a device" if "qwen2.5" in config else "in all"
    assert found[whole].endswith("of 80.00 GB: fits")
    assert not {"libraries", "between blocks"} & found.keys()
