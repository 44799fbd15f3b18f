"""Each part of a user's own on `docs/how-to/extend.md` is written to a file as it stands there, and its commands run."""

import json
import sys
from pathlib import Path

import pytest
from doc_blocks import sections, write_files
from tiny import byte_tokenizer

from project.cli import main
from project.dialects import Action, Dialect, get_dialect
from project.errors import InputError
from project.files import read_rows
from project.records import Episode, FinishReason, Message, Question, SpanKind
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
    assert get_dialect("my_dialect.Brackets").spans("So. [search: a]\n[answer: b]") == [
        (0, 4, SpanKind.THINK), (4, 16, SpanKind.SEARCH), (16, 27, SpanKind.ANSWER),
    ]  # fmt: skip


def test_data_and_caches_are_made_anew_when_a_class_of_ones_own_changes(with_facts, monkeypatch):
    from project.datamodules.samples import renderer_key
    from project.rendering import Renderer, prepare_tokenizer

    write_files(with_facts, PAGE["A dialect"])
    monkeypatch.syspath_prepend(str(with_facts))
    monkeypatch.delitem(sys.modules, "my_dialect", raising=False)
    tokenizer = byte_tokenizer()

    def key():
        dialect = get_dialect("my_dialect.Brackets")
        prepare_tokenizer(tokenizer, dialect)
        return dialect.identity, renderer_key(Renderer(tokenizer, dialect))

    before = key()
    assert before[0].startswith("my_dialect.Brackets@")
    (with_facts / "my_dialect.py").write_text((with_facts / "my_dialect.py").read_text() + "# other\n")
    after = key()
    assert before[0] != after[0] and before[1] != after[1]
    plain = Renderer(tokenizer, get_dialect("tags", decision_tokens=False))
    assert renderer_key(plain) not in (before[1], after[1])
    assert get_dialect("tags").identity == "tags"


class Bare(Dialect):
    """Derived from the base alone."""

    def system_prompt(self):
        return "s"

    def write(self, action):
        return Message("assistant", action.answer or "")

    def parse(self, text):
        return Action(answer=text)

    def results(self, documents, action):
        return []

    def correction(self, reason, text):
        return []


def test_a_dialect_from_the_base_alone():
    found = get_dialect(f"{Bare.__module__}.Bare")
    assert (found.name, found.decision_tokens) == (f"{Bare.__module__}.Bare", False)
    with pytest.raises(InputError, match="takes no decision_tokens"):
        get_dialect(f"{Bare.__module__}.Bare", decision_tokens=True)


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


class Odd(Reward):
    def __init__(self, given):
        self.given = given

    def __call__(self, episode):
        return self.given


@pytest.mark.parametrize("given", [{"em": 1.0}, {"total": None}, {"total": float("nan")}, 1.0, None])
def test_a_reward_without_a_finite_total_is_refused(given):
    episode = Episode(Question("q7", "Why?", ()), (), (), FinishReason.ANSWER)
    with pytest.raises(InputError, match=r"Odd gives .* for question 'q7'; it must hold a finite 'total'"):
        breakdown(Odd(given), episode)
