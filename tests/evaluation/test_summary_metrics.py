"""Metrics of summaries against values worked out by hand."""

import math

import pytest

from project.dialects import write_summary
from project.evaluation.metrics import estimate
from project.evaluation.summaries import answer_kept, quoted, rouge_l, score_summary, unsupported

CONTEXT = ["I look it up.", "Doc 1 (Title: Oslo)\nOslo is the capital of Norway. It had 709,037 people in 2023."]
GOOD = write_summary("Capital?", "I look it up.", "Oslo: Oslo is the capital of Norway. It had 709,037 people in 2023.")
BAD = write_summary("Capital?", "", "Oslo: Bergen is the capital of Norway. It had 709,037 people in 2023.")


def test_a_summary_made_of_its_context() -> None:
    scores = score_summary(GOOD, CONTEXT, "Capital?", ["Oslo"], GOOD, (20, 40))
    assert scores == {
        "summarised": 1,
        "parts": 1,
        "compression": 0.5,
        "quoted": 1,
        "unsupported": 0,
        "answer_kept": 1,
        "rouge_l": 1,
    }


def test_a_summary_that_makes_something_up() -> None:
    assert quoted(BAD, CONTEXT) == 0.5
    # names and numbers: Capital, Oslo, Bergen, Norway, It, 709,037, 2023; only Bergen stands nowhere
    assert unsupported(BAD, [*CONTEXT, "Capital?"]) == pytest.approx(1 / 7)
    assert answer_kept("Bergen", CONTEXT, ["Oslo"]) == 0.0


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ("", math.nan),
        ("<information_summary></information_summary>", math.nan),
        ("<information_summary>Oslo is the capital of Norway.", 1.0),  # never closed: what there is counts
        ("<information_summary>Oslo  is the\ncapital of Norway</information_summary>", 1.0),  # each line by itself
        ("Oslo is the capital of Norway.", math.nan),  # no information part
    ],
)
def test_quotes(summary: str, expected: float) -> None:
    assert quoted(summary, CONTEXT) == pytest.approx(expected, nan_ok=True)


def test_what_does_not_apply_is_nan() -> None:
    assert math.isnan(answer_kept("Oslo", ["nothing"], ["Oslo"])), "the context never held it"
    assert math.isnan(answer_kept("yes", ["yes"], ["yes"])), "anything holds yes"
    assert math.isnan(unsupported("all in small letters", CONTEXT))
    assert math.isnan(rouge_l("x", ""))
    none = score_summary("", CONTEXT, "?", ["Oslo"], GOOD, (0, 40))
    assert (none["summarised"], none["parts"], none["answer_kept"], none["rouge_l"]) == (0, 0, 0, 0)
    assert math.isnan(none["compression"]), "no summary is not the shortest"


def test_answers_are_whole_words() -> None:
    assert answer_kept("The Oslovian", ["Oslo"], ["Oslo"]) == 0.0


def test_an_interval_resamples_groups() -> None:
    """Two groups of ten equal values: 20 rows, but only two independent ones; the interval spans both."""
    values, groups = [0.0] * 10 + [1.0] * 10, ["a"] * 10 + ["b"] * 10
    of_groups, of_rows = estimate(values, groups=groups), estimate(values)
    assert (of_groups.mean, of_groups.n) == (0.5, 20)
    assert of_groups.groups == 2
    assert of_groups.low < 0 and of_groups.high > 1, "and more, by Student's t of one degree of freedom"
    assert estimate(values, unit=True, groups=groups)[1:3] == (0.0, 1.0)
    assert of_rows.low > 0.2
    never = estimate([0.0] * 20, share=True, groups=groups)
    assert never.high == estimate([0.0, 0.0], share=True).high > 0.6, "two groups without a success say little"
    assert estimate([1.0, math.nan, 3.0], groups=["a", "a", "b"]).n == 2


def test_an_answer_that_the_question_holds_is_kept_by_nobody() -> None:
    assert math.isnan(answer_kept("Question: Oslo or Rome?", ["Oslo"], ["Oslo"], "Is it Oslo or Rome?"))
    assert answer_kept("It is Oslo.", ["Oslo"], ["Oslo"], "Where is it?") == 1.0


def test_rouge_is_of_what_is_said_in_any_script() -> None:
    form = "Question: Which city is it?\n<think_summary>{}</think_summary>"
    assert rouge_l(form.format(""), form.format("Oslo is cold")) == 0.0, "the form and the question earn nothing"
    assert rouge_l(form.format("Осло холодный"), form.format("Осло холодный")) == 1.0
    # two of three words in order: 2 * 2 / (3 + 2)
    assert abs(rouge_l("Oslo is cold", "Oslo cold") - 0.8) < 1e-6
