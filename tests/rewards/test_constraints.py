"""What a question asks of its answer's form, by hand; and questions whose constraints cannot be checked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from project.records import Question
from project.rewards.constraints import Constraints


def asked(**constraints) -> Constraints:
    return Constraints.of(
        Question("q", "When did it open? Answer YYYY-MM-DD.", ("1 May 1931",), extra_info={"constraints": constraints})
    )


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
        ([1], r"extra_info.constraints is \[1\]; give an object"),
        ({"words": 3}, "has 'words'; what can be asked is max_words, pattern, without"),
        ({"max_words": 0}, "max_words is 0; give a number of at least 1"),
        ({"max_words": True}, "max_words is True"),
        ({"max_words": "3"}, "max_words is '3'"),
        ({"pattern": "("}, r"pattern is '\(', which is no regular expression \(missing \), unterminated"),
        ({"pattern": 3}, "pattern is 3, which is no regular expression"),
        ({"without": "the"}, "without is 'the'; give a list of words or phrases"),
        ({"without": [""]}, r"without is \[''\]"),
    ],
)
def test_what_cannot_be_checked_is_refused(constraints, said):
    with pytest.raises(ValueError, match=said):
        Constraints.of(Question("q", "?", ("x",), extra_info={"constraints": constraints}))
