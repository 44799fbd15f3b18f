"""Each format of agent traces, read from a row small enough to check by hand."""

import json

import pytest
from trace_samples import NORMALISED, TWO_HOPS, answer, result, search, think

from project.dialects import format_documents, get_dialect
from project.records import Document, Step
from project.traces.multiturn import conversation
from project.traces.readers import read_trace
from project.traces.readers.observations import by_query, read_result
from project.traces.tidy import tidy


def read(row, reader="auto"):
    name, trace = read_trace({"id": "x"} | row, reader)
    return name, tidy(trace)


def test_the_normalised_format():
    name, trace = read(NORMALISED)
    assert name == "normalised"
    assert trace.question == "Who wrote Hamlet?"
    assert trace.answers == ("Shakespeare",)
    assert trace.correct is False
    assert trace.steps == (
        think("I look it up."),
        search("Hamlet author"),
        result(error="Could not find [Hamlet author]. Similar: ['Hamlet']"),
        think("Then the play itself. The query is"),
        search("Hamlet"),
        Step("search_result", documents=(Document("A play.", "Hamlet"), Document("He wrote it.", "Shakespeare"))),
        think("Shakespeare."),
        answer("Shakespeare"),
    )


def test_malformed_actions_stay_with_their_raw_text():
    steps = [
        {"type": "action", "name": None, "argument": "search[half a query", "malformed": True},
        {"type": "action", "name": "click", "argument": "first hit"},
        {"type": "action", "name": "finish", "argument": " "},
    ]
    _, trace = read({"question": "q", "steps": steps})
    assert trace.steps == tuple(Step("other", raw) for raw in ("search[half a query", "click[first hit]", "finish[ ]"))


def test_a_call_with_several_queries_has_one_result_that_knows_them():
    text = (
        "A Google search for 'a' found 1 results:\n\n## Web Results\n1. [Title (A)](https://a)\nDate: 1\n\nText a.\n=======\n"
        "A Google search for 'b' found 2 results:\n\n## Web Results\n1. [B](https://b)\n\nText b.\n\n"
        "2. [C](https://c)\n\nText c."
    )
    steps = [
        {"type": "action", "name": "search", "argument": {"query": ["a", "b"]}},
        {"type": "observation", "text": text},
    ]
    _, trace = read({"question": "q", "steps": steps})
    call, found = trace.steps
    assert call.queries == ("a", "b")
    assert by_query(found, 2) == [
        [Document("Date: 1\n\nText a.", "Title (A)", "1/1")],
        [Document("Text b.", "B", "2/1"), Document("Text c.", "C", "2/2")],
    ]
    assert by_query(result("text"), 2) is None


LOG = """Thought 1: I look it up.
Action 1: Search[Hamlet]
Observation 1: Hamlet is a play.
Thought: 5 acts, says a book.
Thought 2: And its author?
Action 2: Lookup[author]
Observation 2: No more results.
Thought 3: I know it.
Action 3: click the first hit
Observation 3: Invalid Action. Valid Actions are Lookup[<topic>] Search[<topic>] and Finish[<answer>].
Thought 4: Then so.
Action 4: Finish[Shakespeare [W.]]"""
STEPS = (
    think("I look it up."),
    search("Hamlet"),
    result("Hamlet is a play.\nThought: 5 acts, says a book."),
    think("And its author?"),
    search("author", tool="lookup"),
    result(error="No more results."),
    think("I know it."),
    Step("other", "click the first hit"),
    result(error="Invalid Action. Valid Actions are Lookup[] Search[] and Finish[]."),
    think("Then so."),
    answer("Shakespeare [W.]"),
)
QUESTION = {"question": "Who wrote Hamlet?"}


def test_a_numbered_log_of_reflexion():
    before = "Question: Who wrote Hamlet?You have failed before. Reflections:\n- I shall use Finish[<answer>].\n"
    after = "\nObservation 4: Answer is INCORRECT\nCorrect answer: Bacon"
    name, trace = read(QUESTION | {"text": before + LOG + after, "trial": 2, "status": "incorrect"})
    assert name == "react"
    assert [step for step in trace.steps if step.type != "search_result"] == [s for s in STEPS if s.type != "search_result"]
    assert trace.steps[2] == STEPS[2]
    assert (trace.correct, trace.answers) == (False, ("Bacon",))


def test_a_halted_log_does_not_tell_the_answer():
    halted = LOG.partition("\nThought 3")[0] + "\nCorrect answer: Bacon"
    _, trace = read(QUESTION | {"text": halted, "status": "halted"})
    assert trace.steps == STEPS[:6]
    assert (trace.correct, trace.answers) == (None, ("Bacon",))


def test_the_three_shapes_of_fireact():
    """Lines without numbers: messages, a list `traj`, one text `traj` after the instruction."""
    turns = [
        "Thought: I look it up.\nAction: search[Hamlet]",
        "Observation: Hamlet is a play.",
        "Thought: I know it.\nAction: finish[Shakespeare]",
        "Observation: Episode finished, reward = True",
    ]
    roles = ("assistant", "user", "assistant", "user")
    messages = [{"role": role, "content": turn} for role, turn in zip(("user", *roles), ("Who?", *turns), strict=True)]
    instruction = "Below is an instruction.\n\n### Instruction:\nWho wrote Hamlet?\n\n### Response:\n"
    expected = (STEPS[0], STEPS[1], result("Hamlet is a play."), think("I know it."), answer("Shakespeare"))
    for row in ({"messages": messages}, {"traj": messages, "gt": "shakespeare"}, {"traj": instruction + "\n".join(turns)}):
        name, trace = read(QUESTION | row)
        assert (name, trace.steps, trace.correct) == ("react", expected, True)
        assert trace.answers == (("shakespeare",) if "gt" in row else ())


def test_a_log_without_thoughts():
    text = "Action 1: Search[a]\nObservation 1: A is b.\nAction 2: Search[b]\nObservation 2: B is c.\nAction 3: Finish[c]"
    _, trace = read(QUESTION | {"text": text})
    assert trace.steps == (search("a"), result("A is b."), search("b"), result("B is c."), answer("c"))


def test_numbers_may_begin_after_the_first_line():
    _, trace = read(
        QUESTION | {"text": "Thought: t\nAction 1: Search[a]\nObservation 1: A.\nThought 2: u\nAction 2: Finish[b]"}
    )
    assert trace.steps == (think("t"), search("a"), result("A."), think("u"), answer("b"))


def test_a_log_that_lacks_a_step_is_not_read_as_text():
    with pytest.raises(ValueError, match="the log goes from step 1 to 'Thought 3:'; a step between them is missing"):
        read(QUESTION | {"text": "Action 1: Search[a]\nObservation 1: A.\nThought 3: u\nAction 3: Finish[c]"})


@pytest.mark.parametrize("action", ["search[a] and search[b]", "search[a]\nsearch[b]", "search[a", "search[]"])
def test_an_action_that_is_not_one_call(action):
    _, trace = read(QUESTION | {"text": f"Thought: t\nAction: {action}\nObservation: A."})
    assert trace.steps[1] == Step("other", action)


def test_words_that_follow_no_format_stay():
    _, trace = read(QUESTION | {"text": "I begin.\nThought: x\nAction: search[y]"})
    assert trace.steps == (Step("other", "I begin."), think("x"), search("y"))


@pytest.mark.parametrize(
    ("row", "correct"),
    [
        ({"reward": True}, True),
        ({"reward": 0.5}, None),
        ({"status": "incorrect"}, False),
        ({"status": "halted"}, None),
        ({"gpt4o_output": "True"}, True),
        ({"correct": False, "gpt4o_output": "True"}, False),
    ],
)
def test_what_other_systems_say_of_the_answer(row, correct):
    assert read(QUESTION | {"text": "<answer> x </answer>"} | row)[1].correct is correct


def test_r1_searchers_text():
    """The prompt opened the thought; the query stands in quotes; the documents are numbered."""
    text = (
        'I look it up with "<|begin_of_query|> Hamlet<|end_of_query|>\n\n<|begin_of_documents|>\n(1)Hamlet   A play.\n'
        "(2)Shakespeare   He wrote it.\n<|end_of_documents|>\n\nI know it.</think>\n\n<answer> Shakespeare </answer>"
    )
    name, trace = read(QUESTION | {"gen_text_store": text, "answer": "Shakespeare", "gpt4o_output": "True"})
    assert name == "tags"
    documents = (Document("A play.", "Hamlet"), Document("He wrote it.", "Shakespeare"))
    assert trace.steps == (
        think("I look it up with"),
        search("Hamlet"),
        Step("search_result", documents=documents),
        think("I know it."),
        answer("Shakespeare"),
    )
    assert (trace.answers, trace.correct) == (("Shakespeare",), True)


def test_nested_lists_of_answers():
    assert read(QUESTION | {"text": "<answer> x </answer>", "answer": [["a", "b"], "c"]})[1].answers == ("a", "b", "c")


def test_seekers_own_rows_are_read_back():
    name, trace = read(TWO_HOPS.to_row())
    assert name == "trace"
    assert trace == TWO_HOPS


def test_the_predecessors_rows():
    row = {
        "question": "Who wrote Hamlet?",
        "trace": [
            {"type": "reasoning", "content": "I look it up."},
            {"type": "search", "query": "Hamlet author"},
            {"type": "search_result", "documents": [{"title": "Hamlet", "content": "A play."}, "By Shakespeare."]},
            {"type": "search_result", "content": "A second result of the same call."},
            {"type": "dance", "content": "?"},
            {"type": "CorrectAnswer", "content": "Shakespeare"},
        ],
    }
    name, trace = read(row)
    assert name == "predecessor"
    assert (trace.correct, trace.answers) == (True, ("Shakespeare",))
    documents = (Document("A play.", "Hamlet"), Document("By Shakespeare."), Document("A second result of the same call."))
    assert trace.steps == (
        think("I look it up."),
        search("Hamlet author"),
        Step("search_result", documents=documents),
        Step("other", "{'type': 'dance', 'content': '?'}"),
        answer("Shakespeare"),
    )


def test_tag_text():
    text = (
        "<think>\nFirst <search> is only named here.\n</think>\n<|SEARCH|>\n<search> a </search><search> b </search>\n"
        "<information>Doc 1(Title: A) Text a.</information><information>No results.</information>"
        "Prose outside. <think>Done.</think><search>never closed"
    )
    name, trace = read({"question": "q", "answer": "gold", "text": text})
    assert name == "tags"
    assert trace.answers == ("gold",)
    assert trace.steps == (
        think("First  is only named here."),
        search("a", "b"),
        Step("search_result", documents=(Document("Text a.", "A", "1/1"),)),
        think("Prose outside.\n\nDone."),
        Step("other", "<search>never closed"),
    )


def test_what_search_r1s_environment_says_is_not_the_agents():
    text = (
        "<search></search>\nMy previous action is invalid. If I want to search, I should put the query between <search> and "
        "</search>. Let me try again.\n<answer>4</answer>"
    )
    _, trace = read({"question": "q", "text": text})
    assert trace.steps == (Step("other", "<search></search>"), result(error="Invalid Action"), answer("4"))


def tool_call(ident, arguments, name="search"):
    return {"id": ident, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_openai_tool_calls():
    messages = [
        {"role": "system", "content": "You search."},
        {"role": "user", "content": "Question: Who wrote Hamlet?"},
        {
            "role": "assistant",
            "content": "<think>Two queries.</think>",
            "tool_calls": [tool_call("c0", '{"query": "Hamlet"}'), tool_call("c1", {"query": "Shakespeare"})],
        },
        {"role": "tool", "tool_call_id": "c0", "content": "Doc 1 (Title: Hamlet (play))\nA play."},
        {"role": "tool", "tool_call_id": "c1", "content": '{"results": [{"title": "S", "text": "A poet."}]}'},
        {"role": "assistant", "content": None, "tool_calls": [tool_call("c2", "{broken")]},
        {"role": "tool", "tool_call_id": "c2", "content": '{"error": "not JSON"}'},
        {"role": "assistant", "reasoning_content": "Clear.", "content": "Shakespeare"},
    ]
    name, trace = read({"messages": messages})
    assert name == "tool_calls"
    assert trace.question == "Who wrote Hamlet?"
    assert trace.steps == (
        think("Two queries."),
        search("Hamlet", "Shakespeare"),
        Step("search_result", documents=(Document("A play.", "Hamlet (play)", "1/1"), Document("A poet.", "S", "2/1"))),
        Step("other", json.dumps({"name": "search", "arguments": "{broken"})),
        result(error="not JSON"),
        think("Clear."),
        answer("Shakespeare"),
    )


@pytest.mark.parametrize("dialect", ["tags", "tools"])
def test_seekers_own_conversations_are_read_back(dialect):
    made = conversation(TWO_HOPS, get_dialect(dialect))
    _, trace = read(made.to_row())
    assert (trace.question, trace.answers, trace.correct) == (TWO_HOPS.question, TWO_HOPS.answers, True)
    assert trace.steps == TWO_HOPS.steps


def test_a_rollout_keeps_tool_calls_as_text():
    said = '<think>Look.</think>\n<tool_call>\n{"name": "search", "arguments": {"query": "Hamlet"}}\n</tool_call>'
    messages = [
        {"role": "user", "content": "Question: Who wrote Hamlet?"},
        {"role": "assistant", "content": said},
        {"role": "tool", "tool_call_id": "call_0", "content": "Doc 1 (Title: Hamlet)\nBy Shakespeare."},
        {"role": "assistant", "content": "<tool_call>{no json}</tool_call>"},
        {"role": "assistant", "content": "<answer>Shakespeare</answer>"},
    ]
    _, trace = read({"messages": messages})
    raw = Step("other", "<tool_call>{no json}</tool_call>")
    assert trace.steps == (
        think("Look."),
        search("Hamlet"),
        result("By Shakespeare.", title="Hamlet"),
        raw,
        answer("Shakespeare"),
    )


@pytest.mark.parametrize(
    ("text", "documents", "error"),
    [
        ("None", (), ""),
        ("No results.", (), ""),
        ("No Results", (), "No Results"),
        ("Could not find that page, please try again.", (), "Could not find that page, please try again."),
        ("('click', 'x') generated an exception: Unknown tool name: click", (), "…"),
        ("HTTP 503 from the retriever", (), "…"),
        ("Errors and Expectations is a book.", (Document("Errors and Expectations is a book."),), ""),
        ("(1)Elena   A village.\n(7) in the text\n(2)Maria   A princess.", "numbered", ""),
        (
            '(1)"Title: A Text:  He said ""yes""."\n(2)Title: B Text: b',
            (Document('He said "yes".', "A"), Document("b", "B")),
            "",
        ),
        ("(1) is a number", (Document("(1) is a number"),), ""),
        ("The useful information in https://a.b for user goal g as follows: \n\nText", (Document("Text", "https://a.b"),), ""),
    ],
)
def test_what_a_tool_returned(text, documents, error):
    read_step = read_result(text)
    assert read_step.error == (text if error == "…" else error)
    if documents == "numbered":
        documents = (Document("A village.\n(7) in the text", "Elena"), Document("A princess.", "Maria"))
    assert read_step.documents == documents


def test_documents_survive_being_written_and_read():
    documents = (Document("One.\n\nTwo.", "A (b) c"), Document("Three.", "D"))
    assert read_result(format_documents(documents)).documents == documents


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "q"}, "format not known"),
        ({"steps": NORMALISED["steps"]}, "field 'question' is missing"),
        ({"question": "q", "steps": [{"type": "thought"}]}, "field 'text' of a step of type 'thought' is missing"),
        ({"question": "q", "steps": [], "correct": "yes"}, "field 'correct' is str"),
        ({"question": "q", "messages": [{"role": "assistant", "content": "Thought: x"}]}, "format not known"),
    ],
)
def test_what_cannot_be_read_says_why(row, reason):
    with pytest.raises(ValueError, match=reason.replace("[", r"\[")):
        read(row)


def test_a_named_reader_takes_no_other_format():
    with pytest.raises(ValueError, match="format not known to reader 'tags'"):
        read(NORMALISED, "tags")
