"""`seeker data summaries --summariser teacher` as a user types it (DESIGN §8.12)."""

import json

import pytest
from openai_stub import Stub, completion

from project.cli import main
from project.files import read_records, read_rows
from project.records import Document, Step
from project.teacher.summaries import find_fault
from project.traces.steps import StepSample
from project.writing import write_records

THOUGHT = Step("reasoning", "I must find the mayor of Dor, and then where she was born; the mayor comes first of all.")
SEARCHES = [Step("search", tool="search", queries=(query,)) for query in ("mayor of Dor", "Ana Roux born")]
RESULTS = [
    Step(
        "search_result",
        documents=(Document("The mayor of Dor is Ana Roux, who has held the office for nine years now.", "Dor"),),
    ),
    Step(
        "search_result",
        documents=(Document("Ana Roux was born in Elm, a town of 9,000 people in the north of the land.", "Ana"),),
    ),
]
ANSWER = Step("answer", "Elm")


def sample(count):
    context = (THOUGHT, SEARCHES[0], RESULTS[0], SEARCHES[1], RESULTS[1])[: {0: 0, 1: 3, 2: 5}[count]]
    target = {0: (THOUGHT, SEARCHES[0]), 1: (SEARCHES[1],), 2: (ANSWER,)}[count]
    return StepSample(f"t#{count}", "t", "Where was the mayor of Dor born?", ("Elm",), count, 2, context, target, "g")


def said(thoughts, facts):
    return completion(json.dumps({"thoughts": thoughts, "facts": facts}))


def good(asked, _):
    told = asked["messages"][1]["content"]
    facts = 'The mayor is "Ana Roux".' + (' She was "born in Elm".' if "born in Elm" in told else "")
    return said("The mayor comes first.", facts)


@pytest.fixture
def files(tmp_path):
    write_records(tmp_path / "samples.jsonl", [sample(n) for n in (0, 1, 2)])
    return tmp_path / "samples.jsonl", tmp_path / "out.jsonl"


def run(files, stub, *more):
    arguments = ["--input_file", str(files[0]), "--output_file", str(files[1]), "--summariser", "teacher"]
    return main(["data", "summaries", *arguments, "--teacher.base_url", stub.url, *more])


def test_each_context_is_summarised_once_for_its_sample_and_the_next(files):
    with Stub(good, latency=0.05) as stub:
        assert run(files, stub, "--max_concurrent", "4") == 0
        assert len(stub.asked) == 2, "the second's previous summary is the first's"
        assert not any("Answer: Elm" in asked["messages"][1]["content"] for asked in stub.asked)
    first, one, two = read_records(files[1], StepSample.from_row)
    assert (first.summary, first.previous_summary) == ("", "")
    assert one.summary == (
        "Question: Where was the mayor of Dor born?\n<think_summary>The mayor comes first.</think_summary>\n"
        '<information_summary>The mayor is "Ana Roux".</information_summary>'
    )
    assert one.previous_summary == ""
    assert two.previous_summary == one.summary
    assert '"born in Elm"' in two.summary


def test_trap_12_the_next_step_is_shown_only_where_it_is_asked_for(files):
    with Stub(good) as stub:
        run(files, stub)
        run(files, stub, "--see_next", "true", "--force", "true")
    told = [asked["messages"][1]["content"] for asked in stub.asked]
    after_one = [text for text in told if "born in Elm" not in text]
    assert ["Ana Roux born" in text for text in after_one] == [False, True], (
        "the second search is the first context's next step"
    )
    assert not any("Answer: Elm" in text for text in told[:2])
    assert sum("Answer: Elm" in text for text in told[2:]) == 1


def test_what_fails_the_checks_is_asked_again_with_the_reason(files):
    def reply(asked, before):
        return said("Well.", 'It is "Ana Rouxx".') if len(asked["messages"]) == 2 else good(asked, before)

    with Stub(reply) as stub:
        assert run(files, stub) == 0
        again = [asked["messages"] for asked in stub.asked if len(asked["messages"]) == 4]
        assert len(again) == 2
        assert again[0][2]["content"] == json.dumps({"thoughts": "Well.", "facts": 'It is "Ana Rouxx".'})
        assert again[0][3]["content"] == (
            'That cannot be used: "Ana Rouxx" stands in no result to the letter. Write the whole JSON object again.'
        )
    assert len(list(read_records(files[1], StepSample.from_row))) == 3


def test_what_never_passes_is_rejected_with_the_reason(files):
    with Stub(lambda *_: said("She was born in Elm.", "Elm it is.")) as stub:
        assert run(files, stub, "--tries", "2") == 0
        assert len(stub.asked) == 2, "the second's previous summary is the first's, which failed"
    assert [s.id for s in read_records(files[1], StepSample.from_row)] == ["t#0"]
    rejected = [row for _, row in read_rows(files[1].with_name("out.jsonl.rejected.jsonl"))]
    assert [row["reason"] for row in rejected] == ["no summary in 2 tries: it says an answer that no result holds"] * 2


@pytest.mark.parametrize(
    ("thoughts", "facts", "fault"),
    [
        ("The mayor first.", 'It is "Ana Roux".', ""),
        ("The mayor first.", "It is “Ana  Roux,”", ""),
        ("", 'It is "Ana Roux".', "thoughts or facts are missing"),
        ("The mayor first.", "", "thoughts or facts are missing"),
        ("word " * 21, "fact", "it has 22 words, and at most 20 are allowed"),
        ("The mayor first.", 'It is "Ana Ruox".', '"Ana Ruox" stands in no result to the letter'),
        ("She is from elm!", "Ana.", "it says an answer that no result holds"),
        ("The mayor first.", "It is Ana Roux.", "it quotes nothing that a result says"),
    ],
)
def test_the_checks(thoughts, facts, fault):
    one = sample(1)
    assert find_fault(thoughts, facts, one, one.context, 20, 1.0) == fault


def test_half_of_the_quotations_may_be_enough():
    one = sample(1)
    facts = 'It is "Ana Roux" or "Bo Lind".'
    assert find_fault("So.", facts, one, one.context, 50, 0.5) == ""
    assert find_fault("So.", facts, one, one.context, 50, 0.6) == '"Bo Lind" stands in no result to the letter'


def test_without_a_teacher_all_is_as_it_was(files):
    assert main(["data", "summaries", "--input_file", str(files[0]), "--output_file", str(files[1])]) == 0
    assert "Ana Roux" in list(read_records(files[1], StepSample.from_row))[1].summary
