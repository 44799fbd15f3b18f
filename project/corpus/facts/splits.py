"""Train, validation and test: groups are split first, then questions are drawn in a balanced mix from each split's own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from random import Random

from project.answers import normalise_answer
from project.corpus.facts.candidates import Candidate, comparison_candidates, path_candidates
from project.corpus.facts.other_candidates import no_search_candidates, unanswerable_candidates
from project.corpus.facts.table import FactTable
from project.errors import InputError

SHARES = {"train": 0.72, "validation": 0.08, "test": 0.20}
"""How the groups are divided."""
MIX = {"one_hop": 0.45, "two_hop": 0.20, "comparison": 0.12, "no_search": 0.13, "unanswerable": 0.10}
"""How many of a split's questions are of each kind."""


def split_questions(table: FactTable, sizes: dict[str, int], seed: int) -> dict[str, list[Candidate]]:
    """Return each split's questions with ids, in a mixed order.

    Args:
        table: the facts.
        sizes: questions wanted by split.
        seed: chooses groups, questions and words.

    Raises:
        InputError: a split cannot hold as many questions as wanted.
    """
    rng = Random(f"{seed} questions")
    paths = list(path_candidates(table))
    others = [*no_search_candidates(rng), *unanswerable_candidates(table, rng)]
    groups = {c.question.group for c in others} | {c.question.group for c, _ in paths}
    split_of = assign({e.group for e in table.entities.values()} | groups, seed)
    seen: set[str] = set()
    splits = {}
    for split, size in sizes.items():
        words_each = 2 if split == "train" else 1
        pool = [
            replace(c, question=replace(c.question, question=text))
            for c, wordings in paths
            if split_of[c.question.group] == split
            for text in rng.sample(wordings, min(words_each, len(wordings)))
        ]
        pool += [c for c in others if split_of[c.question.group] == split]
        own = {group for group, where in split_of.items() if where == split}
        pool += comparison_candidates(table, own, rng, max(20, size // 10))
        splits[split] = _numbered(split, _draw(split, _new(pool, seen), size, rng))
    return splits


def assign(groups: set[str], seed: int) -> dict[str, str]:
    """Return the split of each group; every kind of group is divided in the same shares."""
    by_kind: dict[str, list[str]] = defaultdict(list)
    for group in sorted(groups):
        by_kind[group.partition(":")[0]].append(group)
    split_of: dict[str, str] = {}
    for kind, members in sorted(by_kind.items()):
        Random(f"{seed} groups {kind}").shuffle(members)
        start = 0.0
        for split, share in SHARES.items():
            first, last = round(start * len(members)), round((start + share) * len(members))
            split_of |= dict.fromkeys(members[first:last], split)
            start += share
    return split_of


def _new(pool: Iterable[Candidate], seen: set[str]) -> Iterator[Candidate]:
    """Yield the candidates whose question was not yet asked, in these words, in any split."""
    for candidate in pool:
        key = normalise_answer(candidate.question.question)
        if key not in seen:
            seen.add(key)
            yield candidate


def _draw(split: str, pool: Iterable[Candidate], size: int, rng: Random) -> list[Candidate]:
    """Draw each kind's share, taking its buckets in turn so that a large one does not crowd out the others."""
    buckets: dict[str, dict[str, list[Candidate]]] = {kind: defaultdict(list) for kind in MIX}
    for candidate in pool:
        buckets[candidate.question.kind][candidate.bucket].append(candidate)
    wanted = {kind: round(share * size) for kind, share in MIX.items()}
    wanted["one_hop"] += size - sum(wanted.values())
    drawn: list[Candidate] = []
    for kind, number in wanted.items():
        available = sum(map(len, buckets[kind].values()))
        if available < number:
            most = int(available / MIX[kind])
            raise InputError(
                f"--{split}_questions {size} needs {number} {kind} questions, there are {available}; give at most {most}"
            )
        drawn += _in_turn(list(buckets[kind].values()), number, rng)
    rng.shuffle(drawn)
    return drawn


def _in_turn(buckets: list[list[Candidate]], number: int, rng: Random) -> list[Candidate]:
    for bucket in buckets:
        rng.shuffle(bucket)
    rng.shuffle(buckets)
    rounds = max(map(len, buckets), default=0)
    return [bucket[i] for i in range(rounds) for bucket in buckets if i < len(bucket)][:number]


def _numbered(split: str, drawn: list[Candidate]) -> list[Candidate]:
    return [replace(c, question=replace(c.question, id=f"facts-{split}-{n:05d}")) for n, c in enumerate(drawn)]
