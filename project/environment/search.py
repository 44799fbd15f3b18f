"""The search environment: an agent's text in, messages or an end out.

Folding: when a context grows too long the agent is asked for a summary (`ask_for_summary`), and goes on in a new context from
the question and what it summarised. `messages` keeps everything that was said.

Protocol of an episode: `opening()` once, then `step(text)` for each turn. A turn searches (all its queries at once),
answers, or is malformed: then the agent gets a short correction, and after `max_malformed` of them the episode ends.
A failed search is the environment's failure (`tool_error`, or `timeout` of one that takes too long), never an empty result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from project.corpus.retrievers import SeededRetriever
from project.dialects import FOLD_REQUEST, Action, Dialect, clean_summary
from project.environment.fit import fit
from project.errors import InputError, RetrievalError
from project.records import Document, FinishReason, Message, Question

NEITHER = "That was neither a search nor an answer."
NO_SUMMARY = "That was no summary; write what you know inside <summary> and </summary>, and nothing else."
FOLD_TOKENS = 32
"""Room for the message that asks for a summary."""


class SearchTool(Protocol):
    """What an agent searches with: an engine, or a dictionary in tests."""

    async def search(self, queries: Sequence[str], seed: str) -> list[list[Document]]:
        """Return one list of documents per query, best first; an empty list where nothing was found.

        Args:
            queries: of one turn.
            seed: the question's id and the turn, from which an engine that adds noise draws.

        Raises:
            RetrievalError: the search failed.
            TimeoutError: it took longer than `limits.search_seconds`.
        """


class Tool(ABC):
    """A search tool of your own: derive from it, and name that in a config by its `class_path` as `model.tool`.

    Each batch of episodes searches on an event loop of its own, and calls `aclose`, where there is one, as it ends: a client
    that is bound to a loop is opened when it is first used, and again after that.
    """

    @abstractmethod
    async def search(self, queries: Sequence[str], seed: str) -> list[list[Document]]:
        """Search; see `SearchTool`."""


@dataclass(frozen=True, slots=True)
class RetrieverTool:
    """A search engine as the agent's tool."""

    retriever: SeededRetriever
    topk: int
    """Documents a query, at most."""

    async def search(self, queries: Sequence[str], seed: str) -> list[list[Document]]:
        """Search; see `SearchTool`."""
        found = await self.retriever.search(queries, self.topk, seed)
        return [[Document(hit.passage.text, hit.passage.title, hit.passage.id) for hit in hits] for hits in found]

    async def aclose(self) -> None:
        """Close the engine's connections."""
        await self.retriever.aclose()


@dataclass(frozen=True)
class EpisodeLimits:
    """What an episode may use."""

    max_turns: int = 4
    """Turns of the agent, the answer included."""
    max_malformed: int = 2
    """Malformed turns that end the episode."""
    turn_tokens: int = 128
    """Tokens the agent may write in one turn."""
    context_tokens: int = 1024
    """Tokens of the whole conversation."""
    result_tokens: int = 400
    """Tokens of results a turn is shown, shared evenly by its queries; the last passage that is shown may be cut."""
    search_seconds: float = 60.0
    """Wall time that a turn's searches may take; longer ends the episode, which is not trained."""
    episode_seconds: float | None = None
    """Wall time that an episode may take, likewise; None leaves it all the time it needs."""
    fold_share: float | None = None
    """Share of `context_tokens` beyond which, after a search, the agent is asked to fold; None never does."""
    fold_turns: int | None = None
    """Searches after which it is asked to."""
    summary_tokens: int = 256
    """Tokens the agent may write in a summary, a turn that `max_turns` does not count."""

    def __post_init__(self) -> None:
        """Refuse folds that could not be."""
        if self.fold_share is not None and not 0 < self.fold_share < 1:
            raise InputError(f"limits.fold_share={self.fold_share} must be between 0 and 1")
        if self.fold_turns is not None and self.fold_turns < 1:
            raise InputError(f"limits.fold_turns={self.fold_turns} must be at least 1")
        if self.summary_tokens < 1:
            raise InputError(f"limits.summary_tokens={self.summary_tokens} must be at least 1")
        for name in ("result_tokens", "search_seconds", "episode_seconds"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise InputError(f"limits.{name}={value} must be above 0")
        if self.fold_share is not None and self.fold_share * self.context_tokens + self.summary_tokens > self.context_tokens:
            raise InputError(
                f"limits.fold_share={self.fold_share} of context_tokens={self.context_tokens} leaves less than "
                f"summary_tokens={self.summary_tokens}; lower fold_share or summary_tokens"
            )


@dataclass
class SearchEnvironment:
    """One episode's state. `messages` is all that was said; `finish` is set once it has ended."""

    question: Question
    dialect: Dialect
    tool: SearchTool | None
    limits: EpisodeLimits
    count: Callable[[str], int]
    """Returns how many tokens a text has."""
    messages: list[Message] = field(default_factory=list)
    finish: FinishReason | None = None
    answer: str | None = None
    queries: list[str] = field(default_factory=list)
    found: list[tuple[str, ...]] = field(default_factory=list)
    malformed: int = 0
    turns: int = 0
    folding: bool = False
    """True while a summary is asked for."""
    folded: bool = False
    """True where the messages that `step` has returned begin a new context."""
    error: str = ""
    _searches: int = 0
    """Since the context began."""

    def opening(self) -> list[Message]:
        """Return the messages before the first turn."""
        opening = opening_messages(self.question, self.dialect)
        self.messages = list(opening)
        return opening

    async def step(self, text: str, *, ended: bool = True) -> list[Message]:
        """Take the agent's turn and return the messages that follow; none once `finish` is set.

        A turn that its token limit cut (`ended` is False) may have answered; its searches are not run.
        """
        return await self.act(self.dialect.parse(text), self.dialect.message(text), ended=ended)

    async def act(self, action: Action, message: Message, *, ended: bool = True) -> list[Message]:
        """Take a turn that is read already, and its message; see `step`."""
        text = message.content
        self.messages.append(message)
        self.folded = False
        if self.folding:
            return self._fold(action, text, ended=ended)
        self.turns += 1
        if action.answer is not None:
            self.answer, self.finish = action.answer, FinishReason.ANSWER
            return []
        if action.queries:
            self.queries += action.queries
        if not ended:
            self.finish = FinishReason.LENGTH
            return []
        if self.turns >= self.limits.max_turns:
            self.finish = FinishReason.MAX_TURNS
            return []
        following = await self._search(action) if action.queries else self._correct(text, NEITHER)
        self.messages += following
        return following

    def wants_fold(self, tokens: int, largest: int) -> bool:
        """Return whether the agent should be asked for a summary now, before its next turn.

        It is, too, where another search might leave no room for one; it is not where there is no room now.

        Args:
            tokens: of the context with what follows the last turn.
            largest: of what has followed a turn so far, in tokens.
        """
        limits = self.limits
        is_on = limits.fold_share is not None or limits.fold_turns is not None
        if not is_on or self.finish or self.folding or not self._searches or self.question.extra_info.get("passage"):
            return False
        room = limits.context_tokens - tokens - FOLD_TOKENS - limits.summary_tokens
        is_long = limits.fold_share is not None and tokens > limits.fold_share * limits.context_tokens
        is_due = limits.fold_turns is not None and self._searches >= limits.fold_turns
        return room >= 0 and (is_long or is_due or room < limits.turn_tokens + largest)

    def ask_for_summary(self) -> list[Message]:
        """Return the message that asks for a summary; the next turn must be one."""
        self.folding = True
        asked = [Message("user", FOLD_REQUEST)]
        self.messages += asked
        return asked

    def _fold(self, action: Action, text: str, *, ended: bool) -> list[Message]:
        """Return what a new context begins with, or a correction where the turn is no summary, or more than one."""
        summary = clean_summary(action.summary or "")
        if not summary and not ended:
            self.finish = FinishReason.LENGTH
            return []
        if not summary or action.queries or action.answer is not None:
            following = self._correct(text, NO_SUMMARY)
            self.messages += following
            return following
        self.folding, self.folded, self._searches = False, True, 0
        opening = self.dialect.opening(self.question.question, summary)
        self.messages.append(opening[-1])
        return opening

    async def _search(self, action: Action) -> list[Message]:
        if self.tool is None:
            raise InputError("this run has no search tool; give model.index or model.retrieval_url, or limits.max_turns 1")
        try:
            found = await self.tool.search(action.queries, f"{self.question.id}/{self.turns}")
        except (RetrievalError, TimeoutError) as error:
            is_late = isinstance(error, TimeoutError)
            self.error = f"a search took over limits.search_seconds={self.limits.search_seconds:g}" if is_late else str(error)
            self.finish = FinishReason.TIMEOUT if is_late else FinishReason.TOOL_ERROR
            return []
        found = [fit(documents, self.limits.result_tokens // len(found), self.count) for documents in found]
        self._searches += 1
        self.found.append(tuple(document.id for documents in found for document in documents))
        return self.dialect.results(found, action)

    def _correct(self, text: str, reason: str) -> list[Message]:
        self.malformed += 1
        if self.malformed >= self.limits.max_malformed:
            self.finish = FinishReason.MALFORMED
            return []
        return self.dialect.correction(reason, text)


def opening_messages(question: Question, dialect: Dialect) -> list[Message]:
    """Return the first messages: the dialect's own, or the passage's where the question comes with one (SQuAD)."""
    passage = question.extra_info.get("passage")
    if passage:
        from project.corpus.squad import opening

        return list(opening(passage, question.question))
    return dialect.opening(question.question)
