"""Metrics of one episode, and their means over many with a 95 % confidence interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from project.answers import cover_exact_match, exact_match, token_f1
from project.records import Episode, FinishReason
from project.rewards.terms import did_search, evidence_recall

RESAMPLES = 2000
Z = 1.959964
"""Two-sided 95 % point of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over n questions with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


def score_episode(episode: Episode, reward: Callable[[Episode], dict[str, float]]) -> dict[str, float]:
    """Return the metrics of one episode; NaN where one does not apply (no evidence known, search need not known)."""
    question, searched = episode.question, did_search(episode)
    needs = question.needs_search
    scores = {
        "em": exact_match(episode.answer, question.answers),
        "f1": token_f1(episode.answer, question.answers),
        "cover_em": cover_exact_match(episode.answer, question.answers),
        "decision_accuracy": math.nan if needs is None else float(searched == needs),
        "searches": float(len(episode.queries)),
        "evidence_recall": evidence_recall(episode) if question.evidence else math.nan,
        "reward": reward(episode)["total"],
        "contexts": float(episode.contexts),
        "generated_tokens": float(episode.generated_tokens),
    }
    judged = {"verdict": episode.verdict, "supported": episode.supported}
    scores |= {name: said for name, said in judged.items() if said is not None}
    return scores | {f"finish_{reason}": float(episode.finish is reason) for reason in FinishReason}


def is_share(metric: str) -> bool:
    """Return whether a metric of `score_episode` is yes or no for each episode, so that its mean is a share."""
    return metric in ("em", "cover_em", "decision_accuracy", "verdict", "supported") or metric.startswith("finish_")


def estimate(values: Sequence[float], *, share: bool = False, groups: Sequence[str] | None = None, seed: int = 0) -> Estimate:
    """Return the mean of the values that are not NaN and its 95 % interval; all NaN for none.

    Args:
        values: one a question.
        share: the values are 0 or 1; the interval is Wilson's (1927), which stays honest at 0 of n. Else it is the
            percentile bootstrap's, which has no width where the values do not vary.
        groups: one a value; values of a group hang together (the samples of a trace), and groups are resampled in place of
            values. The interval is the bootstrap's then, unless all values are 0 or all 1: then Wilson's over the groups.
        seed: of the bootstrap.
    """
    known = np.asarray([v for v in values if not math.isnan(v)])
    if not len(known):
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean, n = float(known.mean()), len(known)
    owners = range(len(values)) if groups is None else groups
    _, of_group = np.unique([o for o, v in zip(owners, values, strict=True) if not math.isnan(v)], return_inverse=True)
    if share and (groups is None or mean in (0.0, 1.0)):
        m = int(of_group.max()) + 1
        centre, spread = mean + Z**2 / (2 * m), Z * math.sqrt(mean * (1 - mean) / m + Z**2 / (4 * m**2))
        return Estimate(mean, max(0.0, (centre - spread) / (1 + Z**2 / m)), min(1.0, (centre + spread) / (1 + Z**2 / m)), n)
    sums, sizes = np.bincount(of_group, weights=known), np.bincount(of_group)
    draws = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
    low, high = np.quantile(sums[draws].sum(1) / sizes[draws].sum(1), [0.025, 0.975])
    return Estimate(mean, float(low), float(high), n)


def binary_scores(predicted: Sequence[bool], gold: Sequence[bool]) -> dict[str, float]:
    """Return precision, recall and F1 of `True`, and the accuracy of always giving the commoner class."""
    hits = sum(p and g for p, g in zip(predicted, gold, strict=True))
    precision, recall = hits / max(1, sum(predicted)), hits / max(1, sum(gold))
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    share = sum(gold) / max(1, len(gold))
    return {"precision": precision, "recall": recall, "f1": f1, "majority": max(share, 1 - share)}
