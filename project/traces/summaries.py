"""`seeker data summaries`: step samples -> the same with an extractive summary of the context. No language model.

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
from pathlib import Path

from project.answers import normalise_answer
from project.dialects import NO_RESULTS, clean, write_summary
from project.errors import InputError, SeekerError
from project.files import read_records, write_records
from project.records import Step
from project.traces.steps import StepSample
from project.traces.table import as_paths, print_counts, refuse_same_file

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
    """A sentence of a result, where it stands, and its words."""

    text: str
    title: str
    document: int
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary and the pieces it was made of."""

    text: str
    pieces: tuple[str, ...]


def summaries(input_file: list[Path] | Path, output_file: Path, max_words: int = MAX_WORDS) -> None:
    """Add an extractive summary of its context to each step sample.

    Args:
        input_file: one or several sample files, as seeker data steps writes them.
        output_file: the samples with summaries to write (.jsonl, .jsonl.gz or .parquet).
        max_words: at most so many words of thoughts and results in a summary, a quarter of them thoughts.
    """
    paths = as_paths(input_file)
    refuse_same_file(paths, output_file)
    samples = [sample for path in paths for sample in read_records(path, StepSample.from_row)]
    written = [with_summary(sample, max_words) for sample in samples]
    write_records(output_file, written)
    counts = summary_counts(written)
    print_counts("summaries", counts | {"samples written": len(written)})


def with_summary(sample: StepSample, max_words: int = MAX_WORDS) -> StepSample:
    """Return the sample with the summary of its context; a first decision has no context and gets none."""
    if not sample.context:
        return replace(sample, summary="")
    return replace(sample, summary=summarise(sample.question, sample.context, max_words).text)


def summary_counts(samples: Sequence[StepSample]) -> dict[str, int]:
    """Return counts for people: words of contexts and of summaries, and what has nothing to summarise."""
    told = [sample for sample in samples if sample.summary]
    return {
        "samples without a context": len(samples) - len(told),
        "words of contexts": sum(len(text.split()) for sample in told for text in context_texts(sample.context)),
        "words of summaries": sum(len(sample.summary.split()) for sample in told),
    }


def summarise(question: str, context: Sequence[Step], max_words: int = MAX_WORDS) -> Summary:
    """Return a summary made only of the question and pieces that stand in the context to the letter."""
    if max_words < 8:
        raise InputError(f"--max_words is {max_words}; a summary needs at least 8")
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
    scores = bm25(_wanted(question, context), [sentence.words for sentence in found])
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
        for text in sentences(clean(document.content)):
            if text not in seen:
                seen.add(text)
                yield Sentence(text, title, number, tuple(normalise_answer(f"{title} {text}").split()))


def _wanted(question: str, context: Iterable[Step]) -> dict[str, float]:
    """Return the words to look for with their weights: the question's, then the agent's own."""
    own = " ".join(" ".join((step.content, *step.queries)) for step in context if step.type in ("reasoning", "search"))
    return dict.fromkeys(normalise_answer(own).split(), OWN_WORDS) | dict.fromkeys(normalise_answer(question).split(), 1.0)


def bm25(wanted: dict[str, float], texts: Sequence[Sequence[str]]) -> list[float]:
    """Return the BM25 score of each text (a list of words) for the weighted words."""
    if not texts:
        return []
    average = max(sum(map(len, texts)) / len(texts), 1.0)
    holding = Counter(word for words in texts for word in set(words) if word in wanted)
    rarity = {word: math.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) for word, n in holding.items()}
    scores = []
    for words in texts:
        counts = Counter(word for word in words if word in rarity)
        length = K1 * (1 - B + B * len(words) / average)
        scores.append(sum(wanted[w] * rarity[w] * n * (K1 + 1) / (n + length) for w, n in counts.items()))
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
