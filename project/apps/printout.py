r"""What `seeker data show` prints with: a console, tables, and a sample's tokens by span kind and weight.

In a terminal the text flows as the model reads it, in the colour of its kind; what is not trained is dim, and a weight other
than 1 stands before its run as `×1.5`. Without colours every run of one kind and weight is a line that says the same:
`[think w=1.5 n=12] …`, in which a line break is written `\n`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from project.records import SpanKind
from project.rendering import KINDS, Sample

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

KIND_STYLES: Mapping[SpanKind, str] = {
    SpanKind.SYSTEM: "white",
    SpanKind.USER: "blue",
    SpanKind.HEADER: "bright_black",
    SpanKind.THINK: "magenta",
    SpanKind.SEARCH: "cyan",
    SpanKind.DECISION: "red",
    SpanKind.SUMMARY: "yellow",
    SpanKind.ANSWER: "green",
    SpanKind.TEXT: "bright_white",
    SpanKind.RESULT: "bright_blue",
    SpanKind.END: "bright_magenta",
}
PIPED_WIDTH = 160


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring tokens of one kind and weight."""

    kind: SpanKind
    weight: float
    tokens: int
    text: str


@dataclass(slots=True)
class Tally:
    """The tokens of one kind."""

    tokens: int = 0
    trained: int = 0
    weight: float = 0.0
    """The sum of their weights."""
    least: float = float("inf")
    """The smallest weight of one of them."""
    most: float = 0.0


def make_console() -> Console:
    """Return a console on standard output, wide enough for tables where that is no terminal."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=PIPED_WIDTH)


def has_colours(console: Console) -> bool:
    """Return whether a colour would be seen: not in a pipe, nor with NO_COLOR or TERM=dumb."""
    return console.color_system is not None and not console.no_color


def print_table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a table whose first column is on the left and whose numbers are on the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=Text(title), title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    console.print(table)


def print_text(console: Console, text: str, style: str = "") -> None:
    """Print a text as it stands: no markup is read from it, and no line is broken or cut."""
    from rich.text import Text

    console.print(Text(visible(text), style), soft_wrap=True)


def visible(text: str, keep: str = "\n\t") -> str:
    r"""Write what has no glyph as Python does (`\x1b`, `\u200b`), so that a passage cannot steer the terminal."""
    return "".join(char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text)


def runs(sample: Sample, tokenizer: Any) -> Iterator[Run]:  # noqa: ANN401 - any tokenizer of transformers
    """Yield a sample's tokens as runs, in order."""
    start = 0
    for (kind, weight), found in groupby(zip(sample.kinds, sample.weights, strict=True)):
        end = start + len(list(found))
        text = tokenizer.decode(sample.ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        yield Run(KINDS[kind], weight, end - start, text)
        start = end


def print_sample(console: Console, sample: Sample, tokenizer: Any) -> None:  # noqa: ANN401
    """Print a head line and the sample's text, kind and weight of each token to be seen."""
    trained = sum(weight > 0 for weight in sample.weights)
    head = f"sample {sample.id}: {len(sample.ids):,} tokens, {trained:,} trained ({trained / len(sample.ids):.1%})"
    print_text(console, f"\n{head}, weight {sum(sample.weights):g}", "bold")
    if has_colours(console):
        console.print(coloured(runs(sample, tokenizer)), soft_wrap=True)
    else:
        for line in lines(runs(sample, tokenizer)):
            print_text(console, line)


def lines(found: Iterable[Run]) -> Iterator[str]:
    """Yield a line a run; a header, with which a message begins, has an empty line before it."""
    for run in found:
        if run.kind is SpanKind.HEADER:
            yield ""
        text = visible(run.text.replace("\\", "\\\\"), keep="")
        yield f"[{run.kind} w={run.weight:g} n={run.tokens}] {text}"


def coloured(found: Iterable[Run]) -> Text:
    """Return the runs as one text in colours: dim where it is not trained, the weight before it where that is not 1."""
    from rich.text import Text

    text = Text()
    for run in found:
        style = KIND_STYLES[run.kind]
        if run.weight not in (0, 1):
            text.append(f"×{run.weight:g}", f"reverse {style}")
        text.append(visible(run.text), style if run.weight else f"dim {style}")
    return text


def tally(samples: Iterable[Sample]) -> dict[SpanKind, Tally]:
    """Return the tokens of each kind, the kinds in their order and only those that there are."""
    found = [Tally() for _ in KINDS]
    for sample in samples:
        for kind, weight in zip(sample.kinds, sample.weights, strict=True):
            one = found[kind]
            one.tokens += 1
            one.trained += weight > 0
            one.weight += weight
            one.least, one.most = min(one.least, weight), max(one.most, weight)
    return {kind: one for kind, one in zip(KINDS, found, strict=True) if one.tokens}


def merged(first: Tally, second: Tally) -> Tally:
    """Return the tally of the tokens of both."""
    return Tally(
        first.tokens + second.tokens,
        first.trained + second.trained,
        first.weight + second.weight,
        min(first.least, second.least),
        max(first.most, second.most),
    )


def print_kinds(console: Console, tallies: Mapping[SpanKind, Tally]) -> None:
    """Print the legend: each kind in its colour, its weight, its tokens, and its share of the trained weight."""
    from rich.text import Text

    tokens, trained = (sum(getattr(one, name) for one in tallies.values()) for name in ("tokens", "trained"))
    weight = sum(one.weight for one in tallies.values())
    rows: list[tuple[str | Text, ...]] = []
    for kind in KINDS:
        if one := tallies.get(kind):
            each = f"{one.most:g}" if one.least == one.most else f"{one.least:g}–{one.most:g}"
            numbers = (f"{one.tokens:,}", f"{one.trained:,}", f"{one.weight:,.10g}", share(one.weight, weight))
            rows.append((Text(kind, KIND_STYLES[kind]), each, *numbers))
    rows.append(("all", "", f"{tokens:,}", f"{trained:,}", f"{weight:,.10g}", share(weight, weight)))
    columns = ("kind", "weight of a token", "tokens", "trained", "trained weight", "share of it")
    print_table(console, "tokens by span kind", columns, rows)


def share(part: float, whole: float) -> str:
    """Return a part in per cent of the whole."""
    return f"{part / whole:.1%}" if whole else "-"
