"""Every debug config is really run, with the paths it names, in a folder of its own."""

import json
from pathlib import Path

import polars as pl
import pytest
from pytest import CaptureFixture

from project.cli import main
from project.errors import InputError
from project.evaluation.results import RowsFile
from project.files import file_digest, read_records, read_rows
from project.records import Conversation, Row
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
    scores = [row for _, row in read_rows(with_facts / "test" / "results.parquet")]
    assert len(scores) == 4
    traces = client().search_traces(locations=[test.info.experiment_id], run_id=test.info.run_id)
    assert {trace.info.tags["question_id"] for trace in traces} == {row["question_id"] for row in scores}
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


def test_predict_writes_conversations_and_scores(with_facts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch by batch, so that they need not fit into memory; one that fails leaves nothing."""
    monkeypatch.setattr("project.datamodules.question.WAVES", 1)
    words = ["predict", "test.yaml", "--data.eval_batch_questions", "3", "--trainer.default_root_dir"]
    batches: list[int] = []
    extend = RowsFile.extend

    def counted(self: RowsFile, rows: list[Row]) -> None:
        batches.append(len(rows))
        extend(self, rows)
        if len(batches) == 2 and self.path.parent.name == "failed":
            raise InputError("no more")

    monkeypatch.setattr(RowsFile, "extend", counted)
    assert seeker(*words, "failed") == 2
    assert batches == [3, 1]
    assert not list(Path("failed").glob("*predictions*"))
    batches.clear()
    assert seeker(*words, "out") == 0
    assert batches == [3, 1]
    table = pl.read_parquet(with_facts / "out" / "predictions.parquet")
    assert {"id", "messages", "question", "answers", "prediction", "finish_reason", "em", "reward"} <= set(table.columns)
    conversations = read_records(with_facts / "out" / "predictions.parquet", Conversation.from_row)
    asked = [row["id"] for _, row in read_rows(with_facts / "data/debug/facts/questions_test.jsonl")]
    drawn = {c.id for c in conversations}
    assert len(drawn) == 4
    assert [c.id for c in conversations] == [name for name in asked if name in drawn]
    assert all(c.assistant_turns for c in conversations)


def test_trap_13_what_was_trained_on_is_no_test(with_facts: Path, capsys: CaptureFixture[str]) -> None:
    """Also under another name; the flags are those of other projects' evaluation scripts."""
    assert seeker("fit", "sft.yaml", "--trainer.default_root_dir", "sft") == 0
    Path("held_out.jsonl").write_bytes(Path("data/debug/facts/questions_train.jsonl").read_bytes())
    words = ["test", "--model_path", "sft/merged", "--test_file=held_out.jsonl", "--num_samples", "3", "--max_new_tokens=8"]
    words += ["--model.index=data/debug/index", "--model.engine=transformers", "--model.limits.context_tokens=4096"]
    words += ["--trainer.accelerator=cpu"]
    assert main([*words, "--output", "out"]) == 2
    assert "was trained on by the run 'sft'; test on others, or give --allow_overlap true" in capsys.readouterr().err
    assert not Path("out", "results.parquet").exists()
    assert main([*words, "--output", "out", "--allow_overlap", "true"]) == 0
    assert "tested all the same" in capsys.readouterr().err
    rows = [row for _, row in read_rows("out/results.parquet")]
    assert len(rows) == 3
    summary = json.loads(Path("out/summary.json").read_text())
    assert (summary["task"], summary["n"], summary["test_file"]) == ("agent", 3, "held_out.jsonl")
    assert summary["settings"]["limits"]["turn_tokens"] == 8
    assert all(row["generated_tokens"] <= 8 * row["turns"] for row in rows)
    words[3] = "--test_file=data/debug/facts/questions_test.jsonl"
    assert main([*words, "--output", "fresh"]) == 0
