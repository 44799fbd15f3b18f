"""Answer metrics: every expected value is worked by hand."""

import pytest

from project.answers import REFUSALS, cover_exact_match, exact_match, normalise_answer, token_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Mongolian-Tögrög!", "mongoliantögrög"),  # case, article, hyphen and spaces
        ("A theory of an Anthem", "theory of anthem"),  # articles are whole words: not those inside theory, an-them
        ("ﬁve ＡＢＣ", "five abc"),  # NFKC: ligature fi, full-width letters
        ("1,000.5", "10005"),  # punctuation goes without leaving a space
        ("  \n\t ", ""),
        ("the", ""),
        ("Don't know", "dont know"),
    ],
)
def test_normalisation(text, expected):
    assert normalise_answer(text) == expected
    assert normalise_answer(normalise_answer(text)) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "em", "f1", "cover"),
    [
        ("The Mongolian tögrög.", ["Mongolian tögrög"], 1, 1, 1),
        # predicted {mongolian, tögrög, note}, gold {tögrög}: 1 shared, F1 = 2*1/(3+1)
        ("Mongolian tögrög note", ["tögrög"], 0, 0.5, 1),
        # predicted {new, york}, gold {new, york, city}: F1 = 2*2/(2+3); the gold does not stand in the prediction
        ("New York", ["New York City"], 0, 0.8, 0),
        # the best of several golds: against "euro" 2*1/(2+1), against "dollar" 0
        ("euro coin", ["dollar", "Euro"], 0, 2 / 3, 1),
        # repeated tokens count as often as both hold them: shared min(3, 1) = 1, F1 = 2*1/(3+2)
        ("paris paris paris", ["Paris France"], 0, 0.4, 0),
        ("Lima", ["Quito"], 0, 0, 0),
        # cover looks for whole tokens in one run: `art` is not in `party`, nor `b d` in `b c d`
        ("the party", ["art"], 0, 0, 0),
        ("b c d", ["b d"], 0, 0.8, 0),  # 2*2/(3+2)
        ("", ["x"], 0, 0, 0),
        ("the", ["an"], 1, 1, 0),  # both empty once normalised: equal, but an empty gold covers nothing
    ],
)
def test_metrics(prediction, answers, em, f1, cover):
    assert exact_match(prediction, answers) == em
    assert token_f1(prediction, answers) == pytest.approx(f1)
    assert cover_exact_match(prediction, answers) == cover


METRICS = (exact_match, token_f1, cover_exact_match)


@pytest.mark.parametrize("metric", METRICS)
def test_no_prediction_is_wrong(metric):
    assert metric(None, ["x"]) == 0
    assert metric(None, []) == 0, "an agent that says nothing has not refused"


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("refusal", ["unknown", "Unknown.", "I don't know", "Not found!", "unanswerable"])
def test_refusal_is_right_only_without_gold(metric, refusal):
    assert metric(refusal, []) == 1
    assert metric(refusal, ["Ulaanbaatar"]) == 0
    assert metric("Ulaanbaatar", []) == 0
    assert metric("it is unknown to me that", []) == 0, "a sentence around the word is no refusal"


def test_refusals_are_normalised():
    assert {normalise_answer(refusal) for refusal in REFUSALS} == REFUSALS


def test_answers_may_be_any_iterable():
    assert [metric("b", iter(("a", "b"))) for metric in METRICS] == [1, 1, 1]
