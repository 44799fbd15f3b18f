"""How questions are worded that start from a value, compare two entities, or ask for what no passage says.

The words of the aspects themselves are in `aspects.py`, with the meaning of `{x}` and `{y}`.
"""

from __future__ import annotations

from dataclasses import dataclass

_ARTICLE_ENDINGS = ("Islands", "Republic", "Territory", "Territories", "Kingdom", "Emirates", "Philippines", "Maldives")
_ARTICLE_NAMES = {"Netherlands", "Bahamas", "Gambia", "Comoros", "United States", "Isle of Man", "Seychelles"}


@dataclass(frozen=True, slots=True)
class Reverse:
    """The words for finding an entity by a value: `{y}` is the value that is given, `{x}` the entity that is found."""

    goal: str
    queries: tuple[str, ...]
    stated: str
    """What the passage says, as the agent repeats it."""
    phrases: tuple[str, ...]
    """How a two-hop question names the entity."""
    questions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two entities compared by a number; `sign` is 1 where the larger number wins, -1 where the smaller does."""

    kind: str
    aspect: str
    sign: int
    adjective: str
    questions: tuple[str, ...]


REVERSES: dict[tuple[str, str], Reverse] = {
    ("country", "capital"): Reverse(
        "the country whose capital is {y}",
        ("country with capital {y}", "{y} capital city of which country"),
        "{y} is the capital of {x}",
        ("the country whose capital is {y}", "the country that has {y} as its capital"),
        ("Which country has {y} as its capital?", "{y} is the capital of which country?"),
    ),
    ("country", "currency"): Reverse(
        "the country that uses the {y}",
        ("country with currency {y}", "{y} currency used in which country"),
        "the currency of {x} is the {y}",
        ("the country that pays with the {y}", "the country whose currency is the {y}"),
        ("Which country pays with the {y}?", "Which country has the {y} as its currency?"),
    ),
    ("country", "alpha2"): Reverse(
        "the country with the ISO code {y}",
        ("country with two-letter ISO code {y}", "ISO country code {y}"),
        "the ISO code {y} stands for {x}",
        ("the country with the two-letter ISO code {y}",),
        ("Which country has the two-letter ISO code {y}?", "Which country does the ISO code {y} stand for?"),
    ),
    ("country", "alpha3"): Reverse(
        "the country with the ISO code {y}",
        ("country with three-letter ISO code {y}", "ISO country code {y}"),
        "the ISO code {y} stands for {x}",
        ("the country with the three-letter ISO code {y}",),
        ("Which country has the three-letter ISO code {y}?", "Which country does the ISO code {y} stand for?"),
    ),
    ("country", "calling_code"): Reverse(
        "the country with the calling code {y}",
        ("country with telephone calling code {y}", "calling code {y} country"),
        "the calling code {y} belongs to {x}",
        ("the country with the calling code {y}", "the country whose phone numbers start with {y}"),
        ("Which country has the calling code {y}?", "Phone numbers of which country start with {y}?"),
    ),
    ("currency", "code"): Reverse(
        "the currency with the ISO code {y}",
        ("currency with ISO 4217 code {y}", "ISO 4217 letter code {y} currency"),
        "the code {y} stands for the {x}",
        (),
        ("Which currency has the ISO 4217 code {y}?", "Which currency does the ISO code {y} stand for?"),
    ),
    ("language", "alpha2"): Reverse(
        "the language with the code {y}",
        ("language with two-letter ISO 639-1 code {y}", "ISO 639-1 two-letter code {y}"),
        "the code {y} stands for {x}",
        ("the language with the two-letter ISO code {y}",),
        ("Which language has the two-letter ISO code {y}?", "Which language does the ISO 639-1 code {y} stand for?"),
    ),
    ("language", "alpha3"): Reverse(
        "the language with the code {y}",
        ("language with three-letter ISO 639-3 code {y}", "ISO 639-3 three-letter code {y}"),
        "the code {y} stands for {x}",
        ("the language with the three-letter ISO code {y}",),
        ("Which language has the three-letter ISO code {y}?", "Which language does the ISO 639-3 code {y} stand for?"),
    ),
    ("region", "code"): Reverse(
        "the region with the ISO code {y}",
        ("region with ISO 3166-2 code {y}", "ISO 3166-2 code {y}"),
        "the code {y} stands for {x}",
        (),
        ("Which region has the ISO 3166-2 code {y}?", "Which region does the ISO 3166-2 code {y} stand for?"),
    ),
    ("element", "symbol"): Reverse(
        "the element with the symbol {y}",
        ("element with chemical symbol {y}", "chemical symbol {y} element"),
        "the symbol {y} stands for {x}",
        ("the element with the symbol {y}", "the element whose chemical symbol is {y}"),
        ("Which element has the chemical symbol {y}?", "Which element does the symbol {y} stand for?"),
    ),
    ("element", "number"): Reverse(
        "the element with atomic number {y}",
        ("element with atomic number {y}", "atomic number {y} chemical symbol element"),
        "the atomic number {y} belongs to {x}",
        ("the element with atomic number {y}",),
        ("Which element has atomic number {y}?", "Atomic number {y} belongs to which element?"),
    ),
}

BRIDGES: dict[tuple[str, str], tuple[str, ...]] = {
    ("region", "country"): ("the country that has {x} as a region", "the country to which the region {x} belongs"),
    ("country", "currency"): ("the currency of {x}", "the currency used in {x}"),
    ("country", "only_neighbour"): ("the only land neighbour of {x}", "the only country that borders {x} by land"),
}
"""How a two-hop question names the entity that an aspect leads to."""

COMPARISONS = (
    Comparison(
        "country", "area", 1, "larger", ("Which is larger by area, {a} or {b}?", "Which has the larger area, {a} or {b}?")
    ),
    Comparison(
        "country", "area", -1, "smaller", ("Which is smaller by area, {a} or {b}?", "Which has the smaller area, {a} or {b}?")
    ),
    Comparison(
        "element",
        "number",
        1,
        "higher",
        ("Which has the higher atomic number, {a} or {b}?", "Which atomic number is higher, that of {a} or of {b}?"),
    ),
    Comparison("element", "number", -1, "lower", ("Which has the lower atomic number, {a} or {b}?",)),
    Comparison(
        "element",
        "melting_point",
        1,
        "higher",
        ("Which has the higher melting point, {a} or {b}?", "Which melts at the higher temperature, {a} or {b}?"),
    ),
    Comparison("element", "melting_point", -1, "lower", ("Which has the lower melting point, {a} or {b}?",)),
    Comparison("element", "electronegativity", 1, "higher", ("Which has the higher Pauling electronegativity, {a} or {b}?",)),
    Comparison("element", "weight", 1, "higher", ("Which has the higher atomic weight, {a} or {b}?",)),
    Comparison(
        "element",
        "discovery_year",
        -1,
        "earlier",
        ("Which was discovered earlier, {a} or {b}?", "Which has the earlier discovery year, {a} or {b}?"),
    ),
    Comparison("element", "discovery_year", 1, "later", ("Which was discovered later, {a} or {b}?",)),
)
MARGINS = {"area": 1.5, "number": 1.0, "melting_point": 1.1, "electronegativity": 1.1, "weight": 1.05, "discovery_year": 1.005}
"""How many times the smaller number the larger one must be, so that sources and rounding cannot turn the answer."""

ABSENT: dict[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    "country": (
        ("population", "the population of {x}", ("How many people live in {x}?", "What is the population of {x}?")),
        ("anthem", "the national anthem of {x}", ("What is the national anthem of {x} called?",)),
        ("mountain", "the highest mountain of {x}", ("What is the highest mountain of {x}?",)),
        ("river", "the longest river of {x}", ("Which river is the longest in {x}?",)),
        ("leader", "the head of government of {x}", ("Who is the head of government of {x}?",)),
        ("dish", "the national dish of {x}", ("What is the national dish of {x}?",)),
        ("holiday", "the national holiday of {x}", ("On which day is the national holiday of {x}?",)),
        ("airport", "the largest airport of {x}", ("Which airport is the largest in {x}?",)),
    ),
    "region": (
        ("population", "the population of {x}", ("How many people live in the region {x}?",)),
        ("governor", "the governor of {x}", ("Who governs the region {x}?",)),
        ("river", "the longest river of {x}", ("Which river is the longest in the region {x}?",)),
        ("founded", "the founding year of {x}", ("In which year was the region {x} founded?",)),
    ),
    "element": (
        ("price", "the price of {x}", ("How much does a kilogram of {x} cost?",)),
        ("colour", "the colour of {x}", ("What colour is {x}?",)),
        ("discoverer", "the discoverer of {x}", ("Who discovered {x}?",)),
        ("producer", "the top producer of {x}", ("Which country produces the most {x}?",)),
        ("density", "the density of {x}", ("What is the density of {x}?",)),
    ),
    "language": (
        ("speakers", "the number of speakers of {x}", ("How many people speak {x}?",)),
        ("letters", "the number of letters in {x}", ("How many letters does the alphabet of {x} have?",)),
    ),
}
"""What no passage says: aspect, goal, questions."""


def phrase(kind: str, name: str) -> str:
    """Return a name as it stands in a sentence.

    >>> phrase("country", "Netherlands"), phrase("language", "Mongolian")
    ('the Netherlands', 'the Mongolian language')
    """
    if kind == "language":
        return f"the {name} language"
    if kind == "currency":
        return f"the {name}"
    if kind == "country" and (name.endswith(_ARTICLE_ENDINGS) or name in _ARTICLE_NAMES or " Republic of " in f" {name}"):
        return f"the {name}"
    return name


def fill(template: str, x: str = "", y: str = "") -> str:
    """Fill a template and start it with a capital letter where it asks for one."""
    return template.format(x=x, X=x[:1].upper() + x[1:], y=y)
