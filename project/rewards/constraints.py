"""What a question asks of its answer's form, checked by rule (IFEval, Zhou et al. 2023, arXiv 2311.07911).

A question's row names it as `extra_info.constraints`, and its text must say so: the agent reads nothing else.
"""

from __future__ import annotations

import re
import string
import unicodedata
from dataclasses import dataclass, fields

from project.records import Question, Row

SECONDS = 0.5
"""That a pattern may take: one that backtracks for ever on what the agent wrote is not kept."""
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Constraints:
    """What an answer must keep; what is None or empty is not asked."""

    max_words: int | None = None
    """Words that it may have, between spaces."""
    pattern: str | None = None
    """Regular expression of the whole answer, without the white space around it."""
    without: tuple[str, ...] = ()
    """Words or phrases that it must not hold, in any case, with punctuation or without."""

    @classmethod
    def of(cls, question: Question) -> Constraints:
        """Read a question's own.

        Raises:
            ValueError: they are none of these, or not of their types.
        """
        row = question.extra_info.get("constraints")
        if row is None:
            return cls()
        names = [field.name for field in fields(cls)]
        if not isinstance(row, dict) or not set(row) <= set(names):
            msg = f"extra_info.constraints is {row!r:.90}; give an object with {', '.join(names[:-1])} or {names[-1]}"
            raise ValueError(msg)
        return cls(_words(row), _pattern(row), _phrases(row))

    def kept(self, answer: str | None) -> float:
        """Return the share of the constraints that an answer keeps: 1 where there are none, 0 for no answer."""
        text = (answer or "").strip()
        plain = _plain(text)
        if not plain:
            return 0.0
        kept = [not any(_holds(form, phrase) for form in (plain, plain.translate(_PUNCTUATION))) for phrase in self.without]
        if self.max_words is not None:
            kept.append(len(plain.split()) <= self.max_words)
        if self.pattern is not None:
            kept.append(_matches(self.pattern, text))
        return sum(kept) / len(kept) if kept else 1.0


def check_constraints(question: Question) -> None:
    """Refuse constraints that no gold answer keeps: the answer that breaks them would earn more than one that keeps them.

    Raises:
        ValueError: so it is, or they cannot be read.
    """
    asked, golds = Constraints.of(question), question.answers
    if golds and not any(asked.kept(answer) == 1 for answer in golds):
        msg = f"no answer of {list(golds)!r:.90} keeps extra_info.constraints; write one in the form that is asked"
        raise ValueError(msg)


def _plain(text: str) -> str:
    """Return a text as exact match reads it, but for case and punctuation: NFKC, single spaces, nothing that cannot be seen."""
    shown = "".join(" " if unicodedata.category(c) == "Cf" else c for c in unicodedata.normalize("NFKC", text))
    return " ".join(shown.split())


def _holds(text: str, phrase: str) -> bool:
    return re.search(rf"(?<![^\W_]){re.escape(_plain(phrase))}(?![^\W_])", text, re.IGNORECASE) is not None


def _matches(pattern: str, text: str) -> bool:
    import regex

    try:
        return regex.fullmatch(pattern, text, timeout=SECONDS) is not None
    except TimeoutError:
        return False


def _words(row: Row) -> int | None:
    value = row.get("max_words")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        msg = f"extra_info.constraints.max_words is {value!r:.90}; give a whole number of at least 1"
        raise ValueError(msg)
    return value


def _pattern(row: Row) -> str | None:
    import regex

    value = row.get("pattern")
    if value is None:
        return None
    try:
        regex.compile(value)
        problem = "" if value else "it is empty"
    except (regex.error, RecursionError, TypeError) as error:
        problem = str(error)
    if problem:
        msg = f"extra_info.constraints.pattern is {value!r:.90}, which is no regular expression of an answer ({problem})"
        raise ValueError(msg)
    return str(value)


def _phrases(row: Row) -> tuple[str, ...]:
    value = row.get("without")
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(phrase, str) and _plain(phrase) for phrase in value):
        msg = f"extra_info.constraints.without is {value!r:.90}; give a list of words or phrases"
        raise ValueError(msg)
    return tuple(value)
