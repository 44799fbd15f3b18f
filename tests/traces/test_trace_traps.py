"""DESIGN §8's traps that agent traces can spring, each by its number."""

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from trace_samples import TWO_HOPS, answer, result, search, think, trace, traces

from project.cli import main
from project.dialects import get_dialect
from project.files import read_records
from project.overlap import marks, refuse_overlap
from project.records import Conversation, Document, Step, Trace
from project.streams import Made
from project.traces.multiturn import Problem, conversation, problem
from project.traces.phases import PHASES, Settings, of_row
from project.traces.readers import read_trace
from project.traces.split import group_of, place
from project.traces.steps import split
from project.traces.summaries import with_summary
from project.traces.tidy import VERDICT, tidy
from project.writing import write_records, write_rows


def made_of(rows, **settings):
    """Return the conversations of each phase."""
    made = Made()
    for row in rows:
        of_row(Settings(**settings), row.to_row(), made)
    return {phase: [Conversation.from_row(row) for row in found] for phase, found in made.rows.items()}


@given(st.lists(traces(finished=True, searches=1), max_size=6), st.integers(0, 3))
def test_trap_8_no_question_and_no_prefix_is_on_both_sides(made_up, seed):
    made_up += [trace(search("a"), result("b"), answer("c"), question="one?"), trace(*TWO_HOPS.steps, question="two?")]
    made_up = [replace(one, id=str(number)) for number, one in enumerate(made_up)]
    sides = {"train": [], "validation": []}
    for conversations in made_of(made_up, max_words=60).values():
        for made in conversations:
            sides["validation" if place(group_of(made, "question"), seed) < 0.5 else "train"].append(made)
    refuse_overlap({side: set().union(*map(marks, held)) for side, held in sides.items()})
    train, validation = ({c.messages[:2] for c in held} for held in sides.values())
    assert train.isdisjoint(validation)


def test_trap_8_a_question_in_other_words_of_case_and_articles_stays_together():
    steps = TWO_HOPS.steps
    asked = ["Who wrote the Hamlet?", "who wrote Hamlet", "Question: Who wrote Hamlet?"]
    assert len({split(tidy(trace(*steps, question=q)))[0].group for q in asked}) == 1


def test_trap_9_a_failure_is_never_text_of_a_document():
    row = {
        "id": "x",
        "question": "q",
        "steps": [
            {"type": "action", "name": "search", "argument": "a"},
            {"type": "observation", "text": "HTTP Error 500: Internal Server Error"},
            {"type": "action", "name": "finish", "argument": "x"},
        ],
    }
    steps = tidy(read_trace(row)[1]).steps
    assert steps[1] == Step("search_result", error="HTTP Error 500: Internal Server Error")
    assert "500" not in with_summary(split(trace(*steps))[1]).summary


def test_trap_9_a_malformed_call_is_not_dropped_from_a_conversation_that_then_looks_finished():
    broken = trace(think("Look."), Step("other", "search[half"), think("Known."), answer("x"))
    assert problem(broken) is Problem.MALFORMED
    assert problem(broken, keep_malformed=True) is None
    assert "search[half" in conversation(broken, get_dialect("tags")).messages[2].content
    assert made_of([TWO_HOPS, broken])["multiturn"] == made_of([TWO_HOPS])["multiturn"]


def test_trap_9_wrong_answers_are_no_training_data(tmp_path):
    wrong = trace(search("a"), result("b"), answer("wrong"), correct=False, ident="w", question="wrong?")
    others = [trace(*TWO_HOPS.steps, question=f"q {i}?", ident=str(i), correct=None if i else True) for i in range(6)]
    write_records(tmp_path / "t.jsonl", [wrong, *others])
    for keep, expected in (("false", 6), ("true", 7)):
        out = tmp_path / keep
        args = ["--input_file", str(tmp_path / "t.jsonl"), "--output_dir", str(out), "--keep_wrong", keep]
        assert main(["data", "phases", *args]) == 0
        assert len(read_records(out / "multiturn.jsonl", Conversation.from_row)) == expected


@given(traces(finished=True), traces(finished=True))
def test_trap_12_the_target_cannot_change_the_summary(made_up, other):
    samples = split(made_up)
    for sample in samples:
        swapped = tidy(trace(*sample.context, *other.steps, question=sample.question))
        twin = next(s for s in split(swapped) if s.split_index == sample.split_index)
        if twin.context == sample.context:
            assert with_summary(twin).summary == with_summary(sample).summary


def test_trap_12_the_first_decision_is_a_target():
    first = split(TWO_HOPS)[0]
    assert first.context == ()
    assert first.target[-1].type == "search"


def test_trap_12_the_question_is_in_every_prompt():
    sets = made_of([TWO_HOPS, trace(*TWO_HOPS.steps, question="Another?")], max_words=8)
    assert sorted(sets) == sorted(PHASES)
    for made in (c for conversations in sets.values() for c in conversations):
        assert f"Question: {made.question}" in made.messages[1].content


def test_trap_16_a_verdict_sets_correct_and_is_no_step():
    verdicts = {
        "Episode finished, reward = True": True,
        "Episode finished, reward = 1": True,
        "Episode finished, reward = 1.0": True,
        "Episode finished, reward = 0.5": False,
        "Episode finished, reward = 0": False,
        "Episode finished, reward = False": False,
        "Answer is CORRECT": True,
        "Answer is INCORRECT": False,
        "Observation 3: Answer is INCORRECT\nCorrect answer: Jonny Craig": False,
    }
    for text, correct in verdicts.items():
        steps = (search("a"), result("b"), answer("x"), result(text))
        tidied = tidy(trace(*steps, correct=None))
        assert tidied.steps == steps[:3], text
        assert tidied.correct is correct, text


def test_trap_16_a_verdict_inside_other_text_is_cut_out():
    steps = (think("I am done.\nAnswer is INCORRECT"), search("a"), result("A fact.\nEpisode finished, reward = 0", "b"))
    tidied = tidy(trace(*steps, answer("x")))
    assert tidied.steps == (think("I am done."), search("a"), result("A fact.", "b"), answer("x"))
    assert tidied.correct is False
    assert "reward" not in json.dumps(tidied.to_row())


def test_trap_16_no_empty_sample_after_the_answer():
    steps = (*TWO_HOPS.steps, result("Episode finished, reward = 1"))
    assert len(split(tidy(trace(*steps)))) == 3


def test_trap_16_what_only_mentions_a_verdict_stays():
    text = "The answer is CORRECT as far as I know, and Episode finished, reward = high."
    assert not VERDICT.search(text)
    assert tidy(trace(think(text), answer("x"))).steps[0] == think(text)


def test_trap_16_seekers_own_rows_are_cleaned_too(tmp_path):
    steps = (search("a"), Step("search_result", documents=(Document("Answer is CORRECT"),)), answer("x"))
    write_rows(tmp_path / "raw.jsonl", [trace(*steps, correct=None).to_row()])
    assert (
        main(["data", "traces", "--input_file", str(tmp_path / "raw.jsonl"), "--output_file", str(tmp_path / "t.jsonl")]) == 0
    )
    (read,) = read_records(tmp_path / "t.jsonl", Trace.from_row)
    assert read.correct is True
    assert read.steps == (search("a"), answer("x"))
