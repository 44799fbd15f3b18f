"""The reward by hand, and transcripts that try to earn it without a correct answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from project.records import Episode, FinishReason, Message, Question, Turn
from project.rewards.answer import AnswerReward
from project.rewards.terms import evidence_recall

QUESTION = Question("q", "Which metal is liquid?", ("mercury", "quicksilver"), ("hg", "hg2"), True)


def episode(answer=None, question=QUESTION, queries=0, retrieved=(), finish=FinishReason.ANSWER, text="", turns=1) -> Episode:
    messages = (Message("assistant", text),) * turns
    made = tuple(Turn((1,), (2,), (-1.0,), 0, True) for _ in range(turns))
    return Episode(question, made, messages, finish, answer, tuple(f"q{i}" for i in range(queries)), (tuple(retrieved),))


def total(*args, **kwargs) -> float:
    return AnswerReward()(episode(*args, **kwargs))["total"]


def test_reward_by_hand():
    # Correct, both passages shown, 3 searches for 2 passages: 1 * (1 + 0.1 - 0.05).
    scores = AnswerReward()(episode("Quicksilver.", queries=3, retrieved=["hg", "au", "hg2"]))
    assert {name: value for name, value in scores.items() if value} == pytest.approx(
        {"em": 1, "f1": 1, "correctness": 1, "evidence": 0.1, "search": -0.05, "total": 1.05}
    )
    # One of two words right: F1 = 2 * 1 / (2 + 1) = 2/3, no exact match: 0.2 * 2/3 = 2/15; half the evidence: * 1.05.
    assert total("liquid mercury", queries=1, retrieved=["hg"]) == pytest.approx(2 / 15 * 1.05)


def test_searches_cost_at_most_a_fifth():
    assert total("mercury", queries=2) == 1
    assert total("mercury", queries=4) == pytest.approx(0.9)
    assert total("mercury", queries=100) == pytest.approx(0.8)


def test_a_question_that_needs_no_search():
    question = Question("q", "2 + 2?", ("4",), (), False)
    assert total("4", question) == 1
    assert total("4", question, queries=1) == pytest.approx(0.95)


def test_a_question_that_the_corpus_cannot_answer():
    question = Question("q", "?", (), (), True)
    assert total("Unknown", question) == 1
    assert total("42", question) == 0
    assert total(None, question) == 0


def test_evidence_recall():
    assert evidence_recall(episode(retrieved=["hg", "x"])) == 0.5
    assert evidence_recall(episode(retrieved=["hg", "hg2"])) == 1
    assert evidence_recall(episode()) == 0


PERFECT_FORM = "<think>\nI search.\n</think>\n<|SEARCH|>\n<search>\nmercury\n</search>\n<answer>\nmercury\n</answer>"
ADVERSARIAL = {
    "perfect form, wrong answer": {"answer": "gold", "text": PERFECT_FORM},
    "all evidence, wrong answer": {"answer": "gold", "queries": 2, "retrieved": ["hg", "hg2"]},
    "all evidence, no answer": {"queries": 4, "retrieved": ["hg", "hg2"], "finish": FinishReason.MAX_TURNS},
    "the answer said but never given": {"text": "mercury " * 50, "finish": FinishReason.LENGTH},
    "many turns": {"turns": 9, "finish": FinishReason.MAX_TURNS},
    "malformed": {"finish": FinishReason.MALFORMED, "text": "<answer>mercury"},
    "full": {"finish": FinishReason.CONTEXT_FULL},
    "empty answer": {"answer": ""},
    "punctuation": {"answer": "…?!"},
    "article": {"answer": "the"},
    "the question back": {"answer": QUESTION.question},
    "refusal": {"answer": "unknown", "queries": 1},
    "tags for an answer": {"answer": "<answer></answer>"},
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_trap_05_nothing_is_earned_without_a_correct_answer(name):
    scores = AnswerReward()(episode(**ADVERSARIAL[name]))
    assert not any(scores.values())


@given(
    st.sampled_from([None, "gold", "", "unknown", "silver and gold"]),
    st.integers(0, 9),
    st.sets(st.sampled_from(["hg", "hg2", "au"])),
    st.sampled_from(FinishReason),
    st.text(max_size=30),
    st.integers(1, 5),
)
def test_trap_05_no_shape_of_a_wrong_episode_earns(answer, queries, retrieved, finish, text, turns):
    assert total(answer, queries=queries, retrieved=sorted(retrieved), finish=finish, text=text, turns=turns) == 0


def test_trap_05_listing_many_answers_earns_little():
    # 20 words of which one is right: F1 = 2 / 21, a fifth of it is 2/105; the evidence raises it by a tenth.
    guesses = " ".join(["mercury", *(f"metal{i}" for i in range(19))])
    assert total(guesses, queries=2, retrieved=["hg", "hg2"]) == pytest.approx(2 / 105 * 1.1)


@given(st.integers(0, 9), st.integers(0, 9), st.sets(st.sampled_from(["hg", "hg2"])))
def test_a_right_answer_always_beats_a_near_miss(right_queries, wrong_queries, retrieved):
    right = total("mercury", queries=right_queries)
    assert right >= 0.8 > total("liquid mercury", queries=wrong_queries, retrieved=sorted(retrieved))


def test_trap_02_the_reward_varies():
    rewards = {
        total("mercury", queries=2, retrieved=["hg", "hg2"]),
        total("mercury", queries=2, retrieved=["hg"]),
        total("mercury", queries=5),
        total("liquid mercury"),
        total("gold"),
    }
    assert len(rewards) == 5
