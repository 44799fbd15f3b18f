"""Each part of a user's own on `docs/how-to/extend.md` is written to a file as it stands there, and its commands run."""

import json
import sys
from pathlib import Path

import pytest
from doc_blocks import sections, write_files

from project.cli import main
from project.errors import InputError
from project.files import read_rows
from project.records import Episode, FinishReason, Question
from project.rewards.reward import Reward, breakdown
from project.tracking.store import all_runs, run_metrics, run_params

ROOT = Path(__file__).resolve().parents[2]
PPO = ("fit", "--config", "experiments/debug/ppo.yaml")
TRACES = ("data", "traces", "--input_file", "x.jsonl", "--output_file", "y.jsonl")
PAGE = sections("how-to/extend.md")


@pytest.fixture
def run(with_facts, monkeypatch, capsys):
    """Runs a section's commands, in the folder that its files lie in."""
    (with_facts / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.setattr("sys.path", [*sys.path])  # which the command adds the current folder to

    def section(name):
        found = PAGE[name]
        write_files(with_facts, found)
        commands = [words for block in found if block.language == "bash" for words in block.commands]
        assert commands
        for words in commands:
            assert words[0] == "seeker"
            status = main(words[1:])
            assert status == 0, (words, capsys.readouterr().err)
        return capsys.readouterr().out

    return section


def test_a_reward(run):
    run("A reward")
    (found,) = all_runs()
    assert run_params(found)["model.reward"] == "my_reward.Brief"
    assert run_metrics(found)["reward/extra_words"] >= 0


def test_a_tool(run):
    run("A tool")
    (found,) = all_runs()
    assert run_metrics(found)["test/em_n"] == 4


def test_a_tool_is_asked_what_the_agent_writes(with_facts, monkeypatch):
    import asyncio

    write_files(with_facts, PAGE["A tool"])
    monkeypatch.syspath_prepend(str(with_facts))
    from my_tool import Glossary

    ((first,), none) = asyncio.run(Glossary().search(["Where is Oslo?", "Lima"], "q/1"))
    assert (first.title, first.content, none) == ("oslo", "The capital of Norway.", [])


def test_a_search_engine(run):
    said = run("A search engine")
    assert "Its capital is Oslo." in said and "Stockholm" not in said


def test_a_dialect(run, with_facts):
    run("A dialect")
    _, row = next(read_rows(Path("data/brackets/conversations_train.jsonl")))
    assert any("[search: " in message["content"] for message in row["messages"] if message["role"] == "assistant")
    folder = Path(all_runs()[0].data.tags["seeker.folder"])
    assert json.loads((folder / "merged" / "seeker.json").read_text())["dialect"] == "my_dialect.Brackets"
    test = ["test", "--config", "experiments/debug/test.yaml", "--model.model_path", str(folder / "merged")]
    assert main(test) == 0  # the folder remembers its dialect


def test_a_trace_reader(run):
    run("A trace reader")
    ((_, row),) = read_rows(Path("traces.jsonl"))
    assert [step["type"] for step in row["steps"]] == ["search", "search_result", "answer"]


def test_an_estimator(run):
    run("An estimator")
    (found,) = all_runs()
    assert run_params(found)["model.ppo.estimator"] == "my_estimator.Median"


def test_an_estimators_baseline_by_hand(with_facts, monkeypatch):
    import torch

    write_files(with_facts, PAGE["An estimator"])
    monkeypatch.syspath_prepend(str(with_facts))
    from my_estimator import Median

    paid = Median().baseline(torch.tensor([0.0, 1.0, 0.0, 3.0]), torch.tensor([0, 0, 0, 1]))
    assert paid.tolist() == [0.0, 1.0, 0.0, 0.0]  # medians 0 and 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([*PPO, "--model.ppo.estimator", "gea"], "is none of gae, rloo"),
        ([*PPO, "--model.ppo.estimator", "no.Such"], "cannot be imported"),
        ([*PPO, "--model.ppo.estimator", "re.Match"], "is no project.advantages.Estimator"),
        (["index", "search", "--engine", "bm52", "--query", "x"], "is none of bm25"),
        (["index", "search", "--engine", "pathlib.Path", "--query", "x"], "is no project.corpus.retrievers.Retriever"),
        ([*TRACES, "--reader", "recat"], "is none of auto, trace"),
        (["data", "facts", "--output_dir", "d", "--dialect", "tag"], "dialect 'tag' is none of tags, tools"),
    ],
)  # fmt: skip
def test_what_is_no_part_is_one_sentence(words, sentence, with_facts, capsys):
    (with_facts / "experiments").symlink_to(ROOT / "experiments")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


class NoTotal(Reward):
    def __call__(self, episode):
        return {"em": 1.0}


def test_a_reward_without_a_total_is_refused():
    episode = Episode(Question("q7", "Why?", ()), (), (), FinishReason.ANSWER)
    with pytest.raises(InputError, match=r"NoTotal gives .* for question 'q7'; it must hold a finite 'total'"):
        breakdown(NoTotal(), episode)
