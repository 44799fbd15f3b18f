"""Two ranks with gloo, started as a user starts them: they train what one process trains, and read each other's checkpoints.

A step of one process has four micro-batches, a step of two ranks two each: the same samples. Ten of them in fives of two make
two steps an epoch, with an empty micro-batch in the first and two in the second.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_sft import conversation
from tiny import tiny_model_folder

from project.cli import main
from project.errors import InputError
from project.modules.adapter_checkpoint import recount
from project.modules.policy import AgentSettings, LoRA
from project.modules.sft import SFT
from project.modules.sharding import FSDP2
from project.writing import write_rows

ROOT = Path(__file__).resolve().parents[2]
STRATEGIES = ROOT / "experiments" / "strategies"
CLIP = 0.2
WORDS = {
    "one": ["--trainer.accumulate_grad_batches=4"],
    "ddp": [f"--config={STRATEGIES / 'ddp.yaml'}", "--trainer.devices=2", "--trainer.accumulate_grad_batches=2"],
    "fsdp2": [f"--config={STRATEGIES / 'fsdp2.yaml'}", "--trainer.devices=2", "--trainer.accumulate_grad_batches=2"],
}
MODELS = {
    "lora": ["--model.lora={rank: 4, alpha: 8}"],
    "full": ["--model.lora=null"],
    "bf16": ["--model.lora={rank: 4, alpha: 8}", "--model.precision=bfloat16", "--model.gradient_checkpointing=true"],
}
CROSSINGS = [("one", "ddp"), ("one", "fsdp2"), ("fsdp2", "one"), ("ddp", "fsdp2"), ("ddp", "ddp"), ("fsdp2", "fsdp2")]
"""From whose checkpoint to what."""
EXACT = ["lora", "full"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@dataclass(frozen=True)
class Run:
    folder: Path

    @property
    def steps(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.folder / "steps.jsonl").read_text().splitlines()]

    @property
    def exported(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "merged" / "model.safetensors")

    def checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step={step}.ckpt"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A YAML of everything but the adapter, the strategy and the run's folder."""
    data = tmp_path_factory.mktemp("strategies")
    tiny_model_folder(data / "tiny")
    for name, numbers in (("train", range(10)), ("validation", range(20, 23))):
        write_rows(data / f"{name}.jsonl", (conversation(i).to_row() for i in numbers))
    files = {"train_file": f"{data}/train.jsonl", "validation_file": f"{data}/validation.jsonl"}
    settings = {"dialect": "tags", "decision_tokens": True}
    saving = {"filename": "step={step}", "auto_insert_metric_name": False, "every_n_train_steps": 1, "save_top_k": -1}
    made = {
        "model": {
            "class_path": "SFT",
            "init_args": {
                "model_path": f"{data}/tiny", "settings": settings, "precision": "float32",
                "learning_rate": 0.01, "warmup_share": 0.0,
            },
        },
        "data": {"class_path": "ConversationDataModule", "init_args": {**files, "micro_tokens": 500}},
        "trainer": {
            "accelerator": "cpu", "max_epochs": 2, "gradient_clip_val": CLIP, "logger": False,
            "callbacks": [{"class_path": "ModelCheckpoint", "init_args": saving}],
        },
    }  # fmt: skip
    (data / "config.yaml").write_text(json.dumps(made))
    return data / "config.yaml"


def words_of(config: Path, folder: Path, strategy: str, model: str, checkpoint: Path | None = None) -> list[str]:
    """Return the command line of a training whose checkpoints, losses and export are in `folder`."""
    watch = {"class_path": "watch_steps.WatchSteps", "init_args": {"path": str(folder / "steps.jsonl")}}
    folder.mkdir()
    options = [f"--config={config}", f"--trainer.default_root_dir={folder}", f"--trainer.callbacks+={json.dumps(watch)}"]
    options += [*WORDS[strategy], *MODELS[model]]
    return [*options, f"--ckpt_path={checkpoint}"] if checkpoint else options


def start(*words: str) -> None:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=500, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def runs(config, tmp_path_factory) -> dict[str, Run]:
    """All trainings by name: `ddp-lora`, and `one>ddp-lora-1` for one resumed from step 1 of another strategy's."""
    folder = tmp_path_factory.mktemp("runs")
    processes: list[tuple[list[str], dict[str, list[str]]]] = [([], {}), (TORCHRUN, {}), ([], {})]
    for strategy, model in product(WORDS, MODELS):
        name = f"{strategy}-{model}"
        processes[strategy != "one"][1][name] = words_of(config, folder / name, strategy, model)
    for (before, after), model, step in product(CROSSINGS, EXACT, (1, 2)):
        name = f"{before}>{after}-{model}-{step}"
        checkpoint = Run(folder / f"{before}-{model}").checkpoint(step)
        processes[2 if after == "one" else 1][1][name] = words_of(config, folder / name, after, model, checkpoint)
    for launcher, fits in processes:
        start(*launcher, str(Path(__file__).parent / "several_fits.py"), json.dumps(list(fits.values())))
    return {name: Run(folder / name) for _, fits in processes for name in fits}


def assert_close(found: Run, expected: Run, start: int = 0) -> None:
    assert [row["step"] for row in found.steps] == [row["step"] for row in expected.steps[start:]]
    for mine, theirs in zip(found.steps, expected.steps[start:], strict=True):
        assert mine["tokens"] == theirs["tokens"]
        for name in ("loss", "norm", "clipped"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5), name
    assert found.exported.keys() == expected.exported.keys()
    for name, weight in expected.exported.items():
        rounding = 2**-7 if weight.dtype is torch.bfloat16 else 0  # a sum of float32 may fall on the other side
        torch.testing.assert_close(found.exported[name], weight, rtol=rounding, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "model"), product(("ddp", "fsdp2"), MODELS))
def test_two_ranks_train_what_one_process_trains(runs, strategy, model):
    """Losses, tokens, the gradient's norm before and after clipping, and the exported folder."""
    found, expected = runs[f"{strategy}-{model}"], runs[f"one-{model}"]
    assert_close(found, expected)
    assert len(found.steps) == 4
    assert max(row["norm"] for row in found.steps) > CLIP
    assert all(row["clipped"] < CLIP * 1.001 for row in found.steps)
    assert all(bool(row["sharded"]) == (strategy == "fsdp2") for row in found.steps)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2], ids=["inside an epoch", "at its end"])
@pytest.mark.parametrize("model", EXACT)
@pytest.mark.parametrize(("before", "after"), CROSSINGS)
def test_a_checkpoint_goes_on_under_another_strategy(runs, before, after, model, step):
    found, expected = runs[f"{before}>{after}-{model}-{step}"], runs[f"one-{model}"]
    assert_close(found, expected, start=step)
    if before == after:
        assert found.steps == runs[f"{before}-{model}"].steps[step:]
        assert all(torch.equal(found.exported[name], w) for name, w in runs[f"{before}-{model}"].exported.items())


@pytest.mark.slow
@pytest.mark.parametrize("model", EXACT)
def test_all_strategies_write_the_same_checkpoint(runs, model):
    """As plain tensors, whole, the optimizer's too; with the random numbers of each rank."""
    files = {name: torch.load(runs[f"{name}-{model}"].checkpoint(3), weights_only=True) for name in WORDS}
    one = files["one"]
    for name, file in files.items():
        assert file.keys() == one.keys()
        assert len(file["seeker_random"]) == (1 if name == "one" else 2)
        assert file["state_dict"].keys() == one["state_dict"].keys()
        mine, theirs = file["optimizer_states"][0], one["optimizer_states"][0]
        assert mine["param_groups"] == theirs["param_groups"]
        held = [(file["state_dict"], one["state_dict"]), *((mine["state"][n], state) for n, state in theirs["state"].items())]
        for found, expected in held:
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_lightning_starts_the_ranks_too(config, runs, tmp_path):
    """Without `torchrun`, by the command alone."""
    start("-m", "project", "fit", *words_of(config, tmp_path / "run", "fsdp2", "lora"))
    assert_close(Run(tmp_path / "run"), runs["fsdp2-lora"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--trainer.strategy=fsdp2", "--model.lora.nf4=true"],
            "model.lora.nf4=True keeps weights in blocks that FSDP cannot cut;",
        ),
        (
            ["--trainer.strategy=fsdp2", "--model.optimizer=adamw_8bit"],
            "model.optimizer=adamw_8bit cannot step on shards; take",
        ),
        (["--trainer.strategy=fsdp"], "trainer.strategy: fsdp lays weights out in one vector"),
        (["--trainer.strategy=FSDPStrategy"], "trainer.strategy: FSDPStrategy lays weights out in one vector"),
        (["--trainer.strategy=ddq"], "trainer: You selected an invalid strategy name: `strategy='ddq'`"),
    ],
    ids=["qlora", "8bit", "fsdp", "its class", "no strategy"],
)
def test_what_cannot_be_sharded_is_refused_in_one_sentence(config, tmp_path, capsys, words, said):
    assert main(["fit", f"--config={config}", f"--trainer.default_root_dir={tmp_path}", "--trainer.devices=2", *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"seeker: {said}")
    assert told.count("\n") == 1


def test_the_strategy_refuses_by_itself(config):
    module = SFT(str(config.parent / "tiny"), AgentSettings("tags", True), LoRA(4, 8, nf4=True))
    with pytest.raises(InputError, match=r"take experiments/strategies/ddp\.yaml"):
        FSDP2().check(module)


def test_lightnings_counts_are_those_of_the_new_steps():
    # Saved in the hook after the second micro-batch of the third step of two: 6 begun, 5 done. With steps of one: 3 and 2.
    counts = {"ready": 6, "started": 6, "processed": 6, "completed": 5}
    state = {"_batches_that_stepped": 2}
    progress = {"total": dict(counts), "current": dict(counts), "is_last_batch": False}
    loop = {"epoch_loop.batch_progress": progress, "epoch_loop.state_dict": state}
    recount(loop, 2, 1)
    assert progress["current"] == {"ready": 3, "started": 3, "processed": 3, "completed": 2}
    recount(loop, 1, 2)
    assert progress["total"] == counts
    assert state == {"_batches_that_stepped": 2}
    # After the first micro-batch of the fourth step, in a validation: the third step is done, and was not counted.
    progress["total"] |= dict.fromkeys(counts, 7)
    progress["current"] |= dict.fromkeys(counts, 7)
    state["_batches_that_stepped"] = 3
    recount(loop, 2, 2)
    assert progress["total"] == progress["current"] == counts
    assert state == {"_batches_that_stepped": 2}
