"""Metrics of one episode, and their means over many with a 95 % confidence interval that resamples groups."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from project.answers import REFUSALS, cover_exact_match, exact_match, normalise_answer, token_f1
from project.dialects import ANSWER_TOKEN
from project.intervals import widened, wilson
from project.records import Episode, FinishReason
from project.rewards.reward import breakdown
from project.rewards.terms import agent_turns, did_search, evidence_recall, repeats

RESAMPLES = 2000
BLOCK = 100
"""Resamples that are drawn at once: 8 MB of numbers for 10,000 questions."""
SHARES = frozenset({
    "em", "cover_em", "decided", "decision_accuracy", "verdict", "supported", "abstained", "refused_wrongly",
    "answered_without_evidence", "summarised", "answer_kept",
})  # fmt: skip
"""Metrics that are yes or no for each question."""
UNIT = frozenset({
    "f1", "evidence_recall", "evidence_precision", "parts", "quoted", "unsupported", "rouge_l", "search_probability",
})  # fmt: skip
"""Metrics that lie between 0 and 1 for each question."""
SCORES = (
    "em", "f1", "cover_em", "verdict", "supported", "decided", "decision_accuracy", "search_probability", "searches",
    "repeated_queries", "evidence_recall", "evidence_precision", "answered_without_evidence", "abstained",
    "refused_wrongly", "reward", "turns", "contexts", "read_tokens", "generated_tokens", "peak_context", "history_tokens",
    *(f"finish_{reason}" for reason in FinishReason),
)  # fmt: skip
"""What `score_episode` returns, in this order."""
Numbers = NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean over n questions with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int
    groups: int = 0
    """Groups that the n hang together in; as many as n where each stands alone."""


def score_episode(
    episode: Episode, reward: Callable[[Episode], dict[str, float]], search_probability: float = math.nan
) -> dict[str, float]:
    """Return the metrics of one episode; NaN where one does not apply (no evidence known, no judge asked).

    Of those that do not speak for themselves:

    - `decided`: it searched or answered at all, without which its `decision_accuracy` is 0 either way;
    - `searches`: queries that it wrote, also in a last turn that was not run any more;
    - `evidence_precision`: share of the passages shown that are evidence;
    - `answered_without_evidence`: it answered, no refusal, though nothing shown was evidence (hallucination);
    - `abstained`: it refused a question that the corpus cannot answer; `refused_wrongly`: one that it can;
    - `read_tokens`: tokens that were put before it, prompts included; `peak_context`: of its longest context, in tokens;
    - `history_tokens`: what that would have been without folding: all that was said but the summaries.
    """
    question, searched = episode.question, did_search(episode)
    needs, refused = question.needs_search, is_refusal(episode.answer)
    decided = searched or episode.answer is not None or any(ANSWER_TOKEN in turn for turn in agent_turns(episode))
    shown, gold = set(episode.retrieved), set(question.evidence)
    missed = bool(gold) and needs is not False and not gold & shown
    scores = {
        "em": exact_match(episode.answer, question.answers),
        "f1": token_f1(episode.answer, question.answers),
        "cover_em": cover_exact_match(episode.answer, question.answers),
        "verdict": _or_nan(episode.verdict),
        "supported": _or_nan(episode.supported),
        "decided": float(decided),
        "decision_accuracy": math.nan if needs is None else float(decided and searched == needs),
        "search_probability": search_probability,
        "searches": float(len(episode.queries)),
        "repeated_queries": float(repeats(episode.queries)),
        "evidence_recall": evidence_recall(episode) if gold else math.nan,
        "evidence_precision": len(gold & shown) / len(shown) if gold and shown else math.nan,
        "answered_without_evidence": float(episode.answer is not None and not refused) if missed else math.nan,
        "abstained": math.nan if question.answers else float(refused),
        "refused_wrongly": float(refused) if question.answers else math.nan,
        "reward": breakdown(reward, episode)["total"],
        "turns": float(len(episode.turns)),
        "contexts": float(episode.contexts),
        "read_tokens": float(sum(len(turn.context_ids) for turn in episode.turns)),
        "generated_tokens": float(episode.generated_tokens),
    }
    return scores | _context_lengths(episode) | {f"finish_{reason}": float(episode.finish is reason) for reason in FinishReason}


def is_refusal(answer: str | None) -> bool:
    """Return whether an answer says that the corpus does not hold one."""
    return answer is not None and normalise_answer(answer) in REFUSALS


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _context_lengths(episode: Episode) -> dict[str, float]:
    """Return the tokens of the longest context, and of a history that was never folded."""
    length = peak = history = 0
    turns = episode.turns
    for number, turn in enumerate(turns):
        said = len(turn.context_ids) + len(turn.ids)
        length = said if turn.fresh else length + said
        peak = max(peak, length)
        is_summary = number + 1 < len(turns) and turns[number + 1].fresh
        history += (0 if turn.fresh and number else len(turn.context_ids)) + (0 if is_summary else len(turn.ids))
    return {"peak_context": float(peak), "history_tokens": float(history)}


def is_share(metric: str) -> bool:
    """Return whether a metric is yes or no for each question, so that its mean is a share."""
    return metric in SHARES or metric.startswith(("finish_", "pass_at_")) or metric.endswith(("_em", "_action"))


def is_unit(metric: str) -> bool:
    """Return whether a metric lies between 0 and 1 for each question."""
    return is_share(metric) or metric in UNIT or (metric.endswith("_f1") and not metric.endswith("_lost_f1"))


def estimate_of(metric: str, values: Sequence[float] | Numbers, groups: Sequence[str] | Numbers) -> Estimate:
    """Return a metric's `estimate`, by what its name says of its values."""
    return estimate(values, share=is_share(metric), unit=is_unit(metric), groups=groups)


def estimate(
    values: Sequence[float] | Numbers,
    *,
    share: bool = False,
    unit: bool = False,
    groups: Sequence[str] | Numbers | None = None,
    seed: int = 0,
) -> Estimate:
    """Return the mean of the values that are not NaN and its 95 % interval; all NaN for none.

    Args:
        values: one a question.
        share: the values are 0 or 1; the interval is Wilson's (1927), which stays honest at 0 of n. Else it is the
            percentile bootstrap's, which has no width where the values do not vary.
        unit: the values lie between 0 and 1; where all are 0, or all 1, the interval is Wilson's too.
        groups: one a value; values of a group hang together (the samples of a trace), and groups are resampled in place of
            values. Where groups have several values the interval is the bootstrap's, unless all values are 0 or all 1: then
            Wilson's over the groups. Of a single group there is no interval (NaN), or all from 0 to 1.
        seed: of the bootstrap.
    """
    all_values = np.asarray(values, dtype=np.float64)
    is_known = ~np.isnan(all_values)
    known = all_values[is_known]
    if not len(known):
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean, n = float(known.mean()), len(known)
    numbers = np.arange(len(all_values)) if groups is None else group_numbers(groups)
    found, of_group = np.unique(numbers[is_known], return_inverse=True)
    size = len(found)
    if (share and size == n) or ((share or unit) and mean in (0.0, 1.0)):
        return Estimate(mean, *wilson(mean, size), n, size)
    sums, sizes = np.bincount(of_group, weights=known), np.bincount(of_group).astype(np.float64)
    means = np.concatenate([counts @ sums / (counts @ sizes) for counts in resamples(size, seed)])
    low, high = np.quantile(means, [0.025, 0.975])
    low, high = widened(mean, float(low), float(high), size)
    if share or unit:
        low, high = (0.0, 1.0) if size == 1 else (max(0.0, low), min(1.0, high))
    return Estimate(mean, low, high, n, size)


def resamples(groups: int, seed: int) -> Iterator[Numbers]:
    """Yield how often each group is drawn (some resamples x groups), in blocks; `RESAMPLES` rows in all."""
    generator = np.random.default_rng(seed)
    offsets = np.arange(BLOCK)[:, None] * groups
    for _ in range(RESAMPLES // BLOCK):
        drawn = (generator.integers(0, groups, (BLOCK, groups)) + offsets).ravel()
        yield np.bincount(drawn, minlength=BLOCK * groups).reshape(BLOCK, groups).astype(np.float64)


def group_numbers(groups: Sequence[str] | Numbers) -> Numbers:
    """Return a number for each group, the same in every process and exact in float64."""
    if isinstance(groups, np.ndarray):
        return groups
    digest: dict[str, float] = {}
    for group in groups:
        if group not in digest:
            digest[group] = float(int.from_bytes(hashlib.sha256(group.encode(errors="surrogatepass")).digest()[:6]))
    return np.asarray([digest[group] for group in groups])
