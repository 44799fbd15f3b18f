"""The three training sets: valid conversations, the right messages trained, one split for all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_samples import TWO_HOPS, answer, result, search, think, trace, traces

from project.cli import main
from project.dialects import get_dialect
from project.errors import InputError
from project.files import read_records, write_records
from project.records import Conversation
from project.traces.phases import PHASES, SPLITS, Settings, build, summary_only, summary_prefix, validation_groups
from project.traces.steps import split
from project.traces.summaries import with_summary

SETTINGS = Settings("tags", 0, 0.3, 150, include_first=True)


def many(n=20):
    """Traces on n questions, two on each, with one result each."""
    return [
        trace(
            think(f"Look {k}."), search(f"q {i}"), result(f"Fact {i}."), answer(f"a {i}"), question=f"Q {i}?", ident=f"{i}-{k}"
        )
        for i in range(n)
        for k in range(2)
    ]


def sample():
    return with_summary(split(TWO_HOPS)[1])


def test_summary_only_to_the_letter():
    made = summary_only(sample(), get_dialect("tags"))
    summary = (
        "Question: Which currency is used where Ulaanbaatar is the capital?\n"
        "<think_summary>I need the country first.</think_summary>\n"
        "<information_summary>Ulaanbaatar: Ulaanbaatar is the capital of Mongolia. It lies on the Tuul.</information_summary>"
    )
    assert [m.role for m in made.messages] == ["system", "user", "assistant"]
    assert made.messages[1].content == f"Question: {TWO_HOPS.question}\n<summary>\n{summary}\n</summary>"
    assert made.messages[2].content == (
        "<think>\nIt is Mongolia. Now the currency.\n</think>\n<|SEARCH|>\n<search>\ncurrency of Mongolia\n</search>"
    )


@pytest.mark.parametrize("dialect", ["tags", "tools"])
def test_summary_prefix_trains_the_summary_and_the_target_only(dialect):
    written = get_dialect(dialect)
    made = summary_prefix(sample(), written)
    reply = "user" if dialect == "tags" else "tool"
    assert [m.role for m in made.messages] == ["system", "user", "assistant", reply, "user", "assistant", "user", "assistant"]
    assert [m.weight for m in made.messages if m.role == "assistant"] == [0.0, 1.0, 1.0]
    assert made.messages[4].content == "<fold/>"
    assert written.parse(made.messages[5].content).summary == sample().summary
    assert made.messages[6:] == summary_only(sample(), written).messages[1:]
    assert Conversation.from_row(made.to_row()) == made


@given(traces(finished=True), st.sampled_from(["tags", "tools"]))
def test_each_target_is_one_trained_message(made_up, dialect):
    for step_sample in split(made_up):
        told = with_summary(step_sample)
        made = summary_only(told, get_dialect(dialect))
        assert made.assistant_turns == 1
        assert made.messages[-1].role == "assistant"
        if told.summary:
            made = summary_prefix(told, get_dialect(dialect))
            assert sum(m.role == "assistant" and m.weight > 0 for m in made.messages) == 2


def test_counts_of_the_sets():
    # 40 traces with one result each: 40 multiturn, 80 summary_only (first decision and one more), 40 summary_prefix.
    sets = build(many(), SETTINGS)
    assert {phase: sum(len(sets[f"{phase}_{part}"]) for part in SPLITS) for phase in PHASES} == {
        "multiturn": 40,
        "summary_only": 80,
        "summary_prefix": 40,
    }


@given(st.integers(0, 5), st.floats(0.01, 0.99), st.integers(2, 30))
def test_the_split_leaves_neither_side_empty(seed, share, n):
    groups = [f"group {i}" for i in range(n)]
    validation = validation_groups(groups, seed, share)
    assert 0 < len(validation) < n


def test_adding_questions_moves_nobody():
    few, more = ([f"group {i}" for i in range(n)] for n in (100, 200))
    assert validation_groups(few, 0, 0.1) == validation_groups(more, 0, 0.1) & set(few)
    assert validation_groups(few, 0, 0.1) != validation_groups(few, 1, 0.1)


def test_one_question_cannot_be_split():
    with pytest.raises(InputError, match="all traces ask one question"):
        build([TWO_HOPS], SETTINGS)


def test_the_verb_writes_six_files_and_a_card_twice_alike(tmp_path):
    write_records(tmp_path / "traces.jsonl", [*many(), trace(search("a"), ident="cut"), trace(answer("x"), correct=False)])
    found = []
    for name in ("one", "two"):
        out = tmp_path / name
        assert main(["data", "phases", "--input_file", str(tmp_path / "traces.jsonl"), "--output_dir", str(out)]) == 0
        assert {path.name for path in out.iterdir()} == {f"{p}_{s}.jsonl" for p in PHASES for s in SPLITS} | {"README.md"}
        found.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert found[0] == found[1]
    card = found[0]["README.md"].decode()
    assert "| traces dropped: no answer at the end | 1 |" in card
    assert "| traces dropped: a wrong answer | 1 |" in card
    n = len(read_records(tmp_path / "one" / "summary_only_train.jsonl", Conversation.from_row))
    assert f"| summary_only_train | {n} |" in card
