"""Pipelines of phases: handed on exactly, continued where they stopped, refused before anything is trained."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from project.cli import main
from project.modules.adapter_checkpoint import OPTIMIZER_SETTINGS
from project.modules.hand_over import HandedOn, write_hand_over
from project.modules.policy import LoRA
from project.progressive import command as progressive
from project.progressive.file import load, options, split_overrides
from project.progressive.pipeline import Pipeline
from project.tracking.store import all_runs, find_run, metric_curve, run_metrics

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
DEBUG = EXPERIMENTS / "debug" / "progressive.yaml"
PIPELINES = [path for path in sorted(EXPERIMENTS.glob("summary/**/*.yaml")) if "phases:" in path.read_text()]
PHASES = ["multiturn", "summary_only", "summary_prefix"]


def run(*words: str) -> int:
    return main(["progressive", "--config", str(DEBUG), *words])


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Phases run in this process; gives their commands."""
    calls: list[list[str]] = []

    def call(command: list[str], lock: int) -> int:
        calls.append(command)
        return main(command[3:])

    monkeypatch.setattr(progressive, "_call", call)
    return calls


def option(command: list[str], name: str) -> str:
    return next(word for word in command if word.startswith(f"--{name}=")).partition("=")[2]


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "pipeline.json").read_text())


def test_it_continues_where_it_stopped(
    with_phases: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Phase 1 runs as a process; then the pipeline is killed twice: between phases, and before phase 2 hands on its model."""
    real, calls = progressive._call, []

    def call(command: list[str], lock: int) -> int:
        calls.append(option(command, "trainer.default_root_dir").rpartition("/")[2])
        if len(calls) == 1:
            return real(command, lock)
        if len(calls) == 2:
            raise KeyboardInterrupt
        status = main(command[3:])
        return -9 if len(calls) == 3 else status

    monkeypatch.setattr(progressive, "_call", call)
    folder = with_phases / "runs" / "debug-progressive"
    assert [run() for _ in range(4)] == [1, 1, 0, 0]
    assert calls == ["1-multiturn", "2-summary_only", "2-summary_only", "2-summary_only", "3-summary_prefix"]
    said = capsys.readouterr()
    assert "phase 1, multiturn: already done" in said.out
    assert "phase 2, summary_only: resumes" in said.out
    assert said.out.rstrip().splitlines()[-1].startswith("debug-progressive: already done")
    assert "Traceback" not in said.err
    phases = manifest(folder)["phases"]
    assert [row["finished"] for row in phases.values()] == [True] * 3
    _check_runs(manifest(folder))
    assert (folder / "forgetting.svg").read_text().count("after ") >= 3
    assert "before -->" in (folder / "forgetting.svg").read_text()


def _check_runs(held: dict[str, Any]) -> None:
    """One run a phase, made from the best model of the one before, all shown under the pipeline's; and its losses."""
    phases, runs = held["phases"], {run.info.run_name: run for run in all_runs()}
    assert len(all_runs()) == 4
    pipeline = runs["debug-progressive"]
    assert (pipeline.info.run_id, pipeline.info.status) == (held["run_id"], "FINISHED")
    for number, name in enumerate(PHASES):
        of_phase = runs[f"debug-progressive/{name}"]
        assert of_phase.data.tags["mlflow.parentRunId"] == held["run_id"]
        if number:
            before = phases[PHASES[number - 1]]
            assert of_phase.data.params["model.model_path"] == before["hands_on"]["best"]["model"]
            assert of_phase.data.tags["seeker.parent"] == before["run_id"]
        for other in PHASES:
            measured = "val/loss" if other == name else f"val_{other}/loss"
            curve = metric_curve(held["run_id"], f"val_{other}/loss")
            assert sorted(curve) == [0, 1, 2, 3]
            assert 4 < curve[0] < 7, "of the random model, before the first phase: ln 261 = 5.6"
            assert curve[number + 1] == phases[name]["hands_on"]["best"]["metrics"][measured]
            assert run_metrics(of_phase)[measured] == pytest.approx(curve[number + 1], rel=1e-6)


def test_adapters_go_on_from_the_last_weights(with_phases: Path, in_process: list[list[str]]) -> None:
    assert run("--phases=1,2", "--output_dir", "here", "--weights", "last", "--adapter=continued") == 0
    first, second = (with_phases / "here" / name for name in ("1-multiturn", "2-summary_only"))
    assert option(in_process[1], "model.start_from") == str(first / "checkpoints" / "last.ckpt")
    assert option(in_process[1], "model.model_path") == "tiny-random"
    made_from = find_run("debug-progressive/summary_only").data.tags["seeker.parent"]
    assert made_from == (first / "mlflow_run_id").read_text().strip()
    assert (second / "merged" / "config.json").is_file()


def test_from_a_run_a_checkpoint_and_a_folder(with_phases: Path, in_process: list[list[str]]) -> None:
    assert run("--phases", "1") == 0
    first = with_phases / "runs" / "debug-progressive" / "1-multiturn"
    assert run("--phases", "summary_only", "--from", "debug-progressive/multiturn", "--output_dir", "by_run") == 0
    assert option(in_process[-1], "model.model_path") == str(first / "merged_best")
    assert run("--phases=2", f"--from={first}/checkpoints/last.ckpt", "--output_dir", "by_checkpoint") == 0
    assert option(in_process[-1], "model.start_from") == str(first / "checkpoints" / "last.ckpt")
    assert run("--phases", "2", "--from", str(first / "merged"), "--output_dir", "by_folder") == 0
    assert option(in_process[-1], "model.model_path") == str(first / "merged")
    assert run("--phases", "2", "--from", str(first / "merged"), "--output_dir", "by_folder") == 0
    assert len(in_process) == 4, "the last was done already"
    assert run("--phases", "2", "--from", str(first / "merged_best"), "--output_dir", "by_folder") == 2


def test_from_what_cannot_be_gone_on_with(
    with_phases: Path, in_process: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--phases", "1") == 0
    checkpoint = with_phases / "runs" / "debug-progressive" / "1-multiturn" / "checkpoints" / "last.ckpt"
    capsys.readouterr()
    for words, message in [
        (["--from", "no_such_run"], "there is no run 'no_such_run'"),
        (["--from", "gone/last.ckpt"], "--from gone/last.ckpt does not exist"),
        (["--from", str(with_phases)], "holds no model"),
        (["--from", str(checkpoint), "--model.lora.rank=4"], "was trained with lora="),
        (["--from", str(checkpoint), f"--model.model_path={checkpoint.parents[1]}/merged"], "on a base with digest"),
    ]:
        assert run("--phases", "2", "--output_dir", "elsewhere", *words) in (1, 2)
        error = capsys.readouterr().err
        assert message in error, words
        assert "Traceback" not in error
        assert not (with_phases / "elsewhere" / "2-summary_only" / "merged").exists()


def test_a_folder_merged_of_nf4_is_not_quantised_again(with_phases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = with_phases / "qlora" / "merged"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    file = with_phases / "qlora" / "last.ckpt"
    for nf4 in (True, False):
        torch.save({OPTIMIZER_SETTINGS: {"lora": repr(LoRA(nf4=nf4))}}, file)
        write_hand_over(model.parent, {"last": HandedOn(str(model), str(file), 1)})
        assert run("--phases", "2", "--from", str(model), "--model.lora.nf4=true") == 2
        assert ("would be rounded to NF4 anew" in capsys.readouterr().err) is nf4


def test_overrides_of_all_phases_and_of_one(with_phases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The dry run prints runnable commands and, as comments, configs and plans; nothing else is written."""
    before = sorted(with_phases.rglob("*"))
    words = ["--trainer.max_epochs", "3", "--phase2.model.learning_rate=0.25", "--phase3.trainer.max_epochs=7"]
    capsys.readouterr()
    assert run("--dry_run", *words) == 0
    said = capsys.readouterr().out
    commands = [line for line in said.splitlines() if not line.startswith("#")]
    assert [line for line in said.splitlines() if line.startswith("# phase")] == [
        "# phase 1, multiturn: starts from tiny-random",
        "# phase 2, summary_only: starts from the best weights of multiturn, merged",
        "# phase 3, summary_prefix: starts from the best weights of summary_only, merged",
    ]
    assert len(commands) == 3
    assert all(" -m project fit --config " in line for line in commands)
    assert f"--model.model_path={with_phases}/runs/debug-progressive/1-multiturn/merged_best" in commands[1]
    assert said.count("learning_rate: 0.25") == 1
    assert (said.count("max_epochs: 3"), said.count("max_epochs: 7")) == (2, 1)
    assert said.count("#   the training: 3 steps, 3 epochs") == 2
    assert said.count("#   activations:") == said.count("tokens in 1 steps") == 3
    assert [path for path in sorted(with_phases.rglob("*")) if path not in before and "cache" not in str(path)] == []


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_every_pipeline_is_planned(path: Path, with_phases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the tiny model and small data in place of the hub's and the user's; all else as it stands."""
    Path("data/summary").symlink_to(with_phases / "data/debug")
    words = ["--model.model_path=tiny-random", "--data.micro_tokens=8192", "--trainer.accumulate_grad_batches=1"]
    capsys.readouterr()
    assert main(["progressive", "--config", str(path), "--dry_run", *words, "--trainer.devices=1"]) == 0, (
        capsys.readouterr().err
    )
    said = capsys.readouterr().out
    assert said.count(" -m project fit ") == said.count("# phase ") == said.count("#   the training:") >= 1
    for phase in said.split("# phase ")[1:]:
        assert all(f"_file: data/summary/sets/{name}_" in phase or f"{name}: data" in phase for name in PHASES), phase


def test_the_layer_for_nf4_is_planned_as_it_says(with_phases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data/summary").symlink_to(with_phases / "data/debug")
    layer = EXPERIMENTS / "summary" / "layers" / "qwen2.5_7b.yaml"
    words = [
        word for line in layer.read_text().splitlines() for word in line.lstrip("# ").split() if line.startswith("#     --")
    ]
    words += ["--model.model_path=tiny-random", "--trainer.accumulate_grad_batches=1", "--trainer.accelerator=cpu", "--dry_run"]
    pipeline = str(EXPERIMENTS / "summary" / "progressive.yaml")
    assert main(["progressive", "--config", pipeline, "--config", str(layer), *words]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.count("its adapter goes on") == 2


def test_overrides_are_split_by_phase_and_keep_their_order() -> None:
    words = ["--a+", "1", "--phase1.a.b=2", "--a.x=d=e", "--a+=3"]
    shared = (("a+", "1"), ("a.x", "d=e"), ("a+", "3"))
    assert split_overrides(words, load([DEBUG]).phases[:2]) == {1: (*shared, ("a.b", "2")), 2: shared}
    assert options({"model": {"lora": {}, "rate": 1}, "b": None}, "") == (
        ("model.lora", "{}"),
        ("model.rate", "1"),
        ("b", "null"),
    )


def test_more_layers_go_over_those_of_each_phase(with_phases: Path) -> None:
    Path("more.yaml").write_text("trainer: {max_epochs: 9}\n")
    pipeline = load([DEBUG, Path("more.yaml")])
    assert [phase.config[-1] for phase in pipeline.phases] == [Path("more.yaml")] * 3


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        (None, [], "does not exist"),
        ("", [], "holds a NoneType, expected settings with name, phases"),
        ("name: [\n", [], "not YAML"),
        ("{name: ../x, phases: [{name: a, config: PHASE}]}", [], "'name' is '../x'"),
        ("{name: x, phases: []}", [], "'phases' is no list of phases"),
        ("{name: x, phase: []}", [], "'phases' is missing"),
        ("{name: x, phases: [{name: a}]}", [], "phase 1: 'config' is missing"),
        ("{name: x, phases: [{name: a, config: PHASE, epochs: 3}]}", [], "phase 1: unknown key 'epochs'"),
        ("{name: x, phases: [{name: a, config: PHASE, weights: first}]}", [], "'weights' is 'first', expected best or last"),
        ("{name: x, phases: [{name: a, config: gone.yaml}]}", [], "the config layer gone.yaml does not exist"),
        ("{name: x, phases: [{name: a, config: PHASE, start_from: b}]}", [], "'start_from' is 'b', expected an earlier phase"),
        ("{name: x, phases: [{name: a, config: PHASE}, {name: a, config: PHASE}]}", [], "phase 2: 'name' is 'a'"),
        ("{name: x, phases: [{name: a, config: PHASE, overrides: {ckpt_path: y}}]}", [], "'ckpt_path' is set by the pipeline"),
        ("{name: x, phases: [{name: a, config: PHASE}]}", ["--phases", "2"], "there is no phase '2'; give 1 (a)"),
        ("{name: x, phases: [{name: a, config: PHASE}]}", ["--phase2.seed_everything=1"], "there is no phase 2"),
        ("{name: x, phases: [{name: a, config: PHASE}]}", ["--model.learning_rate"], "--model.learning_rate has no value"),
        ("{name: x, phases: [{name: a, config: PHASE}]}", ["--ckpt_path=x"], "'ckpt_path' is set by the pipeline"),
        ("{name: x, phases: [{name: a, config: PHASE}]}", ["--model.rate=1"], "x, phase 1 (a): model: SFT has no option"),
        ("{name: x, phases: [{name: a, config: PHASE}]}", ["stray"], "unrecognized arguments: stray"),
        ("{name: x, phases: [{name: a, config: PHASE}]}", ["--x=1", "stray"], "'stray' is no option of seeker progressive"),
        ("{name: x, phases: [{name: a, config: PHASE}]}", ["--launcher="], "--launcher is empty"),
        ("{name: x, phases: [{name: a, config: PHASE}]}", ["--launcher=torchrunn -x"], "there is no command 'torchrunn' here"),
        ("{name: x, phases: [{name: a, config: PHASE}, {name: b, config: PHASE}]}", ["--phases", "b"], "which is not finished"),
        ("{name: x, phases: [{name: a, config: PHASE}, {name: b, config: PHASE}]}", [], "monitors nothing"),
        (
            "{name: x, phases: [{name: a, config: PHASE}, {name: b, config: PHASE}]}",
            ["--phase2.model.model_path=y"],
            "'model.model_path' is that of 'a', which the phase starts from",
        ),
        (
            "{name: x, phases: [{name: a, config: PHASE}, {name: b, config: PHASE}]}",
            ["--weights=last", "--model.lora.nf4=true"],
            "would be rounded to NF4 anew",
        ),
        (
            "{name: x, phases: [{name: a, config: PHASE}, {name: b, config: PHASE}]}",
            ["--weights=last", "--adapter", "continued", "--phase2.model.lora.rank=4"],
            "goes on with the adapter of 'a'",
        ),
        ("{name: x, phases: [{name: a, config: PHASE}]}", [], "multiturn_train.parquet"),
    ],
)
def test_bad_pipelines_are_refused(
    text: str | None, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pipeline.yaml"
    if text is not None:
        path.write_text(text.replace("PHASE", "experiments/debug/phase.yaml"))
    assert main(["progressive", "--config", str(path), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--phase3.data.train_file=gone.parquet"], "debug-progressive, phase 3 (summary_prefix): gone.parquet"),
        (
            ["--phase3.data.validation_file=data/debug/sets/summary_prefix_train.parquet"],
            "phase 1 (multiturn): the training conversations and those of summary_prefix_train",
        ),
        (
            ["--phase2.data.train_file=data/debug/sets/multiturn_validation.parquet"],
            "phase 2 (summary_only): the training conversations and those for validation",
        ),
        (["--phase1.trainer.enable_checkpointing=false"], "which monitors nothing"),
        (["--phase1.trainer.enable_checkpointing=false", "--adapter=continued", "--weights=last"], "keeps no checkpoint"),
        (["--phase3.trainer.precision=16-mixed"], "phase 3 (summary_prefix): trainer.precision: 16-mixed"),
        (["--phase3.trainer.accumulate_grad_batches=64"], "fewer than the 64 of one optimizer step"),
        (["--phase2.trainer.strategy=fsdp2", "--phase2.model.optimizer=adamw_8bit"], "cannot step on shards"),
    ],
)
def test_the_data_of_later_phases_are_checked_before_the_first_begins(
    words: list[str], message: str, with_phases: Path, in_process: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    assert message in capsys.readouterr().err
    assert in_process == []


def test_a_full_disk_between_phases_loses_nothing(
    with_phases: Path, in_process: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real: Callable[[Pipeline], None] = Pipeline.write_manifest

    def full(pipeline: Pipeline) -> None:
        if pipeline.done.get("multiturn", {}).get("finished"):
            raise OSError(28, "No space left on device")
        real(pipeline)

    monkeypatch.setattr(Pipeline, "write_manifest", full)
    assert run("--phases", "1") == 1
    error = capsys.readouterr().err
    assert "debug-progressive or the tracking store cannot be written" in error
    assert "No space left on device" in error
    assert "Traceback" not in error
    last = with_phases / "runs/debug-progressive/1-multiturn/hand_over.json"
    before = json.loads(last.read_text())
    monkeypatch.setattr(Pipeline, "write_manifest", real)
    assert run("--phases", "1") == 0
    assert in_process[1][-1] == "--ckpt_path=last"
    assert json.loads(last.read_text())["last"]["step"] == before["last"]["step"], "no step is repeated"


def test_other_settings_and_other_sources_are_refused(
    with_phases: Path, in_process: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--phases", "1,2") == 0
    assert run("--phases", "1,2", "--phase1.seed_everything=2") == 2
    assert "phase 'multiturn' was trained in" in capsys.readouterr().err
    folder = with_phases / "runs" / "debug-progressive"
    (folder / "1-multiturn").rename(folder / "away")
    assert run("--phases", "1,2") == 2
    assert "from a run of 'multiturn' that is no longer there" in capsys.readouterr().err
    (folder / "away").rename(folder / "1-multiturn")
    assert run("--phases", "1,2") == 0
    (folder / "2-summary_only" / "merged_best").rename(folder / "gone")
    assert run() == 2
    assert (
        "the best weights of phase 'summary_only', from which phase 'summary_prefix' starts, are gone"
        in capsys.readouterr().err
    )


def test_changed_data_are_noticed(with_phases: Path, in_process: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--phases", "1") == 0
    file = with_phases / "data/debug/sets/multiturn_train.parquet"
    before = file.read_bytes()
    file.write_bytes(before + b" ")
    assert run("--phases", "1") == 2
    assert f"on other data: {file} has changed" in capsys.readouterr().err
    file.write_bytes(before)
    assert run("--phases", "1") == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 1), (signal.SIGHUP, 129)])
def test_a_signal_reaches_the_training_which_saves(number: int, status: int, with_phases: Path) -> None:
    """Sent to the pipeline's process alone; the same command goes on."""
    words = ["progressive", "--config", str(DEBUG), "--phases", "1", "--trainer.max_epochs", "400"]
    process = subprocess.Popen([sys.executable, "-m", "project", *words], stderr=subprocess.PIPE, text=True)
    checkpoint = with_phases / "runs/debug-progressive/1-multiturn/checkpoints/last.ckpt"
    while not checkpoint.is_file():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == status, said
    assert "stopped after step" in said
    assert find_run("debug-progressive").info.status == "FAILED"
    assert main([*words[:-1], "400", "--dry_run"]) == 0


def test_it_runs_once_at_a_time(with_phases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with progressive._locked(with_phases / "runs" / "debug-progressive"):
        assert run("--phases", "1") == 2
    assert "is running already" in capsys.readouterr().err


def test_the_predecessors_scripts(with_phases: Path) -> None:
    """Its arguments, overrides and environment, dry and then for one phase."""

    def script(name: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        own = {"CONFIG": str(DEBUG), "MODEL": "tiny-random", "SEED": "5"}
        command = ["env", *(f"{key}={value}" for key, value in (own | environment).items())]
        command += ["bash", str(EXPERIMENTS.parent / "scripts" / name), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    dry = script("train_summary_only.sh", "2", "out", "optim.lr=0.125", "--phases", "2,3", DRY_RUN="1")
    assert dry.returncode == 2, "phase 2 has nothing to start from"
    assert "optim.lr=0.125                                -> --model.learning_rate=0.125" in dry.stderr
    dry = script(
        "train_progressive.sh", "2", "out", "optim.lr=0.125", "phase3.optim.lr=0.5", "data.max_length=1200", DRY_RUN="1"
    )
    assert dry.returncode == 0, dry.stderr
    assert (dry.stdout.count("learning_rate: 0.125"), dry.stdout.count("learning_rate: 0.5")) == (2, 1)
    assert "strategies/ddp.yaml" in dry.stdout
    assert dry.stdout.count("--trainer.devices=2 --model.model_path=tiny-random --seed_everything=5 --data.seed=5") == 3
    assert not Path("out").exists()
    assert script("train_summary_prefix.sh", "1", "out", "data.truncation=left").returncode == 2
    assert script("train_summary_prefix.sh", "out").returncode == 2
    done = script("train_progressive.sh", "1", "out", "--phases", "1")
    assert done.returncode == 0, done.stderr
    assert (with_phases / "out/1-multiturn/merged/config.json").is_file()


@pytest.mark.slow
def test_a_launcher_starts_each_phase_on_two_ranks(with_phases: Path) -> None:
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    words = ["--config", str(EXPERIMENTS / "strategies" / "ddp.yaml"), "--trainer.devices=2", "--data.micro_tokens=1200"]
    assert run("--phases", "1", "--launcher", f"{torchrun} --nproc_per_node 2", *words) == 0
    held = manifest(with_phases / "runs" / "debug-progressive")["phases"]["multiturn"]
    assert held["command"][:3] == [torchrun, "--nproc_per_node", "2"]
    assert (Path(held["hands_on"]["best"]["model"]) / "config.json").is_file()
