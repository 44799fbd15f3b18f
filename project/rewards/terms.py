"""What a reward is made of: each a pure function of an episode, from 0 to 1.

A search that finds nothing of use never raises a term: `retry` and `diversity` are whole without any search and can only be
lost, `decision` asks for evidence where that is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from project.answers import cover_exact_match, exact_match, normalise_answer
from project.dialects import SEARCH_TOKEN, assistant_spans
from project.records import Episode, FinishReason, SpanKind
from project.rewards.constraints import Constraints

RESULT_TAGS = ("<information>", "<tool_response>")
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
    """Return 1 if every turn was ended and could be read, one answer was given, and the agent wrote no search result itself."""
    turns = agent_turns(episode)
    answers = [kind for turn in turns for _, _, kind in assistant_spans(turn)].count(SpanKind.ANSWER)
    made_up = any(tag in turn for turn in turns for tag in RESULT_TAGS)
    ended = episode.finish is FinishReason.ANSWER and all(turn.ended for turn in episode.turns)
    return float(ended and not episode.malformed and answers == 1 and not made_up)


def agent_turns(episode: Episode) -> list[str]:
    """Return what the agent wrote, turn by turn."""
    return [message.content for message in episode.messages if message.role == "assistant"]


def did_search(episode: Episode) -> bool:
    """Return whether the agent searched, or decided to."""
    return bool(episode.queries) or any(SEARCH_TOKEN in turn for turn in agent_turns(episode))


def right_decision(episode: Episode) -> float:
    """Return 1 if the agent did not search where that is not needed, or did where it is, for something of use; 1 if not known.

    Of use is what shows some of the evidence, where that is known: else a search for nothing would be paid.
    """
    question = episode.question
    if question.needs_search is None:
        return 1.0
    searched = did_search(episode) and (not question.needs_search or not question.evidence or evidence_recall(episode) > 0)
    return float(searched == question.needs_search)


def retried(episode: Episode) -> float:
    """Return 0 if the agent stopped searching at a poor result, else 1: also where no result was poor, and without any search.

    A result is poor that shows no gold evidence that was not shown before, while some is missing; where no evidence is known,
    one without any passage is. A turn's searches have one result: its queries were written before any of it was seen.
    """
    gold = set(episode.question.evidence)
    missing, is_poor = set(gold), False
    for shown in episode.found:
        if gold and not missing:
            break
        is_poor = not (missing & {*shown}) if gold else not shown
        missing -= {*shown}
    return float(not is_poor)


def diversity(episode: Episode) -> float:
    """Return 1 less the largest likeness of a query to one before it; 1 for one query or none."""
    return 1 - max((likeness(one, other) for one, other in combinations(episode.queries, 2)), default=0.0)


def supported(episode: Episode) -> float:
    """Return what a judge said of the answer's facts: 1 if what the agent was shown states it; 0 where none was asked."""
    return episode.supported or 0.0


def instructions_kept(episode: Episode) -> float:
    """Return the share of the question's constraints that the answer keeps; 1 where it has none, or is a right refusal."""
    refused = not episode.question.answers and exact_match(episode.answer, ())
    return 1.0 if refused else Constraints.of(episode.question).kept(episode.answer)


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
