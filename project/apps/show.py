"""`seeker data show FILE`: one row of a training file as the trainer sees it, or with `stats` what the whole file holds.

A conversation is rendered and tokenised as SFT does it, so that every token shows its kind and weight. A trace or a step
sample shows its steps, and needs no tokenizer. The statistics are in `show_stats.py`, the forms of print in `printout.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from project.apps.printout import KIND_STYLES, make_console, print_kinds, print_sample, print_text, tally
from project.apps.show_stats import print_statistics
from project.dialects import get_dialect
from project.errors import InputError
from project.files import local_file, read_chunks
from project.records import Conversation, DialectName, Row, SpanKind, Step, Trace
from project.rendering import DEFAULT_WEIGHTS, History, Renderer
from project.streams import CHUNK_BYTES, ROW_ERRORS
from project.traces.steps import StepSample

if TYPE_CHECKING:
    from rich.console import Console

Record = Conversation | Trace | StepSample
SHOWN_CHARS = 300
"""Of the text of a step, or of each of its documents."""
STEP_KINDS = {
    "reasoning": SpanKind.THINK,
    "search": SpanKind.SEARCH,
    "search_result": SpanKind.RESULT,
    "answer": SpanKind.ANSWER,
    "other": SpanKind.TEXT,
}
"""The kind whose colour a step has."""


def show(
    input_file: Path,
    number: int = 1,
    model_path: str | None = None,
    dialect: DialectName = "tags",
    history: History = "append",
    weights: dict[str, float] | None = None,
    stats: bool = False,
    limit: int | None = None,
) -> None:
    """Show a row of a training file, each token with its kind and weight, or the whole file's statistics: `data show FILE`.

    Args:
        input_file: conversations, traces or step samples (.jsonl, .json or .parquet; .gz too), here or on the hub.
        number: the row to show, from 1.
        model_path: folder or hub id of the model whose tokenizer and chat template render conversations; the embedded
            SmolLM2-135M-Instruct by default, and tiny-random for one token a byte.
        dialect: how the agent's turns are written; tags or tools.
        history: append, one sample a conversation; or template, one sample a trained turn.
        weights: loss weight per span kind, over the defaults (think 1.5, decision 2, the rest the agent writes 1).
        stats: show the statistics of all rows instead of one row.
        limit: take only the first rows into the statistics.
    """
    if limit is not None and (limit < 1 or not stats):
        raise InputError(f"--limit is {limit}; it is the number of rows, from 1, that --stats true takes")
    path = local_file(input_file)
    console, renderer = make_console(), cache(partial(_renderer, model_path, dialect, history, weights or {}))
    if stats:
        print_statistics(console, path, islice(_records(path), limit), renderer)
        return
    line, record = _numbered(path, number)
    if not isinstance(record, Conversation):
        _print_steps(console, record)
        return
    ready = renderer()
    try:
        _print_conversation(console, record, ready)
    except InputError as error:
        raise InputError(f"{path}, line {line}: {error}") from error


def _renderer(model_path: str | None, dialect: DialectName, history: History, weights: dict[str, float]) -> Renderer:
    from project.modules.policy import load_tokenizer, resolve_model_path

    for kind, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise InputError(f"--weights.{kind} is {weight}; give a finite number from 0")
    style = get_dialect(dialect)
    try:
        tokenizer, _ = load_tokenizer(resolve_model_path(model_path), style)
    except (OSError, ValueError) as error:
        cause = str(error).partition("\n")[0]
        raise InputError(
            f"the tokenizer of {model_path} cannot be loaded ({cause}); give a model folder or a hub id"
        ) from error
    return Renderer(tokenizer, style, history, {**DEFAULT_WEIGHTS, **weights})


def _rows(path: Path) -> Iterator[tuple[int, Row | str, str]]:
    for chunk in read_chunks([path], CHUNK_BYTES):
        yield from chunk.rows()


def _records(path: Path) -> Iterator[Record | str]:
    """Yield every row as a record, or why it is none."""
    for _, row, reason in _rows(path):
        try:
            yield _record(row, reason)
        except ROW_ERRORS as error:
            yield str(error)


def _numbered(path: Path, number: int) -> tuple[int, Record]:
    """Return the line and the record of a row, rows counted from 1."""
    count = 0
    for count, (line, row, reason) in enumerate(_rows(path), 1):
        if count == number:
            try:
                return line, _record(row, reason)
            except ROW_ERRORS as error:
                raise InputError(f"{path}, line {line}: {error}") from error
    raise InputError(f"--number is {number} and {path} holds {count} row{'s' * (count != 1)}; give one from 1 to {count}")


def _record(row: Row | str, reason: str) -> Record:
    """Return what a row is, by the field that only such a row has.

    Raises:
        ValueError: it is no such row, or a field of it is wrong.
    """
    if isinstance(row, str):
        raise ValueError(reason)
    readers: dict[str, Callable[[Row], Record]] = {
        "messages": Conversation.from_row,
        "context": StepSample.from_row,
        "steps": Trace.from_row,
    }
    name = next((name for name in readers if row.get(name) is not None), None)
    if name is None:
        fields = ", ".join(map(str, row)) or "none"
        msg = f"the row has no 'messages', 'steps' or 'context' (its fields: {fields}); give conversations, traces or samples"
        raise ValueError(msg)
    return readers[name](row)


def _print_conversation(console: Console, conversation: Conversation, renderer: Renderer) -> None:
    samples = renderer.samples(conversation)
    tallies = tally(samples)
    tokens, trained = (sum(getattr(one, name) for one in tallies.values()) for name in ("tokens", "trained"))
    fields = {
        "id": conversation.id,
        "question": conversation.question,
        "answers": " | ".join(conversation.answers),
        "group": conversation.group,
        "extra_info": json.dumps(conversation.extra_info, ensure_ascii=False) if conversation.extra_info else "",
        "turns": str(conversation.assistant_turns),
        "samples": str(len(samples)),
        "tokens": f"{tokens:,}",
        "trained": f"{trained:,} ({trained / tokens:.1%})",
    }
    _print_fields(console, fields)
    print_kinds(console, tallies)
    for sample in samples:
        print_sample(console, sample, renderer.tokenizer)


def _print_steps(console: Console, record: Trace | StepSample) -> None:
    fields = {
        "id": record.id,
        "question": record.question,
        "answers": " | ".join(record.answers),
        "source": record.source,
        "correct": "not known" if record.correct is None else str(record.correct).lower(),
    }
    if isinstance(record, Trace):
        _print_fields(console, fields | {"steps": str(len(record.steps))})
        _print_part(console, "steps", record.steps, 1)
        return
    more = {"group": record.group, "result": f"{record.split_index} of {record.total_splits}", "problem": record.problem}
    _print_fields(console, fields | more | {"summary": record.summary, "previous_summary": record.previous_summary})
    _print_part(console, "context", record.context, 1)
    _print_part(console, "target", record.target, len(record.context) + 1)


def _print_fields(console: Console, fields: dict[str, str]) -> None:
    width = max(map(len, fields)) + 2
    for name, value in fields.items():
        print_text(console, f"{name:<{width}}{value or '-'}")


def _print_part(console: Console, title: str, steps: Sequence[Step], first: int) -> None:
    print_text(console, f"\n{title}", "bold")
    for number, step in enumerate(steps, first):
        for line in step_lines(number, step):
            print_text(console, line, KIND_STYLES[STEP_KINDS[step.type]])


def step_lines(number: int, step: Step) -> Iterator[str]:
    """Yield a step's number and type with its text, cut; a result's documents follow, a line each with title and text."""
    head = f"{number:>3} [{step.type}]"
    if step.type == "search":
        yield f"{head} {step.tool or 'search'}: {' | '.join(step.queries)}"
        return
    if step.type != "search_result":
        yield f"{head} {_cut(step.content)}"
        return
    yield f"{head} {len(step.documents)} document{'s' * (len(step.documents) != 1)}"
    if step.error:
        yield f"      error: {_cut(step.error)}"
    for place, document in enumerate(step.documents, 1):
        yield f"      {place}. {document.title or '(no title)'}: {_cut(document.content)}"


def _cut(text: str) -> str:
    """Return a text's first characters on one line."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARS else f"{line[:SHOWN_CHARS]}…"
