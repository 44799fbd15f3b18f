"""The real traces of 13 sources: all rows read, no verdict in any step, the counts that the data's README states."""

import re
from collections import Counter

import pytest

from project.cli import main
from project.dialects import RESERVED, get_dialect
from project.files import file_digest, read_records, read_rows
from project.manifests import read_manifest
from project.records import Conversation, Trace
from project.traces.multiturn import conversation, problem
from project.traces.phases import PHASES
from project.traces.steps import split
from project.traces.summaries import context_texts, summarise
from project.writing import write_rows

pytestmark = pytest.mark.shared


def ingest(file, folder):
    """Return the traces of a file, and the counts of the manifest."""
    out = folder / f"{file.name.split('.')[0]}.parquet"
    assert main(["data", "traces", "--input_file", str(file), "--output_file", str(out), "--strict", "true"]) == 0
    return read_records(out, Trace.from_row), read_manifest(out)["counts"]


@pytest.fixture(scope="module")
def ingested(shared_data, tmp_path_factory):
    return ingest(shared_data / "traces" / "traces_normalised.jsonl.gz", tmp_path_factory.mktemp("traces"))


@pytest.fixture(scope="module")
def found(ingested):
    return ingested[0]


def test_every_row_is_read(ingested, shared_data):
    found, counts = ingested
    assert file_digest(shared_data / "traces" / "traces_normalised.jsonl.gz") == "e9923770689398ae"
    assert counts == {"rows read": 3988, "read by 'normalised'": 3988, "traces written": 3988}
    assert len({trace.id for trace in found}) == 3988
    assert len({trace.source for trace in found}) == 13


def test_the_published_files_give_the_same_traces(found, shared_data, tmp_path):
    """All 3,988 rows as published, read by the readers of their formats; the file beside them was made by another program."""
    files = sorted((shared_data / "traces" / "native").glob("*.jsonl.gz"))
    normalised = {}
    for trace in found:
        normalised.setdefault(trace.source, []).append(trace)
    assert [file.name.split(".")[0] for file in files] == sorted(normalised)
    different = 0
    for file in files:
        native, counts = ingest(file, tmp_path)
        source = file.name.split(".")[0]
        reader = "react" if source.startswith(("fireact", "reflexion")) else "tags"
        assert counts[f"read by '{reader}'"] == len(native)
        for ours, theirs in zip(native, normalised[source], strict=True):
            assert (ours.question, ours.correct) == (theirs.question, theirs.correct)
            assert ours.answers == theirs.answers or not theirs.answers
            different += ours.steps != theirs.steps
    # That program took `Search[a], Search[b]` for one query in 19, and wrote a tool's name in small letters in one.
    assert different == 20


def test_trap_16_no_verdict_is_in_any_step(found):
    verdict = re.compile(r"Episode finished, reward|Answer is (?:IN)?CORRECT")
    assert not any(verdict.search(str(step)) for trace in found for step in trace.steps)
    judged = Counter((trace.source, trace.correct) for trace in found)
    assert judged["fireact_gpt4_hotpotqa", True] == 393
    assert judged["reflexion_react_base", True] == 28
    assert judged["fireact_eval_llama2_7b", False] == 298


def test_counts_of_steps(found):
    kinds = Counter(step.type for trace in found for step in trace.steps)
    assert kinds["search"] == 8855 + 137 + 17  # search, lookup, visit
    assert kinds["search_result"] == 11313 - 2336  # observations less verdicts
    # What one tool or another said of a failure: 704 of Reflexion's, 21 unknown tools of FireAct's.
    assert sum(bool(step.error) for trace in found for step in trace.steps) == 725


def test_no_thought_or_answer_holds_a_tag(found):
    for trace in found:
        for step in trace.steps:
            assert step.type == "other" or not any(tag in str(step) for tag in RESERVED)


def test_steps_follow_the_rule(found):
    ends = sum(trace.steps[-1].type == "search_result" for trace in found)
    results = sum(step.type == "search_result" for trace in found for step in trace.steps)
    assert sum(len(split(trace)) for trace in found) == len(found) + results - ends


@pytest.mark.parametrize("name", ["tags", "tools"])
def test_conversations_end_with_an_answer(found, name):
    kept = [trace for trace in found if problem(trace) is None]
    assert len(kept) == 3800
    dialect = get_dialect(name)
    for trace in kept:
        made = conversation(trace, dialect)
        assert dialect.parse(made.messages[-1].content).answer


def test_summaries_are_short_and_to_the_letter(found):
    short = long = 0
    for trace in found[::8]:
        for sample in split(trace)[1:]:
            summary = summarise(sample.question, sample.context)
            texts = context_texts(sample.context)
            assert all(any(piece in text for text in texts) for piece in summary.pieces)
            short += len(summary.text.split()) - len(sample.question.split())
            long += sum(len(text.split()) for text in texts)
    assert short < 0.4 * long


def test_from_the_published_files_to_sets_that_share_nothing(shared_data, tmp_path):
    """Every eighth trace, by the commands; the samples of `steps` and `summaries` give the sets that the traces give."""
    raw = tmp_path / "raw.jsonl"
    write_rows(raw, [row for n, row in read_rows(shared_data / "traces" / "traces_normalised.jsonl.gz") if n % 8 == 0])
    assert main(["data", "prepare", "--input_file", str(raw), "--output_dir", str(tmp_path / "one")]) == 0
    groups = {}
    for phase in PHASES:
        train, validation = (
            read_records(tmp_path / "one" / "sets" / f"{phase}_{part}.parquet", Conversation.from_row)
            for part in ("train", "validation")
        )
        groups[phase] = {c.group for c in validation}
        assert {c.group for c in train}.isdisjoint(groups[phase])
        assert 0.04 < len(groups[phase]) / len({c.group for c in train + validation}) < 0.16
    assert groups["summary_only"] <= groups["multiturn"]
    chain = [("steps", "one/traces.parquet", "s.jsonl"), ("summaries", "s.jsonl", "u.parquet")]
    for verb, given, written in chain:
        assert main(["data", verb, "--input_file", str(tmp_path / given), "--output_file", str(tmp_path / written)]) == 0
    assert main(["data", "phases", "--input_file", str(tmp_path / "u.parquet"), "--output_dir", str(tmp_path / "two")]) == 0
    for phase in PHASES:
        one, two = (
            sorted(read_records(path, Conversation.from_row), key=lambda c: c.id)
            for path in (tmp_path / "one" / "phases" / f"{phase}.parquet", tmp_path / "two" / f"{phase}.jsonl")
        )
        assert one == two
