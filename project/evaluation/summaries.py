"""Metrics of a summary beside what it summarises: its parts, length, faithfulness, and whether the answer is kept."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence

from project.answers import normalise_answer
from project.traces.summaries import sentences

PARTS = ("think_summary", "information_summary")
_TAG = re.compile(r"</?\w+>")
_QUESTION = re.compile(r"^\s*Question:.*$", re.MULTILINE)
_NUMBER_OR_NAME = re.compile(r"\d+(?:[.,]\d+)*|\b[^\W\d_][\w'’-]*")


def score_summary(
    summary: str, context: Sequence[str], question: str, answers: Iterable[str], reference: str, lengths: tuple[int, int]
) -> dict[str, float]:
    """Return the metrics of a summary; NaN where one does not apply.

    - `summarised`: whether there is one; without one `compression` does not apply.
    - `parts`: share of its two parts, thoughts and information, that are there.
    - `compression`: its tokens a token of the context.
    - `quoted`: share of the sentences of its information that stand in the context to the letter, but for white space and
      the title before them.
    - `unsupported`: share of its numbers and names that neither context nor question holds.
    - `answer_kept`: whether it holds the answer, where the context does and the question does not; yes and no are held by
      anything.
    - `rouge_l`: ROUGE-L's F of the reference (Lin 2004), tags and question left out.

    Args:
        summary: as the agent wrote it, without `<summary>`; empty where it wrote none.
        context: what was thought and read.
        question: whose answer is looked for.
        answers: the right ones.
        reference: the summary that was trained or given.
        lengths: tokens of the summary and of the context.
    """
    return {
        "summarised": float(bool(summary)),
        "parts": sum(f"<{part}>" in summary and f"</{part}>" in summary for part in PARTS) / len(PARTS),
        "compression": lengths[0] / lengths[1] if summary and lengths[1] else math.nan,
        "quoted": quoted(summary, context),
        "unsupported": unsupported(summary, [*context, question]),
        "answer_kept": answer_kept(summary, context, answers, question),
        "rouge_l": rouge_l(summary, reference),
    }


def quoted(summary: str, context: Sequence[str], parts: Sequence[str] = PARTS[1:]) -> float:
    """Return the share of the sentences of a summary's parts, its information, that stand in the context; NaN without one.

    >>> quoted("<information_summary>Oslo: It is cold. It is big.</information_summary>", ["It is cold."])
    0.5
    """
    texts = [text for part in parts for text in re.findall(rf"<{part}>(.*?)(?:</{part}>|$)", summary, re.DOTALL)[:1]]
    said = [sentence for text in texts for line in text.splitlines() for sentence in sentences(line)]
    held = [_squeezed(text) for text in context]
    forms = [(_squeezed(sentence), _squeezed(sentence.partition(": ")[2])) for sentence in said]
    hits = [any(form and form in text for form in both for text in held) for both in forms]
    return sum(hits) / len(hits) if hits else math.nan


def unsupported(summary: str, sources: Sequence[str]) -> float:
    """Return the share of a summary's numbers and names that no source holds; NaN where it has none.

    A name is a word with a capital, and held where the source has it in any case: the first words of sentences are.

    >>> unsupported("Oslo has 700 people.", ["Oslo has 600 people."])
    0.5
    """
    held = {word.casefold() for text in sources for word in _NUMBER_OR_NAME.findall(text)}
    said = [word for word in _NUMBER_OR_NAME.findall(_TAG.sub(" ", summary)) if word[0].isdigit() or word[0].isupper()]
    said = [word for word in said if word != "Question"]
    return sum(word.casefold() not in held for word in said) / len(said) if said else math.nan


def answer_kept(summary: str, context: Sequence[str], answers: Iterable[str], question: str = "") -> float:
    """Return 1.0 or 0.0 where the context holds an answer, and NaN where it holds none, or the question holds it too.

    >>> answer_kept("It is cold in Oslo.", ["Oslo is the capital"], ["Oslo"])
    1.0
    >>> answer_kept("Question: Oslo or Rome?", ["Oslo is the capital"], ["Oslo"], "Oslo or Rome?")
    nan
    """
    read, said, asked = (f" {normalise_answer(text)} " for text in (" ".join(context), summary, question))
    wanted = {f" {normalise_answer(answer)} " for answer in answers} - {" yes ", " no ", "  "}
    known = [answer for answer in wanted if answer in read and answer not in asked]
    return float(any(answer in said for answer in known)) if known else math.nan


def rouge_l(summary: str, reference: str) -> float:
    """Return ROUGE-L's F of what two summaries say, their form and the question left out; NaN without a reference."""
    from torchmetrics.functional.text import rouge_score

    said, expected = (_QUESTION.sub("", _TAG.sub(" ", text)) for text in (summary, reference))
    if not expected.strip():
        return math.nan
    words: Callable[[str], list[str]] = lambda text: re.findall(r"\w+", text.casefold())  # noqa: E731 - ROUGE's own knows ASCII only
    found = rouge_score(said, expected, rouge_keys="rougeL", normalizer=lambda text: text, tokenizer=words)
    return float(found["rougeL_fmeasure"])


def _squeezed(text: str) -> str:
    return " ".join(text.split()).rstrip(" .,;")
