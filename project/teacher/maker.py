"""What a program that asks a teacher is, what it is told, and what it asks through.

A program is a coroutine of one row: it asks what it must (`Asker.ask`) and puts what it makes (`streams.Made`). Who asks the
same again is given the same reply, so that it may be run anew from the row's start after a kill.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from project.records import Row
from project.streams import Made, Readable, chunked
from project.teacher.client import Reply, Request, Sampling, Teacher
from project.writing import dumps

LETTERS_A_TOKEN = 4
"""For estimates of what a prompt takes."""


class Asker:
    """What a program asks about one row."""

    def __init__(self, row: str, ask: Callable[[Request], Awaitable[Reply]]) -> None:
        self.row = row
        self.counts: Counter[str] = Counter()
        self._ask = ask

    async def ask(
        self,
        messages: Sequence[Row],
        sampling: Sampling,
        *,
        attempt: int = 0,
        turn: int = 0,
        tools: Sequence[Row] = (),
        schema: Row | None = None,
        row: str | None = None,
        student: bool = False,
    ) -> Reply:
        """Return the teacher's reply, from the journal where it is there.

        Args:
            messages: as OpenAI writes them.
            sampling: how to sample; the seed is the job's, the row's and the request's.
            attempt: number of the try at the row.
            turn: number of the request within the try.
            tools: schemas that the teacher may call.
            schema: JSON schema of the reply.
            row: whom the request is about, where rows share requests; its own row by default.
            student: ask the job's student in the teacher's place.

        Raises:
            ValueError: the teacher does not take the request, or says nothing: the reason why the row is rejected.
        """
        reply = await self._ask(
            Request(row or self.row, tuple(messages), sampling, attempt, turn, tuple(tools), schema, student)
        )
        self.counts += Counter({"requests": 1, "prompt tokens": reply.prompt_tokens, "reply tokens": reply.completion_tokens})
        return reply


async def together(requests: Sequence[Awaitable[Reply]]) -> list[Reply]:
    """Return the replies to several requests at once; where one fails, the others end first, so that they are kept."""
    replies = await asyncio.gather(*requests, return_exceptions=True)
    for reply in replies:
        if isinstance(reply, BaseException):
            raise reply
    return [reply for reply in replies if isinstance(reply, Reply)]


Make = Callable[[Row, Asker, Made], Awaitable[None]]
"""Asks what it must and puts what it makes of a row; it raises one of `ROW_ERRORS` for a row that gives nothing."""


class Tool(Protocol):
    """What a program uses beside the teacher."""

    async def check(self) -> None:
        """Raise a `SeekerError` where it is down."""

    async def aclose(self) -> None:
        """Close its connections."""


@dataclass(frozen=True)
class Maker:
    """A program that asks a teacher."""

    name: str
    """`seeker data qas`."""
    version: int
    """Of the program: what another version asked is asked anew."""
    make: Make
    parameters: Mapping[str, Any]
    """What else decides what it makes of a row, as JSON: its options, and its prompts."""
    settle: Callable[[Iterable[Made]], Callable[[Made], Made]] | None = None
    """Looks at what was made of all rows, and returns what to change in each: for what no row can say by itself."""
    tool: Tool | None = None


@dataclass(frozen=True)
class Job:
    """What a verb was told, beside what its program needs."""

    inputs: Sequence[Path]
    outputs: Mapping[str, Path]
    teacher: Teacher
    seed: int = 0
    strict: bool = False
    force: bool = False
    dry_run: bool = False
    yes: bool = False
    chunks: Callable[[Sequence[Path]], Iterator[Readable]] = chunked
    """Reads the inputs; by default files of rows."""
    student: Teacher | None = None
    """A second model, where a program asks one."""
    most_rows: int | None = None
    """Take only so many rows, from the first on."""

    def read(self, inputs: Sequence[Path]) -> Iterator[Readable]:
        """Yield the rows to work on."""
        read = self.chunks(inputs)
        return read if self.most_rows is None else _first_rows(read, self.most_rows)


def rows_of(job: Job) -> Iterator[tuple[Row, float]]:
    """Yield the rows that can be read, each with the share of the input that ends with it."""
    before = 0.0
    for chunk in job.read(job.inputs):
        rows = [row for _, row, _ in chunk.rows() if isinstance(row, dict)]
        for number, row in enumerate(rows, 1):
            yield row, before + (chunk.share - before) * number / len(rows)
        before = chunk.share


@dataclass(frozen=True)
class Rows:
    """Rows that are read already."""

    path: Path
    share: float
    held: tuple[tuple[int, Row | str, str], ...]

    @property
    def given(self) -> Path:
        """The input that they belong to."""
        return self.path

    def rows(self) -> Iterator[tuple[int, Row | str, str]]:
        """Yield (line, object, ""), or (line, text, reason)."""
        yield from self.held


def _first_rows(chunks: Iterator[Readable], count: int) -> Iterator[Readable]:
    for chunk in chunks:
        held = tuple(islice(chunk.rows(), count))
        count -= len(held)
        yield Rows(chunk.path, chunk.share, held)
        if count <= 0:
            return


def row_id(row: Row) -> str:
    """Return a row's id, or where it has none a digest of it."""
    return str(row["id"]) if "id" in row else hashlib.sha256(dumps(row).encode()).hexdigest()[:16]


def prompt_tokens(request: Request) -> int:
    """Return about how many tokens a request's prompt has."""
    return len(dumps([request.messages, request.tools])) // LETTERS_A_TOKEN
