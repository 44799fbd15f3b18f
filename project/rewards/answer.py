"""The default reward: a correct answer, and small shaping that is paid only with it.

total = correctness x (1 + evidence bonus - search cost), where correctness mixes exact match and F1. Without a correct
answer every term is 0, so no transcript without one can earn anything (trap 5: shaping that paid for format alone made a
predecessor's policy collapse).
"""

from __future__ import annotations

from dataclasses import dataclass

from project.answers import exact_match, token_f1
from project.records import Episode


@dataclass(frozen=True)
class AnswerReward:
    """Correctness with gated shaping; the total lies in [0, 1 + evidence_bonus]."""

    f1_share: float = 0.2
    """Share of F1 in the correctness; the rest is exact match. F1 is what makes near misses differ."""
    evidence_bonus: float = 0.1
    """Paid in proportion to evidence recall, times correctness."""
    search_cost: float = 0.05
    """Taken for each search beyond the number of evidence passages, times correctness; at most 0.2 in all."""

    def __call__(self, episode: Episode) -> dict[str, float]:
        """Return the breakdown; `total` is the reward."""
        question = episode.question
        em = exact_match(episode.answer, question.answers)
        f1 = token_f1(episode.answer, question.answers)
        correctness = (1 - self.f1_share) * em + self.f1_share * f1
        evidence = self.evidence_bonus * evidence_recall(episode) if question.evidence else 0.0
        allowed = max(1, len(question.evidence)) if question.needs_search is not False else 0
        cost = min(0.2, self.search_cost * max(0, len(episode.queries) - allowed))
        return {"em": em, "f1": f1, "evidence": correctness * evidence, "cost": -correctness * cost} | {
            "total": correctness * (1 + evidence - cost)
        }


def evidence_recall(episode: Episode) -> float:
    """Return the share of gold evidence passages that the agent was shown; 1 where there is none to find."""
    gold = set(episode.question.evidence)
    return len(gold & set(episode.retrieved)) / len(gold) if gold else 1.0
