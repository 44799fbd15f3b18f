"""A trace as a conversation, in both dialects."""

import pytest
from hypothesis import given
from trace_samples import TWO_HOPS, answer, any_steps, result, search, think, trace, traces

from project.cli import main
from project.dialects import Action, get_dialect
from project.manifests import read_manifest
from project.records import Conversation, Message, Step
from project.traces.multiturn import Problem, conversation, problem, problems, turns
from project.traces.table import question_group
from project.writing import write_records


def said(made):
    return [(m.role, m.content) for m in made.messages]


def test_the_tags_dialect_to_the_letter():
    made = conversation(TWO_HOPS, get_dialect("tags"))
    assert said(made)[1:] == [
        ("user", "Question: Which currency is used where Ulaanbaatar is the capital?"),
        (
            "assistant",
            "<think>\nI need the country first.\n</think>\n<|SEARCH|>\n<search>\ncountry with capital Ulaanbaatar\n</search>",
        ),
        (
            "user",
            "<information>\nDoc 1 (Title: Ulaanbaatar)\nUlaanbaatar is the capital of Mongolia. It lies on the Tuul.\n"
            "</information>",
        ),
        (
            "assistant",
            "<think>\nIt is Mongolia. Now the currency.\n</think>\n<|SEARCH|>\n<search>\ncurrency of Mongolia\n</search>",
        ),
        (
            "user",
            "<information>\nDoc 1 (Title: Mongolia)\nThe tögrög is the currency of Mongolia. Horses are many there.\n"
            "</information>",
        ),
        ("assistant", "<think>\nI have it.\n</think>\n<|ANSWER|>\n<answer>\ntögrög\n</answer>"),
    ]
    assert made.group == question_group("which  currency is used where ULAANBAATAR is capital")
    assert made.extra_info == {"source": "made_up", "correct": True}


@given(traces(finished=True))
def test_every_turn_can_be_parsed_back(made_up):
    dialect = get_dialect("tags")
    made = conversation(made_up, dialect)
    actions = [dialect.parse(m.content) for m in made.messages if m.role == "assistant"]
    expected = [
        Action(t.thought, t.act.queries if t.act.type == "search" else (), t.act.content if t.act.type == "answer" else None)
        for t in turns(made_up.steps)
    ]
    assert actions == expected
    assert made.messages[-1].role == "assistant"
    assert actions[-1].answer is not None
    assert Conversation.from_row(made.to_row()) == made


@given(traces(finished=True))
def test_each_tool_call_has_one_reply(made_up):
    made = conversation(made_up, get_dialect("tools"))
    for position, message in enumerate(made.messages):
        calls = [call.id for call in message.tool_calls]
        replies = [m.tool_call_id for m in made.messages[position + 1 : position + 1 + len(calls)]]
        assert replies == calls
    assert made.tools


@given(any_steps())
def test_any_steps_are_written_or_have_a_problem(steps):
    found = problems(steps)
    if not found:
        made = conversation(trace(*steps), get_dialect("tags"))
        assert all(m.weight == 1.0 for m in made.messages)
        assert made.assistant_turns == sum(s.type in ("search", "answer") for s in steps)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((search("a"), result("b")), Problem.NO_ANSWER),
        ((search("a"), result("b"), think("and now?")), Problem.NO_ANSWER),
        ((search("a"), answer("x")), Problem.NO_RESULT),
        ((result("b"), answer("x")), Problem.NO_CALL),
        ((search("a"), think("hm"), result("b"), answer("x")), Problem.NO_RESULT),
        ((Step("other", "search[a"), result("b"), answer("x")), Problem.MALFORMED),
        ((answer("x"), think("or"), answer("y")), Problem.EARLY_ANSWER),
        ((answer("x"), result("b"), answer("y")), Problem.EARLY_ANSWER),
        ((search("k", tool="lookup"), result("b"), answer("x")), Problem.OTHER_TOOL),
    ],
)
def test_what_is_no_conversation(steps, expected):
    assert problem(trace(*steps)) is expected
    assert problem(TWO_HOPS) is None


def test_a_malformed_turn_can_be_kept_and_is_not_trained():
    steps = (think("Look."), Step("other", "<search>a"), search("b"), result("B."), answer("x"))
    assert problem(trace(*steps), keep_malformed=True) is None
    made = conversation(trace(*steps), get_dialect("tags"))
    assert made.messages[2:4] == (
        Message("assistant", "<think>\nLook.\n</think>\n<search>a", weight=0.0),
        Message("user", "<information>\nThis turn could not be read.\n</information>"),
    )
    assert [m.weight for m in made.messages if m.role == "assistant"] == [0.0, 1.0, 1.0]


def test_several_queries_have_their_own_results_or_are_written_as_one():
    dialect = get_dialect("tools")
    known = Step.from_row(
        {"type": "search_result", "documents": [{"content": "A.", "id": "1/1"}, {"content": "B.", "id": "2/1"}]}
    )
    made = conversation(trace(search("a", "b"), known, answer("x")), dialect)
    assert [c.arguments for c in made.messages[2].tool_calls] == [{"query": "a"}, {"query": "b"}]
    assert [m.content for m in made.messages[3:5]] == ["Doc 1 (Title: )\nA.", "Doc 1 (Title: )\nB."]
    made = conversation(trace(search("a", "b"), result("A.", "B."), answer("x")), dialect)
    assert [c.arguments for c in made.messages[2].tool_calls] == [{"query": "a; b"}]
    assert made.messages[3].content == "Doc 1 (Title: )\nA.\n\nDoc 2 (Title: )\nB."


@pytest.mark.parametrize(
    ("dialect", "reply"),
    [
        ("tags", Message("user", "<information>\nNo Results\n</information>")),
        ("tools", Message("tool", '{"error": "No Results"}', tool_call_id="call_0")),
    ],
)
def test_a_failed_search_reads_as_a_failure(dialect, reply):
    made = conversation(trace(search("a"), result(error="No Results"), answer("x")), get_dialect(dialect))
    assert made.messages[3] == reply


def test_no_trace_left_is_an_error(tmp_path, capsys):
    write_records(tmp_path / "t.jsonl", [trace(search("a"))])
    args = ["--input_file", str(tmp_path / "t.jsonl"), "--output_file", str(tmp_path / "c.jsonl")]
    assert main(["data", "multiturn", *args]) == 2
    assert "nothing is left for conversations of 1 rows (1 traces dropped: no answer at the end)" in capsys.readouterr().err


def test_each_problem_is_counted(tmp_path, capsys):
    write_records(tmp_path / "t.jsonl", [TWO_HOPS, trace(search("a")), trace(search("a")), trace(answer("x"), result("y"))])
    args = ["--input_file", str(tmp_path / "t.jsonl"), "--output_file", str(tmp_path / "c.jsonl")]
    assert main(["data", "multiturn", *args]) == 0
    assert read_manifest(tmp_path / "c.jsonl")["counts"] == {
        "rows read": 4,
        "traces dropped: no answer at the end": 2,
        "traces dropped: steps after the answer": 1,
        "conversations written": 1,
    }
    assert "no answer at the end" in capsys.readouterr().out
