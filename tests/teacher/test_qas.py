"""`seeker data qas` as a user types it (DESIGN §8.4): labels come from sources that say them, never from words."""

import json
from random import Random

import pytest
from openai_stub import Stub, completion

from project.cli import main
from project.files import read_records, read_rows
from project.records import Conversation, Question
from project.teacher.qas import Grid, read_decision
from project.writing import write_records

PASSAGE = "Dor is a town. Its mayor is Ana Roux, who likes electric current."


def question(name, answers, passage=PASSAGE):
    info = {"passage": passage} if passage else {}
    return Question(name, f"Who is {name}?", tuple(answers), needs_search=not answers, group="Dor", extra_info=info)


QUESTIONS = [
    question("mayor", ["Ana Roux"]),
    question("baker", []),
    question("cook", ["Ana Roux"]),
    question("judge", []),
    question("poet", ["Bo Lind"], passage=""),
]


def decided(token, text):
    return completion(json.dumps({"decision": token, "text": text}))


def teacher(asked, _):
    """Thinks; decides to answer of the mayor, the judge and the poet, both of the cook the first time it may."""
    system, told = (message["content"] for message in asked["messages"])
    name = told.rsplit("Who is ", 1)[1].split("?")[0]
    if "Do not write a final answer" in system:
        return completion("", reasoning=f"The {name}, well. A current question.")
    if name in ("mayor", "poet"):
        return decided("<|ANSWER|>", "Ana Roux")
    if name == "judge":
        return decided("<|ANSWER|>", "Cy")
    return decided("<|SEARCH|>" if name == "baker" else "<|SEARCH|> or <|ANSWER|>", "the baker of Dor")


@pytest.fixture
def files(tmp_path):
    write_records(tmp_path / "questions.jsonl", QUESTIONS)
    return tmp_path / "questions.jsonl", tmp_path / "out.jsonl"


def run(files, stub, *more):
    arguments = ["--input_file", str(files[0]), "--output_file", str(files[1]), "--teacher.base_url", stub.url]
    return main(["data", "qas", *arguments, "--teacher.model", "stub", *more])


def rows_of(path):
    return [row for _, row in read_rows(path)]


def test_trap_04_the_teachers_decision_is_a_token_and_never_a_word(files):
    with Stub(teacher) as stub:
        assert run(files, stub) == 0
    rows = {row["id"]: row for row in rows_of(files[1])}
    assert {name: row["search"] for name, row in rows.items()} == {"mayor": False, "baker": True}
    assert rows["mayor"]["output"] == (
        "<think>\nThe mayor, well. A current question.\n</think>\n<|ANSWER|>\n<answer>\nAna Roux\n</answer>"
    )
    assert rows["baker"]["output"].endswith("<|SEARCH|>\n<search>\nthe baker of Dor\n</search>")
    assert rows["mayor"]["instruction"] == f"Passage: {PASSAGE}\nQuestion: Who is mayor?"
    assert [rows["mayor"][f"label_{source}"] for source in ("teacher", "answerability", "self_knowledge")] == [
        False,
        False,
        None,
    ]
    said = read_records(files[1].with_name("out_conversations.jsonl"), Conversation.from_row)
    assert [(c.id, c.messages[1].content, c.messages[2].content) for c in said] == [
        (row["id"], row["instruction"], row["output"]) for row in rows.values()
    ]
    assert {c.id: (c.extra_info["needs_search"], c.group) for c in said}["baker"] == (True, "Dor")
    rejected = {row["row"]["id"]: row["reason"] for row in rows_of(files[1].with_name("out.jsonl.rejected.jsonl"))}
    assert rejected == {
        "cook": "the teacher did not decide between the two",
        "poet": "the teacher answers wrongly",
        "judge": "teacher says to answer what the passage does not",
    }
    counts = json.loads(files[1].with_name("out.jsonl.manifest.json").read_text())["counts"]
    assert (counts["teacher and answerability agree"], counts["teacher and answerability differ"]) == (3, 1)
    assert (counts["rows that search"], counts["rows that answer"]) == (1, 1)
    deciding = [asked for asked in stub.asked if "Decide now" in asked["messages"][0]["content"]]
    assert {asked["response_format"]["json_schema"]["schema"]["properties"]["decision"]["enum"][0] for asked in deciding} == {
        "<|SEARCH|>"
    }
    thinking = [asked for asked in stub.asked if "Do not write" in asked["messages"][0]["content"]]
    assert len({json.dumps([a["temperature"], a.get("top_p"), a["max_tokens"]]) for a in thinking}) > 1


def test_another_source_can_be_chosen_and_thoughts_that_led_elsewhere_are_left_out(files):
    with Stub(teacher) as stub:
        assert run(files, stub, "--label", "answerability") == 0
    rows = {row["id"]: row for row in rows_of(files[1])}
    assert {name: row["search"] for name, row in rows.items()} == {"mayor": False, "baker": True, "judge": True, "poet": False}
    assert rows["judge"]["thoughts"] == ""
    assert rows["poet"]["instruction"] == "Question: Who is poet?"
    assert rows["poet"]["output"] == "<|ANSWER|>\n<answer>\nBo Lind\n</answer>", "the gold answer, without thoughts of another"
    assert rows["judge"]["output"] == "<|SEARCH|>\n<search>\njudge\n</search>"
    assert all(row["label_source"] == "answerability" for row in rows.values())


def test_a_student_is_asked_what_it_knows(files):
    def student(asked, _):
        system, told = (message["content"] for message in asked["messages"])
        assert asked["temperature"] == 0.0
        if "mayor" in told:
            return completion("Ana Roux" if "passages you are given" in system else "Nobody")
        return completion("It is Ana Roux!")

    with Stub(teacher) as stub, Stub(student) as other:
        options = ["--label", "self_knowledge", "--student.base_url", other.url, "--student.model", "little"]
        assert run(files, stub, *options) == 0
        assert {asked["model"] for asked in other.asked} == {"little"}
        assert len(other.asked) == 2, "of the mayor; of the others nothing can be said, or the teacher decided nothing"
    [row] = rows_of(files[1])
    assert (row["id"], row["search"], row["label_self_knowledge"], row["thoughts"]) == ("mayor", True, True, "")
    assert row["instruction"] == "Question: Who is mayor?", "what it knows by itself is trained without the passage"
    manifest = json.loads(files[1].with_name("out.jsonl.manifest.json").read_text())
    assert manifest["parameters"]["student"] == "little"


def test_both_classes_can_be_made_as_many(files):
    with Stub(teacher) as stub:
        assert run(files, stub, "--balanced", "true") == 0
    rows = rows_of(files[1])
    assert sorted(row["search"] for row in rows) == [False, True]
    assert [row["id"] for row in rows_of(files[1].with_name("out_conversations.jsonl"))] == [row["id"] for row in rows]


def test_squad_is_read_as_it_is_published(tmp_path):
    answer = {"text": "Ana Roux", "answer_start": 28}
    qas = [
        {"id": "a", "question": "Who is mayor?", "answers": [answer], "is_impossible": False},
        {"id": "b", "question": "Who is baker?", "answers": [], "is_impossible": True},
    ]
    squad = {"data": [{"title": "Dor", "paragraphs": [{"context": PASSAGE, "qas": qas}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    files = tmp_path / "squad.json", tmp_path / "out.parquet"
    with Stub(teacher) as stub:
        assert run(files, stub) == 0
        assert run(files, stub, "--max_samples", "1", "--force", "true") == 0
        assert len(stub.asked) == 4
    assert [(row["id"], row["group"], row["answers"]) for row in rows_of(files[1])] == [("a", "Dor", ["Ana Roux"])]


def test_each_question_has_its_own_draw_of_the_grid():
    drawn = [Grid().draw(Random(f"0/{i}")) for i in range(200)]
    assert {one.temperature for one in drawn} == {0.5, 0.6, 0.7, 0.9}
    assert {one.max_tokens for one in drawn} == {512, 1024, 2048}
    assert Grid().draw(Random("0/7")) == drawn[7]


def test_a_label_without_its_source_is_refused(files, capsys):
    with Stub(teacher) as stub:
        assert run(files, stub, "--label", "self_knowledge") == 2
    assert "--label self_knowledge is what a student knows; give --student.model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "I search. <|SEARCH|>",
        '{"decision": "<|SEARCH|>", "text": " "}',
        '{"decision": "search", "text": "Dor"}',
        '{"decision": "<|ANSWER|>"}',
        '{"decision": "<|ANSWER|>", "text": "<answer></answer>"}',
        '{"decision": ["<|ANSWER|>"], "text": "Dor"}',
        '{"decision": "<|ANSWER|>", "text": "Dor"',
    ],
)
def test_trap_04_what_is_no_decision_is_not_guessed(text):
    with pytest.raises(ValueError, match="did not decide"):
        read_decision(text)


@pytest.mark.parametrize(
    "text",
    [
        'So: {"decision": "<|ANSWER|>", "text": "Dor "}.',
        'I weigh {a}. {"decision": "<|ANSWER|>", "text": "Dor"} (as {decision})',
        '{"decision": "<|ANSWER|>", "text": "Dor\n"}',
    ],
)
def test_a_decision_may_stand_among_words(text):
    assert read_decision(text).answer == "Dor"


def test_of_two_decisions_none_is_taken():
    both = '{"decision": "<|ANSWER|>", "text": "Dor"} or {"decision": "<|SEARCH|>", "text": "Dor"}'
    with pytest.raises(ValueError, match="did not decide"):
        read_decision(both)
