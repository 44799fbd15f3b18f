"""The reward: a correct answer, and shaping that is paid in proportion to how right it is.

total = correctness x (1 + bonuses - costs). Correctness mixes exact match, F1, a cover match that long answers dilute, and a
judge's verdict; the bonuses and costs are weights of the terms in `terms.py`. Where nothing of the answer is right every term
is 0, so that no transcript earns by its form (trap 5: shaping that paid for format alone made a predecessor's policy collapse).

With a judge's share, facts and instructions it is the agentic reward of Peng et al. (2025, arXiv 2502.19328), a preference with
checks of factuality and of what was asked, but that they weigh the checks beside the preference and here they are paid in its
proportion: what is well backed and in form, and wrong, earns nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from project.answers import exact_match, token_f1
from project.errors import InputError
from project.records import Episode
from project.rewards import terms
from project.rewards.reward import Reward

BONUSES = {
    "evidence": terms.evidence_recall,
    "format": terms.in_form,
    "decision": terms.right_decision,
    "retry": terms.retried,
    "diversity": terms.diversity,
    "facts": terms.supported,
    "instructions": terms.instructions_kept,
}
"""By the names of their weights."""


@dataclass(frozen=True)
class AnswerReward(Reward):
    """Correctness with gated shaping, in [0, 1 + the bonuses]; a near miss never earns as much as a right answer."""

    f1_share: float = 0.2
    """Share of F1 in the correctness, which makes near misses differ; what the shares leave is exact match. An estimator that
    divides by the group's deviation (grpo) makes the smallest difference whole: 0 suits it better."""
    cover_share: float = 0.0
    """Share of a gold answer's length in an answer that holds it."""
    judge_share: float = 0.0
    """Share of `model.judge`'s verdict on the answer: right, though no exact match."""
    evidence_bonus: float = 0.1
    """Paid in proportion to the gold passages that were shown."""
    format_bonus: float = 0.0
    """Paid if every turn could be read, one answer was given, and no search result was made up."""
    decision_bonus: float = 0.0
    """Paid for a search of use where one is needed, and for none where it is not."""
    retry_bonus: float = 0.0
    """Paid unless the agent stopped searching at a result that showed nothing new of the evidence."""
    diversity_bonus: float = 0.0
    """Paid in proportion to how the two likest queries differ; whole for one query or none."""
    facts_bonus: float = 0.0
    """Paid if what the agent was shown states its answer, as `model.judge` says with `judge.facts`."""
    instructions_bonus: float = 0.0
    """Paid in proportion to the question's `extra_info.constraints` that the answer keeps."""
    search_cost: float = 0.05
    """Taken for each search beyond the number of evidence passages."""
    repeat_cost: float = 0.0
    """Taken for each query that says what one before it said."""
    length_cost: float = 0.0
    """Taken for each 100 tokens beyond `free_tokens`."""
    free_tokens: int = 256
    """Tokens that an agent may write at no cost."""
    most_cost: float = 0.2
    """The costs together, at most."""

    def __post_init__(self) -> None:
        """Refuse weights under which a near miss might earn as much as a right answer."""
        values = asdict(self)
        if bad := next((name for name, value in values.items() if not 0 <= value < float("inf")), None):
            raise InputError(f"reward.{bad} is {values[bad]}; give 0 or more")
        wrong = (self.f1_share + self.cover_share + self.judge_share) * (1 + sum(values[f"{name}_bonus"] for name in BONUSES))
        if wrong >= 1 - self.most_cost:
            raise InputError(
                f"by reward.*_share and *_bonus a near miss may earn {wrong:g}, and a right answer after reward.most_cost "
                f"{1 - self.most_cost:g}; lower them, so that right answers earn more"
            )

    def __call__(self, episode: Episode) -> dict[str, float]:
        """Return the breakdown: what was measured (`em`, `f1`), what each part added, and `total`, which is the reward."""
        answers = episode.question.answers
        em, f1 = exact_match(episode.answer, answers), token_f1(episode.answer, answers)
        correctness = (1 - self.f1_share - self.cover_share - self.judge_share) * em + self.f1_share * f1
        correctness += self.cover_share * terms.brief_cover(episode) + self.judge_share * (episode.verdict or 0.0)
        weights = {name: getattr(self, f"{name}_bonus") for name in BONUSES}
        shaping = {name: weight * BONUSES[name](episode) if weight else 0.0 for name, weight in weights.items()}
        costs = {
            "search": self.search_cost * terms.extra_searches(episode),
            "repeat": self.repeat_cost * terms.repeats(episode.queries),
            "length": self.length_cost * max(0, episode.generated_tokens - self.free_tokens) / 100,
        }
        scale = min(1.0, self.most_cost / (sum(costs.values()) or 1.0))
        shaping |= {name: -scale * cost for name, cost in costs.items()}
        parts = {name: correctness * value for name, value in shaping.items()}
        measured = {"em": em, "f1": f1} | ({"verdict": episode.verdict or 0.0} if self.judge_share else {})
        measured |= {"supported": terms.supported(episode)} if self.facts_bonus else {}
        return {**measured, "correctness": correctness, **parts, "total": correctness + sum(parts.values())}
