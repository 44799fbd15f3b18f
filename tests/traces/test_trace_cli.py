"""Bad input to the trace verbs: one sentence, exit status 2, nothing written. And what a user sees when all is well."""

import json

import pytest
from trace_samples import TWO_HOPS, trace

from project.cli import main
from project.files import read_rows
from project.traces.steps import split
from project.writing import write_records, write_rows

VERBS = ["traces", "multiturn", "steps", "summaries", "phases"]


@pytest.fixture
def folder(tmp_path):
    """A folder that holds nothing but what the test and the verb write."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def run(verb, folder, *extra, source="in.jsonl"):
    out = ["--output_dir", str(folder / "out")] if verb == "phases" else ["--output_file", str(folder / "out.jsonl")]
    return main(["data", verb, "--input_file", str(folder / source), *out, *extra])


def refused(capsys, folder, before):
    """Return the one sentence that was said, after checking that nothing was written."""
    said = capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == before
    assert said.startswith("seeker: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("verb", VERBS)
def test_a_missing_file(verb, folder, capsys):
    assert run(verb, folder) == 2
    assert "in.jsonl does not exist" in refused(capsys, folder, set())


@pytest.mark.parametrize("verb", VERBS)
def test_an_empty_file(verb, folder, capsys):
    (folder / "in.jsonl").write_text("\n")
    assert run(verb, folder) == 2
    assert "holds no rows" in refused(capsys, folder, {"in.jsonl"})


@pytest.mark.parametrize("verb", VERBS)
def test_a_line_that_is_no_json(verb, folder, capsys):
    (folder / "in.jsonl").write_text("{broken\n")
    assert run(verb, folder) == 2
    said = refused(capsys, folder, {"in.jsonl"})
    assert "in.jsonl, line 1: not JSON (Expecting property name enclosed in double quotes at column 2)" in said


@pytest.mark.parametrize(
    ("verb", "row", "field"),
    [
        ("traces", {k: v for k, v in TWO_HOPS.to_row().items() if k != "question"}, "question"),
        ("multiturn", {k: v for k, v in TWO_HOPS.to_row().items() if k != "question"}, "question"),
        ("steps", TWO_HOPS.to_row() | {"steps": []}, "steps"),
        ("steps", TWO_HOPS.to_row() | {"steps": [{"type": "dance"}]}, "type"),
        ("phases", {k: v for k, v in TWO_HOPS.to_row().items() if k != "steps"}, "steps"),
        ("phases", {k: v for k, v in split(TWO_HOPS)[1].to_row().items() if k != "group"}, "group"),
        ("summaries", {k: v for k, v in split(TWO_HOPS)[0].to_row().items() if k != "context"}, "context"),
    ],
)
def test_a_row_without_a_field(verb, row, field, folder, capsys):
    """It is named where no row can be read, or with --strict; else it is listed, and nothing is lost."""
    good = (split(TWO_HOPS)[1] if verb == "summaries" else TWO_HOPS).to_row()
    write_rows(folder / "in.jsonl", [row])
    assert run(verb, folder) == 2
    said = refused(capsys, folder, {"in.jsonl"})
    assert "in.jsonl, line 1: " in said
    assert f"'{field}'" in said
    write_rows(folder / "in.jsonl", [good, row, good])
    assert run(verb, folder, "--strict", "true") == 2
    assert "in.jsonl, line 2: " in refused(capsys, folder, {"in.jsonl"})
    assert run(verb, folder) == 0
    assert "rows rejected" in capsys.readouterr().out
    (listed,) = (found for _, found in read_rows(next(folder.rglob("*.rejected.jsonl"))))
    assert listed["line"] == 2
    assert f"'{field}'" in listed["reason"]
    assert listed["row"] == json.loads(json.dumps(row))


def test_filters_that_leave_nothing(folder, capsys):
    write_records(folder / "in.jsonl", [TWO_HOPS])
    assert run("traces", folder, "--filters+=searches >= 3") == 2
    said = refused(capsys, folder, {"in.jsonl"})
    assert "nothing is left for traces of 1 rows (1 read by 'trace', 1 removed by searches >= 3)" in said


@pytest.mark.parametrize("verb", VERBS[:-1])
def test_an_output_that_is_the_input(verb, folder, capsys):
    write_records(folder / "in.jsonl", [TWO_HOPS])
    path = str(folder / "in.jsonl")
    assert main(["data", verb, "--input_file", path, "--output_file", path]) == 2
    assert "is the input file" in refused(capsys, folder, {"in.jsonl"})


def test_more_words_than_a_summary_can_have(folder, capsys):
    write_records(folder / "in.jsonl", [TWO_HOPS])
    for verb in ("phases", "summaries"):
        assert run(verb, folder, "--max_words", "7") == 2
        assert "--max_words is 7" in refused(capsys, folder, {"in.jsonl"})


def test_from_traces_to_summaries(folder, capsys):
    write_records(folder / "in.jsonl", [TWO_HOPS])
    write_records(folder / "more.jsonl", [trace(*TWO_HOPS.steps, question="Another?", ident="t2")])
    both = f"[{folder}/in.jsonl, {folder}/more.jsonl]"
    assert main(["data", "traces", "--input_file", both, "--output_file", f"{folder}/t.parquet"]) == 0
    assert "read by 'trace'" in capsys.readouterr().out
    assert main(["data", "steps", "--input_file", f"{folder}/t.parquet", "--output_file", f"{folder}/s.parquet"]) == 0
    assert "samples written" in capsys.readouterr().out
    assert main(["data", "summaries", "--input_file", f"{folder}/s.parquet", "--output_file", f"{folder}/u.jsonl"]) == 0
    rows = [json.loads(line) for line in (folder / "u.jsonl").read_text().splitlines()]
    assert [bool(row["summary"]) for row in rows] == [False, True, True] * 2
