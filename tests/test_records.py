"""Records: row -> record -> row, the forms that other systems write, and the sentence for each wrong field."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from project.records import (
    Conversation,
    Document,
    Episode,
    FinishReason,
    Message,
    Passage,
    Question,
    SpanKind,
    Step,
    ToolCall,
    Trace,
    Turn,
    with_weight,
)

TOOLS = (
    {
        "type": "function",
        "function": {"name": "search", "parameters": {"type": "object", "properties": {"queries": {"type": "array"}}}},
    },
    {
        "type": "function",
        "function": {"name": "visit", "parameters": {"properties": {"url": {"default": None, "enum": ["a", None]}}}},
    },
)
CONVERSATION = Conversation(
    id="c1",
    messages=(
        Message("system", "s"),
        Message("user", "Question: q"),
        Message(
            "assistant",
            "t",
            (ToolCall("search", {"queries": ["a", "b"], "options": {}}, "call_0"), ToolCall("visit", {"url": None})),
        ),
        Message("tool", "r", tool_call_id="call_0"),
        Message("assistant", "", (ToolCall("search", {}),), weight=0.0),
        Message("assistant", "done", weight=0.5),
    ),
    tools=TOOLS,
    question="q",
    answers=("x", "y"),
    group="g",
    extra_info={"empty": {}, "null": None, "list": [1, {"a": []}]},
)
QUESTION = Question("7", "q", ("a",), ("p1", "p2"), False, "one_hop", "g", {"n": 1, "o": {}})
TRACE = Trace(
    "t1",
    "q",
    ("a",),
    (
        Step("reasoning", "hm"),
        Step("search", tool="lookup", queries=("a", "b")),
        Step("search_result", documents=(Document("c", "T"), Document("", id="9"))),
        Step("search_result", error="HTTP 500"),
        Step("other", "noise"),
        Step("answer", "a"),
    ),
    None,
    "react",
)
TURN = Turn((1, 2), (3,), (-0.5,), 4, True, True, (5, 6, 7))
EPISODE = Episode(
    QUESTION, (TURN, Turn((), (9,), (-1.0,), 4, False, drifted=True)), CONVERSATION.messages, FinishReason.TOOL_ERROR, "a",
    ("q",), (("p", ""), ()), 1, "down",
)  # fmt: skip
RECORDS = [
    CONVERSATION, Conversation("0", ()), QUESTION, Question("1", "q", ()), TRACE, Passage("p", "T", "x\ny", "src", 3, 9),
    TURN, EPISODE, Episode(QUESTION, (), (), FinishReason.CONTEXT_FULL),
]  # fmt: skip


@pytest.mark.parametrize("record", RECORDS)
def test_row_round_trip(record):
    assert type(record).from_row(record.to_row()) == record
    assert type(record).from_row(json.loads(json.dumps(record.to_row()))) == record, "through JSON too"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=3), st.text(max_size=5))
def test_tool_call_round_trip(arguments, ident):
    call = ToolCall("search", arguments, ident)
    row = call.to_row()
    assert isinstance(row["function"]["arguments"], str), "a JSON string in files"
    assert ToolCall.from_row(row) == call
    row["function"]["arguments"] = arguments
    assert ToolCall.from_row(row) == call, "an object is read too"


def test_empty_keys_are_left_out():
    assert Message("user", "x").to_row() == {"role": "user", "content": "x"}
    assert CONVERSATION.to_row()["messages"][4] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "", "type": "function", "function": {"name": "search", "arguments": "{}"}}],
        "weight": 0.0,
    }
    assert CONVERSATION.to_row()["assistant_turns"] == CONVERSATION.assistant_turns == 3


def test_forms_of_other_systems():
    null_content = {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL_ROW], "weight": None, "tool_call_id": None}
    assert Message.from_row(null_content) == Message("assistant", "", (ToolCall("search", {"query": "q"}),))
    assert Question.from_row({"id": 7, "question": "q", "golden_answers": ["a"]}) == Question("7", "q", ("a",))
    assert Conversation.from_row({"id": "c", "messages": [], "tools": "[]", "extra_info": '{"a": {}}'}).extra_info == {"a": {}}
    step = Step.from_row({"type": "search", "tool": None, "queries": ["q"], "documents": None})
    assert step.to_row() == {"type": "search", "tool": "search", "queries": ["q"]}


TOOL_CALL_ROW = {"type": "function", "function": {"name": "search", "arguments": '{"query": "q"}'}}


@pytest.mark.parametrize("title", ["Ulaanbaatar", "", '"Heroes"', '"Heroes" (song)', "a"])
def test_passage_in_search_r1_form(title):
    passage = Passage("1", title, "line 1\nline 2")
    assert passage.contents == f'"{title}"\nline 1\nline 2'
    assert Passage.from_row({"id": "1", "contents": passage.contents}) == passage


def conversation_row(**message):
    return {"id": "c", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"} | message]}


@pytest.mark.parametrize(
    ("parse", "row", "words"),
    [
        (Passage.from_row, {"text": "x"}, "'id' is missing"),
        (Passage.from_row, {"id": "1", "text": 3}, "'text' is int, expected str"),
        (Question.from_row, {"id": "1", "answers": []}, "'question' is missing"),
        (Question.from_row, {"id": "1", "question": "q"}, "'answers' is missing"),  # [] says: the corpus cannot answer
        (Question.from_row, {"id": "1", "question": "q", "answers": "a"}, "'answers' is str"),
        (Question.from_row, {"id": "1", "question": "q", "answers": [1]}, "'answers' is not a list of strings"),
        (Question.from_row, {"id": "1", "question": "q", "answers": [], "needs_search": "false"}, "'needs_search' is 'false'"),
        (
            Question.from_row,
            {"id": "1", "question": "q", "answers": [], "extra_info": "{"},
            "'extra_info' is a string that is not",
        ),
        (Question.from_row, {"id": "1", "question": "q", "answers": [], "extra_info": [1]}, "'extra_info' is list"),
        (Conversation.from_row, {"id": "c"}, "'messages' is missing"),
        (Conversation.from_row, {"id": "c", "messages": [3]}, r"messages\[0\]: 3 is int, expected an object"),
        (Conversation.from_row, conversation_row(role="bot"), r"messages\[1\]: field 'role' is 'bot'"),
        (Conversation.from_row, conversation_row(content=None), r"messages\[1\]: field 'content' of the assistant"),
        (Conversation.from_row, conversation_row(content=[{"text": "x"}]), "'content' of the assistant message is list"),
        (Conversation.from_row, conversation_row(weight="high"), "'weight' of the assistant message is 'high'"),
        (Conversation.from_row, conversation_row(weight=-1), "'weight' of the assistant message is -1"),
        (Conversation.from_row, conversation_row(weight=float("nan")), "'weight' of the assistant message is nan"),
        (Conversation.from_row, conversation_row(tool_calls="x"), "'tool_calls' is str"),
        (Conversation.from_row, conversation_row(tool_calls=[{}]), "'function' is missing"),
        (Conversation.from_row, conversation_row(tool_calls=[{"function": {"name": "f"}}]), "'function.arguments' is NoneType"),
        (Conversation.from_row, conversation_row(tool_calls=[{"function": {"name": "f", "arguments": "q"}}]), "not JSON"),
        (Conversation.from_row, conversation_row() | {"tools": "["}, "'tools' is a string that is not JSON"),
        (Conversation.from_row, conversation_row() | {"tools": [{"name": "search"}]}, r"tools\[0\]: {'name': 'search'} is not"),
        (Trace.from_row, {"id": "1", "question": "q", "steps": [{"type": "think"}]}, "'type' is 'think'"),
        (Trace.from_row, {"id": "1", "question": "q", "steps": [], "correct": "no"}, "'correct' is 'no'"),
    ],
)
def test_a_wrong_field_is_named(parse, row, words):
    with pytest.raises(ValueError, match=words):
        parse(row)


def test_environment_failures():
    assert {f for f in FinishReason if f.is_environment_failure} == {FinishReason.TOOL_ERROR, FinishReason.TIMEOUT}


def test_episode_as_conversation():
    episode = Episode(QUESTION, (), (Message("user", "x"),), FinishReason.ANSWER, answer="a")
    assert episode.to_conversation(TOOLS) == Conversation(
        "7", (Message("user", "x"),), TOOLS, "q", ("a",), "g", {"finish_reason": "answer", "prediction": "a"}
    )
    assert with_weight(Message("user", "x"), 0.0) == Message("user", "x", weight=0.0)


def test_span_kinds_are_stored_by_index():
    """Tokenised data holds the index: a kind may be added at the end, the others stay where they are."""
    expected = ["system", "user", "header", "think", "search", "decision", "summary", "answer", "text", "result", "end"]
    assert [str(kind) for kind in SpanKind][: len(expected)] == expected
