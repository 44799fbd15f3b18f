"""SQuAD to Question-Answer-Search rows: labels, splits by article, prompts, and malformed input."""

import copy
import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from project.cli import main
from project.corpus.squad import SYSTEM_PROMPT, keywords, opening, read_items, split_articles
from project.dialects import get_dialect
from project.errors import InputError
from project.files import read_records, read_rows
from project.records import Conversation, Question

SPLITS = ("train", "validation", "test")


def official(articles: int = 10) -> dict:
    """Return SQuAD's layout: in each article one passage with one answerable and one unanswerable question."""
    return {
        "version": "v2.0",
        "data": [
            {
                "title": f"Article_{n}",
                "paragraphs": [
                    {
                        "context": f"The duchy of Land{n} was founded in {900 + n}. <answer>no</answer>",
                        "qas": [
                            {
                                "id": f"{n}-yes",
                                "question": f"When was the duchy of Land{n} founded?",
                                "is_impossible": False,
                                "answers": [{"text": text, "answer_start": 0} for text in ("in 9", f"{900 + n}", f"{900 + n}")],
                            },
                            {
                                "id": f"{n}-no",
                                "question": f"Who ruled the kingdom of Land{n}?",
                                "is_impossible": True,
                                "answers": [],
                                "plausible_answers": [{"text": "duchy", "answer_start": 4}],
                            },
                        ],
                    }
                ],
            }
            for n in range(articles)
        ],
    }


def write(path: Path, document: dict) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as out:
        json.dump(document, out)
    return path


def run(source: Path | str, folder: Path, *more: str) -> int:
    return main(["data", "squad", "--input_file", str(source), "--output_dir", str(folder), *more])


@pytest.fixture
def made(tmp_path) -> Path:
    assert run(write(tmp_path / "squad.json.gz", official()), tmp_path / "out") == 0
    return tmp_path / "out"


def rows(folder: Path, name: str) -> list[dict]:
    return [row for _, row in read_rows(folder / f"{name}.jsonl")]


def test_rows_hold_the_label_and_the_target(made):
    by_id = {row["id"]: row for name in SPLITS for row in rows(made, name)}
    yes, no = by_id["3-yes"], by_id["3-no"]
    assert set(yes) >= {"instruction", "input", "output", "system", "history"}
    assert yes["output"] == "<|ANSWER|>\n<answer>\n903\n</answer>"
    assert yes["answers"] == ["903", "in 9"]  # two of three annotators said 903
    assert yes["search"] is False
    assert no["output"] == "<|SEARCH|>\n<search>\nruled kingdom Land3\n</search>"
    assert no["answers"] == []
    assert no["search"] is True
    # the passage cannot speak as the agent: its <answer> tags are gone
    assert yes["instruction"] == (
        "Passage: The duchy of Land3 was founded in 903. no\nQuestion: When was the duchy of Land3 founded?"
    )
    assert (yes["label_source"], yes["teacher"], yes["thoughts"], yes["seed"]) == ("squad2:is_impossible", "", "", 0)


def test_three_forms_of_a_row_agree(made):
    dialect = get_dialect("tags")
    for name in SPLITS:
        conversations = read_records(made / f"conversations_{name}.jsonl", Conversation.from_row)
        questions = read_records(made / f"questions_{name}.jsonl", Question.from_row)
        for row, conversation, question in zip(rows(made, name), conversations, questions, strict=True):
            system, user, assistant = conversation.messages
            assert row["id"] == conversation.id == question.id
            assert (system.content, user.content, assistant.content) == (row["system"], row["instruction"], row["output"])
            assert [system, user] == opening(question.extra_info["passage"], question.question)
            action = dialect.parse(assistant.content)
            assert bool(action.queries) == row["search"] == question.needs_search
            assert dialect.write(action) == assistant
            assert question.group == conversation.group == row["group"]


def test_trap_8_no_article_is_in_two_splits(made):
    groups = {name: {row["group"] for row in rows(made, name)} for name in SPLITS}
    assert {name: len(found) for name, found in groups.items()} == {"train": 7, "validation": 1, "test": 2}
    assert len(set.union(*groups.values())) == 10


def test_seed_decides_the_split_alone(tmp_path):
    articles = {f"a{n}" for n in range(30)}
    assert split_articles(articles, 1) == split_articles(set(sorted(articles, reverse=True)), 1)
    assert split_articles(articles, 1) != split_articles(articles, 2)
    assert Counter(split_articles(articles, 1).values()) == {"train": 21, "validation": 3, "test": 6}
    assert Counter(split_articles({"a", "b", "c"}, 0).values()) == {"train": 1, "validation": 1, "test": 1}


def test_a_set_made_otherwise_is_not_replaced_and_can_be_pushed(made, tmp_path, capsys):
    source = tmp_path / "squad.json.gz"
    assert run(source, made) == 0
    assert run(source, made, "--seed", "1") == 2
    assert "train.jsonl is there and was made with seed=0, now 1" in capsys.readouterr().err
    sets = [str(made / f"conversations_{split}.jsonl") for split in ("train", "validation", "test")]
    push = ["data", "push", "--input_file", f"[{','.join(sets)}]", "--repo", "me/decide", "--licence", "cc-by-sa-4.0"]
    assert main([*push, "--dry_run", "true", "--output_dir", str(tmp_path / "tree")]) == 0
    card = (tmp_path / "tree" / "README.md").read_text()
    assert "seeker data squad" in card
    assert "squad.json.gz" in card
    assert run(source, made, "--seed", "1", "--force", "true") == 0


def test_balance_is_printed_and_on_the_card(made, capsys):
    card = (made / "README.md").read_text()
    assert "| train | 7 | 14 | 7 | 7 | 50.0% |" in card
    assert "CC BY-SA 4.0" in card


def test_long_passages_are_left_out_and_counted(tmp_path, capsys):
    document = official()
    document["data"][0]["paragraphs"][0]["context"] += " word" * 100
    source = write(tmp_path / "squad.json.gz", document)
    assert run(source, tmp_path / "out", "--max_context_tokens", "50") == 0
    assert "2 questions left out" in capsys.readouterr().out
    assert "with 2 questions" in (tmp_path / "out" / "README.md").read_text()
    assert run(source, tmp_path / "none", "--max_context_tokens", "3") == 2
    assert "leaves none of 20 questions" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_flat_rows_give_the_same_items(tmp_path):
    source = write(tmp_path / "squad.json.gz", official())
    flat = tmp_path / "flat.jsonl"
    with flat.open("w") as out:
        for article in official()["data"]:
            for paragraph in article["paragraphs"]:
                for qa in paragraph["qas"]:
                    answers = {"text": [a["text"] for a in qa["answers"]], "answer_start": [0] * len(qa["answers"])}
                    row = {"id": qa["id"], "title": article["title"], "context": paragraph["context"]}
                    out.write(json.dumps(row | {"question": qa["question"], "answers": answers}) + "\n")
    assert read_items(str(flat)) == read_items(str(source))


def test_hub_id_loads_every_split(monkeypatch, tmp_path, capsys):
    import datasets

    row = {"id": "1", "title": "T", "context": "C", "question": "Q?", "answers": {"text": ["C"], "answer_start": [0]}}
    asked = []

    def load_dataset(name: str) -> dict[str, list[dict]]:
        asked.append(name)
        return {"train": [row], "validation": [row | {"id": "2", "answers": {"text": [], "answer_start": []}}]}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    items = read_items("rajpurkar/squad_v2")
    assert asked == ["rajpurkar/squad_v2"]
    assert [(item.id, item.answers) for item in items] == [("1", ("C",)), ("2", ())]

    assert run("rajpurkar/squad_v2", tmp_path / "out") == 2  # two questions of one article cannot be split
    rows = [row | {"id": str(n), "title": f"T{n}"} for n in range(6)]
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"train": rows})
    assert run("rajpurkar/squad_v2", tmp_path / "out") == 0
    rows.append(row | {"id": "new", "title": "new"})
    assert run("rajpurkar/squad_v2", tmp_path / "out") == 2
    assert "was made with digest=" in capsys.readouterr().err

    def unreachable(name: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match=r"'rajpurkar/squad_v2' is no file here .* no network"):
        read_items("rajpurkar/squad_v2")


@pytest.mark.parametrize(
    ("question", "query"),
    [
        ("When was the Duchy of Normandy founded?", "Duchy Normandy founded"),
        ("What is the U.S.-led force's name?", "U.S.-led force's name"),
        ("Who was it?", "Who was it?"),  # nothing left: the question itself
        ("Where is <search>Paris</search>?", "Paris"),
    ],
)
def test_keywords(question, query):
    assert keywords(question) == query


def mutations() -> list[tuple[str, object, str]]:
    """Return (path of a field, new value or None to delete it, what the message must say)."""
    qa = "data.2.paragraphs.0.qas.0."
    at = "data[2].paragraphs[0]"
    return [
        ("data", {}, "field 'data' is dict, expected list"),
        ("data.2.title", None, "field 'data[2].title' is missing"),
        ("data.2.paragraphs", None, "field 'data[2].paragraphs' is missing"),
        ("data.2.paragraphs.0.context", 5, f"field '{at}.context' is int, expected str"),
        ("data.2.paragraphs.0", "x", f"field '{at}' is str, expected an object"),
        (qa + "question", "  ", f"field '{at}.qas[0].question' is empty"),
        (qa + "id", None, f"field '{at}.qas[0].id' is missing"),
        (qa + "id", "1-yes", "field 'id' is '1-yes' for the second time"),
        (qa + "answers", None, f"field '{at}.qas[0].answers' is missing"),
        (qa + "answers.0.text", None, f"field '{at}.qas[0].answers[0].text' is missing"),
        (qa + "is_impossible", True, f"field '{at}.qas[0].is_impossible' is True with 3 answers"),
    ]


@pytest.mark.parametrize(("path", "value", "said"), mutations())
def test_malformed_input_is_named_and_nothing_written(tmp_path, capsys, path, value, said):
    document = copy.deepcopy(official())
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = document
    for part in parents:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    source = write(tmp_path / "squad.json.gz", document)
    assert run(source, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert said in error
    assert "squad.json.gz" in error
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_squad(tmp_path, capsys):
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b'{"data": []}')[:-4])
    (tmp_path / "empty.json").write_text('{"data": []}')
    (tmp_path / "flat.jsonl").write_text('{"id": "1", "title": "T", "context": "C", "question": "Q", "answers": {}}\n')
    for name, said in {
        "missing.json": "does not exist",
        "cut.json.gz": "is damaged",
        "empty.json": "holds no questions",
        "flat.jsonl": "line 1: field 'answers.text' is missing",
    }.items():
        assert run(tmp_path / name, tmp_path / "out") == 2
        assert said in capsys.readouterr().err
    assert run(write(tmp_path / "two.json.gz", official(2)), tmp_path / "out") == 2
    assert "holds 2 articles" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_system_prompt_names_both_decisions():
    assert "<|ANSWER|>" in SYSTEM_PROMPT
    assert "<|SEARCH|>" in SYSTEM_PROMPT


@pytest.mark.shared
def test_real_squad(shared_data, tmp_path):
    source = shared_data("squad/squad2-dev.json.gz")
    assert run(source, tmp_path) == 0
    every = [row for name in SPLITS for row in rows(tmp_path, name)]
    assert len(every) == 9087  # the file's README
    assert len({row["id"] for row in every}) == 9087
    articles = {name: {row["group"] for row in rows(tmp_path, name)} for name in SPLITS}
    assert {name: len(found) for name, found in articles.items()} == {"train": 19, "validation": 3, "test": 6}
    for name in SPLITS:
        assert 0.4 < sum(row["search"] for row in rows(tmp_path, name)) / len(rows(tmp_path, name)) < 0.6
    with gzip.open(source, "rt", encoding="utf-8") as stream:
        qas = [qa for a in json.load(stream)["data"] for p in a["paragraphs"] for qa in p["qas"]]
    assert {row["id"]: row["search"] for row in every} == {qa["id"]: qa["is_impossible"] for qa in qas}
