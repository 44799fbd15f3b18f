"""What a question asks of its answer's form, by hand; and questions whose constraints cannot be checked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from project.records import Episode, FinishReason, Question
from project.rewards import terms
from project.rewards.constraints import Constraints, check_constraints


def question(constraints, *answers: str) -> Question:
    return Question("q", "When did it open?", answers, extra_info={"constraints": constraints})


def asked(**constraints) -> Constraints:
    return Constraints.of(question(constraints))


@pytest.mark.parametrize(
    ("constraints", "answer", "kept"),
    [
        ({}, "anything", 1),
        ({}, "", 0),
        ({}, None, 0),
        ({"max_words": 2}, "May 1931", 1),
        ({"max_words": 2}, " 1 May 1931 ", 0),
        ({"pattern": r"\d{4}-\d{2}-\d{2}"}, " 1931-05-01\n", 1),
        ({"pattern": r"\d{4}-\d{2}-\d{2}"}, "on 1931-05-01", 0),
        ({"without": ["may"]}, "1 MAY 1931", 0),
        ({"without": ["may"]}, "maybe 1931", 1),
        ({"without": ["a.b"]}, "axb", 1),
        ({"without": ["the"]}, "_the_ hall", 0),  # of all these exact match sees "hall"
        ({"without": ["the"]}, "\uff34\uff48\uff45 hall", 0),
        ({"without": ["the"]}, "t'he hall", 0),
        ({"without": ["New York"]}, "New  York", 0),
        ({"max_words": 1}, "1\u200bMay\u200b1931", 0),
        ({"max_words": 1}, "1931-05-01", 1),
        ({}, "\u200b", 0),
        ({"without": ["the", "about"], "max_words": 3, "pattern": ".*1931"}, "about 1 May 1931", 0.5),  # too long, and "about"
    ],
)
def test_the_share_that_is_kept_by_hand(constraints, answer, kept):
    assert asked(**constraints).kept(answer) == kept


def test_a_question_without_constraints_asks_nothing():
    assert Constraints.of(Question("q", "?", ("x",))) == Constraints() == asked()


@given(st.text(max_size=40), st.integers(1, 5), st.lists(st.text("abc", min_size=1), max_size=3))
def test_the_share_is_a_share(answer, words, phrases):
    assert 0 <= asked(max_words=words, without=phrases).kept(answer) <= 1


@pytest.mark.parametrize(
    ("constraints", "said"),
    [
        ([1], r"extra_info.constraints is \[1\]; give an object with max_words, pattern or without"),
        ({"words": 3}, "is {'words': 3}; give an object with max_words, pattern or without"),
        (0, "is 0; give an object"),
        ({"max_words": 3.0}, "max_words is 3.0; give a whole number"),
        ({"pattern": ""}, "pattern is '', which is no regular expression of an answer"),
        ({"pattern": 0}, "pattern is 0, which is no"),
        ({"pattern": "a{99999999999}"}, "repeat count too big"),
        ({"pattern": "(" * 500 + ")" * 500}, "recursion"),
        ({"without": ""}, "without is ''"),
        ({"without": ["\u200b"]}, "give a list of words"),
        ({"max_words": 0}, "max_words is 0; give a whole number of at least 1"),
        ({"max_words": True}, "max_words is True"),
        ({"max_words": "3"}, "max_words is '3'"),
        ({"pattern": "("}, r"pattern is '\(', which is no regular expression of an answer \(missing \)"),
        ({"pattern": 3}, "pattern is 3, which is no regular expression"),
        ({"without": "the"}, "without is 'the'; give a list of words or phrases"),
        ({"without": [""]}, r"without is \[''\]"),
    ],
)
def test_what_cannot_be_checked_is_refused(constraints, said):
    with pytest.raises(ValueError, match=said):
        Constraints.of(question(constraints))


def test_a_question_whose_gold_answers_all_break_its_constraints_is_refused():
    """Else the answer that breaks them would earn more than one that keeps them."""
    form = {"pattern": r"\d{4}-\d{2}-\d{2}"}
    with pytest.raises(ValueError, match=r"no answer of \['1 May 1931'\] keeps extra_info.constraints; write one in the form"):
        check_constraints(question(form, "1 May 1931"))
    check_constraints(question(form, "1 May 1931", "1931-05-01"))
    check_constraints(question(form))


def test_a_right_refusal_keeps_what_only_an_answer_can():
    def instructions_kept(asked, answer):
        return terms.instructions_kept(Episode(asked, (), (), FinishReason.ANSWER, answer))

    assert instructions_kept(question({"pattern": r"\d{4}"}), "unknown") == 1
    assert instructions_kept(question({"pattern": r"\d{4}"}, "1931"), "unknown") == 0
    assert instructions_kept(question({"pattern": r"\d{4}"}), "a hall") == 0


def test_a_pattern_that_backtracks_for_ever_is_not_kept(monkeypatch):
    monkeypatch.setattr("project.rewards.constraints.SECONDS", 0.05)
    assert asked(pattern=r"(a|a)*(a|a)*(a|a)*(a|a)*(a|a)*b").kept("a" * 200) == 0
