"""Every debug config is really run, with the paths it names, in a folder of its own."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from project.cli import main
from project.files import file_digest, read_records, read_rows
from project.modules import progressive
from project.records import Conversation
from project.tracking.store import all_runs, client, find_run, run_metrics

DEBUG = Path(__file__).resolve().parents[2] / "experiments" / "debug"


def seeker(verb: str, config: str, *words: str) -> int:
    return main([verb, "--config", str(DEBUG / config), *words])


def test_sft_then_ppo_then_test(with_facts: Path) -> None:
    assert seeker("fit", "sft.yaml", "--trainer.default_root_dir", "sft") == 0
    assert seeker("fit", "ppo.yaml", "--trainer.default_root_dir", "ppo", "--model.model_path", "sft/merged") == 0
    assert seeker("test", "test.yaml", "--trainer.default_root_dir", "test", "--model.model_path", "ppo/merged") == 0
    for run in ("sft", "ppo"):
        assert {"config.json", "tokenizer.json", "seeker.json"} <= {p.name for p in (with_facts / run / "merged").iterdir()}
        assert (with_facts / run / "checkpoints" / "last.ckpt").is_file()
    sft, ppo, test = (find_run(name) for name in ("sft", "ppo", "test"))
    assert 4 < run_metrics(sft)["val/loss"] < 7  # a random model over 261 tokens: ln 261 = 5.6
    assert run_metrics(ppo)["sync/version"] == 2  # two updates
    assert ppo.data.tags["seeker.parent"] == sft.info.run_id
    assert test.data.tags["seeker.parent"] == ppo.info.run_id
    assert test.data.tags["dataset.index"] == ppo.data.tags["dataset.index"] == file_digest("data/debug/index/manifest.json")
    assert run_metrics(test)["test/em_n"] == 4
    scores = [row for _, row in read_rows(with_facts / "test" / "scores.jsonl")]
    assert len(scores) == 4
    for kind in {row["kind"] for row in scores}:
        of_kind = [row["em"] for row in scores if row["kind"] == kind]
        assert run_metrics(test)[f"test/em_{kind}_n"] == len(of_kind)
        assert run_metrics(test)[f"test/em_{kind}"] == sum(of_kind) / len(of_kind)


def test_ppo_as_it_is_shipped(with_facts: Path) -> None:
    assert seeker("fit", "ppo.yaml") == 0
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    assert Path(run.data.tags["seeker.folder"], "merged", "config.json").is_file()
    traces = client().search_traces(locations=[run.info.experiment_id], run_id=run.info.run_id)
    assert sorted(trace.info.tags["update"] for trace in traces) == ["0", "0", "1", "1"]
    assert all(trace.data.spans[1].name == "turn 1" for trace in traces)
    metrics = run_metrics(run)
    parts = ("rollout", "idle", "train", "sync")
    assert all(metrics[f"time/{name}_s"] >= 0 for name in parts)
    assert metrics["time/idle_s"] < metrics["time/rollout_s"]
    assert metrics["speed/rollout_tokens_s"] > 0


def test_predict_writes_conversations_and_scores(with_facts: Path) -> None:
    assert seeker("predict", "test.yaml", "--trainer.default_root_dir", "out") == 0
    table = pl.read_parquet(with_facts / "out" / "predictions.parquet")
    assert {"id", "messages", "question", "answers", "prediction", "finish_reason", "em", "reward"} <= set(table.columns)
    conversations = read_records(with_facts / "out" / "predictions.parquet", Conversation.from_row)
    asked = [row["id"] for _, row in read_rows(with_facts / "data/debug/facts/questions_test.jsonl")]
    drawn = {c.id for c in conversations}
    assert len(drawn) == 4
    assert [c.id for c in conversations] == [name for name in asked if name in drawn]
    assert all(c.assistant_turns for c in conversations)


def test_progressive_continues_where_it_stopped(
    with_phases: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Phase 1 runs as a process; then the pipeline is killed twice: between phases, and before phase 2 hands on its model."""
    real, calls = progressive._call, []

    def call(command: list[str], lock: int) -> int:
        calls.append(next(word for word in command if "default_root_dir" in word).rpartition("/")[2])
        if len(calls) == 1:
            return real(command, lock)
        if len(calls) == 2:
            raise KeyboardInterrupt
        status = main(command[3:])
        if len(calls) == 3:
            merged = next(word for word in command if "export_dir" in word).partition("=")[2]
            Path(merged).rename(f"{merged}.lost")
            return -9
        return status

    monkeypatch.setattr(progressive, "_call", call)
    folder = with_phases / "runs" / "debug-progressive"
    assert [seeker("progressive", "progressive.yaml") for _ in range(4)] == [1, 1, 0, 0]
    assert calls == ["1-multiturn", "2-summary_only", "2-summary_only", "2-summary_only", "3-summary_prefix"]
    said = capsys.readouterr()
    assert "phase 1, multiturn: already done" in said.out
    assert "phase 2, summary_only: resumes" in said.out
    assert said.out.rstrip().splitlines()[-1].startswith("debug-progressive: already done")
    assert "Traceback" not in said.err
    phases = json.loads((folder / "pipeline.json").read_text())["phases"]
    assert [row["finished"] for row in phases.values()] == [True] * 3
    _check_hand_over(phases)


def _check_hand_over(phases: dict[str, Any]) -> None:
    """Each phase loaded the model of the one before, and has its run as parent; the resumed one is one run."""
    runs = {run.info.run_name: run for run in all_runs()}
    names = list(phases)
    assert len(all_runs()) == 3
    assert set(runs) == {f"debug-progressive/{name}" for name in names}
    for before, after in pairwise(names):
        run = runs[f"debug-progressive/{after}"]
        assert run.data.params["model.model_path"] == phases[before]["model"]
        assert run.data.tags["seeker.parent"] == phases[before]["run_id"]


def test_progressive_dry_run_prints_each_command_and_runs_nothing(
    with_phases: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert seeker("progressive", "progressive.yaml", "--dry_run", "true") == 0
    commands = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert len(commands) == 3
    assert all(" -m project fit --config " in command for command in commands)
    assert "--model.model_path=tiny-random" in commands[0]
    assert f"--model.model_path={with_phases}/runs/debug-progressive/1-multiturn/merged" in commands[1]
    assert not (with_phases / "runs").exists()


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        (None, [], "does not exist"),
        ("", [], "holds a NoneType, expected settings with name, phases"),
        ("name: [\n", [], "not YAML"),
        ("{name: ../x, phases: [{name: a, config: PHASE}]}", [], "'name' is '../x'"),
        ("{name: x, phases: []}", [], "'phases' is no list of phases"),
        ("{name: x, phase: []}", [], "'phases' is missing"),
        ("{name: x, phases: [{name: a, config: PHASE, epochs: 3}]}", [], "phase 1: unknown key 'epochs'"),
        ("{name: x, phases: [{name: a, config: gone.yaml}]}", [], "the config layer gone.yaml does not exist"),
        ("{name: x, phases: [{name: a, config: PHASE, start_from: b}]}", [], "'start_from' is 'b', expected an earlier phase"),
        ("{name: x, phases: [{name: a, config: PHASE}, {name: a, config: PHASE}]}", [], "phase 2: 'name' is 'a'"),
        ("{name: x, phases: [{name: a, config: PHASE, overrides: {ckpt_path: y}}]}", [], "'ckpt_path' is set by the pipeline"),
        ("{name: x, phases: [{name: a, config: PHASE}]}", ["--phases", "2"], "there is no phase '2'; give 1 (a)"),
        ("{name: x, phases: [{name: a, config: PHASE}, {name: b, config: PHASE}]}", ["--phases", "b"], "which is not finished"),
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


def test_progressive_refuses_other_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text("{name: x, phases: [{name: a, config: experiments/debug/phase.yaml, overrides: {seed_everything: 1}}]}")
    pipeline = progressive.Pipeline.load(path)
    (phase,) = pipeline.phases
    pipeline.model(phase).mkdir(parents=True)
    (pipeline.model(phase) / "config.json").touch()
    pipeline.record(phase, finished=True)
    assert main(["progressive", "--config", str(path)]) == 0
    assert "x: already done" in capsys.readouterr().out
    path.write_text(path.read_text().replace("everything: 1", "everything: 2"))
    assert main(["progressive", "--config", str(path)]) == 2
    assert "with other settings" in capsys.readouterr().err


def test_progressive_runs_once_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text("{name: x, phases: [{name: a, config: experiments/debug/phase.yaml}]}")
    with progressive._locked(tmp_path / "runs" / "x"):
        assert main(["progressive", "--config", str(path)]) == 2
    assert "is running already" in capsys.readouterr().err
