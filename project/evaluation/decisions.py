"""How well an agent decides whether to search: the decision as a classifier, and its probability as a forecast.

Of each question three numbers: whether it searched, whether it had to, and the probability that it gave to searching when it
first decided (NaN where it decided nothing). Each figure is a function of the rows' weights, so that its interval comes from
resampled groups as a mean's does. The values are those of torchmetrics' functions of these names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from project.evaluation.metrics import Estimate, Numbers, resamples
from project.intervals import widened, wilson
from project.records import SpanKind, Turn
from project.rendering import Renderer

BINS = 10
"""Equal parts of 0 to 1 in which forecast and outcome are compared."""


def decision_scores(
    searched: Numbers, needed: Numbers, probability: Numbers, groups: Numbers, seed: int = 0
) -> dict[str, Estimate]:
    """Return {name: estimate} of decisions; what is of no question (the precision of what never happened) is left out.

    Args:
        searched: 1 where the agent searched, else 0; one that decided nothing counts as the wrong one; (N,).
        needed: 1 where it had to; (N,).
        probability: that it gave to searching, from 0 to 1, or NaN; (N,).
        groups: which questions hang together; (N,).
        seed: of the bootstrap.
    """
    found_groups, of_group = np.unique(groups, return_inverse=True)
    size = len(found_groups)
    whole = {
        name: float(value[0]) for name, value in _figures(np.ones((1, len(searched))), searched, needed, probability).items()
    }
    drawn = [_figures(counts[:, of_group], searched, needed, probability) for counts in resamples(size, seed)]
    found = {}
    for name, value in whole.items():
        n = _count(name, searched, needed, probability)
        if not n:
            continue
        low, high = np.nanquantile(np.concatenate([block[name] for block in drawn]), [0.025, 0.975])
        if name == "ece":  # resamples are further from calibrated than the sample: the basic interval turns that round
            low, high = 2 * value - high, 2 * value - low
        low, high = wilson(value, min(n, size)) if value in (0.0, 1.0) and name != "ece" else widened(value, low, high, size)
        found[name] = Estimate(value, max(0.0, low), min(1.0, high), n, min(n, size))
    return found


def _count(name: str, searched: Numbers, needed: Numbers, probability: Numbers) -> int:
    """Return how many questions a figure is of."""
    of = {
        "search_precision": searched,
        "search_recall": needed,
        "answer_precision": 1 - searched,
        "answer_recall": 1 - needed,
        "auroc": ~np.isnan(probability),
        "ece": ~np.isnan(probability),
    }
    return int(np.sum(of[name])) if name in of else len(searched)


def _figures(weights_RN: Numbers, searched: Numbers, needed: Numbers, probability: Numbers) -> dict[str, Numbers]:
    """Return each figure's values, one for each row of weights (R)."""
    found = class_figures(weights_RN, searched, needed)
    has_forecast = ~np.isnan(probability)
    if has_forecast.any():
        weights, outcome, forecast = weights_RN[:, has_forecast], needed[has_forecast], probability[has_forecast]
        found["ece"] = calibration_error(weights, outcome, forecast)
        if 0 < outcome.mean() < 1:
            found["auroc"] = auroc(weights, outcome, forecast)
    return found


def class_figures(weights_RN: Numbers, searched: Numbers, needed: Numbers) -> dict[str, Numbers]:
    """Return the figures of decisions as a classifier, one for each row of weights (R); 0 for nothing of nothing."""
    hits, misses = weights_RN @ (searched * needed), weights_RN @ ((1 - searched) * needed)
    false, right_answers = weights_RN @ (searched * (1 - needed)), weights_RN @ ((1 - searched) * (1 - needed))
    total = hits + misses + false + right_answers
    share = (hits + misses) / total
    f1_search = _ratio(2 * hits, 2 * hits + misses + false)
    f1_answer = _ratio(2 * right_answers, 2 * right_answers + misses + false)
    return {
        "accuracy": (hits + right_answers) / total,
        "macro_f1": (f1_search + f1_answer) / 2,
        "search_precision": _ratio(hits, hits + false),
        "search_recall": _ratio(hits, hits + misses),
        "search_f1": f1_search,
        "answer_precision": _ratio(right_answers, right_answers + misses),
        "answer_recall": _ratio(right_answers, right_answers + false),
        "answer_f1": f1_answer,
        "majority": np.maximum(share, 1 - share),
        "always_search": share,
    }


def _ratio(part: Numbers, whole: Numbers) -> Numbers:
    """Return part / whole, 0 for nothing of nothing."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def auroc(weights_RN: Numbers, outcome: Numbers, forecast: Numbers) -> Numbers:
    """Return how often a question that needs a search got more than one that does not, ties counting half; NaN without both."""
    order = np.argsort(forecast, kind="stable")
    starts = np.unique(forecast[order], return_index=True)[1]
    needed_RL, others_RL = (
        np.add.reduceat((weights_RN * of_class)[:, order], starts, axis=1) for of_class in (outcome, 1 - outcome)
    )
    below = np.cumsum(others_RL, axis=1) - others_RL / 2
    pairs = needed_RL.sum(1) * others_RL.sum(1)
    found: Numbers = np.divide((needed_RL * below).sum(1), pairs, out=np.full(len(pairs), math.nan), where=pairs > 0)
    return found


def calibration_error(weights_RN: Numbers, outcome: Numbers, forecast: Numbers) -> Numbers:
    """Return the expected calibration error (Guo et al. 2017): mean distance of forecast and outcome in bins."""
    place = np.minimum((forecast * BINS).astype(int), BINS - 1)
    at = np.zeros((len(forecast), BINS))
    at[np.arange(len(forecast)), place] = 1.0
    gaps = np.abs((weights_RN * (outcome - forecast)) @ at)
    total = weights_RN.sum(1)
    found: Numbers = np.divide(gaps.sum(1), total, out=np.full(len(total), math.nan), where=total > 0)
    return found


def search_probability(turns: Sequence[Turn], renderer: Renderer) -> float:
    """Return the probability of searching where an episode first decided: of the decision token, or of the opening tag.

    That is the probability of what was written, taken from 1 where it was the answer; NaN where no turn decided anything.
    """
    found = (_of_turn(turn, renderer) for turn in turns)
    return next((probability for probability in found if not math.isnan(probability)), math.nan)


def _of_turn(turn: Turn, renderer: Renderer) -> float:
    text = renderer.decode(turn.ids)
    marks = (SpanKind.DECISION, SpanKind.SEARCH, SpanKind.ANSWER)
    start, close = next(((start, end) for start, end, kind in renderer.dialect.spans(text) if kind in marks), (0, 0))
    end = text.find(">", start, close) + 1
    if not end:  # nothing was decided, or in a dialect whose blocks open otherwise
        return math.nan
    first, last = (_token_at(turn.ids, place, renderer) for place in (start, end - 1))
    written = math.exp(sum(turn.logprobs[first : last + 1]))
    return written if "search" in text[start:end].lower() or "tool_call" in text[start:end] else 1 - written


def _token_at(ids: Sequence[int], place: int, renderer: Renderer) -> int:
    """Return the token that writes the character at `place`, by halving."""
    low, high = 0, len(ids) - 1
    while low < high:
        middle = (low + high) // 2
        if len(renderer.decode(ids[: middle + 1])) > place:
            high = middle
        else:
            low = middle + 1
    return low
