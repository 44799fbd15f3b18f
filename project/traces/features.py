"""What is known of a trace as columns, which filters name and `seeker data show --stats` draws."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from project.answers import normalise_answer
from project.model_cache import fast_tokenizer
from project.records import Row, Trace
from project.traces.table import question_group, step_text

if TYPE_CHECKING:
    import polars as pl

COSTLY = ("language", "tokens")
"""Columns that are worked out only where they are asked for."""


def features(traces: Sequence[Trace], costly: Collection[str] = (), tokenizer: str | None = None) -> pl.DataFrame:
    """Return one row a trace.

    | column | |
    |---|---|
    | `source`, `group` | where it comes from; the digest of its normalised question |
    | `correct` | whether the answer is known to be right; null is not known |
    | `answered` | it ends with an answer |
    | `answer_found` | some right answer stands in some result, both normalised |
    | `searches`, `results`, `errors`, `malformed` | steps; `errors` are results that say that the tool failed |
    | `turns` | searches, answers and malformed steps |
    | `words`, `chars` | of the question and all steps |
    | `tokens` | the same in tokens of a tokenizer, without the dialect's tags |
    | `language` | of the question and what the agent wrote, as ISO 639-1 code: en, zh |

    Args:
        traces: what is told of.
        costly: which of `language` and `tokens` to work out.
        tokenizer: a model's folder, or its name on the hub, whose tokens are counted; by default the default model.

    Raises:
        InputError: the tokenizer cannot be had.
    """
    import polars as pl

    schema = {
        "source": pl.String,
        "correct": pl.Boolean,
        "answered": pl.Boolean,
        "answer_found": pl.Boolean,
        "turns": pl.Int64,
        "searches": pl.Int64,
        "results": pl.Int64,
        "errors": pl.Int64,
        "malformed": pl.Int64,
        "words": pl.Int64,
        "chars": pl.Int64,
        "group": pl.String,
    }
    table = pl.DataFrame([_features(trace) for trace in traces], schema=schema)
    if "language" in costly:
        table = table.with_columns(pl.Series("language", [language(trace) for trace in traces], pl.String))
    if "tokens" in costly:
        table = table.with_columns(pl.Series("tokens", count_tokens(traces, tokenizer), pl.Int64))
    return table


def _features(trace: Trace) -> Row:
    texts = trace_texts(trace)
    found = normalise_answer("\n".join(step_text(step) for step in trace.steps if step.type == "search_result"))
    answers = [normalise_answer(answer) for answer in trace.answers]
    return {
        "source": trace.source,
        "correct": trace.correct,
        "answered": trace.steps[-1].type == "answer",
        "answer_found": any(f" {answer} " in f" {found} " for answer in answers if answer),
        "turns": sum(step.type in ("search", "answer", "other") for step in trace.steps),
        "searches": sum(step.type == "search" for step in trace.steps),
        "results": sum(step.type == "search_result" for step in trace.steps),
        "errors": sum(bool(step.error) for step in trace.steps),
        "malformed": sum(step.type == "other" for step in trace.steps),
        "words": sum(len(text.split()) for text in texts),
        "chars": sum(map(len, texts)),
        "group": question_group(trace.question),
    }


def trace_texts(trace: Trace) -> list[str]:
    """Return what a trace says: its question, and each step."""
    return [trace.question, *(step_text(step) for step in trace.steps)]


def language(trace: Trace) -> str:
    """Return the likeliest of 97 languages of the question and what the agent wrote (langid, Lui and Baldwin 2012)."""
    import py3langid

    own = [" ".join((step.content, *step.queries)) for step in trace.steps if step.type != "search_result"]
    return str(py3langid.classify("\n".join((trace.question, *own)))[0])


def count_tokens(traces: Sequence[Trace], tokenizer: str | None) -> list[int]:
    """Return the tokens of each trace's question and steps."""
    encoder = fast_tokenizer(tokenizer)
    texts = [[text.encode(errors="replace").decode() for text in trace_texts(trace)] for trace in traces]  # no half surrogates
    return [sum(len(one.ids) for one in encoder.encode_batch_fast(said, add_special_tokens=False)) for said in texts]
