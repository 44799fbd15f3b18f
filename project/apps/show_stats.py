"""`seeker data show FILE --stats true`: what a whole file of conversations, traces or step samples holds.

Every row is counted once: as a conversation that was rendered, as a trace (a step sample counts as the trace of its context
and target), or under the reason why it is neither. Percentiles are nearest ranks, so each is a value of the file.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from project.apps.printout import Tally, merged, print_kinds, print_table, print_text, share, tally
from project.dialects import Dialect
from project.errors import InputError
from project.records import Conversation, SpanKind, Trace
from project.rendering import Renderer
from project.streams import ROW_ERRORS
from project.traces.features import features
from project.traces.steps import StepSample
from project.traces.table import uniform

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console

PERCENTILES = {"min": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "max": 1.0}
BINS = 10
BAR = 40
"""Characters of a histogram's longest bar."""
SHOWN_REASONS = 20


@dataclass
class Statistics:
    """What the rows of a file add up to."""

    reasons: Counter[str] = field(default_factory=Counter)
    """Why rows could not be used."""
    tokens: list[int] = field(default_factory=list)
    """Of each sample."""
    turns: list[int] = field(default_factory=list)
    """Of each conversation."""
    kinds: dict[SpanKind, Tally] = field(default_factory=dict)
    balance: dict[str, Counter[str]] = field(default_factory=dict)
    """By `first turn`, `phase` and `source`, conversations of each class."""
    traces: list[Trace] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """How many rows were read."""
        return self.reasons.total() + len(self.turns) + len(self.traces)

    def add_conversation(self, conversation: Conversation, renderer: Renderer) -> None:
        """Add a conversation; `RenderingError` where it cannot be rendered, and then it adds nothing."""
        samples = renderer.samples(conversation)
        for kind, one in tally(samples).items():
            self.kinds[kind] = merged(self.kinds.get(kind, Tally()), one)
        self.tokens += [len(sample.ids) for sample in samples]
        self.turns.append(conversation.assistant_turns)
        classes = {name: str(conversation.extra_info.get(name) or "(none)") for name in ("phase", "source")}
        for name, value in {"first turn": first_turn(conversation, renderer.dialect), **classes}.items():
            self.balance.setdefault(name, Counter())[value] += 1


def print_statistics(
    console: Console,
    path: Path,
    records: Iterable[Conversation | Trace | StepSample | str],
    make_renderer: Callable[[], Renderer],
) -> None:
    """Print the statistics of records; a string stands for a row that is none, and says why.

    Raises:
        InputError: none of the rows can be used, or there is no tokenizer to render conversations with.
    """
    found = collect(records, make_renderer)
    if found.reasons.total() == found.rows:
        reason, rows = found.reasons.most_common(1)[0]
        raise InputError(f"none of the {found.rows} rows of {path} can be used; {rows} for this reason: {reason}")
    counts = {"rows": found.rows}
    if found.turns:
        counts |= {"conversations": len(found.turns), "samples": len(found.tokens)}
    if found.traces:
        counts |= {"traces": len(found.traces)}
    counts |= {"rows that could not be used": found.reasons.total()}
    print_text(console, str(path))
    print_table(console, "rows", ("what", "count"), [(name, f"{count:,}") for name, count in counts.items()])
    if found.turns:
        _print_conversations(console, found)
    if found.traces:
        _print_traces(console, features(found.traces))
    if found.reasons:
        _print_reasons(console, found.reasons)


def collect(records: Iterable[Conversation | Trace | StepSample | str], make_renderer: Callable[[], Renderer]) -> Statistics:
    """Return the statistics of records; the renderer is made with the first conversation."""
    found = Statistics()
    for record in records:
        if isinstance(record, str):
            found.reasons[plain_reason(record)] += 1
            continue
        renderer = make_renderer() if isinstance(record, Conversation) else None
        try:
            if isinstance(record, Conversation):
                assert renderer is not None
                found.add_conversation(record, renderer)
            else:
                found.traces.append(uniform(_as_trace(record)))
        except (InputError, *ROW_ERRORS) as error:
            found.reasons[plain_reason(str(error), record.id)] += 1
    return found


def _as_trace(record: Trace | StepSample) -> Trace:
    if isinstance(record, Trace):
        return record
    steps = (*record.context, *record.target)
    return Trace(record.id, record.question, record.answers, steps, record.correct, record.source)


def plain_reason(message: str, ident: str = "") -> str:
    """Return a message without the record's id and with N for its numbers, so that equal reasons are counted together."""
    if ident:
        message = re.sub(rf" '{re.escape(ident)}(#\d+)?'", "", message)
    return re.sub(r"\b[1-9]\d*\b", "N", message)


def first_turn(conversation: Conversation, dialect: Dialect) -> str:
    """Return `searches` or `answers`: by `extra_info.needs_search` where that is known, else by the agent's first message."""
    known = conversation.extra_info.get("needs_search")
    if isinstance(known, bool):
        return "searches" if known else "answers"
    message = next(message for message in conversation.messages if message.role == "assistant")
    action = dialect.parse(message.content)
    if message.tool_calls or action.queries:
        return "searches"
    return "answers" if action.answer is not None else "neither"


def percentiles(values: Iterable[int]) -> dict[str, int]:
    """Return the nearest-rank percentiles: of 1, 2, 3, 4 the median is 2, the smallest value that half do not exceed."""
    ordered = sorted(values)
    return {name: ordered[max(math.ceil(part * len(ordered)) - 1, 0)] for name, part in PERCENTILES.items()}


def histogram(values: Sequence[int]) -> list[str]:
    """Return a line a bin, at most ten bins of equal width: its values, a bar, and how many there are."""
    low, high = min(values), max(values)
    width = math.ceil((high - low + 1) / BINS)
    counts = Counter((value - low) // width for value in values)
    labels = [f"{start}" if width == 1 else f"{start}-{start + width - 1}" for start in range(low, high + 1, width)]
    space, most = max(map(len, labels)), max(counts.values())
    bars = ["#" * math.ceil(BAR * counts[place] / most) for place in range(len(labels))]
    return [
        " ".join(filter(None, (f"  {label:>{space}} |", bar, f"{counts[place]:,}")))
        for place, (label, bar) in enumerate(zip(labels, bars, strict=True))
    ]


def _print_conversations(console: Console, found: Statistics) -> None:
    numbers = {"tokens of a sample": found.tokens, "turns of a conversation": found.turns}
    _print_percentiles(console, numbers)
    for name, values in numbers.items():
        print_text(console, "\n".join([name, *histogram(values), ""]))
    print_kinds(console, found.kinds)
    for name, classes in found.balance.items():
        if set(classes) != {"(none)"}:
            _print_classes(console, f"conversations by {name}", classes)


def _print_traces(console: Console, frame: pl.DataFrame) -> None:
    numbers = {f"{name} of a trace": frame[name].to_list() for name in ("searches", "turns", "words")}
    _print_percentiles(console, numbers)
    names = {True: "true", False: "false", None: "not known"}
    for name in ("correct", "answered"):
        _print_classes(console, f"traces by '{name}'", Counter(names[value] for value in frame[name]))


def _print_percentiles(console: Console, numbers: Mapping[str, Sequence[int]]) -> None:
    rows = [(name, *(f"{value:,}" for value in percentiles(values).values())) for name, values in numbers.items()]
    print_table(console, "percentiles", ("what", *PERCENTILES), rows)


def _print_classes(console: Console, title: str, classes: Counter[str]) -> None:
    rows = [(name, f"{count:,}", share(count, classes.total())) for name, count in classes.most_common()]
    print_table(console, title, ("class", "count", "share"), rows)


def _print_reasons(console: Console, reasons: Counter[str]) -> None:
    common = reasons.most_common(SHOWN_REASONS)
    rest = reasons.total() - sum(count for _, count in common)
    others = [(f"{len(reasons) - len(common)} other reasons", rest)] if rest else []
    rows = [(reason, f"{count:,}") for reason, count in chain(common, others)]
    print_table(console, "rows that could not be used", ("reason", "count"), rows)
