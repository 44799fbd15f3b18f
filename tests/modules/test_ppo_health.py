"""An update's numbers, worked out by hand."""

import pytest

from project.modules.ppo_health import episode_health, generating_seconds, is_kept, memory_health
from project.records import Episode, FinishReason, Question, Turn

QUESTION = Question("q", "Which?", ("gold",))


def turn(*logprobs, version=3):
    return Turn((1, 2), tuple(range(len(logprobs))), logprobs, version, True, True)


def test_means_by_hand():
    right = Episode(QUESTION, (turn(-1.0, -2.0), turn(-3.0, version=2)), (), FinishReason.ANSWER, "gold", ("a b", "a b", "c"))
    wrong = Episode(QUESTION, (turn(-9.0),), (), FinishReason.MALFORMED, malformed=2)
    failed = Episode(QUESTION, (turn(-5.0),), (), FinishReason.TIMEOUT)
    never = Episode(QUESTION, (), (), FinishReason.CONTEXT_FULL)
    scores = [{"em": 1.0, "search": -0.1, "total": 0.9}, {"em": 0.0, "search": 0.0, "total": 0.0}]
    found = episode_health([right, failed, wrong, never], scores, version=4)
    assert [is_kept(episode) for episode in (right, failed, wrong, never)] == [True, False, True, False]
    assert found["train/reward"] == pytest.approx(0.45)
    assert (found["reward/em"], found["reward/search"]) == (0.5, -0.05)
    assert "reward/total" not in found
    assert found["train/correct_logprob"] == -2  # of the right episode's three tokens
    assert found["train/searches"] == 1.5
    assert found["train/repeated_queries"] == 0.5
    assert found["train/turns"] == 1.5
    assert found["train/generated_tokens"] == 2
    assert found["train/longest"] == 3
    assert found["train/malformed_turns"] == 1
    assert found["train/staleness"] == pytest.approx((1 + 2 + 1) / 3)
    assert found["train/tool_errors"] == 0.25
    assert found["train/drift"] == 0
    finishes = {name.removeprefix("train/finish_"): v for name, v in found.items() if name.startswith("train/finish_")}
    assert finishes == {str(r): 0.25 * (r in ("answer", "malformed", "timeout", "context_full")) for r in FinishReason}
    assert "train/correct_logprob" not in episode_health([wrong], scores[1:], 4)  # nothing was right


def test_the_engine_was_at_work_in_the_union_of_the_turns():
    def at(*clocks):
        turns = [Turn((1,), (1,), (-1.0,), 0, True, True, tuple(t * 10**9 for t in clock)) for clock in clocks]
        return Episode(QUESTION, tuple(turns), (), FinishReason.ANSWER)

    # 0 to 5 in one episode, 3 to 6 and 9 to 10 in the other: 6 and 1 seconds
    assert generating_seconds([at((0, 2, 3), (1, 5, 7)), at((3, 6, 9), (9, 10, 10))]) == 7
    assert generating_seconds([]) == 0


def test_memory_is_measured():
    assert 0.01 < memory_health()["memory/resident_gib"] < 100
