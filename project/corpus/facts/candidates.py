"""Every question that the fact table answers in exactly one way: one-hop, two-hop and comparison questions.

A candidate also carries its plan: what an expert would look up, in which words, and where it is found (`expert.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random

from project.answers import normalise_answer
from project.corpus.facts.aspects import ASPECTS
from project.corpus.facts.passages import passage_id
from project.corpus.facts.table import CLOSED_KINDS, Entity, Fact, FactTable, Path, Walk
from project.corpus.facts.wording import BRIDGES, COMPARISONS, MARGINS, REVERSES, Comparison, fill, phrase
from project.corpus.words import STOP_WORDS
from project.records import Question

TWO_HOPS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    *(("country", "capital", (a,)) for a in ("currency", "subregion", "alpha3", "calling_code", "area", "domain")),
    *(("country", "currency", (a,)) for a in ("capital", "subregion", "calling_code", "alpha2")),
    *(("country", by, (a,)) for by in ("alpha3", "calling_code") for a in ("capital", "currency", "subregion")),
    *(("region", "name", ("country", a)) for a in ("capital", "currency", "subregion", "alpha3", "calling_code", "domain")),
    *(("country", "name", ("only_neighbour", a)) for a in ("capital", "currency")),
    *(("country", "name", ("currency", a)) for a in ("code", "numeric")),
    *(("element", "symbol", (a,)) for a in ("group", "period", "block", "melting_point", "discovery_year", "weight", "family")),
    *(("element", "number", (a,)) for a in ("block", "melting_point", "electronegativity", "discovery_year")),
    *(("language", "alpha2", (a,)) for a in ("alpha3", "type")),
    ("language", "alpha3", ("alpha2",)),
)
"""Where a two-hop question starts (kind, by) and which aspects it follows."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """One thing to look up."""

    goal: str
    queries: tuple[str, ...]
    """Search queries that should find it, best first."""
    evidence: str = ""
    """Id of the passage that says it; empty where none does."""
    stated: str = ""
    """What that passage says, as a clause."""
    retry: str = ""
    """A wider query, where no passage says it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A question without an id, and the plan to answer it."""

    question: Question
    bucket: str
    """What sampling balances: the form of the path, or the operation."""
    lookups: tuple[Lookup, ...] = ()
    closing: str = ""
    """The last thought, where it is more than what the last passage says."""


def path_candidates(table: FactTable) -> Iterator[tuple[Candidate, list[str]]]:
    """Yield each answerable path with all its wordings; the candidate's own question is still without words."""
    specs: list[tuple[str, str, tuple[str, ...]]]
    specs = [(kind, "name", (aspect,)) for (kind, aspect), words in ASPECTS.items() if words.questions]
    specs += [(kind, by, ()) for kind, by in REVERSES]
    for kind, by, hops in (*specs, *TWO_HOPS):
        for value in _values(table, kind, by):
            path = Path(kind, by, value, hops)
            walks = table.ask(path)
            candidate = _candidate(path, walks[0]) if len(walks) == 1 else None
            if candidate:
                yield candidate, _wordings(path, walks[0])


def _values(table: FactTable, kind: str, by: str) -> list[str]:
    """Return where paths may start; no search can find a code that is a stop word (`IN`, `BE`)."""
    entities = table.of_kind(kind)
    if by == "name":
        return [e.name for e in entities]
    values = dict.fromkeys(f.value for e in entities for f in table.get(e.id, by))
    return [v for v in values if v.lower() not in STOP_WORDS]


def _candidate(path: Path, walk: Walk) -> Candidate | None:
    """Return the candidate; None where it is trivial, or its entities belong to more than one group."""
    evidence = tuple(dict.fromkeys(passage_id(f.entity, f.aspect) for f in walk.facts))
    groups = {e.group for e in walk.entities if e.kind not in CLOSED_KINDS} or {walk.entities[0].group}
    given = normalise_answer(path.value)
    same_name = path.by != "name" and given == normalise_answer(walk.entities[0].name)  # the capital Luxembourg
    if len(groups) > 1 or same_name or given == normalise_answer(walk.answers[0]):
        return None
    bucket = f"{path.kind} by {path.by}: {', '.join(path.hops)}"
    kind = "one_hop" if len(evidence) == 1 else "two_hop"
    question = Question("", "", walk.answers, evidence, True, kind, groups.pop(), {"path": path.to_row()})
    return Candidate(question, bucket, _lookups(path, walk))


def _lookups(path: Path, walk: Walk) -> tuple[Lookup, ...]:
    lookups: list[Lookup] = []
    for number, fact in enumerate(walk.facts):
        reverse = number == 0 and path.by != "name"
        found = _reverse_lookup(walk.entities[0], fact) if reverse else fact_lookup(_subject(walk, fact), fact)
        if lookups and lookups[-1].evidence == found.evidence:
            last = lookups.pop()
            found = Lookup(last.goal, last.queries, last.evidence, f"{last.stated}, and {found.stated}")
        lookups.append(found)
    return tuple(lookups)


def _subject(walk: Walk, fact: Fact) -> Entity:
    return next(e for e in walk.entities if e.id == fact.entity)


def fact_lookup(entity: Entity, fact: Fact) -> Lookup:
    """Return how to look up a fact of a known entity."""
    words, x = ASPECTS[entity.kind, fact.aspect], phrase(entity.kind, entity.name)
    goal = fill(words.goal, x)
    stated = f"{goal} is {fact.value}"
    return Lookup(goal, search_queries(entity, goal, words.queries), passage_id(entity.id, fact.aspect), stated)


def search_queries(entity: Entity, goal: str, templates: Sequence[str]) -> tuple[str, ...]:
    """Return a goal without its article, then the templates, as search queries."""
    name = phrase(entity.kind, entity.name).removeprefix("the ")
    return (goal.removeprefix("the "), *(fill(t, name) for t in templates))


def _reverse_lookup(entity: Entity, fact: Fact) -> Lookup:
    words, x = REVERSES[entity.kind, fact.aspect], phrase(entity.kind, entity.name)
    queries = tuple(fill(t, y=fact.value) for t in words.queries)
    evidence = passage_id(entity.id, fact.aspect)
    return Lookup(fill(words.goal, y=fact.value), queries, evidence, fill(words.stated, x, fact.value))


def _wordings(path: Path, walk: Walk) -> list[str]:
    words = REVERSES.get((path.kind, path.by))
    if words and not path.hops:
        return [fill(q, y=path.value) for q in words.questions]
    names = [fill(p, y=path.value) for p in words.phrases] if words else [phrase(path.kind, path.value)]
    kind, reached = path.kind, iter(walk.entities[1:])
    for hop in path.hops[:-1]:
        names = [fill(bridge, name) for name, bridge in product(names, BRIDGES[kind, hop])]
        kind = next(reached).kind
    return [fill(q, name) for name, q in product(names, ASPECTS[kind, path.hops[-1]].questions)]


def comparison_candidates(table: FactTable, groups: set[str], rng: Random, each: int) -> Iterator[Candidate]:
    """Yield up to `each` comparisons of every sort between entities of these groups, in every pair once."""
    for words in COMPARISONS:
        known = [e for e in table.of_kind(words.kind) if e.group in groups and table.get(e.id, words.aspect)]
        pairs = [(a, b) for a in known for b in known if a.id != b.id and _clear(table, words.aspect, a, b)]
        for a, b in rng.sample(pairs, min(each, len(pairs))):
            yield _comparison(table, words, a, b, rng)


def _clear(table: FactTable, aspect: str, a: Entity, b: Entity) -> bool:
    low, high = sorted(float(table.get(e.id, aspect)[0].number or 0) for e in (a, b))
    return low > 0 and high > low and high >= low * MARGINS[aspect]


def _comparison(table: FactTable, words: Comparison, a: Entity, b: Entity, rng: Random) -> Candidate:
    winner = table.compare(words.aspect, words.sign, (a.id, b.id))
    names = [phrase(e.kind, e.name) for e in (a, b)]
    text = rng.choice(words.questions).format(a=names[0], b=names[1])
    lookups = tuple(fact_lookup(e, table.get(e.id, words.aspect)[0]) for e in (a, b))
    numbers = [table.get(e.id, words.aspect)[0].value for e in (a, b)]
    best = phrase(winner.kind, winner.name)
    closing = f"{names[0]} has {numbers[0]} and {names[1]} has {numbers[1]}, so {best} is {words.adjective}."
    info = {"compare": {"aspect": words.aspect, "sign": words.sign, "entities": [a.id, b.id]}}
    group = "|".join(sorted({a.group, b.group}))
    evidence = tuple(lookup.evidence for lookup in lookups)
    question = Question("", text, (winner.name, *winner.aliases), evidence, True, "comparison", group, info)
    return Candidate(question, f"{words.aspect} {words.adjective}", lookups, closing[:1].upper() + closing[1:])
