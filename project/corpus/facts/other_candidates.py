"""Questions that need no search, and questions that the corpus cannot answer.

No search: arithmetic, spelling, and what the question itself states. Unanswerable: aspects that no passage holds, values
that the fact table lacks, and invented countries; each is asked of the table and kept only if the table has no answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from random import Random

from project.corpus.facts.aspects import ASPECTS
from project.corpus.facts.candidates import Candidate, Lookup, search_queries
from project.corpus.facts.table import Entity, FactTable
from project.corpus.facts.wording import ABSENT, fill, phrase
from project.records import Question

MAY_LACK = ("capital", "currency", "area", "calling_code", "discovery_year", "melting_point", "electronegativity")
"""Aspects asked for where the table lacks them."""
INVENTED_ASPECTS = ("capital", "currency", "area", "calling_code")
_WORD_LIST = (
    "planet window garden bridge orange silver candle forest pencil kitchen mountain yellow rabbit basket winter "
    "summer button carpet dragon engine feather guitar hammer island jacket kettle ladder market needle ocean "
    "parrot quiver river saddle temple umbrella valley walnut anchor blanket castle desert eagle finger glacier "
    "harbour insect jungle kitten lantern meadow napkin oyster pepper quartz ribbon spider thunder tunnel velvet "
    "wagon zipper acorn beetle cactus dolphin ember falcon goblet hazel ivory jigsaw kernel lemon magnet nutmeg "
    "orchid pigeon quilt rocket salmon tulip urchin violin whistle yogurt zebra almond barrel copper donkey elbow "
    "fabric ginger helmet igloo jasmine koala lizard mirror nectar"
)
WORDS = tuple(_WORD_LIST.split())
_NAMES = (
    "Ana",
    "Ben",
    "Carla",
    "Dino",
    "Eva",
    "Finn",
    "Gita",
    "Hugo",
    "Ines",
    "Jonas",
    "Kira",
    "Leo",
    "Mara",
    "Nils",
    "Olga",
    "Pia",
)
_COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "purple")
_THINGS = ("ball", "key", "cup", "book", "hat", "lamp", "spoon", "scarf", "coin", "kite")
_PLACES = ("kitchen", "garage", "attic", "cellar", "shed", "office", "drawer", "hallway")
_STARTS = ("Zor", "Bral", "Quen", "Vash", "Plo", "Dru", "Fenn", "Gral", "Yst", "Morv", "Tarn", "Ulv", "Kesh", "Wend", "Skar")
_ENDS = ("vania", "dor", "ovia", "landia", "mark", "istan", "eria", "onia", "ulla", "esh")


def no_search_candidates(rng: Random) -> Iterator[Candidate]:
    """Yield questions whose answer follows from the question alone; one group for each word, sum or story."""
    for a, b in product(range(2, 50), range(2, 50)):
        yield from _arithmetic(a, b, rng)
    for word in WORDS:
        yield from _spelling(word)
    for name, colour, thing, place in product(_NAMES, _COLOURS, _THINGS, _PLACES):
        if rng.random() < 0.1:
            yield _story(name, colour, thing, place, rng)


def _plain(bucket: str, group: str, text: str, answer: str, thought: str) -> Candidate:
    question = Question("", text, (answer,), (), False, "no_search", f"no_search:{group}", {"operation": bucket})
    return Candidate(question, bucket, (), thought)


def _arithmetic(a: int, b: int, rng: Random) -> Iterator[Candidate]:
    why = "This is arithmetic, so no search is needed"
    group = f"{min(a, b)},{max(a, b)}"
    if rng.random() < 0.5:
        text = rng.choice(("What is {} plus {}?", "How much is {} + {}?", "Add {} and {}. What is the sum?")).format(a, b)
        yield _plain("add", group, text, str(a + b), f"{why}: {a} + {b} = {a + b}.")
    elif a > b:
        text = rng.choice(("What is {} minus {}?", "How much is {} - {}?")).format(a, b)
        yield _plain("subtract", group, text, str(a - b), f"{why}: {a} - {b} = {a - b}.")
    if a <= 10 and b <= 10:
        text = rng.choice(("What is {} times {}?", "How much is {} multiplied by {}?")).format(a, b)
        yield _plain("multiply", group, text, str(a * b), f"{why}: {a} * {b} = {a * b}.")


def _spelling(word: str) -> Iterator[Candidate]:
    spelt = "-".join(word)
    why = f"The word is spelt {spelt}, so no search is needed"
    letters = f"{why}; it has {len(word)} letters."
    yield _plain("letters", word, f"How many letters are in the word '{word}'?", str(len(word)), letters)
    yield _plain("first", word, f"What is the first letter of the word '{word}'?", word[0], f"{why}; it starts with {word[0]}.")
    yield _plain("last", word, f"What is the last letter of the word '{word}'?", word[-1], f"{why}; it ends with {word[-1]}.")


def _story(name: str, colour: str, thing: str, place: str, rng: Random) -> Candidate:
    text = f"{name} keeps a {colour} {thing} in the {place}. "
    asked, answer = rng.choice(
        (
            (f"What colour is the {thing}?", colour),
            (f"Where is the {thing}?", place),
            (f"Who has the {thing}?", name),
            (f"What does {name} keep in the {place}?", thing),
        )
    )
    thought = f"The question itself says it, so no search is needed: {answer}."
    return _plain(f"stated {asked.split()[0]}", f"{name} {colour} {thing} {place}", text + asked, answer, thought)


def unanswerable_candidates(table: FactTable, rng: Random) -> Iterator[Candidate]:
    """Yield questions that the table cannot answer, each grouped with the entity that it asks about."""
    for kind, absent in ABSENT.items():
        for entity, (aspect, goal, questions) in product(table.of_kind(kind), absent):
            if not table.get(entity.id, aspect):
                yield _unanswerable(entity, aspect, goal, rng.choice(questions), f"absent {kind} {aspect}")
    for (kind, aspect), words in ASPECTS.items():
        for entity in table.of_kind(kind):
            if aspect in MAY_LACK and not table.get(entity.id, aspect):
                yield _unanswerable(entity, aspect, words.goal, rng.choice(words.questions), f"lacking {kind} {aspect}")
    for start, end in product(_STARTS, _ENDS):
        if not table.named(start + end):
            country = Entity(f"country:{start + end}", start + end, group=f"invented:{start + end}")
            for aspect in INVENTED_ASPECTS:
                words = ASPECTS["country", aspect]
                yield _unanswerable(country, aspect, words.goal, rng.choice(words.questions), f"invented {aspect}")


def _unanswerable(entity: Entity, aspect: str, goal: str, question: str, bucket: str) -> Candidate:
    x = phrase(entity.kind, entity.name)
    goal = fill(goal, x)
    bare = goal.removeprefix("the ").partition(" of ")[0]
    queries = search_queries(entity, goal, ("{x} " + bare,))
    info = {"absent": {"entity": entity.id, "aspect": aspect}}
    asked = Question("", fill(question, x), (), (), True, "unanswerable", entity.group, info)
    closing = f"The results do not give {goal}, so the answer is unknown."
    return Candidate(asked, bucket, (Lookup(goal, queries, retry=f"facts about {x}"),), closing)
