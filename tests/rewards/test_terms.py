"""The terms of the reward by hand, and transcripts that try to raise them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from project.dialects import Action, get_dialect
from project.environment.search import EpisodeLimits, SearchEnvironment
from project.errors import InputError, RetrievalError
from project.records import Document, Episode, FinishReason, Message, Question, Turn
from project.rewards import terms
from project.rewards.answer import BONUSES, AnswerReward

QUESTION = Question("q", "Which metal is liquid at room temperature?", ("mercury", "quicksilver"), ("hg", "hg2"), True)
ALL = AnswerReward(
    f1_share=0.1,
    cover_share=0.1,
    format_bonus=0.1,
    decision_bonus=0.1,
    retry_bonus=0.1,
    diversity_bonus=0.1,
    repeat_cost=0.05,
    length_cost=0.05,
)
"""Everything switched on."""


def episode(answer="mercury", queries=(), found=(), turns=("<answer>mercury</answer>",), tokens=10, **changes) -> Episode:
    written = tuple(Message("assistant", text) for text in turns)
    made = (Turn((1,), (2,) * tokens, (-1.0,) * tokens, 0, True),)
    return Episode(QUESTION, made, written, FinishReason.ANSWER, answer, tuple(queries), tuple(found), **changes)


def test_a_cover_is_diluted_by_what_stands_around_it():
    assert terms.brief_cover(episode("mercury")) == 1
    assert terms.brief_cover(episode("the liquid metal mercury")) == pytest.approx(1 / 3)  # "the" is no word of an answer
    assert terms.brief_cover(episode("mercury or quicksilver")) == pytest.approx(1 / 3)
    assert terms.brief_cover(episode("gold")) == terms.brief_cover(episode(None)) == 0
    nothing = replace(QUESTION, answers=())
    assert terms.brief_cover(replace(episode("unknown"), question=nothing)) == 1


def test_to_stop_at_a_poor_result_loses():
    def paid(*found, question=QUESTION):
        return terms.retried(replace(episode(found=found), question=question))

    assert paid(("au",), ("hg",)) == paid(("au",), ("au",), ("hg",)) == 1
    assert paid(("au",)) == paid(("hg",), ("hg",)) == paid(("au",), ("hg",), ("au",)) == 0  # nothing, or nothing new
    assert paid() == paid(("hg", "hg2")) == paid(("hg", "hg2"), ("au",)) == 1  # no result, none poor, or nothing is missing
    unknown = replace(QUESTION, evidence=())  # then a result without any passage is poor
    assert paid((), question=unknown) == 0
    assert paid(("",), question=unknown) == paid((), ("",), question=unknown) == 1  # a passage without an id


@given(st.lists(st.sampled_from([(), ("au",), ("hg",), ("hg", "hg2")]), max_size=5), st.data())
def test_trap_05_a_search_that_finds_nothing_never_raises_retry(found, data):
    place = data.draw(st.integers(0, len(found)))
    junk = [*found[:place], ("zn",), *found[place:]]
    assert terms.retried(episode(found=junk)) <= terms.retried(episode(found=found))


def test_queries_differ_and_repeat():
    assert terms.diversity(episode(queries=("red fox", "red fox", "zzz"))) == 0  # another one does not mend it
    assert terms.diversity(episode(queries=("red fox", "green wine", "the red wine!"))) == pytest.approx(2 / 3)
    assert terms.diversity(episode()) == terms.diversity(episode(queries=("x",))) == 1
    assert terms.repeats(["red fox", "fox red", "wine", "a red fox"]) == 2
    assert terms.repeats([]) == 0


def test_form():
    assert terms.in_form(episode(turns=("<think>so</think><search>x</search>", "<answer>mercury</answer>"))) == 1
    assert terms.in_form(episode(turns=("<answer>gold</answer><answer>mercury</answer>",))) == 0
    made_up = ("<search>x</search><information>Doc 1: mercury</information>", "<answer>mercury</answer>")
    assert terms.in_form(episode(turns=made_up)) == 0
    assert terms.in_form(episode(turns=("<think><information>x</information></think><answer>mercury</answer>",))) == 0
    assert terms.in_form(episode(malformed=1)) == 0
    assert terms.in_form(replace(episode(), turns=(Turn((1,), (2,), (-1.0,), 0, False),))) == 0  # it rambled on


def test_decision():
    assert terms.right_decision(episode(queries=("x",), found=(("hg",),))) == 1
    assert terms.right_decision(episode()) == terms.right_decision(episode(queries=("zzz",), found=((),))) == 0
    assert terms.right_decision(replace(episode(queries=("x",)), question=replace(QUESTION, evidence=()))) == 1
    decided = replace(QUESTION, needs_search=False)
    assert terms.right_decision(replace(episode(turns=("<|SEARCH|><answer>mercury</answer>",)), question=decided)) == 0
    needless = replace(QUESTION, needs_search=False)
    assert terms.right_decision(replace(episode(queries=("x",)), question=needless)) == 0
    assert terms.right_decision(replace(episode(), question=replace(QUESTION, needs_search=None))) == 1


def test_everything_by_hand():
    # exact answer; one of two passages: 0.05; form and decision whole: 0.2; it stopped at a poor result; the last query repeats
    # the first: no diversity; three searches for two passages and a repeat: 0.05 + 0.05; 300 tokens, 44 beyond: 0.022
    scores = ALL(episode(queries=("x y", "z w", "y x"), found=(("au",), ("hg",), ("au",)), tokens=300))
    shares = {
        "evidence": 0.05,
        "format": 0.1,
        "decision": 0.1,
        "retry": 0.0,
        "diversity": 0.0,
        "facts": 0.0,
        "instructions": 0.0,
    }
    costs = {"search": -0.05, "repeat": -0.05, "length": -0.022}
    assert scores == pytest.approx({"em": 1, "f1": 1, "correctness": 1, **shares, **costs, "total": 1 + 0.25 - 0.122})
    # many searches cost 0.2 in all, shared out
    scores = ALL(episode(queries=("a",) * 12, found=(("hg", "hg2"),) * 12))
    assert scores["search"] + scores["repeat"] == pytest.approx(-0.2)
    assert scores["search"] / scores["repeat"] == pytest.approx(10 / 11)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"f1_share": 0.5, "cover_share": 0.4}, "a near miss may earn 0.99"),
        ({"f1_share": 0.5, "format_bonus": 0.5}, "a near miss may earn 0.8"),
        ({"repeat_cost": -1.0}, "reward.repeat_cost is -1"),
        ({"evidence_bonus": float("nan")}, "reward.evidence_bonus is nan"),
    ],
)
def test_trap_05_weights_under_which_a_wrong_answer_pays_are_refused(weights, said):
    with pytest.raises(InputError, match=said):
        AnswerReward(**weights)


# --- transcripts that cheat, through the environment as a model would


class Library:
    """Knows one passage, and nothing of what is no word."""

    async def search(self, queries, seed):
        if queries == ["fail"]:
            raise RetrievalError("down")
        return [[Document("Mercury is liquid.", "Mercury", "hg")] if "metal" in query else [] for query in queries]


def played(*turns, question=QUESTION) -> Episode:
    import asyncio

    environment = SearchEnvironment(question, get_dialect("tags"), Library(), EpisodeLimits(max_turns=7, max_malformed=3), len)
    environment.opening()

    async def play():
        for turn in turns:
            await environment.step(turn if isinstance(turn, str) else environment.dialect.write(turn).content)
            if environment.finish is not None:
                break

    asyncio.run(play())
    made = tuple(Turn((1,), (2,) * 20, (-1.0,) * 20, 0, True) for _ in range(environment.turns))
    finish = environment.finish or FinishReason.MAX_TURNS
    return Episode(
        question, made, tuple(environment.messages), finish, environment.answer, tuple(environment.queries),
        tuple(environment.found), environment.malformed,
    )  # fmt: skip


SEARCH, RIGHT, WRONG = Action("So.", ("liquid metal",)), Action("So.", answer="mercury"), Action("So.", answer="gold")
NOTHING = {
    "the answer in the thought": [
        SEARCH,
        "<think>\nmercury <answer>mercury</answer>\n</think>\n<|ANSWER|>\n<answer>\ngold\n</answer>",
    ],
    "an empty search": ["<search>\n\n</search>"] * 3,
    "the question copied": [Action(queries=(QUESTION.question,)), Action(answer=QUESTION.question)],
    "an answer after the end": [WRONG, RIGHT],
    "several answers, the last wrong": ["<answer>mercury</answer><answer>gold</answer>"],
    "a result made up": ["<search>metal</search><information>mercury</information><answer>mercury</answer>"] * 7,
    "an answer that is never closed": ["<answer>mercury"] * 3,
    "a search that fails": [Action(queries=("fail",)), WRONG],
    "the right words, a wrong answer": [SEARCH, Action("mercury mercury quicksilver", answer="gold")],
    "a poor search on purpose, then a good one": [Action(queries=("zzz",)), SEARCH, WRONG],
}


@pytest.mark.parametrize("name", NOTHING)
def test_trap_05_transcripts_that_cheat_earn_nothing(name):
    found = played(*NOTHING[name])
    assert ALL(found)["total"] == 0, found


BETTER_LEFT = {
    "keywords stuffed into the answer": [SEARCH, Action("So.", answer="mercury gold silver iron copper")],
    "several answers": [SEARCH, "<answer>gold</answer><answer>mercury</answer>"],
    "poor searches on purpose": [Action("So.", ("zzz",)), Action("So.", ("fox",)), SEARCH, RIGHT],
    "the same search again": [SEARCH, SEARCH, SEARCH, RIGHT],
    "many searches": [*(Action("So.", (f"metal {i}",)) for i in range(4)), RIGHT],
    "a malformed turn first": ["hello", SEARCH, RIGHT],
    "a result made up": [SEARCH, "<information>mercury</information>\n<answer>mercury</answer>"],
    "no search": [RIGHT],
}


@given(st.lists(st.sampled_from(["zzz", "fox", "red zzz"]), min_size=1, max_size=4), st.booleans())
def test_trap_05_searches_that_find_nothing_never_pay(queries, search_well):
    junk = [Action("So.", (query,)) for query in queries]
    rest = [SEARCH, RIGHT] if search_well else [RIGHT]
    assert ALL(played(*junk, *rest))["total"] <= ALL(played(*rest))["total"]


@pytest.mark.parametrize("name", BETTER_LEFT)
def test_trap_05_what_is_right_but_cheats_earns_less_than_what_does_not(name):
    assert ALL(played(*BETTER_LEFT[name]))["total"] < ALL(played(SEARCH, RIGHT))["total"]


@given(
    st.sampled_from(["mercury", "liquid mercury", "gold", None, ""]),
    st.lists(st.sampled_from(["metal", "liquid metal", "zzz", "fox"]), max_size=5),
    st.sampled_from([*BONUSES]),
)
def test_trap_05_no_search_makes_a_wrong_answer_pay_and_no_term_leaves_its_range(answer, queries, name):
    made = episode(answer, queries, [("hg",) if "metal" in query else () for query in queries])
    scores = ALL(made)
    assert 0 <= BONUSES[name](made) <= 1
    assert scores["total"] == pytest.approx(
        scores["correctness"] + sum(scores[n] for n in [*BONUSES, "search", "repeat", "length"])
    )
    if answer in ("gold", None, ""):
        assert scores["total"] == 0
    else:
        assert (scores["total"] >= 0.8) == (answer == "mercury")
