"""`seeker data questions` as a user types it."""

import json

import pytest
from openai_stub import Stub, completion

from project.cli import main
from project.files import read_rows
from project.records import Passage, Question
from project.teacher.questions import count_holding, find_fault, read_items, read_windows
from project.writing import write_rows

PASSAGES = [
    {"id": "d#1", "source": "d", "title": "Dor", "text": "Dor is a town. Its mayor is Ana Roux."},
    {"id": "d#2", "source": "d", "title": "Dor", "text": "The river Ilm flows through Dor."},
    {"id": "e#1", "source": "e", "title": "Elm", "text": "Elm has 9,000 people. Ana Roux was born there."},
]


def item(question, answer, difficulty="easy", passages=(1,)):
    return {"question": question, "answer": answer, "difficulty": difficulty, "passages": list(passages)}


def said(*items):
    return completion(json.dumps({"questions": list(items)}))


def rows_of(path):
    return [row for _, row in read_rows(path)]


@pytest.fixture
def files(tmp_path):
    write_rows(tmp_path / "passages.jsonl", PASSAGES)
    return tmp_path / "passages.jsonl", tmp_path / "questions.jsonl"


def run(files, url, *more):
    given, out = files
    return main(["data", "questions", "--input_file", str(given), "--output_file", str(out), "--teacher.base_url", url, *more])


def reply(asked, _):
    told = asked["messages"][1]["content"]
    if "river Ilm" in told:
        return completion("I can think of none.")
    if "mayor is Ana" in told:
        return said(item("Who is the mayor of Dor?", "Ana Roux"), item("Is Ana Roux mayor?", "Ana Roux"))
    return said(item("Who was born in Elm?", "Ana Roux", "hard"), item("Who  is the mayor of Dor", "Ana Roux"))


def test_questions_hold_their_evidence_and_how_often_the_answer_stands_in_the_corpus(files, capsys):
    with Stub(reply) as stub:
        assert run(files, stub.url) == 0
    questions = [Question.from_row(row) for row in rows_of(files[1])]
    assert [(q.id, q.question, q.answers, q.evidence, q.kind, q.group) for q in questions] == [
        ("d#1?1", "Who is the mayor of Dor?", ("Ana Roux",), ("d#1",), "easy", "d"),
        ("e#1?1", "Who was born in Elm?", ("Ana Roux",), ("e#1",), "hard", "e"),
    ]
    assert all(q.needs_search and q.extra_info == {"passages_with_answer": 2} for q in questions)
    [rejected] = rows_of(files[1].with_name("questions.jsonl.rejected.jsonl"))
    assert (rejected["line"], rejected["reason"]) == (2, "the reply holds no JSON object with questions")
    counts = json.loads(files[1].with_name("questions.jsonl.manifest.json").read_text())["counts"]
    assert counts["left out: the question gives the answer away"] == 1
    assert counts["duplicates left out of questions"] == 1
    assert all(asked["response_format"]["type"] == "json_schema" for asked in stub.asked)
    assert "Write 2 of them" in stub.asked[0]["messages"][0]["content"]


def test_with_attempts_what_is_known_by_heart_or_not_to_be_found_is_left_out(files):
    def attempts(asked, before):
        system, told = (message["content"] for message in asked["messages"])
        if "You write questions" in system:
            return reply(asked, before)
        if "what you know" in system:
            return completion("Ana Roux, of course." if "Elm" in told else "No idea.")
        assert told.startswith("[1] ")
        return completion("It is Ana Roux.")

    with Stub(attempts) as stub:
        assert run(files, stub.url, "--attempts", "true", "--structured", "false") == 0
    assert [row["question"] for row in rows_of(files[1])] == ["Who is the mayor of Dor?"]
    manifest = json.loads(files[1].with_name("questions.jsonl.manifest.json").read_text())
    reasons = [row["reason"] for row in rows_of(files[1].with_name("questions.jsonl.rejected.jsonl"))]
    assert "response_format" not in stub.asked[0]
    assert {asked["temperature"] for asked in stub.asked if "You write" not in asked["messages"][0]["content"]} == {0.0}
    assert manifest["counts"]["left out: known without the passages"] == 1
    assert reasons == ["the reply holds no JSON object with questions"]


def test_neighbours_are_of_the_same_document_and_named_passages_are_the_evidence(files):
    def window(asked, _):
        told = asked["messages"][1]["content"]
        if told.count("] Dor") == 2 and told.startswith("[1] Dor\nDor is a town"):
            return said(item("Whose town does the Ilm cross?", "Ana Roux", "hard", [1, 2]))
        return said(item("How many people has Elm?", "9,000"))

    with Stub(window) as stub:
        assert run(files, stub.url, "--neighbours", "1") == 0
    assert [(row["id"], row["evidence"]) for row in rows_of(files[1])] == [("d#1?1", ["d#1", "d#2"]), ("e#1?1", ["e#1"])]
    assert len(stub.asked) == 3


@pytest.mark.parametrize("neighbours", [0, 1, 2])
def test_every_passage_has_one_window(tmp_path, neighbours):
    rows = [{"id": f"{d}{i}", "source": d, "text": "x"} for d in "ab" for i in range(4)]
    write_rows(tmp_path / "p.jsonl", rows)
    windows = [row for window in read_windows([tmp_path / "p.jsonl"], neighbours) for _, row, _ in window.rows()]
    for place, (row, window) in enumerate(zip(rows, windows, strict=True)):
        around = [r for r in rows[max(0, place - neighbours) : place + neighbours + 1] if r["source"] == row["source"]]
        assert window == {"passages": around, "at": around.index(row)}


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (item("Who is the mayor of Dor?", "Ana Roux."), ""),
        (item("Who is the mayor of Dor?", "Roux Ana"), "the answer is not in the evidence"),
        (item("Who is the mayor of Dor?", "an"), "no short answer"),
        (item("Where does the Ilm flow?", "Ana Roux", passages=[2]), "the answer is not in the evidence"),
        (item("Where does Ana Roux rule?", "Ana Roux"), "the question gives the answer away"),
        (item("Who is the mayor in the passage?", "Ana Roux"), "the question speaks of the passage"),
        (item(" ", "Ana Roux"), "no question or no answer"),
        (item("Who?", None), "no question or no answer"),
        (item("Who is the mayor of Dor?", "Ana Roux", passages=[7]), ""),
    ],
)
def test_what_cannot_be_kept(made, fault):
    assert find_fault(made, [Passage.from_row(row) for row in PASSAGES[:2]]) == fault


@pytest.mark.parametrize(
    "text", ["", "none", '{"questions": "none"}', '{"question": []}', '{"questions": [', "[1, 2]", '{"questions": {"a": 1}}']
)
def test_replies_without_questions(text):
    with pytest.raises(ValueError, match="holds no JSON object with questions"):
        read_items(text)


def test_words_around_the_json_do_no_harm():
    assert read_items('Here:\n```json\n{"questions": [{"a": 1}, 3]}\n```') == [{"a": 1}]


def test_answers_are_counted_as_whole_words(tmp_path):
    write_rows(tmp_path / "p.jsonl", [{"id": "1", "text": "Ana, Ana!"}, {"id": "2", "contents": '"T"\nAnable man'}])
    assert count_holding({"ana", "man", "ana ana", "x"}, [tmp_path / "p.jsonl"]) == {"ana": 1, "man": 1, "ana ana": 1}


def test_the_questions_can_be_split_by_document(files, tmp_path):
    rows = [Question(f"q{i}", f"What is {i}?", ("x",), group=f"d{i % 20}").to_row() for i in range(60)]
    write_rows(tmp_path / "all.jsonl", rows)
    options = ["--output_dir", str(tmp_path / "s"), "--by", "group", "--test_share", "0.2", "--validation_share", "0.2"]
    assert main(["data", "split", "--input_file", str(tmp_path / "all.jsonl"), *options, "--file_format", "jsonl"]) == 0
    parts = {part: rows_of(tmp_path / "s" / f"all_{part}.jsonl") for part in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == 60
    groups = [{row["group"] for row in part} for part in parts.values()]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
