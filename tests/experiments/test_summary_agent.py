"""`seeker test` of summaries: the texts that are asked for, their prompts and scores, by a scripted and a real engine."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer

from project.cli import main
from project.datamodules.summary import SummaryDataModule
from project.dialects import FOLD_REQUEST
from project.environment.search import EpisodeLimits
from project.files import read_records, read_rows
from project.modules.summary_agent import SummaryAgent
from project.records import Conversation
from project.rollouts.engines.protocol import Generation
from project.tracking.store import find_run, run_metrics

CONFIG = Path(__file__).resolve().parents[2] / "experiments" / "summary" / "test.yaml"
FILE = "data/debug/sets/summary_prefix_validation.parquet"
LONG = EpisodeLimits(context_tokens=8192)


class Scripted:
    """Answers each prompt with what a rule says, and keeps the prompts."""

    version = 0

    def __init__(self, agent: SummaryAgent, rule: Any) -> None:
        self.agent, self.rule, self.prompts = agent, rule, []

    async def generate(self, prompt_ids: list[int], sampling: Any) -> Generation:
        prompt = self.agent.renderer.decode(prompt_ids)
        self.prompts.append((prompt, sampling.max_tokens))
        return Generation(tuple(self.agent.renderer.encode(self.rule(prompt))), (), "stop", 0)


def run(rule: Any, limits: EpisodeLimits = LONG, **data: Any) -> tuple[list[dict[str, Any]], Scripted, dict[str, float]]:
    agent = SummaryAgent("tiny-random", limits=limits)
    engine = Scripted(agent, rule)
    agent._engine = engine
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    (metrics,) = trainer.test(agent, SummaryDataModule(Path(FILE), **data), verbose=False)
    return [row for _, row in read_rows("results.parquet")], engine, metrics


def expert(conversations: list[Conversation]) -> Any:
    """Writes the file's own summaries and turns."""

    def rule(prompt: str) -> str:
        one = next(c for c in conversations if c.question in prompt)
        return one.messages[-3 if FOLD_REQUEST in prompt else -1].content

    return rule


def test_the_expert_scores_full_marks(with_phases: Path) -> None:
    conversations = read_records(FILE, Conversation.from_row)
    rows, engine, metrics = run(expert(conversations))
    assert [row["question_id"] for row in rows] == [c.id for c in conversations]
    for row in rows:
        for name in ("own", "given", "full"):
            assert (row[f"{name}_em"], row[f"{name}_f1"], row[f"{name}_action"]) == (1, 1, 1)
        assert (row["parts"], row["quoted"], row["unsupported"], row["answer_kept"], row["rouge_l"]) == (1, 1, 0, 1, 1)
        assert row["own_lost_f1"] == row["given_lost_f1"] == 0
        assert row["own_tokens"] > 0 < row["full_tokens"]
    assert metrics["test/own_em"] == 1
    assert metrics["test/n"] == len(rows)
    asked = [prompt for prompt, _ in engine.prompts if FOLD_REQUEST in prompt]
    assert len(asked) == len(rows)
    assert {most for prompt, most in engine.prompts if FOLD_REQUEST in prompt} == {256}, "summary_tokens"
    assert all("Doc 1" in prompt for prompt in asked), "it reads the results"


def test_each_turn_is_asked_for_as_in_training(with_phases: Path) -> None:
    """The prompt of a summary is what stands before it in the training sample, to the token."""
    conversations = read_records(FILE, Conversation.from_row)
    _, engine, _ = run(expert(conversations), limit=1)
    renderer = engine.agent.renderer
    one = next(c for c in conversations if c.question in engine.prompts[0][0])
    (sample,) = renderer.samples(one)
    asked = renderer.encode(engine.prompts[0][0])
    assert list(sample.ids[: len(asked)]) == asked
    after = renderer.decode(list(sample.ids[len(asked) :]))
    assert after.startswith("<summary>")
    own, given, full = (prompt for prompt, _ in engine.prompts[1:])
    assert own == given, "the expert's summary is the reference"
    assert "Doc 1" in full
    assert "Doc 1" not in own


def test_what_is_wrong_scores_nothing(with_phases: Path) -> None:
    """No summary, and a search where the expert answers."""
    rows, engine, _ = run(lambda prompt: "no idea" if FOLD_REQUEST in prompt else "<search>more</search>")
    for row in rows:
        assert (row["parts"], row["own_action"], row["own_em"]) == (0, 0, 0)
        assert row["answer_kept"] == 0
        assert (row["given_action"], row["given_em"]) == (0, 0)
        assert all(math.isnan(row[name]) for name in ("quoted", "own_tokens", "compression"))
        assert row["own_turn"] == ""
        assert row["messages"][-1] == {"role": "assistant", "content": "no idea"}
    assert len(engine.prompts) == 3 * len(rows), "there is no turn from a summary that is none"


def test_contexts_that_are_all_too_long_are_refused(with_phases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model.model_path=tiny-random", "--model.engine=transformers", f"--data.test_file={FILE}"]
    assert main(["test", "--config", str(CONFIG), *words, "--model.limits.context_tokens=400"]) == 2
    assert "all contexts are longer than limits.context_tokens=400" in capsys.readouterr().err


def test_by_the_command_line(with_phases: Path) -> None:
    """A random model, by the transformers engine: rows, metrics and intervals, and pairs for a comparison."""
    words = ["--model.model_path=tiny-random", "--model.engine=transformers", f"--data.test_file={FILE}"]
    words += ["--model.limits={context_tokens: 8192, turn_tokens: 8, summary_tokens: 8}"]
    for name in ("one", "two"):
        assert main(["test", "--config", str(CONFIG), *words, f"--trainer.logger.run_name={name}"]) == 0
    metrics = run_metrics(find_run("one"))
    assert metrics["test/given_em"] == 0 == metrics["test/parts"]
    assert metrics["test/given_em_n"] == metrics["test/n"] >= 1
    assert not math.isnan(metrics["test/full_tokens"])
    assert main(["compare", "one", "two", "--output_file", "compared.json"]) == 0
    assert "given_em" in json.dumps(json.loads(Path("compared.json").read_text()))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("data/debug/sets/multiturn_validation.parquet", "is no summary_prefix sample"),
        ("gone.parquet", "gone.parquet"),
    ],
)
def test_other_files_are_refused(file: str, message: str, with_phases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model.model_path=tiny-random", "--model.engine=transformers", f"--data.test_file={file}"]
    assert main(["test", "--config", str(CONFIG), *words]) == 2
    assert message in capsys.readouterr().err
