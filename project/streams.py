"""A data program: rows in, rows out, in one pass, on all cores, in memory that does not grow with the files.

The files are read in chunks. A program is a pure function of a chunk's rows; processes of their own parse, apply it and
encode what it made, and this one writes that in the rows' order. What cannot be read or is not what the program takes is
listed in `OUTPUT.rejected.jsonl` with file, line and reason, or stops it with `strict`. All outputs appear at the end,
whole, each with its manifest (`manifests.py`), or none does.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, compress
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from project.errors import InputError
from project.files import kind_of, read_chunks
from project.manifests import is_made, plan, refuse_inputs, write_manifests
from project.records import Row
from project.writing import Encoded, Sink, encode

if TYPE_CHECKING:
    from project.files import Chunk

CHUNK_BYTES = 2_000_000
MOST_REASONS = 20
"""Reasons for rejected rows that are counted each by itself: some hold an id or a value."""
ROW_ERRORS = (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError)
"""What a program may raise for a row that it does not take; the message is the reason."""
NO_ROW_USED = "no row of the file could be used"
NOTHING_LEFT = "nothing is left for"


Keys = tuple[str | bytes, ...]


@dataclass(frozen=True, slots=True)
class Marks:
    """What a row is compared by with the rows of all chunks; see `Made.put`."""

    once: Keys
    alike: Keys
    named: tuple[str, Literal["rename", "refuse"]] | None


@dataclass(slots=True)
class Made:
    """What a program made of a chunk."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    """By output."""
    marks: dict[str, list[Marks]] = field(default_factory=dict)
    """For each row, what the rows of all chunks are compared by."""
    counts: Counter[str] = field(default_factory=Counter)
    rejected: list[Row] = field(default_factory=list)

    def put(
        self, output: str, row: Row, *, once: Keys = (), alike: Keys = (), same_id: Literal["", "rename", "refuse"] = ""
    ) -> None:
        """Add a row to an output.

        Args:
            output: the output's name.
            row: a JSON object.
            once: keys; a row that shares one with a row before, which was written, is left out.
            alike: keys; a row that shares one with a row before is counted, and stays.
            same_id: where the row's `id` was written before, it gets `~2`, `~3`, …, or the run stops.
        """
        self.rows.setdefault(output, []).append(row)
        named = (str(row["id"]), same_id) if same_id else None
        self.marks.setdefault(output, []).append(Marks(once, alike, named))

    def add(self, other: Made) -> None:
        """Take over what was made of a further row."""
        self.counts.update(other.counts)
        for name in other.rows:
            self.rows.setdefault(name, []).extend(other.rows[name])
            self.marks.setdefault(name, []).extend(other.marks[name])


@dataclass(frozen=True, slots=True)
class Placed:
    """A row and where it stands."""

    file: Path
    line: int
    row: Row


Program = Callable[[Sequence[Placed], Made], Iterable[tuple[Placed, str]]]
"""Fills `Made` with what a chunk's rows give, and yields the rows that it does not take, each with the reason. It is sent to
other processes: a function of a module, or a `partial` of one."""


def each(make: Callable[[Row, Made], None], rows: Sequence[Placed], made: Made) -> Iterator[tuple[Placed, str]]:
    """Apply a function of one row to each; `partial(each, make)` is a `Program`. A row that raises adds nothing."""
    for placed in rows:
        one = Made()
        try:
            make(placed.row, one)
        except ROW_ERRORS as error:
            yield placed, str(error)
            continue
        made.add(one)


@dataclass(frozen=True, slots=True)
class Result:
    """A chunk's rows, encoded as their outputs are."""

    given: Path
    """The input that it belongs to."""
    encoded: dict[str, Encoded]
    marks: dict[str, list[Marks]]
    counts: Counter[str]
    rejected: list[Row]
    rows: int
    share: float
    """How much of all input ends with this chunk, from 0 to 1."""


def run(
    name: str,
    program: Program,
    inputs: Sequence[Path],
    outputs: Mapping[str, Path],
    parameters: Mapping[str, Any],
    *,
    strict: bool = False,
    force: bool = False,
    full: bool = False,
    chunks: Callable[[Sequence[Path]], Iterator[Readable]] | None = None,
    here: bool = False,
    encoder: Callable[[Sequence[Row], str], Encoded] = encode,
) -> Counter[str] | None:
    """Apply a program to files, and return its counts; None where the outputs are there already, made the same way.

    The counts hold `rows read`, `rows rejected: REASON`, `duplicates left out of OUTPUT`, `duplicates in OUTPUT`, what the
    program counted, and `OUTPUT written`.

    Args:
        name: of the program, for the manifest and the progress bar: `seeker data steps`.
        program: what is done.
        inputs: `.jsonl[.gz]`, `.json[.gz]` or `.parquet` files.
        outputs: `.jsonl[.gz]` or `.parquet` files, by name.
        parameters: what else the outputs depend on, as JSON.
        strict: stop at the first row that is not taken.
        force: replace outputs that were made otherwise.
        full: no output may stay empty; without it not all of them may.
        chunks: reads the inputs; by default files of rows.
        here: apply the program in this process: it need not be one that can be sent.
        encoder: makes of rows what the file of a name holds; a function that can be sent to other processes.

    Raises:
        InputError: an input is missing, empty, or holds no row that the program takes; an output would be an input, is there
            and was made otherwise, would be empty, or does not fit on the disk.
    """
    rejects = rejected_path(next(iter(outputs.values())))
    if chunks is None:
        chunks = chunked
        for path in inputs:
            kind_of(path)
    if is_there(name, inputs, outputs, parameters, strict=strict, force=force):
        return None
    planned = plan(name, parameters, inputs)
    with ExitStack() as stack:
        sinks = {output: stack.enter_context(Sink(path)) for output, path in outputs.items()}
        refused = stack.enter_context(Sink(rejects))
        work = partial(_work, program, encoder, {output: path.name for output, path in outputs.items()})
        read = chunks(inputs)
        results = map(work, read) if here else stack.enter_context(in_processes(name, work, read))
        counts = _write(results, sinks, refused, strict=strict)
        _refuse_empty(sinks, counts, full=full)
        for sink in sinks.values():
            sink.keep()
        if refused.rows:
            refused.keep()
        write_manifests(planned, list(sinks.values()), counts, stack)
    if not refused.rows:
        rejects.unlink(missing_ok=True)
    return counts


def is_there(
    name: str,
    inputs: Sequence[Path],
    outputs: Mapping[str, Path],
    parameters: Mapping[str, Any],
    *,
    strict: bool = False,
    force: bool = False,
) -> bool:
    """Return whether `run` would have nothing to do; see there for the arguments and for what is refused."""
    rejects = rejected_path(next(iter(outputs.values())))
    refuse_inputs((*outputs.values(), rejects), inputs)
    return is_made(plan(name, parameters, inputs), list(outputs.values()), force=force) and not (strict and rejects.exists())


def rejected_path(output: Path) -> Path:
    """Return where the rows that were not taken are listed."""
    return output.with_name(f"{output.name}.rejected.jsonl")


def _write(results: Iterator[Result], sinks: Mapping[str, Sink], refused: Sink, *, strict: bool) -> Counter[str]:
    counts: Counter[str] = Counter()
    read: Counter[Path] = Counter()
    taken: Counter[Path] = Counter()
    first: dict[Path, str] = {}
    reasons: set[str] = set()
    compared = {output: Compared(path.path.name) for output, path in sinks.items()}
    for result in results:
        read[result.given] += result.rows
        taken[result.given] += result.rows - len(result.rejected)
        counts.update(result.counts)
        for row in result.rejected:
            reason = f"{row['file']}, line {row['line']}: {row['reason']}"
            first.setdefault(result.given, reason)
            if strict:
                raise InputError(reason)
            if row["reason"] in reasons or len(reasons) < MOST_REASONS:
                reasons.add(row["reason"])
            counts[f"rows rejected: {row['reason'] if row['reason'] in reasons else 'other reasons'}"] += 1
        if result.rejected:
            refused.write(encode(result.rejected, refused.path.name))
        for output, encoded in result.encoded.items():
            fresh, names = compared[output].look(result.marks[output])
            encoded.rename(names)
            counts[f"duplicates left out of {output}"] += fresh.count(False)
            sinks[output].write(encoded if all(fresh) else encoded.only(fresh))
            _check_disk(sinks[output], result.share)
    for output, sink in sinks.items():
        counts[f"duplicates in {output}"] = compared[output].alike
        counts[f"{output} written"] = sink.rows
    if unread := next((path for path in read if not taken[path]), None):
        raise InputError(f"{first[unread]} ({NO_ROW_USED})")
    return +(Counter({"rows read": read.total()}) + counts)


def _refuse_empty(sinks: Mapping[str, Sink], counts: Mapping[str, int], *, full: bool) -> None:
    empty = [output for output, sink in sinks.items() if not sink.rows]
    if len(empty) == len(sinks) or (full and empty):
        why = ", ".join(f"{count} {what}" for what, count in counts.items() if what != "rows read")
        raise InputError(f"{NOTHING_LEFT} {', '.join(empty)} of {counts['rows read']} rows ({why})")


class Compared:
    """The marks of all rows of an output that were written; 64 bits of each key stand for it."""

    def __init__(self, output: str) -> None:
        self.output = output
        self.alike = 0
        """How many rows share a key with one before, and stay."""
        self._once: set[int] = set()
        self._alike: set[int] = set()
        self._named: Counter[int] = Counter()

    def look(self, marks: Sequence[Marks]) -> tuple[list[bool], dict[int, str]]:
        """Note a chunk's marks; return which rows stay, and those `id`s that must change, by the row's number in the chunk."""
        fresh = [self._is_first(mark) for mark in marks]
        names: dict[int, str] = {}
        for index, mark in compress(enumerate(marks), fresh):
            if mark.named and (name := self._name(*mark.named)) != mark.named[0]:
                names[index] = name
        return fresh, names

    def _is_first(self, mark: Marks) -> bool:
        once, alike = {hash(key) for key in mark.once}, {hash(key) for key in mark.alike}
        if not once.isdisjoint(self._once):
            return False
        self.alike += not alike.isdisjoint(self._alike)
        self._once |= once
        self._alike |= alike
        return True

    def _name(self, ident: str, same_id: str) -> str:
        name = ident
        while self._named[hash(name)]:
            if same_id == "refuse":
                raise InputError(f"'{ident}' would be the id of two different rows of {self.output}; ids must differ")
            self._named[hash(ident)] += 1
            name = f"{ident}~{self._named[hash(ident)]}"
        self._named[hash(name)] += 1
        return name


def _check_disk(sink: Sink, share: float) -> None:
    """Stop early where what is still to come will not fit on the disk."""
    left = sink.bytes * (1 - share) / max(share, 1e-9)
    if sink.bytes > CHUNK_BYTES and left > (free := shutil.disk_usage(sink.path.parent).free):
        raise InputError(
            f"{sink.path} would take about {(sink.bytes + left) / 1e9:.1f} GB, and {(free + sink.bytes) / 1e9:.1f} GB are "
            "free; write .parquet, which is smaller, or into another folder"
        )


class Readable(Protocol):
    """Some rows that are not parsed yet: a part of a file, or a document. It is sent to other processes."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def given(self) -> Path:
        """The input that it belongs to."""

    @property
    def share(self) -> float:
        """How much of all input ends with it, from 0 to 1."""

    def rows(self) -> Iterator[tuple[int, Row | str, str]]:
        """Yield (line, object, ""), or (line, text, reason) of what cannot be read."""


class Part(Protocol):
    """What was made of a chunk."""

    @property
    def rows(self) -> int:
        """How many rows the chunk has."""

    @property
    def share(self) -> float:
        """How much of all input ends with the chunk, from 0 to 1."""


P = TypeVar("P", bound=Part)


def chunked(inputs: Sequence[Path]) -> Iterator[Chunk]:
    """Yield the files in chunks, as programs are given them."""
    return read_chunks(inputs, CHUNK_BYTES)


@contextmanager
def in_processes(name: str, work: Callable[[Readable], P], chunks: Iterator[Readable]) -> Iterator[Iterator[P]]:
    """Give what is made of each chunk, in order; small inputs are done in this process."""
    first = [chunk for _, chunk in zip(range(2), chunks, strict=False)]
    if len(first) < 2:
        yield map(work, first)
        return
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin_work)
    try:
        yield _shown(name, _ordered(pool, work, chain(first, chunks), 2 * workers))
    except BrokenProcessPool as error:
        raise InputError(
            f"a process of {name} was killed, as the system does when memory ends; free some and run this again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _ordered(pool: ProcessPoolExecutor, work: Callable[[Readable], P], chunks: Iterable[Readable], ahead: int) -> Iterator[P]:
    running: deque[Future[P]] = deque()
    for chunk in chunks:
        running.append(pool.submit(work, chunk))
        if len(running) >= ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _begin_work() -> None:
    """Use one thread, and end with the program: its processes would wait for ever where it is killed."""
    os.environ["POLARS_MAX_THREADS"] = "1"
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def _shown(name: str, results: Iterator[P]) -> Iterator[P]:
    """Show rows a second and the time left, on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(name), BarColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not os.isatty(2)) as bar:
        task = bar.add_task(name, total=1.0, rate="")
        rows = 0
        for result in results:
            rows += result.rows
            elapsed = bar.tasks[0].elapsed or 1.0
            bar.update(task, completed=result.share, rate=f"{rows / elapsed:,.0f} rows/s")
            yield result


def _work(
    program: Program, encoder: Callable[[Sequence[Row], str], Encoded], outputs: Mapping[str, str], chunk: Readable
) -> Result:
    made = Made()
    rows: list[Placed] = []
    rejected: list[tuple[int, Row]] = []
    count = 0
    for line, row, reason in chunk.rows():
        count += 1
        if isinstance(row, dict):
            rows.append(Placed(chunk.path, line, row))
        else:
            rejected.append((line, {"file": str(chunk.path), "line": line, "reason": reason, "text": row}))
    for placed, reason in program(rows, made):
        row = {"file": str(placed.file), "line": placed.line, "reason": reason, "row": placed.row}
        rejected.append((placed.line, row))
    encoded = {output: encoder(made_rows, outputs[output]) for output, made_rows in made.rows.items()}
    listed = [row for _, row in sorted(rejected, key=lambda one: one[0])]
    return Result(chunk.given, encoded, made.marks, made.counts, listed, count, chunk.share)


def as_paths(input_file: list[Path] | Path) -> list[Path]:
    """Return the input files of a verb, one or several."""
    paths = input_file if isinstance(input_file, list) else [input_file]
    if not paths:
        raise InputError("--input_file names no file; give one or several")
    return paths


def print_counts(title: str, counts: Mapping[str, int] | None) -> None:
    """Print a table of counts, one line each; None says that nothing was to be done."""
    from rich.console import Console
    from rich.table import Table

    if counts is None:
        Console().print(f"{title}: the outputs are there, made of the same inputs in the same way; nothing to do")
        return
    table = Table("what", "count", title=title, title_justify="left")
    table.columns[1].justify = "right"
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    Console().print(table)
