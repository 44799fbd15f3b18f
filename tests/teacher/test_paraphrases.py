"""`seeker data paraphrase` as a user types it."""

import json

import pytest
from openai_stub import Stub, completion

from project.cli import main
from project.corpus.engines.noisy import Noise, Noisy
from project.errors import InputError
from project.files import read_rows
from project.teacher.client import Reply
from project.teacher.paraphrases import Bounds
from project.teacher.prompting import PROMPTS, Prompt
from project.writing import write_rows

PASSAGES = [
    {"id": "a", "title": "Lake", "text": "The lake lies in the north and is deep."},
    {"id": "b", "contents": '"Hill"\nThe hill is steep and green.'},
    {"id": "c", "title": "", "text": "No style says this one otherwise."},
]


def reply(asked, _):
    """Plain words reorder the text; brief ones copy it; the third style says something else. Of c nothing can be said."""
    style, text = asked["messages"][0]["content"], asked["messages"][1]["content"]
    if "otherwise" in text:
        return completion("I cannot help with that.")
    if "a child" in style:
        return completion(f"So, reader: {text.removesuffix('.')}, or so people say nowadays.")
    return completion(text) if "as short" in style else completion("Bananas, apples, pears!")


@pytest.fixture
def files(tmp_path):
    write_rows(tmp_path / "passages.jsonl", PASSAGES)
    return tmp_path / "passages.jsonl", tmp_path / "paraphrases.jsonl"


def rows_of(path):
    return [row for _, row in read_rows(path)]


def test_paraphrases_keep_the_passages_id_and_copies_refusals_and_others_are_left_out(files, capsys):
    given, out = files
    with Stub(reply) as stub:
        arguments = ["--input_file", str(given), "--output_file", str(out), "--teacher.base_url", stub.url]
        assert main(["data", "paraphrase", *arguments]) == 0
    rows = rows_of(out)
    assert [(row["id"], row["title"], row["text"]) for row in rows] == [
        ("a", "Lake", "So, reader: The lake lies in the north and is deep, or so people say nowadays."),
        ("b", "Hill", "So, reader: The hill is steep and green, or so people say nowadays."),
    ]
    [rejected] = rows_of(out.with_name("paraphrases.jsonl.rejected.jsonl"))
    assert (rejected["row"]["id"], rejected["reason"]) == ("c", "no paraphrase: something else")
    said = capsys.readouterr().out
    assert "left out: a copy" in said
    manifest = json.loads(out.with_name("paraphrases.jsonl.manifest.json").read_text())
    assert manifest["parameters"]["prompt"]["version"] == "1"
    assert manifest["parameters"]["teacher"] == "stub"
    assert manifest["counts"]["left out: something else"] == 5
    assert len(stub.asked) == 9
    assert all(asked["max_tokens"] == 512 and "top_p" not in asked for asked in stub.asked)


def test_they_stand_in_for_their_passages_as_noise(files):
    given, out = files
    with Stub(reply) as stub:
        main(["data", "paraphrase", "--input_file", str(given), "--output_file", str(out), "--teacher.base_url", stub.url])
    noisy = Noisy([], Noise(swap=1.0, paraphrases=out))
    assert noisy._paraphrases["a"] == ["So, reader: The lake lies in the north and is deep, or so people say nowadays."]


@pytest.mark.parametrize(
    ("text", "finish", "why"),
    [
        ("The green hill: it is steep.", "stop", ""),
        ("the hill is steep and GREEN", "stop", "a copy"),
        ("I am sorry.", "stop", "something else"),
        ("The green hill: it is", "length", "cut off"),
        ("The hill is steep. " * 8, "stop", "too long"),
    ],
)
def test_what_counts_as_a_paraphrase(text, finish, why):
    # normalised without articles: {hill is steep and green}; the first shares 4 of 6 words, the last 3 of 5
    assert Bounds().verdict("The hill is steep and green.", Reply(text, finish)) == why


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Say it again, $style", r"must begin with a line such as 'version: 1'$"),
        ("version: 2\nSay it again", r"must hold the places \$style, and holds ; a plain \$ is written \$\$$"),
        ("version: 2\n$style for 5 $", r"must hold the places \$style, and holds others"),
        (None, r"cannot be read"),
    ],
)
def test_a_prompt_that_cannot_be_filled_in_is_one_sentence(tmp_path, text, said):
    path = tmp_path / "p.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=said):
        Prompt.read(path, "style")


def test_a_changed_prompt_is_told_by_the_manifest_and_asked_anew(files, tmp_path, capsys):
    given, out = files
    own = tmp_path / "own.txt"
    own.write_text((PROMPTS / "paraphrase.txt").read_text().replace("version: 1", "version: 1b"))
    with Stub(reply) as stub:
        arguments = ["--input_file", str(given), "--output_file", str(out), "--teacher.base_url", stub.url]
        main(["data", "paraphrase", *arguments])
        assert main(["data", "paraphrase", *arguments, "--prompt_file", str(own)]) == 2
        assert "was made with prompt=" in capsys.readouterr().err
        assert main(["data", "paraphrase", *arguments, "--prompt_file", str(own), "--force", "true"]) == 0
        assert len(stub.asked) == 9, "the version alone changes no request"
        own.write_text(own.read_text().replace("encyclopedia", "newspaper"))
        assert main(["data", "paraphrase", *arguments, "--prompt_file", str(own), "--force", "true"]) == 0
        assert len(stub.asked) == 18
