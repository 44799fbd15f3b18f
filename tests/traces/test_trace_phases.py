"""The three training sets: valid conversations, the right messages trained, one split for all."""

import asyncio
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_samples import TWO_HOPS, answer, result, search, think, trace, traces

from project import streams
from project.cli import main
from project.dialects import Action, get_dialect, write_summary
from project.environment.search import EpisodeLimits, SearchEnvironment
from project.files import read_records, read_rows
from project.manifests import read_manifest
from project.records import Conversation, Message, Question
from project.streams import Made
from project.traces.phases import PHASES, Settings, folded_again, of_row, of_sample, previous_turn, summary_only, summary_prefix
from project.traces.split import group_of, place
from project.traces.steps import split
from project.traces.summaries import with_summary
from project.writing import write_records, write_rows


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


@pytest.mark.parametrize("dialect", ["tags", "tools"])
def test_a_second_fold_is_trained_from_what_a_rollout_then_shows(dialect):
    """The environment's own messages, folding after each search: question and summary, search, results, request."""
    written, second = get_dialect(dialect), with_summary(split(TWO_HOPS)[2])
    first = sample()

    class Tool:
        async def search(self, queries, seed):
            found = {one.context[-2].queries: one.context[-1] for one in (first, second)}
            return [list(found[tuple(queries)].documents)]

    question = Question("q", TWO_HOPS.question, TWO_HOPS.answers)
    limits = EpisodeLimits(max_turns=8, fold_turns=1, context_tokens=10_000, result_tokens=1_000)
    environment = SearchEnvironment(question, written, Tool(), limits, len)
    shown = environment.opening()
    for one in (first, second):
        [turn] = [m for m in summary_prefix(one, written).messages if m.role == "assistant" and m.weight == 0][-1:]
        action = Action(queries=one.context[-2].queries)
        shown += [turn, *asyncio.run(environment.act(action, turn)), *environment.ask_for_summary()]
        if one is second:
            break
        folded = written.write(Action(summary=one.summary))
        shown = asyncio.run(environment.act(written.parse(folded.content), folded))
    made = folded_again(second, written).messages
    assert [(m.role, m.content) for m in made[: len(shown)]] == [(m.role, m.content) for m in shown]
    assert made[len(shown) :] == summary_prefix(second, written).messages[-3:]
    assert sum(m.role == "assistant" and m.weight > 0 for m in made) == 2


def test_a_second_fold_is_trained_only_where_its_summary_can_be_written_from_what_is_shown():
    second = with_summary(split(TWO_HOPS)[2])
    names = {one.id for _, one in of_sample(second, get_dialect("tags"), Settings())}
    assert {name for name in names if name.endswith("/again")} == {f"summary_prefix:{second.id}/again"}
    forgot = replace(second, previous_summary=write_summary(TWO_HOPS.question, "I need the country first.", "Nothing yet."))
    assert not [one for _, one in of_sample(forgot, get_dialect("tags"), Settings()) if one.id.endswith("/again")]


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


def test_previous_turn_to_the_letter():
    second = with_summary(split(TWO_HOPS)[2])
    made = previous_turn(second, get_dialect("tags"))
    assert second.previous_summary == sample().summary
    assert [m.role for m in made.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [m.weight for m in made.messages if m.role == "assistant"] == [0.0, 1.0]
    assert made.messages[1].content == f"Question: {TWO_HOPS.question}"
    assert made.messages[2].content == (
        f"<summary>\n{sample().summary}\n</summary>\n<think>\nIt is Mongolia. Now the currency.\n</think>\n<|SEARCH|>\n"
        "<search>\ncurrency of Mongolia\n</search>"
    )
    assert "The tögrög is the currency of Mongolia." in made.messages[3].content
    assert made.messages[4].content == (
        f"<summary>\n{second.summary}\n</summary>\n<think>\nI have it.\n</think>\n<|ANSWER|>\n<answer>\ntögrög\n</answer>"
    )


@pytest.mark.parametrize("dialect", ["tags", "tools"])
def test_the_first_previous_turn_has_no_summary_before(dialect):
    made = previous_turn(sample(), get_dialect(dialect))
    assert "<summary>" not in made.messages[2].content
    assert get_dialect(dialect).parse(made.messages[-1].content).summary == sample().summary
    assert len(made.messages[-1].tool_calls) == (dialect == "tools")
    assert Conversation.from_row(made.to_row()) == made


def run(verb, *args):
    return main(["data", verb, *map(str, args)])


@given(st.lists(traces(), min_size=1, max_size=4), st.sampled_from(["tags", "tools"]), st.booleans())
def test_samples_give_what_their_traces_give(made_up, dialect, keep_wrong):
    settings = Settings(dialect, keep_wrong=keep_wrong)
    by_trace, by_sample = Made(), Made()
    for number, one in enumerate(made_up):
        one = replace(one, id=str(number), correct=(None, True, False)[number % 3])
        of_row(settings, one.to_row(), by_trace)
        for step_sample in split(one):
            of_row(settings, with_summary(step_sample).to_row(), by_sample)
    assert by_trace.rows == by_sample.rows


def test_counts_of_the_sets(tmp_path):
    # 40 traces with one result each: 40 multiturn, 80 summary_only (first decision and one more), 40 of the other two.
    write_records(tmp_path / "traces.jsonl", [*many(), trace(search("a"), ident="cut"), trace(answer("x"), correct=False)])
    assert run("phases", "--input_file", tmp_path / "traces.jsonl", "--output_dir", tmp_path / "out") == 0
    assert read_manifest(tmp_path / "out" / "multiturn.jsonl")["counts"] == {
        "rows read": 42,
        "traces dropped: no answer at the end": 1,
        "traces dropped: a wrong answer": 1,
        "multiturn written": 40,
        "summary_only written": 80,
        "summary_prefix written": 40,
        "previous_turn written": 40,
    }


@given(st.integers(0, 5), st.text(min_size=1))
def test_a_place_is_its_groups_alone(seed, group):
    assert 0 <= place(group, seed) < 1
    assert place(group, seed) == place(group, seed)
    assert place(group, seed) != place(group, seed + 1)


def prepared(tmp_path, name, rows, *args):
    write_records(tmp_path / f"{name}.jsonl", rows)
    out = tmp_path / name
    assert run("prepare", "--input_file", tmp_path / f"{name}.jsonl", "--output_dir", out, *args) == 0
    return {
        part: {c.question for c in read_records(out / "sets" / f"multiturn_{part}.parquet", Conversation.from_row)}
        for part in ("train", "validation", "test")
        if (out / "sets" / f"multiturn_{part}.parquet").exists()
    }


def test_adding_questions_moves_nobody(tmp_path):
    shares = ("--validation_share", "0.3", "--test_share", "0.2")
    few, more = prepared(tmp_path, "few", many(20), *shares), prepared(tmp_path, "more", many(40), *shares)
    asked = {c.question for c in many(20)}
    assert sum(map(len, few.values())) == 20
    assert all(few[part] == more[part] & asked for part in few)
    assert few != prepared(tmp_path, "other", many(20), *shares, "--seed", "1")


def test_the_script_and_the_verb_do_the_same_twice_alike(tmp_path):
    write_records(tmp_path / "raw.jsonl", many(40))
    script = Path(__file__).resolve().parents[2] / "scripts" / "prepare_summary_data.sh"
    done = subprocess.run(
        ["bash", script, tmp_path / "raw.jsonl", tmp_path / "one"], env=os.environ | {"VAL_RATIO": "0.2"}, check=False
    )
    assert done.returncode == 0
    assert (
        run("prepare", "--input_file", tmp_path / "raw.jsonl", "--output_dir", tmp_path / "two", "--validation_share", 0.2) == 0
    )
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name / "sets").glob("*.parquet")} for name in ("one", "two"))
    assert one == two
    assert set(one) == {f"{phase}_{part}.parquet" for phase in PHASES for part in ("train", "validation")}


def test_a_side_that_stays_empty_is_an_error(tmp_path, capsys):
    write_records(tmp_path / "raw.jsonl", [TWO_HOPS])
    assert run("prepare", "--input_file", tmp_path / "raw.jsonl", "--output_dir", tmp_path / "out") == 2
    assert "nothing is left for validation of 1 rows" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("sets/*"))


@pytest.mark.parametrize(("by", "parts"), [("question", 2), ("trace", 2), ("group", 2), ("source", 1)])
def test_what_stays_together(tmp_path, by, parts):
    write_records(tmp_path / "t.jsonl", many())
    assert run("phases", "--input_file", tmp_path / "t.jsonl", "--output_dir", tmp_path / "p") == 0
    args = (
        "--input_file",
        tmp_path / "p/summary_only.jsonl",
        "--output_dir",
        tmp_path / "s",
        "--validation_share",
        0.5,
        "--by",
        by,
    )
    assert run("split", *args) == (0 if parts == 2 else 2)
    if parts == 2:
        found = [
            {group_of(c, by) for c in read_records(tmp_path / "s" / f"summary_only_{part}.parquet", Conversation.from_row)}
            for part in ("train", "validation")
        ]
        assert found[0].isdisjoint(found[1])
        assert all(found)


def test_two_splits_do_not_stand_in_one_folder(tmp_path, capsys):
    write_records(tmp_path / "t.jsonl", many())
    args = ("--input_file", tmp_path / "m.jsonl", "--output_dir", tmp_path / "s", "--file_format", "jsonl")
    assert run("multiturn", "--input_file", tmp_path / "t.jsonl", "--output_file", tmp_path / "m.jsonl") == 0
    assert run("split", *args, "--validation_share", "0.3", "--test_share", "0.3") == 0
    assert run("split", *args, "--validation_share", "0.3", "--force", "true") == 2
    assert "m_test.jsonl is there from another split of m; delete it" in capsys.readouterr().err
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "m.jsonl").write_bytes((tmp_path / "m.jsonl").read_bytes())
    both = ("--input_file", f"[{tmp_path}/m.jsonl, {tmp_path}/a/m.jsonl]", "--output_dir", tmp_path / "x")
    assert run("split", *both) == 2
    assert "would both be split into m_train" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_split_keeps_what_it_does_not_know(tmp_path):
    said = [{"role": "user", "content": "x", "name": "u"}]
    rows = [{"id": str(n), "messages": said, "question": f"q {n}", "new": n} for n in range(20)]
    write_rows(tmp_path / "c.jsonl", rows)
    args = ("--input_file", tmp_path / "c.jsonl", "--output_dir", tmp_path / "s", "--validation_share", "0.4")
    assert run("split", *args) == 0
    found = [row for part in ("train", "validation") for _, row in read_rows(tmp_path / "s" / f"c_{part}.parquet")]
    assert sorted(found, key=lambda row: row["new"]) == rows


def test_check_finds_what_is_shared(tmp_path, capsys):
    """A question in other words of case, a trace, an opening, a question with its answer: each is named."""
    one = Conversation("1", (Message("user", "Question: Who wrote Hamlet?"), Message("assistant", "x")), group="g")
    shared = {
        "the group 'g'": replace(one, id="2", messages=(Message("user", "y"),)),
        "the trace 't'": replace(one, group="h", messages=(Message("user", "y"),), extra_info={"trace_id": "t"}),
        "the opening 'question who wrote hamlet'": replace(
            one, group="h", messages=(Message("user", "question: who wrote hamlet"),)
        ),
        "the answer to 'who wrote hamlet', 'shakespeare'": replace(
            one, group="h", messages=(Message("user", "y"),), question="who wrote the Hamlet", answers=("Shakespeare",)
        ),
    }
    train = replace(one, extra_info={"trace_id": "t"})
    files = f"[{tmp_path}/a_train.jsonl, {tmp_path}/a_test.jsonl]"
    for said, other in shared.items():
        asked = {"question": "Who wrote Hamlet?", "answers": ("shakespeare",)} if "answer" in said else {}
        write_records(tmp_path / "a_train.jsonl", [replace(train, **asked)])
        write_records(tmp_path / "a_test.jsonl", [replace(other, id="1" if "opening" in said else "2")])
        assert run("split", "--check", "true", "--input_file", files) == 2
        assert f"train and test share {said}" in capsys.readouterr().err
    write_records(tmp_path / "a_test.jsonl", [replace(one, id="2", group="h", messages=(Message("user", "y"),))])
    assert run("split", "--check", "true", "--input_file", files) == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--validation_share", "1.5", "--output_dir", "out"), "--validation_share is 1.5"),
        (("--validation_share", "0.6", "--test_share", "0.4", "--output_dir", "out"), "leave something to train on"),
        ((), "--output_dir is missing"),
        (("--check", "true"), "does not say which side it is"),
        (("--output_dir", "out", "--by", "article"), "field 'article' of '1' is empty"),
    ],
)
def test_a_split_that_cannot_be(tmp_path, monkeypatch, capsys, args, said):
    monkeypatch.chdir(tmp_path)
    write_records("c.jsonl", [Conversation("1", (Message("user", "x"),), question="q")])
    assert run("split", "--input_file", "c.jsonl", *args) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))


def test_a_check_over_many_chunks_names_what_is_shared_and_what_cannot_be_read(tmp_path, capsys, monkeypatch):
    """Sides larger than a chunk are read in processes of their own."""
    monkeypatch.setattr(streams, "CHUNK_BYTES", 2_000)
    rows = [Question(f"q{n}", f"Question {n}?", (f"answer {n}",), group=f"g{n}").to_row() for n in range(200)]
    train, test = tmp_path / "q_train.jsonl", tmp_path / "q_test.jsonl"
    write_rows(train, rows[:150])
    write_rows(test, rows[150:])
    command = ["data", "split", "--check", "true", "--input_file", f"[{train},{test}]"]
    assert main(command) == 0
    assert "│ train │   150 │" in capsys.readouterr().out
    write_rows(test, [*rows[150:], rows[3] | {"id": "other", "group": "other"}])
    assert main(command) == 2
    assert "share the answer to 'question 3', 'answer 3'; split them by group" in capsys.readouterr().err
    test.write_text(test.read_text() + "{broken\n")
    assert main(command) == 2
    assert f"{test}, line 52: not JSON" in capsys.readouterr().err
