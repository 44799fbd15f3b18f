"""The words of every aspect: sentences of passages, questions, search queries and the goal that a thought names.

`{x}` is the entity ("Mongolia", "the Netherlands", or in a two-hop question "the country whose capital is …"), `{X}` the
same with a capital letter, `{y}` the value. Aspects of one bundle stand in one passage, which is therefore their evidence.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Aspect:
    """The words of one aspect of one kind of entity."""

    bundle: str
    """Name of the passage that states it, with the other aspects of the bundle."""
    goal: str
    """What is looked for, as a noun phrase; without its article it is the first search query."""
    queries: tuple[str, ...]
    sentences: tuple[str, ...]
    questions: tuple[str, ...]


ASPECTS: dict[tuple[str, str], Aspect] = {
    ("country", "capital"): Aspect(
        "capital",
        "the capital of {x}",
        ("{x} capital city", "which city is the capital of {x}"),
        ("The capital city of {x} is {y}.", "{y} is the capital city of {x}.", "{X} has {y} as its capital city."),
        ("What is the capital of {x}?", "Which city is the capital of {x}?", "Name the capital city of {x}."),
    ),
    ("country", "currency"): Aspect(
        "currency",
        "the currency of {x}",
        ("{x} currency", "money used in {x} currency"),
        ("The currency used in {x} is the {y}.", "{X} has the {y} as its currency.", "People in {x} pay in the currency {y}."),
        ("Which currency is used in {x}?", "What is the currency of {x}?", "In which currency do people pay in {x}?"),
    ),
    ("country", "alpha2"): Aspect(
        "codes",
        "the two-letter ISO code of {x}",
        ("{x} two-letter ISO country code", "{x} ISO country codes: two-letter, three-letter, numeric"),
        ("In ISO 3166 the two-letter country code of {x} is {y}.", "{X} has the two-letter ISO country code {y}."),
        ("What is the two-letter ISO code of {x}?", "Which two-letter ISO 3166 code stands for {x}?"),
    ),
    ("country", "alpha3"): Aspect(
        "codes",
        "the three-letter ISO code of {x}",
        ("{x} three-letter ISO country code", "{x} ISO country codes: two-letter, three-letter, numeric"),
        ("The three-letter ISO country code is {y}.", "Its three-letter ISO country code is {y}."),
        ("What is the three-letter ISO code of {x}?", "Which three-letter ISO 3166 code stands for {x}?"),
    ),
    ("country", "numeric"): Aspect(
        "codes",
        "the numeric ISO code of {x}",
        ("{x} numeric ISO country code", "{x} ISO country codes: two-letter, three-letter, numeric"),
        ("The numeric ISO country code is {y}.", "Its numeric ISO country code is {y}."),
        ("What is the numeric ISO code of {x}?", "Which number does ISO 3166 give to {x}?"),
    ),
    ("country", "continent"): Aspect(
        "place",
        "the continent of {x}",
        ("{x} continent",),
        ("{X} is on the continent {y}.", "The continent of {x} is {y}."),
        ("On which continent is {x}?", "Which continent does {x} belong to?"),
    ),
    ("country", "subregion"): Aspect(
        "place",
        "the UN subregion of {x}",
        ("{x} UN subregion", "subregion of {x}"),
        ("The United Nations place it in the subregion {y}.", "Its UN subregion is {y}."),
        ("In which UN subregion does {x} lie?", "Which subregion of the world does the UN place {x} in?"),
    ),
    ("country", "area"): Aspect(
        "area",
        "the area of {x}",
        ("{x} area in square kilometres", "how large is the area of {x}"),
        ("{X} has an area of {y} square kilometres.", "The area of {x} is {y} square kilometres."),
        ("What is the area of {x} in square kilometres?", "How many square kilometres is the area of {x}?"),
    ),
    ("country", "calling_code"): Aspect(
        "calling",
        "the calling code of {x}",
        ("{x} telephone calling code", "phone prefix calling code {x}"),
        ("The telephone calling code of {x} is {y}.", "Phone numbers in {x} start with the calling code {y}."),
        ("What is the telephone calling code of {x}?", "Which calling code do phone numbers in {x} have?"),
    ),
    ("country", "domain"): Aspect(
        "internet",
        "the internet domain of {x}",
        ("{x} internet top-level domain",),
        ("The internet top-level domain of {x} is {y}.", "Internet addresses of {x} end in the top-level domain {y}."),
        ("What is the internet top-level domain of {x}?", "In which top-level domain do internet addresses of {x} end?"),
    ),
    ("country", "official_name"): Aspect(
        "official",
        "the official name of {x}",
        ("{x} official name",),
        ("The official name of {x} is {y}.", "Officially {x} is named {y}."),
        ("What is the official name of {x}?", "What is {x} officially called?"),
    ),
    ("country", "only_neighbour"): Aspect(
        "borders",
        "the only land neighbour of {x}",
        ("{x} land border neighbour", "only country with a land border to {x}"),
        ("{X} has only one neighbour by land: {y}.", "The only country with a land border to {x} is its neighbour {y}."),
        ("Which country is the only land neighbour of {x}?", "Which is the only country that borders {x} by land?"),
    ),
    ("country", "border"): Aspect(
        "borders",
        "the land neighbours of {x}",
        ("{x} land border neighbours",),
        ("The neighbours with which {x} shares a land border include {y}.", "By land {x} borders its neighbours {y}."),
        (),
    ),
    ("region", "country"): Aspect(
        "region",
        "the country of {x}",
        ("{x} region country", "which country has the region {x}"),
        ("{X} is a region of {y}.", "{X} belongs to {y} as one of its regions."),
        (
            "In which country is the region {x}?",
            "Which country does the region {x} belong to?",
            "{X} is a region of which country?",
        ),
    ),
    ("region", "type"): Aspect(
        "region",
        "the type of the region {x}",
        ("{x} region type",),
        ("Its type is {y}.", "It is a region of the type {y}."),
        ("What type of region is {x}?", "Which type of subdivision is the region {x}?"),
    ),
    ("region", "code"): Aspect(
        "region",
        "the ISO code of the region {x}",
        ("{x} region ISO 3166-2 code",),
        ("Its ISO 3166-2 code is {y}.", "ISO 3166-2 gives it the code {y}."),
        ("What is the ISO 3166-2 code of the region {x}?", "Which ISO 3166-2 code does the region {x} have?"),
    ),
    ("currency", "code"): Aspect(
        "codes",
        "the ISO code of {x}",
        ("{x} currency ISO code",),
        ("The ISO 4217 letter code of {x}, a currency, is {y}.", "ISO 4217 gives {x}, a currency, the letter code {y}."),
        ("What is the ISO 4217 letter code of {x}?", "Which three letters are the ISO code of {x}?"),
    ),
    ("currency", "numeric"): Aspect(
        "codes",
        "the numeric ISO code of {x}",
        ("{x} currency numeric code",),
        ("The numeric currency code is {y}.", "Its numeric currency code is {y}."),
        ("What is the numeric ISO 4217 code of {x}?", "Which number does ISO 4217 give to {x}?"),
    ),
    ("language", "alpha2"): Aspect(
        "code2",
        "the two-letter ISO code of {x}",
        ("{x} two-letter code ISO 639-1",),
        ("The two-letter ISO 639-1 code of {x} is {y}.", "ISO 639-1 gives {x} the two-letter code {y}."),
        ("What is the two-letter ISO code of {x}?", "Which two-letter ISO 639-1 code stands for {x}?"),
    ),
    ("language", "alpha3"): Aspect(
        "code3",
        "the three-letter ISO code of {x}",
        ("{x} three-letter code ISO 639-3",),
        ("The three-letter ISO 639-3 code of {x} is {y}.", "ISO 639-3 gives {x} the three-letter code {y}."),
        ("What is the three-letter ISO code of {x}?", "Which three-letter ISO 639-3 code stands for {x}?"),
    ),
    ("language", "type"): Aspect(
        "type",
        "the type of {x}",
        ("{x} living, historical or constructed type",),
        ("By its ISO 639 type {x} is {y}.", "ISO 639 gives {x} the type {y}."),
        (
            "Does ISO 639 call {x} living, historical or constructed?",
            "Which ISO 639 type does {x} have: living, historical or constructed?",
        ),
    ),
    ("element", "symbol"): Aspect(
        "symbol",
        "the symbol of {x}",
        ("{x} chemical symbol",),
        ("The chemical symbol of {x} is {y}.", "The element {x} has the chemical symbol {y}."),
        ("What is the chemical symbol of {x}?", "Which chemical symbol stands for {x}?"),
    ),
    ("element", "number"): Aspect(
        "symbol",
        "the atomic number of {x}",
        ("{x} atomic number",),
        ("The atomic number is {y}.", "Its atomic number is {y}."),
        ("What is the atomic number of {x}?", "Which atomic number does {x} have?"),
    ),
    ("element", "period"): Aspect(
        "place",
        "the period of {x}",
        ("{x} period in the periodic table",),
        ("In the periodic table {x} is in period {y}.", "The element {x} stands in period {y} of the periodic table."),
        ("In which period of the periodic table is {x}?", "What is the period number of {x}?"),
    ),
    ("element", "group"): Aspect(
        "place",
        "the group of {x}",
        ("{x} group in the periodic table",),
        ("Its group number is {y}.", "The group of the periodic table is {y}."),
        ("In which group of the periodic table is {x}?", "What is the group number of {x}?"),
    ),
    ("element", "block"): Aspect(
        "place",
        "the block of {x}",
        ("{x} block of the periodic table",),
        ("It belongs to the {y}.", "The block is the {y}."),
        ("Which block of the periodic table does {x} belong to?", "In which block of the periodic table is {x}?"),
    ),
    ("element", "family"): Aspect(
        "family",
        "the family of {x}",
        ("{x} family of elements",),
        ("The element {x} belongs to the family of the {y}.", "The family of elements that holds {x} is the {y}."),
        ("Which family of elements does {x} belong to?", "To which element family is {x} counted?"),
    ),
    ("element", "discovery_year"): Aspect(
        "discovery",
        "the discovery year of {x}",
        ("year {x} was discovered", "{x} discovery year"),
        ("The element {x} was discovered in the year {y}.", "The discovery year of {x} is {y}."),
        ("In which year was {x} discovered?", "What is the discovery year of {x}?"),
    ),
    ("element", "melting_point"): Aspect(
        "melting",
        "the melting point of {x}",
        ("{x} melting point in kelvin", "temperature at which {x} melts melting point"),
        ("The melting point of {x} is {y} kelvin.", "The element {x} has its melting point at {y} kelvin."),
        ("What is the melting point of {x} in kelvin?", "At how many kelvin does {x} melt?"),
    ),
    ("element", "electronegativity"): Aspect(
        "electronegativity",
        "the electronegativity of {x}",
        ("{x} Pauling electronegativity",),
        (
            "The electronegativity of {x} on the Pauling scale is {y}.",
            "On the Pauling scale {x} has an electronegativity of {y}.",
        ),
        ("What is the electronegativity of {x} on the Pauling scale?", "Which Pauling electronegativity does {x} have?"),
    ),
    ("element", "weight"): Aspect(
        "weight",
        "the atomic weight of {x}",
        ("{x} standard atomic weight",),
        ("The atomic weight of {x} is {y}, to two decimals.", "To two decimals {x} has the atomic weight {y}."),
        ("What is the atomic weight of {x}, to two decimals?", "Which atomic weight does {x} have, to two decimals?"),
    ),
}
