"""The fact table: entities, facts, and paths that are asked of it.

A question about one entity is a `Path`: where it starts (a name, or a value such as a capital) and which aspects it follows.
`FactTable.ask` returns every way to walk it, so that a question is kept only where there is exactly one.
Left out: where the facts come from (`sources.py`) and how they are worded (`wording.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from project.answers import normalise_answer
from project.records import Row

CLOSED_KINDS = frozenset({"currency", "language"})
"""Kinds whose members may stand on the paths of both training and test questions, unless one is what is asked about."""


@dataclass(frozen=True, slots=True)
class Entity:
    """Something that facts are about."""

    id: str
    """Kind and code, for example `country:MN`."""
    name: str
    aliases: tuple[str, ...] = ()
    group: str = ""
    """Entities of one group stand in one split: a country, its regions, its own currency, and its only neighbour."""

    @property
    def kind(self) -> str:
        """`country`, `region`, `currency`, `language` or `element`."""
        return self.id.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Fact:
    """One value of one aspect of one entity."""

    entity: str
    aspect: str
    value: str
    source: str
    aliases: tuple[str, ...] = ()
    """Other ways to write the value."""
    target: str = ""
    """Id of the entity that the value names."""
    number: float | None = None
    """The value as a number, in the unit of its aspect."""


@dataclass(frozen=True, slots=True)
class Path:
    """`Path("country", "capital", "Ulaanbaatar", ("currency",))`: the currency of the country with that capital."""

    kind: str
    by: str
    """`name`, or the aspect whose value is given."""
    value: str
    hops: tuple[str, ...] = ()
    """Aspects followed in turn; none asks for the entity itself."""

    def to_row(self) -> Row:
        """Return the path as a JSON object."""
        return {"kind": self.kind, "by": self.by, "value": self.value, "hops": list(self.hops)}

    @classmethod
    def from_row(cls, row: Row) -> Path:
        """Read what `to_row` wrote."""
        return cls(row["kind"], row["by"], row["value"], tuple(row["hops"]))


@dataclass(frozen=True, slots=True)
class Walk:
    """One way to walk a path."""

    entities: tuple[Entity, ...]
    """Every entity on the way, the start first."""
    facts: tuple[Fact, ...]
    answers: tuple[str, ...]
    """The answer as the passages write it, then its aliases."""


@dataclass
class FactTable:
    """Entities by id and facts by (entity, aspect)."""

    entities: dict[str, Entity]
    facts: list[Fact]
    _by_aspect: dict[tuple[str, str], list[Fact]] = field(default_factory=lambda: defaultdict(list), repr=False)
    _by_value: dict[tuple[str, str, str], list[Fact]] = field(default_factory=lambda: defaultdict(list), repr=False)
    _by_name: dict[tuple[str, str], list[Entity]] = field(default_factory=lambda: defaultdict(list), repr=False)

    def __post_init__(self) -> None:
        for fact in self.facts:
            self._by_aspect[fact.entity, fact.aspect].append(fact)
            kind = self.entities[fact.entity].kind
            for value in {normalise_answer(v) for v in (fact.value, *fact.aliases)}:
                self._by_value[kind, fact.aspect, value].append(fact)
        for entity in self.entities.values():
            for name in {normalise_answer(n) for n in (entity.name, *entity.aliases)}:
                self._by_name[entity.kind, name].append(entity)

    def get(self, entity: str, aspect: str) -> list[Fact]:
        """Return the facts of an aspect of an entity; none where the table does not hold it."""
        return self._by_aspect.get((entity, aspect), [])

    def named(self, name: str) -> list[Entity]:
        """Return the entities of any kind that have this name or alias."""
        key = normalise_answer(name)
        return [e for (_, known), found in self._by_name.items() if known == key for e in found]

    def of_kind(self, kind: str) -> list[Entity]:
        """Return the entities of a kind, in the order of their ids."""
        return sorted((e for e in self.entities.values() if e.kind == kind), key=lambda e: e.id)

    def ask(self, path: Path) -> list[Walk]:
        """Return every way to walk the path; a question has exactly one answer where this has one element."""
        key = normalise_answer(path.value)
        if path.by == "name":
            walks = [_Walking((e,), (), e.id) for e in self._by_name.get((path.kind, key), [])]
        else:
            facts = self._by_value.get((path.kind, path.by, key), [])
            walks = [_Walking((self.entities[f.entity],), (f,), f.entity) for f in facts]
        for hop in path.hops:
            walks = [self._step(walk, fact) for walk in walks for fact in self.get(walk.here, hop)]
        return [w.done(by_value=path.by != "name") for w in walks]

    def compare(self, aspect: str, sign: int, entities: tuple[str, str]) -> Entity:
        """Return the entity with the larger number (`sign` 1) or the smaller one (-1).

        Raises:
            ValueError: a number is missing or both are equal.
        """
        numbers = [fact.number for e in entities for fact in self.get(e, aspect) if fact.number is not None]
        if len(numbers) != len(entities) or numbers[0] == numbers[1]:
            msg = f"{aspect} does not tell {entities[0]} from {entities[1]}"
            raise ValueError(msg)
        return self.entities[entities[0] if (numbers[0] - numbers[1]) * sign > 0 else entities[1]]

    def _step(self, walk: _Walking, fact: Fact) -> _Walking:
        target = (self.entities[fact.target],) if fact.target else ()
        return _Walking((*walk.entities, *target), (*walk.facts, fact), fact.target)


@dataclass(frozen=True, slots=True)
class _Walking:
    """A walk that goes on from the entity `here`; empty where the last value names none."""

    entities: tuple[Entity, ...]
    facts: tuple[Fact, ...]
    here: str

    def done(self, *, by_value: bool) -> Walk:
        """End the walk: its answer is the last value, or the entity itself where no aspect was followed."""
        if len(self.facts) > by_value:
            answers = (self.facts[-1].value, *self.facts[-1].aliases)
        else:
            answers = (self.entities[-1].name, *self.entities[-1].aliases)
        return Walk(self.entities, self.facts, tuple(dict.fromkeys(answers)))


def with_groups(entities: Iterable[Entity], facts: Iterable[Fact]) -> dict[str, Entity]:
    """Give every entity its group.

    A region goes with its country, a country with the only country that borders it, a currency with the only country that
    uses it; every other entity is a group of its own.
    """
    by_id = {e.id: e for e in entities}
    links: dict[tuple[str, str], list[str]] = defaultdict(list)
    users: dict[str, list[str]] = defaultdict(list)
    for fact in facts:
        if fact.target:
            links[fact.entity, fact.aspect].append(fact.target)
        if fact.aspect == "currency":
            users[fact.target].append(fact.entity)
    linking = ("country", "only_neighbour")
    pairs = [(entity, targets[0]) for (entity, aspect), targets in links.items() if aspect in linking]
    pairs += [(currency, countries[0]) for currency, countries in users.items() if len(countries) == 1]
    parent = {ident: ident for ident in by_id}

    def root(ident: str) -> str:
        while parent[ident] != ident:
            ident = parent[ident]
        return ident

    for one, other in pairs:
        first, second = sorted((root(one), root(other)))
        parent[second] = first
    return {ident: replace(entity, group=root(ident)) for ident, entity in by_id.items()}
