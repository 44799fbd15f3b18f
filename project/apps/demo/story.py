"""An episode as people read it: moments of a live one, or messages of a past one, become cards.

A card is a message. The card at the end grows while the agent writes; what it cites is known once it has answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from project.answers import REFUSALS, exact_match, normalise_answer, token_f1
from project.apps.demo.live import Asked, Ended, Failed, Moment, Searched, Stopped, Turned, Wrote
from project.dialects import is_result
from project.evaluation.report_cards import Card, Part, message_card, result_parts, written_parts
from project.records import Episode, FinishReason, Hit, Message

ENDS = {
    FinishReason.ANSWER: "",
    FinishReason.MAX_TURNS: "The agent has used all its turns without an answer; allow more turns.",
    FinishReason.LENGTH: "The agent's turn was cut: it wrote more than it may in one turn; allow more tokens a turn.",
    FinishReason.CONTEXT_FULL: "The context is full: no room is left for another turn; lower the documents a search, fold, or "
    "start the demo with more --context_tokens.",
    FinishReason.MALFORMED: "The agent wrote neither a search nor an answer, several times.",
    FinishReason.TOOL_ERROR: "The search failed: {error}",
    FinishReason.TIMEOUT: "It took too long: {error}",
}
"""What a person is told of each way in which an episode ends."""


@dataclass(frozen=True)
class Shown:
    """A part of a card with what is known of it beyond its text."""

    part: Part
    query: str = ""
    """Of a document: the query that found it."""
    score: float | None = None
    """Of a document: the search engine's."""
    supports: bool = False
    """Of a document: whether the answer stands in it, word for word."""


@dataclass(frozen=True)
class StoryCard:
    """A message, with what it took."""

    role: str
    parts: tuple[Shown, ...]
    note: str = ""
    """Seconds and tokens."""


@dataclass
class Story:
    """A live episode; `take` its moments, then draw `cards`."""

    decode: Callable[[Sequence[int]], str]
    answers: tuple[str, ...] | None = None
    """Gold answers, empty where the corpus cannot answer; None where they are not known."""
    cards: list[StoryCard] = field(default_factory=list)
    doing: str = "Waiting for the model …"
    """What happens now; empty once the episode is over."""
    end: str = ""
    """How it ended, in words, unless by an answer."""
    answer: str | None = None
    verdict: str = ""
    """How the answer compares with the gold one."""
    is_wrong: bool = False
    _written: list[int] = field(default_factory=list)
    _found: list[Searched] = field(default_factory=list)
    _folding: bool = False

    @property
    def is_over(self) -> bool:
        """Whether nothing will happen any more."""
        return not self.doing

    def take(self, moments: Iterable[Moment]) -> None:
        """Take what has happened."""
        for moment in moments:
            self._take(moment)

    def drawn(self) -> list[StoryCard]:
        """Return the cards so far, the one that is being written last."""
        growing = [_agent_card(self.decode(self._written), is_whole=False)] if self._written else []
        return self.cards + growing

    def _take(self, moment: Moment) -> None:
        match moment:
            case Asked(tokens, folding):
                self.doing = f"{'Summarising' if folding else 'Thinking'} … ({tokens:,} tokens of context)"
                if folding and not self._folding:
                    self.cards.append(_notice("The agent is asked for a summary of what it has read."))
                self._folding = folding
            case Wrote(token):
                self._written.append(token)
            case Searched():
                self._found.append(moment)
            case Turned():
                self._turn(moment)
            case Ended(episode):
                self._over(episode)
            case Stopped():
                self._finish("Stopped.")
            case Failed(reason):
                self._finish(reason)

    def _turn(self, turn: Turned) -> None:
        self._written.clear()
        rate = f", {turn.tokens / turn.seconds:,.0f} tokens/s" if turn.seconds > 0.05 else ""
        note = f"{turn.seconds:.1f} s, {turn.tokens} tokens{rate}"
        self.cards.append(replace(_agent_card(turn.text), note=note))
        self.doing = "Going on …"
        if turn.folded:
            self.cards.append(_notice("A new context begins with the question and this summary."))
            return
        found = self._found.pop() if self._found else None
        self.cards += follow_up(turn.following, found)

    def _over(self, episode: Episode) -> None:
        self.answer = episode.answer
        self._finish(ENDS[episode.finish].format(error=episode.error))
        if self.answer is not None:
            self.cards = with_support(self.cards, self.answer)
            self._judge(self.answer)

    def _judge(self, answer: str) -> None:
        if self.answers is None:
            return
        gold = " or ".join(self.answers) or "none: the corpus cannot answer"
        is_right = exact_match(answer, self.answers) == 1
        f1 = "" if is_right or not self.answers else f", F1 {token_f1(answer, self.answers):.2f}"
        self.verdict = f"{'Right' if is_right else 'Not the gold answer'}{f1} (gold: {gold})"
        self.is_wrong = not is_right

    def _finish(self, end: str) -> None:
        if self._written:  # a turn that was cut off
            self.cards.append(_agent_card(self.decode(self._written)))
            self._written.clear()
        self.doing, self.end = "", end


def past_cards(messages: Sequence[Message], answer: str | None) -> list[StoryCard]:
    """Return the cards of an episode that was kept, without what was not: scores and times."""
    cards = [_plain(message_card(message)) for message in messages]
    return cards if answer is None else with_support(cards, answer)


def follow_up(messages: Sequence[Message], found: Searched | None) -> list[StoryCard]:
    """Return the cards of what the environment said to a turn.

    Args:
        messages: results, or a correction.
        found: what the turn's searches found; None where it did not search.
    """
    cards, documents = list[StoryCard](), list[Shown]()
    for message in messages:
        if found is not None and is_result(message):
            documents += (Shown(part) for part in result_parts(message.content))
        else:
            cards.append(_plain(message_card(message)))
    if found is None:
        return cards
    note = f"{found.seconds:.2f} s, {sum(map(len, found.hits))} documents found"
    return [StoryCard("results", tuple(_scored(documents, found)), note), *cards]


def _scored(documents: Sequence[Shown], found: Searched) -> Iterator[Shown]:
    """Give the documents that the agent was shown their queries and scores: of each query's hits the first ones, in order."""
    place, rank = -1, 0
    for one in documents:
        if not one.part.label or one.part.label.partition(":")[0] == "Doc 1":  # where a query's results begin
            place, rank = place + 1, 0
        hits: tuple[Hit, ...] = found.hits[place] if place < len(found.hits) else ()
        query = found.queries[place] if place < len(found.queries) else ""
        yield replace(one, query=query, score=hits[rank].score if one.part.label and rank < len(hits) else None)
        rank += 1


def with_support(cards: Iterable[StoryCard], answer: str) -> list[StoryCard]:
    """Return the cards with the documents marked in which an answer stands, word for word; a refusal stands in none."""
    words = normalise_answer(answer)
    if not words or words in REFUSALS:
        return list(cards)
    return [replace(card, parts=tuple(_marked(part, words) for part in card.parts)) for card in cards]


def _marked(shown: Shown, words: str) -> Shown:
    is_document = shown.part.kind == "result" and shown.part.label
    text = f"{shown.part.label} {shown.part.text}"
    return replace(shown, supports=bool(is_document) and f" {words} " in f" {normalise_answer(text)} ")


def _agent_card(text: str, *, is_whole: bool = True) -> StoryCard:
    parts = [part if is_whole else _open(part) for part in written_parts(text, "text")]
    return StoryCard("assistant", tuple(map(Shown, parts)))


def _open(part: Part) -> Part:
    return replace(part, label=part.label.removesuffix(" (never closed)"))


def _plain(card: Card) -> StoryCard:
    return StoryCard(card.role, tuple(map(Shown, card.parts)))


def _notice(text: str) -> StoryCard:
    return StoryCard("notice", (Shown(Part("fold", "", text)),))
