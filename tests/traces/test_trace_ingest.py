"""`seeker data traces` and `tidy`: uniform traces, filters with counts, rows that cannot be read are listed."""

import pytest
from hypothesis import given
from trace_samples import NORMALISED, TWO_HOPS, answer, any_steps, result, search, think, trace

from project.cli import main
from project.errors import InputError
from project.files import read_records, read_rows, write_records, write_rows
from project.records import Document, Step, Trace
from project.traces.ingest import apply_filters, ingest, named_filters, rejected_path
from project.traces.tidy import tidy

OFF = {
    "correct_only": False,
    "answered": False,
    "no_tool_error": False,
    "no_malformed": False,
    "min_searches": 0,
    "max_chars": 0,
}


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


def test_each_filter_counts_what_it_removed():
    kept = TWO_HOPS
    wrong = trace(search("a"), result("b"), answer("x"), correct=False, ident="wrong")
    unjudged = trace(search("a"), result("b"), answer("x"), correct=None, ident="unjudged")
    silent = trace(search("a"), result("b"), ident="silent")
    failed = trace(search("a"), result(error="No Results"), answer("x"), ident="failed")
    malformed = trace(search("a"), result("b"), Step("other", "?"), answer("x"), ident="malformed")
    known = trace(answer("x"), ident="known")
    long = trace(search("a"), result("b" * 5000), answer("x"), ident="long")
    again = Trace("again", *(getattr(TWO_HOPS, name) for name in ("question", "answers", "steps", "correct", "source")))
    filters = named_filters(
        correct_only=True, answered=True, no_tool_error=True, no_malformed=True, min_searches=1, max_chars=1000
    )
    rows = [kept, wrong, unjudged, silent, failed, malformed, known, long, again]
    left, removed = apply_filters(rows, filters, no_duplicates=True)
    assert left == [kept]
    assert removed == {
        "correct_only": 2,
        "answered": 1,
        "no_tool_error": 1,
        "no_malformed": 1,
        "min_searches": 1,
        "max_chars": 1,
        "no_duplicates": 1,
    }


def test_filters_are_off_by_default():
    assert named_filters(**OFF) == {}
    rows = [TWO_HOPS, TWO_HOPS, trace(Step("other", "?"), correct=False)]
    assert apply_filters(rows, {}) == (rows, {})


def test_a_duplicate_of_a_removed_trace_stays():
    steps = (search("a"), result("b"), answer("x"))
    rows = [trace(*steps, correct=False, ident="wrong"), trace(*steps, correct=True, ident="right")]
    left, removed = apply_filters(rows, named_filters(**OFF | {"correct_only": True}), no_duplicates=True)
    assert [t.id for t in left] == ["right"]
    assert removed == {"correct_only": 1, "no_duplicates": 0}


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
    assert main(["data", "traces", "--input_file", str(raw), "--output_file", str(out)]) == 0
    assert not rejected_path(out).exists()


def test_ids_stay_apart_and_rows_without_one_are_named_by_file_and_line(tmp_path):
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_records(a, [TWO_HOPS])
    write_rows(b, [TWO_HOPS.to_row(), {k: v for k, v in TWO_HOPS.to_row().items() if k not in ("id", "source")}])
    found = ingest([a, b])
    assert [(t.id, t.source) for t in found.traces] == [("t1", "made_up"), ("t1~2", "made_up"), ("b-2", "b")]


def test_a_file_of_which_nothing_can_be_read_stops(tmp_path):
    raw = tmp_path / "raw.jsonl"
    write_rows(raw, [{"question": "q"}])
    with pytest.raises(InputError, match=r"raw.jsonl, line 1: format not known .* \(no row of the file could be read\)"):
        ingest([raw])


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_every_suffix_gives_the_same_traces(tmp_path, suffix):
    failed = trace(search("a"), result(error="No Results"), ident="failed")
    rows = [trace(answer("x"), answers=(), correct=None, ident="unjudged"), TWO_HOPS, failed]
    write_records(tmp_path / "in.jsonl", rows)
    out = tmp_path / f"out.{suffix}"
    assert main(["data", "traces", "--input_file", str(tmp_path / "in.jsonl"), "--output_file", str(out)]) == 0
    assert read_records(out, Trace.from_row) == rows
