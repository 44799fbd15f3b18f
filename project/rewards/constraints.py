"""What a question asks of its answer's form, checked by rule (IFEval, Zhou et al. 2023, arXiv 2311.07911).

A question's row names it as `extra_info.constraints`, and its text must say so: the agent reads nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from project.records import Question, Row


@dataclass(frozen=True, slots=True)
class Constraints:
    """What an answer must keep; what is None or empty is not asked."""

    max_words: int | None = None
    """Words that it may have."""
    pattern: str | None = None
    """Regular expression of the whole answer, without the white space around it."""
    without: tuple[str, ...] = ()
    """Words or phrases that it must not hold, in any case."""

    @classmethod
    def of(cls, question: Question) -> Constraints:
        """Read a question's own.

        Raises:
            ValueError: they are none of these, or not of their types.
        """
        row = question.extra_info.get("constraints") or {}
        if not isinstance(row, dict):
            msg = f"extra_info.constraints is {row!r:.90}; give an object"
            raise ValueError(msg)
        names = [field.name for field in fields(cls)]
        if unknown := next((name for name in row if name not in names), None):
            msg = f"extra_info.constraints has '{unknown}'; what can be asked is {', '.join(names)}"
            raise ValueError(msg)
        return cls(_words(row), _pattern(row), _phrases(row))

    def kept(self, answer: str | None) -> float:
        """Return the share of the constraints that an answer keeps: 1 where there are none, 0 for no answer."""
        if not (answer or "").strip():
            return 0.0
        text = (answer or "").strip()
        kept = [re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) is None for phrase in self.without]
        if self.max_words is not None:
            kept.append(len(text.split()) <= self.max_words)
        if self.pattern is not None:
            kept.append(re.fullmatch(self.pattern, text) is not None)
        return sum(kept) / len(kept) if kept else 1.0


def _words(row: Row) -> int | None:
    value = row.get("max_words")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        msg = f"extra_info.constraints.max_words is {value!r:.90}; give a number of at least 1"
        raise ValueError(msg)
    return value


def _pattern(row: Row) -> str | None:
    value = row.get("pattern")
    try:
        re.compile(value or "")
    except (re.error, TypeError) as error:
        msg = f"extra_info.constraints.pattern is {value!r:.90}, which is no regular expression ({error})"
        raise ValueError(msg) from error
    return value


def _phrases(row: Row) -> tuple[str, ...]:
    value = row.get("without") or ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(phrase, str) and phrase.strip() for phrase in value):
        msg = f"extra_info.constraints.without is {value!r:.90}; give a list of words or phrases"
        raise ValueError(msg)
    return tuple(value)
