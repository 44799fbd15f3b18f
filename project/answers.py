"""The only `normalise_answer`, and the answer metrics on it: exact match, token F1 and cover exact match.

SQuAD's official normalisation (Rajpurkar et al. 2016): lower case, no punctuation, no English articles, single spaces;
preceded here by Unicode NFKC, so that full-width forms and ligatures compare equal.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)

_WHOLE = {"yes", "no", "noanswer"}

REFUSALS = frozenset({"unknown", "i dont know", "not found", "unanswerable"})
"""Normalised answers that say the corpus does not hold the answer."""


def normalise_answer(text: str) -> str:
    """Lower-case, strip punctuation and articles, and squeeze white space.

    >>> normalise_answer("The  Mongolian-Tögrög!")
    'mongoliantögrög'
    """
    text = unicodedata.normalize("NFKC", text).lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str | None, answers: Iterable[str]) -> float:
    """Return 1.0 if the prediction equals one gold answer after normalisation.

    With no gold answer (the corpus cannot answer) a refusal is right; no prediction is always wrong.
    """
    if prediction is None:
        return 0.0
    normalised, golds = normalise_answer(prediction), [normalise_answer(a) for a in answers]
    if not golds:
        return float(normalised in REFUSALS)
    return float(normalised in golds)


def token_f1(prediction: str | None, answers: Iterable[str]) -> float:
    """Return the best F1 of shared tokens over the gold answers; without gold answers, as `exact_match`.

    As HotpotQA's scorer has it and SQuAD's has not, yes and no share nothing with any other answer: "yes no" is no half.
    """
    golds = list(answers)
    if prediction is None or not golds:
        return exact_match(prediction, golds)
    return max(_f1(normalise_answer(prediction).split(), normalise_answer(gold).split()) for gold in golds)


def _f1(predicted: list[str], gold: list[str]) -> float:
    if not predicted or not gold or _WHOLE & {" ".join(predicted), " ".join(gold)}:
        return float(predicted == gold)
    common = sum((Counter(predicted) & Counter(gold)).values())
    return 2 * common / (len(predicted) + len(gold))


def cover_exact_match(prediction: str | None, answers: Iterable[str]) -> float:
    """Return 1.0 if a gold answer's tokens stand as one run inside the prediction."""
    golds = list(answers)
    if prediction is None or not golds:
        return exact_match(prediction, golds)
    padded = f" {normalise_answer(prediction)} "
    return float(any(f" {gold} " in padded for gold in map(normalise_answer, golds) if gold))
