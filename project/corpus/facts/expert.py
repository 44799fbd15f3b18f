"""Expert conversations: what a good agent would think, search and answer, on results that the index really returned.

A search is kept only if its results hold the evidence; otherwise the next wording of the query is tried, and where none
finds it the conversation is dropped: a model must not learn to answer from nothing. With `missed` some first results come
without the evidence, as noise leaves it out, and the expert notices and searches again.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Protocol

from project.corpus.facts.candidates import Candidate, Lookup
from project.dialects import Action, Dialect
from project.records import Conversation, Document, Hit, Message

REFUSAL = "unknown"
SECOND_TRY = 0.25
"""Share of unanswerable questions that are searched for twice before giving up."""
_STARTS = ("I need to find {}.", "I do not know {}, so I search for it.", "First I look up {}.")
_NEXT = ("Now I need {}.", "Next I look up {}.")
_AGAIN = ("No document gives {}. I search again.", "None of them says {}, so I search once more.")
MOST_MISSES = 2
"""Of one lookup."""


class Index(Protocol):
    """What searches; `corpus.index.Index` is one."""

    def find(self, queries: list[str], k: int) -> list[list[Hit]]:
        """Return at most `k` hits a query, best first."""


def write_conversations(
    candidates: Iterable[Candidate], index: Index, dialect: Dialect, *, topk: int, seed: int, missed: float = 0.0
) -> tuple[list[Conversation], int]:
    """Return the conversations, and how many were dropped because no query found the evidence."""
    conversations, dropped = [], 0
    for candidate in candidates:
        rng = Random(f"{seed} {candidate.question.id}")
        messages = _Expert(index, dialect, topk, rng, missed).run(candidate)
        if messages is None:
            dropped += 1
            continue
        q = candidate.question
        info = {"kind": q.kind, "evidence": list(q.evidence), "needs_search": q.needs_search}
        conversations.append(Conversation(q.id, tuple(messages), dialect.tools, q.question, q.answers, q.group, info))
    return conversations, dropped


class _Expert:
    """One conversation being written."""

    def __init__(self, index: Index, dialect: Dialect, topk: int, rng: Random, missed: float) -> None:
        self.index, self.dialect, self.topk, self.rng, self.missed = index, dialect, topk, rng, missed

    def run(self, candidate: Candidate) -> list[Message] | None:
        """Return the messages, or None where the evidence of a lookup is not found."""
        messages = self.dialect.opening(candidate.question.question)
        said = ""
        for number, lookup in enumerate(candidate.lookups):
            thought = self.rng.choice(_NEXT if number else _STARTS).format(lookup.goal)
            found = self._search(lookup)
            if found is None:
                return None
            query, hits = found
            for search in self._misses(lookup):
                messages += self._turn(" ".join(filter(None, (said, thought))), *search)
                said, thought = "", self.rng.choice(_AGAIN).format(lookup.goal)
            messages += self._turn(" ".join(filter(None, (said, thought))), query, hits)
            said = _said(lookup, hits)
            if lookup.retry and self.rng.random() < SECOND_TRY:
                again = f"The results do not give {lookup.goal}. I try a wider search."
                messages += self._turn(again, lookup.retry, self._hits(lookup.retry))
        answer = candidate.question.answers[0] if candidate.question.answers else REFUSAL
        messages.append(self.dialect.write(Action(candidate.closing or said, answer=answer)))
        return messages

    def _search(self, lookup: Lookup) -> tuple[str, list[Hit]] | None:
        """Return the first query, in a random order, whose results hold the evidence."""
        for query in self.rng.sample(lookup.queries, len(lookup.queries)):
            hits = self._hits(query)
            if not lookup.evidence or any(h.passage.id == lookup.evidence for h in hits):
                return query, hits
        return None

    def _misses(self, lookup: Lookup) -> list[tuple[str, list[Hit]]]:
        """Return searches, each with its query, whose results come without the evidence."""
        searches: list[tuple[str, list[Hit]]] = []
        while self.missed and lookup.evidence and len(searches) < MOST_MISSES and self.rng.random() < self.missed:
            query = self.rng.choice(lookup.queries)
            [hits] = self.index.find([query], self.topk + 1)
            searches.append((query, [hit for hit in hits if hit.passage.id != lookup.evidence][: self.topk]))
        return searches

    def _hits(self, query: str) -> list[Hit]:
        return self.index.find([query], self.topk)[0]

    def _turn(self, thought: str, query: str, hits: list[Hit]) -> list[Message]:
        action = Action(thought, (query,))
        documents = [Document(h.passage.text, h.passage.title, h.passage.id) for h in hits]
        return [self.dialect.write(action), *self.dialect.results([documents], action)]


def _said(lookup: Lookup, hits: list[Hit]) -> str:
    rank = next((n for n, h in enumerate(hits, 1) if h.passage.id == lookup.evidence), 0)
    return f"Doc {rank} says {lookup.stated}." if rank else ""
