"""Extractive summaries (`seeker data summaries`): step samples -> the same with a summary of the context. No language model.

The summariser is given the question and the context, never the target, so it cannot leak the next step (DESIGN §8.12).
It keeps the agent's latest sentences and those sentences of the results that score best (BM25, Robertson 1994) against
the question and the agent's own words. Each is checked to stand in the context to the letter.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path

from project.answers import normalise_answer
from project.dialects import NO_RESULTS, clean, write_summary
from project.errors import InputError, SeekerError
from project.records import Row, Step
from project.streams import Made, as_paths, each, print_counts, run
from project.traces.steps import StepSample

MAX_WORDS = 150
K1, B = 1.2, 0.75
OWN_WORDS = 0.5
"""What a word of the agent's own thoughts and queries counts beside one of the question."""
_SENTENCE_END = re.compile(
    r"""(?<=[.!?])(?<!\b[A-Z]\.)(?<!\b(?:St|Dr|Mr|Ms|vs|No)\.)(?<!\bMrs\.)["')\]]?\s+(?=["'(\[*#]*[^\Wa-z])|\n+"""
)
"""The end of a sentence: not after an initial or a title, and before a capital, a digit or a letter without case."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a result, where it stands, and how often it and its title hold which words."""

    text: str
    title: str
    document: int
    counts: Counter[str]


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary and the pieces it was made of."""

    text: str
    pieces: tuple[str, ...]


def summaries(
    input_file: list[Path] | Path,
    output_file: Path,
    max_words: int = MAX_WORDS,
    strict: bool = False,
    force: bool = False,
) -> None:
    """Add an extractive summary of its context to each step sample.

    Args:
        input_file: one or several sample files, as seeker data steps writes them.
        output_file: the samples with summaries to write (.jsonl, .jsonl.gz or .parquet).
        max_words: at most so many words of thoughts and results in a summary, a quarter of them thoughts.
        strict: stop at the first row that is no sample, instead of listing it in OUTPUT.rejected.jsonl.
        force: replace an output that was made otherwise.
    """
    check_max_words(max_words)
    program = partial(each, partial(_summarise_row, max_words))
    outputs, parameters = {"samples": output_file}, {"max_words": max_words}
    counts = run("seeker data summaries", program, as_paths(input_file), outputs, parameters, strict=strict, force=force)
    print_counts("summaries", counts)


def check_max_words(max_words: int) -> None:
    """Refuse a summary too short to say anything."""
    if max_words < 8:
        raise InputError(f"--max_words is {max_words}; a summary needs at least 8")


def _summarise_row(max_words: int, row: Row, made: Made) -> None:
    sample = with_summary(StepSample.from_row(row), max_words)
    made.counts["samples without a context"] += not sample.context
    made.counts["words of contexts"] += sum(len(text.split()) for text in context_texts(sample.context))
    made.counts["words of summaries"] += len(sample.summary.split())
    made.put("samples", sample.to_row())


def with_summary(sample: StepSample, max_words: int = MAX_WORDS) -> StepSample:
    """Return the sample with the summary of its context, and of the context before; without a result there is none."""
    before = context_before(sample.context)
    previous, summary = (_summary(sample.question, context, max_words) for context in (before, sample.context))
    return replace(sample, summary=summary, previous_summary=previous)


def context_before(context: tuple[Step, ...]) -> tuple[Step, ...]:
    """Return a context up to the result before its last one."""
    ends = [number for number, step in enumerate(context, 1) if step.type == "search_result"]
    return context[: ends[-2]] if len(ends) > 1 else ()


@lru_cache(maxsize=16)
def _summary(question: str, context: tuple[Step, ...], max_words: int) -> str:
    """Return the summary of a context; that of one sample is the previous one of the next, which mostly comes right after."""
    return summarise(question, context, max_words).text if context else ""


def summarise(question: str, context: Sequence[Step], max_words: int = MAX_WORDS) -> Summary:
    """Return a summary made only of the question and pieces that stand in the context to the letter."""
    thoughts = _latest_thoughts(context, max_words // 4)
    facts = _best_facts(question, context, max_words - max_words // 4)
    titles = [fact.title for fact in facts if fact.title]
    pieces = (*thoughts, *(fact.text for fact in facts), *titles)
    texts = context_texts(context)
    if strange := next((piece for piece in pieces if not any(piece in text for text in texts)), None):
        raise SeekerError(f"the summary of '{question}' holds '{strange}', which its context does not; this is a defect")
    return Summary(write_summary(question, " ".join(thoughts), _layout(facts) or NO_RESULTS), pieces)


def context_texts(context: Iterable[Step]) -> list[str]:
    """Return every text that the agent had written or read."""
    return [
        clean(text)
        for step in context
        for text in (step.content, *step.queries, *(part for d in step.documents for part in (d.title, d.content)))
        if text
    ]


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, each to the letter as it stands there."""
    starts = [0, *(match.end() for match in _SENTENCE_END.finditer(text))]
    return [found for a, b in zip(starts, [*starts[1:], len(text)], strict=True) if (found := text[a:b].strip())]


def _cut(text: str, words: int) -> str:
    """Return the text's first words, spaces between them to the letter."""
    matches = list(re.finditer(r"\S+", text))
    return text if len(matches) <= words else text[: matches[words - 1].end()]


def _latest_thoughts(context: Sequence[Step], budget: int) -> list[str]:
    """Return the latest sentences that the agent thought, in their order, within a budget of words."""
    thoughts = [s for step in context if step.type == "reasoning" for s in sentences(clean(step.content))]
    chosen: list[str] = []
    for sentence in dict.fromkeys(reversed(thoughts)):
        size = len(sentence.split())
        if size > budget:
            break
        chosen.insert(0, sentence)
        budget -= size
    return chosen or [_cut(sentence, budget) for sentence in thoughts[-1:]]


def _best_facts(question: str, context: Sequence[Step], budget: int) -> list[Sentence]:
    """Return the sentences of results that say most of what was asked, in the order they were read."""
    found = list(_result_sentences(context))
    scores = bm25(_wanted(question, context), [sentence.counts for sentence in found])
    order = sorted(range(len(found)), key=lambda number: -scores[number])
    chosen: list[int] = []
    left = budget
    for number in order:
        size = len(found[number].text.split()) + len(found[number].title.split())
        if size <= left:
            chosen.append(number)
            left -= size
    if found and not chosen:
        return [replace(found[order[0]], text=_cut(found[order[0]].text, budget), title="")]
    return [found[number] for number in sorted(chosen)]


def _result_sentences(context: Iterable[Step]) -> Iterator[Sentence]:
    """Yield the sentences of all results once, in the order they were read."""
    seen: set[str] = set()
    documents = (d for step in context if step.type == "search_result" for d in step.documents)
    for number, document in enumerate(documents):
        title = clean(document.title).strip()
        for text, counts in _document_sentences(title, document.content):
            if text not in seen:
                seen.add(text)
                yield Sentence(text, title, number, counts)


@lru_cache(maxsize=4096)
def _document_sentences(title: str, content: str) -> list[tuple[str, Counter[str]]]:
    """Return a document's sentences, each with its words and the title's; the samples of a trace share their documents."""
    return [(text, Counter(normalise_answer(f"{title} {text}").split())) for text in sentences(clean(content))]


def _wanted(question: str, context: Iterable[Step]) -> dict[str, float]:
    """Return the words to look for with their weights: the question's, then the agent's own."""
    own = " ".join(" ".join((step.content, *step.queries)) for step in context if step.type in ("reasoning", "search"))
    return dict.fromkeys(normalise_answer(own).split(), OWN_WORDS) | dict.fromkeys(normalise_answer(question).split(), 1.0)


def bm25(wanted: dict[str, float], texts: Sequence[Counter[str]]) -> list[float]:
    """Return the BM25 score of each text (how often it holds which words) for the weighted words."""
    if not texts:
        return []
    sizes = [counts.total() for counts in texts]
    average = max(sum(sizes) / len(texts), 1.0)
    shared = [[word for word in counts if word in wanted] for counts in texts]
    holding = Counter(chain.from_iterable(shared))
    rarity = {word: math.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) for word, n in holding.items()}
    scores = []
    for counts, words, size in zip(texts, shared, sizes, strict=True):
        length = K1 * (1 - B + B * size / average)
        scores.append(sum(wanted[w] * rarity[w] * counts[w] * (K1 + 1) / (counts[w] + length) for w in words))
    return scores


def _layout(facts: Sequence[Sentence]) -> str:
    """Return the sentences with each document's title once before its own."""
    lines: list[str] = []
    for position, fact in enumerate(facts):
        if position and facts[position - 1].document == fact.document:
            lines[-1] += f" {fact.text}"
        else:
            lines.append(f"{fact.title}: {fact.text}" if fact.title else fact.text)
    return "\n".join(lines)
