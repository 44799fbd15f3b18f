"""The questions that a report shows: what was asked, and for each of the results what was said, thought, searched and read.

Messages of both dialects become cards of parts (thought, search, result, answer …), without the tags that told them apart.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from project.dialects import FOLD_REQUEST, assistant_spans, is_result
from project.errors import InputError
from project.evaluation.report_data import Results, whole_rows
from project.records import Message, Row, SpanKind, ToolCall

TEXTS = {
    "reference": "reference summary",
    "own_turn": "turn after its own summary",
    "given_turn": "turn after the reference summary",
    "full_turn": "turn after the whole context",
}
"""Columns of summary results that are shown after the messages, whose last is the agent's own summary."""
_DOCUMENT = re.compile(r"^(Doc \d+) \(Title: (.*)\)$", re.MULTILINE)
_TAGS = re.compile(r"^\s*<(?P<tag>\w+)>\s*|\s*</\w+>\s*$")


@dataclass(frozen=True)
class Part:
    """A run of a message: `kind` is a span kind's name, `label` says it to people."""

    kind: str
    label: str
    text: str


@dataclass(frozen=True)
class Card:
    """A message."""

    role: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Side:
    """A question in one of the results."""

    name: str
    prediction: str | None
    finish: str
    sample: str
    """Which of several samples is shown, empty for the only one."""
    passages: tuple[tuple[str, bool], ...]
    """Ids of the gold passages, and whether they were found."""
    scores: tuple[tuple[str, float], ...]
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Shown:
    """A question with what each of the results holds of it."""

    id: str
    kind: str
    question: str
    answers: tuple[str, ...]
    sides: tuple[Side, ...]


def shown_questions(results: Sequence[Results], ids: Iterable[str], metrics: Sequence[str]) -> dict[str, Shown]:
    """Return questions by id; of several samples the one is shown whose first metric is nearest to the question's mean."""
    wanted = set(ids)
    picked = [_typical(one, wanted, metrics[0] if metrics else None) for one in results]
    rows = [whole_rows(one, {place for place, _ in of.values()}) for one, of in zip(results, picked, strict=True)]
    found = {}
    for ident in wanted:
        of_question = [of_rows[of[ident][0]] for of_rows, of in zip(rows, picked, strict=True)]
        sides = tuple(_side(one, row, of[ident][1]) for one, row, of in zip(results, of_question, picked, strict=True))
        first = of_question[0]
        answers = tuple(map(str, first["answers"] or ()))
        found[ident] = Shown(ident, str(first["kind"] or ""), str(first["question"]), answers, sides)
    return found


def _typical(results: Results, ids: set[str], metric: str | None) -> dict[str, tuple[int, str]]:
    """Return each question's row and which of its samples that is."""
    places: dict[str, list[int]] = {ident: [] for ident in ids}
    for place, ident in enumerate(results.columns["question_id"]):
        if ident in places:
            places[ident].append(place)
    picked = {}
    for ident, of in places.items():
        values = np.nan_to_num(results.scores[metric][of]) if metric else np.zeros(len(of))
        nearest = of[int(np.argmin(np.abs(values - values.mean())))]
        picked[ident] = (nearest, f"sample {of.index(nearest) + 1} of {len(of)}" if len(of) > 1 else "")
    return picked


def _side(results: Results, row: Row, sample: str) -> Side:
    scores = ((name, row.get(name)) for name in results.scores if not name.startswith("finish_"))
    known = tuple((name, float(value)) for name, value in scores if value is not None and not math.isnan(value))
    retrieved = set(row.get("retrieved") or ())
    passages = tuple((str(ident), ident in retrieved) for ident in row.get("evidence") or ())
    try:
        cards = tuple(_cards(row))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{results.path}, question '{row['question_id']}': {error}; test again") from error
    return Side(results.name, row.get("prediction"), str(row.get("finish") or ""), sample, passages, known, cards)


def _cards(row: Row) -> Iterator[Card]:
    for message in row.get("messages") or ():
        yield message_card(Message.from_row(message))
    for column, label in TEXTS.items():
        if row.get(column):
            yield Card(label, tuple(written_parts(str(row[column]), "summary" if column == "reference" else "text")))


def message_card(message: Message) -> Card:
    """Return a message as a card; its role is `results` where it carries what the search tool returned."""
    if is_result(message):
        return Card("results", tuple(result_parts(message.content)))
    if message.content.strip() == FOLD_REQUEST:
        return Card(message.role, (Part("user", "", "(asked to fold what was read into a summary)"),))
    kind = "text" if message.role == "assistant" else message.role
    calls = (Part(str(SpanKind.SEARCH), call.name, _arguments(call)) for call in message.tool_calls)
    return Card(message.role, (*written_parts(message.content, kind), *calls))


def written_parts(text: str, plain: str) -> Iterator[Part]:
    """Yield the blocks of a text, tags taken off; `plain` is the kind of what stands outside of them.

    >>> [*written_parts("<think>Hm.</think><search>Oslo</search>", "text")]
    [Part(kind='think', label='think', text='Hm.'), Part(kind='search', label='search', text='Oslo')]
    """
    for start, end, kind in assistant_spans(text):
        block = text[start:end]
        if kind is SpanKind.TEXT:
            if block.strip():
                yield Part(plain, "", block.strip())
        elif kind is SpanKind.DECISION:
            yield Part(str(kind), "decision", block.strip())
        elif "<tool_call>" in block:
            yield Part(str(kind), *_call(_TAGS.sub("", block)))
        else:
            is_closed = re.search(r"</\w+>\s*$", block)
            yield Part(str(kind), str(kind) if is_closed else f"{kind} (never closed)", _TAGS.sub("", block))


def result_parts(text: str) -> Iterator[Part]:
    """Yield each document of a message of results, its title for a label; what is no document as it stands."""
    for block in re.split(r"</?information>", text):
        before, *documents = _DOCUMENT.split(block)
        if before.strip():
            yield Part(str(SpanKind.RESULT), "", before.strip())
        for name, title, body in zip(documents[::3], documents[1::3], documents[2::3], strict=True):
            yield Part(str(SpanKind.RESULT), f"{name}: {title}" if title else name, body.strip())


def _call(text: str) -> tuple[str, str]:
    """Return the tool and the arguments of a call that the agent wrote as JSON; the text as it stands where it is none."""
    try:
        call = json.loads(text)
        return str(call["name"]), _arguments(ToolCall(call["name"], call["arguments"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return "call that is no JSON", text


def _arguments(call: ToolCall) -> str:
    query = call.arguments.get("query") if isinstance(call.arguments, dict) and len(call.arguments) == 1 else None
    return query if isinstance(query, str) else json.dumps(call.arguments, ensure_ascii=False)
