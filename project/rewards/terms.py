"""What a reward is made of: each a pure function of an episode, from 0 to 1.

How an agent searched is measured so that more searches, or a poor one on purpose, never raise a term: all that can be had
is had without them, and only lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from project.answers import cover_exact_match, normalise_answer
from project.dialects import assistant_spans
from project.records import Episode, FinishReason, SpanKind

SAME_QUERY = 0.8
"""Likeness from which a query says what another one said."""


def brief_cover(episode: Episode) -> float:
    """Return a gold answer's share of the words of an answer that holds it: a list of guesses earns no more than one guess."""
    covered = [gold for gold in episode.question.answers if cover_exact_match(episode.answer, [gold])]
    if not covered or episode.answer is None:
        return cover_exact_match(episode.answer, episode.question.answers)
    written = len(normalise_answer(episode.answer).split())
    return max(len(normalise_answer(gold).split()) for gold in covered) / written


def evidence_recall(episode: Episode) -> float:
    """Return the share of gold evidence passages that the agent was shown; 0 where none are known."""
    gold = set(episode.question.evidence)
    return len(gold & set(episode.retrieved)) / len(gold) if gold else 0.0


def in_form(episode: Episode) -> float:
    """Return 1 if every turn could be read, one answer was given, and the agent wrote no search result of its own."""
    kinds = [kind for turn in agent_turns(episode) for _, _, kind in assistant_spans(turn)]
    ended = episode.finish is FinishReason.ANSWER and not episode.malformed
    return float(ended and kinds.count(SpanKind.ANSWER) == 1 and SpanKind.RESULT not in kinds)


def agent_turns(episode: Episode) -> list[str]:
    """Return what the agent wrote, turn by turn."""
    return [message.content for message in episode.messages if message.role == "assistant"]


def right_decision(episode: Episode) -> float:
    """Return 1 if the agent searched where it is needed, or did not where it is not; 1 where that is not known."""
    needed = episode.question.needs_search
    return float(needed is None or bool(episode.queries) == needed)


def retried(episode: Episode) -> float:
    """Return the share of poor results after which the agent searched for something else; 1 where no result was poor.

    A result is poor that shows no gold evidence that was not shown before, while some is missing. Where no evidence is known,
    one without any passage is.
    """
    missing, poor, heeded = set(episode.question.evidence), 0, 0
    for number, shown in enumerate(episode.found):
        is_poor = not missing & {*shown} if episode.question.evidence else not shown
        if is_poor and (missing or not episode.question.evidence):
            poor += 1
            later = episode.queries[number + 1 : number + 2]
            heeded += bool(later) and likeness(episode.queries[number], later[0]) < SAME_QUERY
        missing -= {*shown}
    return heeded / poor if poor else 1.0


def diversity(episode: Episode) -> float:
    """Return 1 less the mean likeness of each query to the one before; 1 for one query or none."""
    pairs = [1 - likeness(one, other) for one, other in pairwise(episode.queries)]
    return sum(pairs) / len(pairs) if pairs else 1.0


def extra_searches(episode: Episode) -> int:
    """Return how many searches there were beyond the number of evidence passages, at least one; all, where none is needed."""
    question = episode.question
    free = max(1, len(question.evidence)) if question.needs_search is not False else 0
    return max(0, len(episode.queries) - free)


def repeats(queries: Sequence[str]) -> int:
    """Return how many queries say what one before them said."""
    return sum(
        any(likeness(query, before) >= SAME_QUERY for before in queries[:number]) for number, query in enumerate(queries)
    )


def likeness(one: str, other: str) -> float:
    """Return the share of words that two texts have in common (Jaccard 1912), normalised as answers are."""
    first, second = (set(normalise_answer(text).split()) for text in (one, other))
    return len(first & second) / len(first | second) if first | second else 1.0


def generated_tokens(episode: Episode) -> int:
    """Return how many tokens the agent wrote."""
    return sum(len(turn.ids) for turn in episode.turns)
