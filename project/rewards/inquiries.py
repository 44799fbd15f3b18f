"""What a judge is asked of an episode: whether its answer is right, and whether what the agent was shown states it.

Each inquiry is the JSON that the judge is told, or the verdict itself where none is needed. Nothing that the agent wrote but
its answer stands in it, and no control token of any model.
"""

from __future__ import annotations

import json
import re

from project.answers import exact_match
from project.dialects import clean, is_result
from project.records import Episode

LETTERS_A_WORD = 20
"""Characters that an answer may have for each of its `max_words`."""
_ESCAPED = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>[]\uff5c"})
"""What control tokens of any model are written with, as JSON may write it too: none can stand in what the judge reads."""


def about_answer(episode: Episode, max_words: int) -> str | float:
    """Return what to tell a judge that says whether the answer is right; an exact match needs none."""
    golds = episode.question.answers
    if exact_match(episode.answer, golds):
        return 1.0
    if not golds or not is_brief(episode.answer, max_words):
        return 0.0
    known = ", ".join(map(_quoted, golds))
    return f'{{"question": {_quoted(episode.question.question)}, "known answers": [{known}], "answer": {_answer(episode)}}}'


def about_facts(episode: Episode, max_words: int) -> str | float:
    """Return what to tell a judge that says whether what the agent was shown states its answer.

    A question that needs no search and brings no passage is not asked about: its answer is whole. So is a refusal, once
    something was shown, where the corpus cannot answer. Where nothing was shown no answer is.
    """
    question, answer = episode.question, episode.answer
    shown = shown_texts(episode)
    if not exact_match(answer, question.answers) and not is_brief(answer, max_words):
        return 0.0
    if question.needs_search is False and not _passage(episode):
        return 1.0
    if not shown:
        return 0.0
    if not question.answers and exact_match(answer, ()):
        return 1.0
    passages = ", ".join(map(_quoted, shown))
    return f'{{"question": {_quoted(question.question)}, "shown": [{passages}], "answer": {_answer(episode)}}}'


def is_brief(answer: str | None, max_words: int) -> bool:
    """Return whether there is an answer, and no list of guesses."""
    text = clean(answer or "")
    return 0 < len(re.findall(r"\w+", text)) <= max_words and len(text) <= LETTERS_A_WORD * max_words


def shown_texts(episode: Episode) -> list[str]:
    """Return what the environment showed: a passage that came with the question, then each search's results, once each.

    Nothing where no search found anything. What the agent wrote is none of it: neither results that it made up, nor its summary
    that begins a new context.
    """
    results = (
        [clean(message.content).strip() for message in episode.messages if is_result(message)] if any(episode.found) else []
    )
    return [text for text in dict.fromkeys([_passage(episode), *results]) if text]


def _passage(episode: Episode) -> str:
    return str(episode.question.extra_info.get("passage") or "")


def _answer(episode: Episode) -> str:
    return _quoted(clean(episode.answer or ""))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).translate(_ESCAPED)
