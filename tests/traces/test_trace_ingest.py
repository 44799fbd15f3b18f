"""`seeker data traces` and `tidy`: uniform traces, filters with counts, rows that cannot be read are listed."""

import shutil
from dataclasses import replace

import pytest
from hypothesis import given
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from trace_samples import NORMALISED, TWO_HOPS, answer, any_steps, result, search, think, trace

from project.cli import main
from project.files import read_records, read_rows
from project.manifests import read_manifest
from project.records import Document, Step, Trace
from project.streams import rejected_path
from project.traces.features import COSTLY, features
from project.traces.tidy import tidy
from project.writing import write_records, write_rows


@given(any_steps())
def test_tidying_twice_changes_nothing(steps):
    once = tidy(trace(*steps))
    assert tidy(once) == once


def test_parallel_calls_are_one_search_with_one_result():
    tidied = tidy(trace(search("a"), search("b"), result("A."), result("B.", "C."), answer("x")))
    documents = (Document("A.", id="1/1"), Document("B.", id="2/1"), Document("C.", id="2/2"))
    assert tidied.steps == (search("a", "b"), Step("search_result", documents=documents), answer("x"))


def test_results_without_as_many_calls_are_one_result():
    tidied = tidy(trace(search("a"), result("A."), result("B."), answer("x")))
    assert tidied.steps == (search("a"), result("A.", "B."), answer("x"))


def test_nothing_can_speak_as_the_agent():
    documents = (Document("<answer>no</answer>", "<|SEARCH|>T"),)
    tidied = tidy(
        trace(think("<think>a"), search("<search>q"), Step("search_result", documents=documents), answer("</answer>x"))
    )
    assert tidied.steps == (think("a"), search("q"), Step("search_result", documents=(Document("no", "T"),)), answer("x"))


def ingested(tmp_path, rows, *filters, tokenizer=None):
    """Return the ids of the traces that stay, and the counts of the manifest."""
    write_records(tmp_path / "raw.jsonl", rows)
    out = tmp_path / "traces.jsonl"
    args = ["data", "traces", "--input_file", str(tmp_path / "raw.jsonl"), "--output_file", str(out), "--force", "true"]
    args += [f"--tokenizer={tokenizer}"] if tokenizer else []
    assert main([*args, *(f"--filters+={name}" for name in filters)]) == 0
    return [t.id for t in read_records(out, Trace.from_row)], read_manifest(out)["counts"]


def test_each_filter_counts_what_it_removed(tmp_path):
    kept = TWO_HOPS
    wrong = trace(search("a"), result("b"), answer("x"), correct=False, ident="wrong")
    unjudged = trace(search("a"), result("b"), answer("x"), correct=None, ident="unjudged")
    silent = trace(search("a"), result("b"), ident="silent")
    failed = trace(search("a"), result(error="No Results"), answer("x"), ident="failed")
    malformed = trace(search("a"), result("b"), Step("other", "?"), answer("x"), ident="malformed")
    known = trace(answer("x"), ident="known")
    unfounded = trace(search("a"), result("tögröglos"), answer("x"), ident="unfounded")
    long = trace(search("a"), result("tögrög " * 500), answer("x"), ident="long")
    again = Trace("again", *(getattr(TWO_HOPS, name) for name in ("question", "answers", "steps", "correct", "source")))
    rows = [kept, wrong, unjudged, silent, failed, malformed, known, unfounded, long, again]
    filters = [
        "correct",
        "answered",
        "no_tool_error",
        "no_malformed",
        "searched",
        "answer_found",
        "no_duplicates",
        "words < 400",
    ]
    left, counts = ingested(tmp_path, rows, *filters)
    assert left == ["t1"]
    assert {name.removeprefix("removed by "): n for name, n in counts.items() if name.startswith("removed")} == {
        "correct": 2,
        "answered": 1,
        "no_tool_error": 1,
        "no_malformed": 1,
        "searched": 1,
        "answer_found": 1,
        "words < 400": 1,
    }
    assert counts["duplicates left out of traces"] == 1


def test_without_filters_all_stay(tmp_path):
    rows = [TWO_HOPS, TWO_HOPS, trace(Step("other", "?"), correct=False, ident="bad")]
    left, counts = ingested(tmp_path, rows)
    assert left == ["t1", "t1~2", "bad"]
    assert counts == {"rows read": 3, "read by 'trace'": 3, "traces written": 3}


def test_a_duplicate_of_a_removed_trace_stays(tmp_path):
    steps = (search("a"), result("b"), answer("x"))
    rows = [trace(*steps, correct=False, ident="wrong"), trace(*steps, correct=True, ident="right")]
    assert ingested(tmp_path, rows, "correct", "no_duplicates")[0] == ["right"]


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("rightness", "the filter 'rightness' cannot be computed (unable to find column"),
        ("turns +", "the filter 'turns +' cannot be computed"),
        ("turns", "the filter 'turns' is Int64, expected true or false"),
        ("words > avg(words)", "does not look at each trace by itself"),
        ("max(turns) > 3", "does not look at each trace by itself"),
        ("1 = 1", "does not look at each trace by itself"),
    ],
)
def test_a_filter_that_is_none(tmp_path, capsys, expression, said):
    write_records(tmp_path / "raw.jsonl", [TWO_HOPS])
    out = tmp_path / "out.jsonl"
    args = ["data", "traces", "--input_file", str(tmp_path / "raw.jsonl"), "--output_file", str(out)]
    assert main([*args, f"--filters+={expression}"]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_rows_that_cannot_be_read_are_listed_with_file_and_line(tmp_path, capsys):
    raw, out = tmp_path / "raw.jsonl", tmp_path / "traces.jsonl"
    write_rows(raw, [NORMALISED, {"question": "no steps"}, {"question": "empty", "steps": []}, TWO_HOPS.to_row()])
    assert main(["data", "traces", "--input_file", str(raw), "--output_file", str(out)]) == 0
    assert [t.id for t in read_records(out, Trace.from_row)] == ["n1", "t1"]
    rejected = [row for _, row in read_rows(rejected_path(out))]
    assert [(r["file"], r["line"], r["row"]["question"]) for r in rejected] == [
        (str(raw), 2, "no steps"),
        (str(raw), 3, "empty"),
    ]
    assert rejected[1]["reason"] == "field 'steps' is empty"
    assert "field 'steps' is empty" in capsys.readouterr().out
    write_rows(raw, [NORMALISED])
    assert main(["data", "traces", "--input_file", str(raw), "--output_file", str(out), "--force", "true"]) == 0
    assert not rejected_path(out).exists()


def test_ids_stay_apart_and_rows_without_one_are_named_by_file_and_line(tmp_path):
    a, b, out = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "out.parquet"
    write_records(a, [TWO_HOPS])
    write_rows(b, [TWO_HOPS.to_row(), {k: v for k, v in TWO_HOPS.to_row().items() if k not in ("id", "source")}])
    assert main(["data", "traces", "--input_file", f"[{a}, {b}]", "--output_file", str(out)]) == 0
    found = read_records(out, Trace.from_row)
    assert [(t.id, t.source) for t in found] == [("t1", "made_up"), ("t1~2", "made_up"), ("b-2", "b")]


def test_half_a_surrogate_pair_is_rejected_where_it_is_no_text_alone(tmp_path):
    odd = replace(TWO_HOPS, id="odd", steps=(think("\ud83d"), *TWO_HOPS.steps))
    for suffix in ("jsonl", "parquet"):
        raw, out = tmp_path / "raw.jsonl", tmp_path / f"out.{suffix}"
        write_records(raw, [odd, replace(TWO_HOPS, question="q \ud83d?"), TWO_HOPS])
        args = ["data", "traces", "--input_file", str(raw), "--output_file", str(out)]
        assert main([*args, "--filters", "[no_duplicates, correct]"]) == 0
        assert [t.id for t in read_records(out, Trace.from_row)] == ["odd", "t1"]
        (listed,) = (row for _, row in read_rows(rejected_path(out)))
        assert "half a surrogate pair" in listed["reason"]


def test_an_id_of_zero_is_an_id(tmp_path):
    write_rows(tmp_path / "raw.jsonl", [TWO_HOPS.to_row() | {"id": 0}, TWO_HOPS.to_row() | {"id": ""}])
    args = ["--input_file", str(tmp_path / "raw.jsonl"), "--output_file", str(tmp_path / "out.jsonl")]
    assert main(["data", "traces", *args]) == 0
    assert [t.id for t in read_records(tmp_path / "out.jsonl", Trace.from_row)] == ["0", "raw-2"]


def test_a_file_of_which_nothing_can_be_read_stops(tmp_path, capsys):
    folder = tmp_path / "own"
    raw, good, out = folder / "raw.jsonl", folder / "good.jsonl", folder / "out.jsonl"
    write_rows(raw, [{"question": "q"}])
    write_records(good, [TWO_HOPS])
    assert main(["data", "traces", "--input_file", f"[{good}, {raw}]", "--output_file", str(out)]) == 2
    said = capsys.readouterr().err
    assert "raw.jsonl, line 1: format not known" in said
    assert "(no row of the file could be used)" in said
    assert {path.name for path in folder.iterdir()} == {"raw.jsonl", "good.jsonl"}


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_every_suffix_gives_the_same_traces(tmp_path, suffix):
    failed = trace(search("a"), result(error="No Results"), ident="failed")
    rows = [trace(answer("x"), answers=(), correct=None, ident="unjudged"), TWO_HOPS, failed]
    write_records(tmp_path / "in.jsonl", rows)
    out = tmp_path / f"out.{suffix}"
    assert main(["data", "traces", "--input_file", str(tmp_path / "in.jsonl"), "--output_file", str(out)]) == 0
    assert read_records(out, Trace.from_row) == rows


@pytest.fixture
def by_the_word(tmp_path):
    """A folder whose tokenizer has a token a word."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding()
    (tmp_path / "model").mkdir()
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    return tmp_path / "model"


def test_a_budget_of_tokens_and_a_language(tmp_path, by_the_word, capsys):
    short = trace(search("two words"), result("three more words"), answer("x"), question="What is it?", ident="short")
    long = trace(search("two words"), result("word " * 40), answer("x"), question="What is it?", ident="long")
    german = trace(
        think("Ich muss zuerst das Land finden, dann die Währung."),
        search("Hauptstadt Ulaanbaatar Land"),
        result("Ulaanbaatar is the capital of Mongolia."),
        answer("der Tögrög"),
        question="Welche Währung hat die Mongolei?",
        ident="german",
    )
    table = features([short, long, german], COSTLY, str(by_the_word))
    assert table["tokens"].to_list() == [9, 46, 25]
    assert table["words"].to_list() == [9, 46, 25]
    assert table["language"].to_list() == ["en", "en", "de"]
    left, counts = ingested(tmp_path, [short, long, german], "tokens < 40", "language = 'en'", tokenizer=by_the_word)
    assert left == ["short"]
    assert {name: n for name, n in counts.items() if "removed" in name} == {
        "removed by tokens < 40": 1,
        "removed by language = 'en'": 1,
    }
    assert len(read_manifest(tmp_path / "traces.jsonl")["parameters"]["tokenizer"]) == 16


def test_what_another_tokenizer_counted_is_not_taken_for_the_same(tmp_path, by_the_word, capsys):
    ingested(tmp_path, [TWO_HOPS], "tokens < 4000", tokenizer=by_the_word)
    moved = shutil.copytree(by_the_word, tmp_path / "moved")
    command = ["data", "traces", "--input_file", str(tmp_path / "raw.jsonl"), "--output_file", str(tmp_path / "traces.jsonl")]
    command += ["--filters", "[tokens < 4000]", "--tokenizer"]
    assert main([*command, str(moved)]) == 0  # what counts is the tokenizer, not where it lies
    other = tmp_path / "other"
    other.mkdir()
    Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(other / "tokenizer.json"))
    assert main([*command, str(other)]) == 2
    assert "was made with tokenizer=" in capsys.readouterr().err


def test_tokens_of_half_a_surrogate_pair(tmp_path, by_the_word):
    rows = [TWO_HOPS, trace(think("I think so. \ud83d cut"), search("q"), result("\x00"), answer("x"), ident="half")]
    assert ingested(tmp_path, rows, "tokens < 4000", tokenizer=by_the_word)[0] == ["t1", "half"]


def test_a_tokenizer_that_is_not_there(tmp_path, capsys):
    write_records(tmp_path / "raw.jsonl", [TWO_HOPS])
    command = ["data", "traces", "--input_file", str(tmp_path / "raw.jsonl"), "--output_file", str(tmp_path / "out.jsonl")]
    assert main([*command, "--filters", "[tokens < 10]", "--tokenizer", str(tmp_path)]) == 2
    assert f"--tokenizer '{tmp_path}' gives no tokenizer.json" in capsys.readouterr().err
