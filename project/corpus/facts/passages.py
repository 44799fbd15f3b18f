"""The fact table as passages: one for each entity and bundle of aspects, worded by a seeded choice."""

from __future__ import annotations

from random import Random

from project.corpus.facts.aspects import ASPECTS
from project.corpus.facts.table import Entity, FactTable
from project.corpus.facts.wording import fill, phrase
from project.records import Passage

_SHORT = 15
"""Passages below this many words also say what kind of entity they are about."""
_KINDS = {
    "country": "It is a country or territory.",
    "region": "It is a subdivision.",
    "currency": "It is a currency.",
    "language": "It is a language.",
    "element": "It is a chemical element.",
}


def passage_id(entity: str, aspect: str) -> str:
    """Return the id of the passage that states an aspect of an entity, for example `country:MN/capital`."""
    return f"{entity}/{ASPECTS[entity.partition(':')[0], aspect].bundle}"


def write_passages(table: FactTable, seed: int) -> list[Passage]:
    """Return every passage, in the order of the entities' ids; the same seed chooses the same words."""
    bundles: dict[str, list[tuple[str, str]]] = {}
    for kind, aspect in ASPECTS:
        for entity in table.of_kind(kind):
            if table.get(entity.id, aspect) and not (aspect == "border" and table.get(entity.id, "only_neighbour")):
                bundles.setdefault(passage_id(entity.id, aspect), []).append((entity.id, aspect))
    passages = []
    for ident, aspects in sorted(bundles.items()):
        entity = table.entities[aspects[0][0]]
        text = _text(table, entity, [aspect for _, aspect in aspects], Random(f"{seed} {ident}"))
        passages.append(Passage(ident, entity.name, text, _sources(table, aspects), 0, len(text)))
    return passages


def stated_aspects(table: FactTable, passage: Passage) -> list[tuple[str, str]]:
    """Return the (entity, aspect) pairs that a passage states."""
    entity, _, bundle = passage.id.partition("/")
    kind = table.entities[entity].kind
    return [(entity, a) for (k, a), words in ASPECTS.items() if k == kind and words.bundle == bundle and table.get(entity, a)]


def _text(table: FactTable, entity: Entity, aspects: list[str], rng: Random) -> str:
    x = phrase(entity.kind, entity.name)
    sentences = []
    for aspect in aspects:
        values = [phrase(table.entities[f.target].kind, f.value) if f.target and aspect != "currency" else f.value
                  for f in table.get(entity.id, aspect)]  # fmt: skip
        y = " and ".join(filter(None, (", ".join(values[:-1]), values[-1])))
        sentences.append(fill(rng.choice(ASPECTS[entity.kind, aspect].sentences), x, y))
    if sum(len(s.split()) for s in sentences) < _SHORT:
        sentences.append(_KINDS[entity.kind])
    return " ".join(s[:1].upper() + s[1:] for s in sentences)


def _sources(table: FactTable, aspects: list[tuple[str, str]]) -> str:
    return "; ".join(dict.fromkeys(fact.source for pair in aspects for fact in table.get(*pair)))
