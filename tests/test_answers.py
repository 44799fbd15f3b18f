"""Answer metrics: every expected value is worked by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.text import squad

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


@pytest.mark.parametrize(
    ("prediction", "gold", "squad", "hotpotqa"),
    [
        # What the official scorers give, (EM, F1): worked by their rules, which differ for yes, no and noanswer only.
        ("the Eiffel Tower", "Eiffel Tower", (1, 1), (1, 1)),
        ("Eiffel Tower, Paris", "Eiffel Tower", (0, 0.8), (0, 0.8)),
        ("yes", "Yes.", (1, 1), (1, 1)),
        ("yes", "no", (0, 0), (0, 0)),
        ("yes, it is", "yes", (0, 0.5), (0, 0)),
        ("no", "no one", (0, 2 / 3), (0, 0)),
        ("yes no", "yes", (0, 2 / 3), (0, 0)),
        ("noanswer", "noanswer given", (0, 2 / 3), (0, 0)),
        ("", "Paris", (0, 0), (0, 0)),
        ("1,5", "15", (1, 1), (1, 1)),
    ],
)
def test_as_the_official_scorers(prediction, gold, squad, hotpotqa):
    """HotpotQA's where they differ; SQuAD's column is checked against torchmetrics' copy of its scorer."""
    assert (exact_match(prediction, [gold]), token_f1(prediction, [gold])) == pytest.approx(hotpotqa)
    assert _squad(prediction, [gold]) == pytest.approx(squad)


@given(st.text("aAbtnhe .,'-", max_size=20), st.lists(st.text("aAbtnhe .,'-", max_size=20), min_size=1, max_size=3))
def test_random_answers_as_squad_scores_them(prediction, golds):
    assert (exact_match(prediction, golds), token_f1(prediction, golds)) == pytest.approx(_squad(prediction, golds))


def _squad(prediction, golds):
    """EM and F1 of torchmetrics, a copy of SQuAD's official scorer, from 0 to 1."""
    target = {"id": "0", "answers": {"text": list(golds), "answer_start": [0] * len(golds)}}
    found = squad([{"id": "0", "prediction_text": prediction}], [target])
    return float(found["exact_match"]) / 100, float(found["f1"]) / 100


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
