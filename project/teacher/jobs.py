"""A job: a program asks a teacher about each row, many at once, and can be killed at any moment.

Every reply, and what the program made of each row, goes into the journal beside the output. When no row is left, the rows that
were made are written in the input's order, as any data program writes them (`streams.py`). Running the same command again
repeats no request that was answered: what is there already is read, and the job goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from aiolimiter import AsyncLimiter

from project.errors import InputError, SeekerError
from project.records import Row
from project.streams import ROW_ERRORS, Made, Marks, Placed, Program, Readable, chunked, is_there, print_counts, run
from project.teacher.client import Endpoint, Failed, Reply, Request, Sampling, Teacher, TeacherError
from project.teacher.engines import LocalTeacher, TransformersTeacher, VLLMTeacher
from project.teacher.journal import Journal, key_of
from project.teacher.progress import Progress
from project.tracking.datasets import log_made
from project.writing import dumps

FAILURES = 5
"""Rows in a row that fail, each with all its repetitions, before what fails counts as down."""
ROWS = 2
"""Rows in work for each request in flight: while some search or wait, the others ask."""
LETTERS_A_TOKEN = 4
"""For estimates of what a prompt takes."""
ESTIMATED = 200
"""Rows whose prompts are looked at for an estimate."""


class Interrupted(SeekerError):
    """The user ended the job; it can go on."""


class Stopped(Exception):
    """The job ends: no new request is begun."""


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


def journal_path(output: Path) -> Path:
    """Return where a job keeps what it has finished."""
    return output.with_name(f"{output.name}.journal.jsonl")


def do(maker: Maker, job: Job) -> Counter[str] | None:
    """Do a job and print its counts, or what it would ask; return the counts, None where nothing was done.

    Raises:
        InputError: see `streams.run`; another job has the same output; or the price may be too high.
        TeacherError: the teacher is down, or refuses everything.
        Interrupted: by the user.
    """
    if job.dry_run:
        print_estimate(asyncio.run(estimate(maker, job)), job.teacher)
        return None
    counts = asyncio.run(_do(maker, job))
    print_counts(maker.name, counts)
    return counts


async def _do(maker: Maker, job: Job) -> Counter[str] | None:
    async with AsyncExitStack() as stack:
        endpoint: Endpoint | LocalTeacher = await stack.enter_async_context(opened(job.teacher))
        student = endpoint
        if job.student is not None:
            student = await stack.enter_async_context(opened(job.student))
        if maker.tool is not None:
            stack.push_async_callback(maker.tool.aclose)
        decided = {**maker.parameters, "maker": maker.version, "teacher": endpoint.model, "seed": job.seed}
        decided |= {"student": student.model} if job.student else {}
        if is_there(maker.name, job.inputs, job.outputs, decided, strict=job.strict, force=job.force):
            return None
        if job.teacher.most_price is not None and not job.yes:
            check_price(await estimate(maker, job), job.teacher)
        journal = stack.enter_context(Journal(journal_path(next(iter(job.outputs.values())))))
        work = Work(maker, job, endpoint, student, journal, decided)
        await work.do_all()
        options = {"strict": job.strict, "force": job.force}
        counts = run(maker.name, work.settled(), job.inputs, job.outputs, decided, **options, chunks=job.read, here=True)
        if counts is not None:
            log_made(maker.name, job.outputs, decided, counts, work.progress.seconds)
        return counts


def opened(teacher: Teacher) -> Endpoint | VLLMTeacher | TransformersTeacher:
    """Return the teacher, which opens as a block begins."""
    if teacher.engine == "endpoint":
        return Endpoint(teacher)
    return VLLMTeacher(teacher) if teacher.engine == "vllm" else TransformersTeacher(teacher)


Fail = Callable[[Row, str, Counter[str]], None]
"""Takes a row that could not be made now, the reason, and what was asked."""


@dataclass
class Work:
    """A job that is being done."""

    maker: Maker
    job: Job
    endpoint: Endpoint | LocalTeacher
    student: Endpoint | LocalTeacher
    """The teacher again, where the job has no student."""
    journal: Journal
    decided: Row
    """What decides the outputs, beside the inputs."""
    failed: list[Row] = field(default_factory=list)
    """Rows that the teacher has failed once: they are tried again when all others are done."""

    def __post_init__(self) -> None:
        """Begin with nothing asked."""
        self._slots = asyncio.Semaphore(self.job.teacher.max_concurrent)
        rate = self.job.teacher.tokens_per_minute
        self._rate = AsyncLimiter(rate) if rate else None
        self._failures = 0
        self._asking: dict[str, asyncio.Future[None]] = {}
        self._stopped: SeekerError | None = None
        self.progress = Progress(self.maker.name, self.job.teacher)

    async def do_all(self) -> None:
        """Work on all rows until none is left that could be made.

        Raises:
            TeacherError: the teacher is down.
            Interrupted: by the user.
        """
        with self.progress.shown(), self._interruptible():
            await self._all(rows_of(self.job), self._fail_for_now)
            if self._stopped is None and self.failed:
                await self.endpoint.check()  # did they fail because it is down?
                if self.maker.tool is not None:
                    await self.maker.tool.check()
                await self._all(((row, 1.0) for row in self.failed), self._reject)
        if self._stopped is not None:
            raise self._stopped

    async def _all(self, rows: Iterator[tuple[Row, float]], fail: Fail) -> None:
        """Work on rows, as many at once as may be."""

        async def work() -> None:
            for row, share in rows:
                if self._stopped is not None:
                    return
                await self._row(row, fail)
                self.progress.share = max(self.progress.share, share)

        await asyncio.gather(*(work() for _ in range(ROWS * self.job.teacher.max_concurrent)))

    async def _row(self, row: Row, fail: Fail) -> None:
        key = self._key(row)
        if key in self.journal:
            self.progress.held += 1
            return
        asker, made = Asker(row_id(row), self._ask), Made()
        try:
            async with asyncio.timeout(self.job.teacher.row_seconds):
                await self.maker.make(row, asker, made)
            self._keep(key, _entry(made, asker.counts))
            self.progress.accepted += 1
            self._failures = 0
        except Stopped:
            pass
        except Failed as error:
            fail(row, str(error), asker.counts)
        except TimeoutError:
            fail(row, f"took over teacher.row_seconds={self.job.teacher.row_seconds:g}", asker.counts)
        except ROW_ERRORS as error:
            self._reject(row, str(error), asker.counts)
            self._failures = 0
        except SeekerError as error:
            self._stop(error)

    def _fail_for_now(self, row: Row, reason: str, counts: Counter[str]) -> None:
        """Put a row off, or stop where one after the other fails."""
        del counts
        self.failed.append(row)
        self._failures += 1
        if self._failures >= FAILURES:
            self._stop(
                TeacherError(
                    f"{self._failures} rows in a row failed ({reason}); {self.journal.path} holds what was done before: run "
                    "the same command again when what failed is up"
                )
            )

    def _reject(self, row: Row, reason: str, counts: Counter[str]) -> None:
        self._keep(self._key(row), {"rejected": reason, "counts": dict(counts)})
        self.progress.rejected[reason] += 1

    def _key(self, row: Row) -> str:
        return key_of("row", self.maker.name, self.decided, row)

    def _keep(self, key: str, found: Row) -> None:
        if key not in self.journal:  # the same row may stand twice
            self.journal.add(key, found)

    async def _ask(self, request: Request) -> Reply:
        """Return the reply that there is; else ask, once for all that ask the same now."""
        endpoint = self.student if request.student else self.endpoint
        key = request.key(endpoint.model, self.job.seed, self.maker.version)
        while key in self._asking:
            await asyncio.wait([self._asking[key]])
        if (held := self.journal.get(key)) is not None:
            return Reply.from_row(held["reply"])
        asking = self._asking[key] = asyncio.get_running_loop().create_future()
        try:
            reply = await self._asked(endpoint, request, int(key[:8], 16) >> 1)
            self._keep(key, {"row": request.row, "reply": reply.to_row()})
        finally:
            del self._asking[key]
            asking.set_result(None)
        self.progress.count(reply)
        return reply

    async def _asked(self, endpoint: Endpoint | LocalTeacher, request: Request, seed: int) -> Reply:
        if self._rate is not None:
            await self._rate.acquire(min(_prompt_tokens(request) + request.sampling.max_tokens, self._rate.max_rate))
        async with self._slots:
            if self._stopped is not None:
                raise Stopped
            with self.progress.in_flight():
                return await endpoint.ask(request, seed)

    def _stop(self, error: SeekerError) -> None:
        """Begin nothing more; what is in flight ends, and is kept."""
        self._stopped = self._stopped or error

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Stop at the first Ctrl-C or SIGTERM, and at the second at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop, whole, signals = asyncio.get_running_loop(), asyncio.current_task(), (signal.SIGINT, signal.SIGTERM)
        assert whole is not None

        def interrupt() -> None:
            if self._stopped is not None:
                whole.cancel()
            self._stop(Interrupted(f"interrupted; {self.journal.path} holds what is done: run the same command again to go on"))
            self.progress.say("ending when what is in flight has ended; once more ends it now")

        for one in signals:
            loop.add_signal_handler(one, interrupt)
        try:
            yield
        except asyncio.CancelledError:
            if self._stopped is None:
                raise
            whole.uncancel()
        finally:
            for one in signals:
                loop.remove_signal_handler(one)

    def settled(self) -> Program:
        """Return the program of `streams.run` that writes what was made of the rows."""
        settle = self.maker.settle
        return partial(self._made, settle(self._all_made()) if settle else lambda made: made)

    def _all_made(self) -> Iterator[Made]:
        for row, _ in rows_of(self.job):
            if "rejected" not in (found := self._found(row)):
                yield _made(found)

    def _made(self, change: Callable[[Made], Made], rows: Sequence[Placed], made: Made) -> Iterator[tuple[Placed, str]]:
        """Fill in what was made of a chunk's rows, and yield those that gave nothing."""
        for placed in rows:
            found = self._found(placed.row)
            if "rejected" in found:
                made.counts.update(found["counts"])
                yield placed, found["rejected"]
            else:
                made.add(change(_made(found)))

    def _found(self, row: Row) -> Row:
        found = self.journal.get(self._key(row))
        assert found is not None
        return found


def rows_of(job: Job) -> Iterator[tuple[Row, float]]:
    """Yield the rows that can be read, each with the share of the input that ends with its chunk."""
    for chunk in job.read(job.inputs):
        for _, row, _ in chunk.rows():
            if isinstance(row, dict):
                yield row, chunk.share


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


def _entry(made: Made, counts: Counter[str]) -> Row:
    marks = {output: [[one.once, one.alike, one.named] for one in of] for output, of in made.marks.items()}
    return {"rows": made.rows, "marks": marks, "counts": dict(made.counts + counts)}


def _made(entry: Row) -> Made:
    marks = {
        output: [Marks(tuple(once), tuple(alike), tuple(named) if named else None) for once, alike, named in of]
        for output, of in entry["marks"].items()
    }
    return Made(entry["rows"], marks, Counter(entry["counts"]))


# --- before anything is asked ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """What a job will ask at first, each row's first request alone."""

    rows: int
    prompt_tokens: int
    """Of all rows, by the letters of some."""
    reply_tokens: int
    """At most."""
    request: Request | None
    """The first of all."""


class _Asked(Exception):
    """Carries the first request about a row."""

    def __init__(self, request: Request) -> None:
        self.request = request


async def estimate(maker: Maker, job: Job) -> Estimate:
    """Return what a job will ask; nothing is asked."""
    count, asked = 0, list[Request]()
    for row, _ in rows_of(job):
        count += 1
        if count <= ESTIMATED and (request := await _first(maker, row)) is not None:
            asked.append(request)
    share = count / max(1, min(count, ESTIMATED))
    prompts = sum(_prompt_tokens(request) for request in asked)
    replies = sum(request.sampling.max_tokens for request in asked)
    return Estimate(count, round(share * prompts), round(share * replies), asked[0] if asked else None)


async def _first(maker: Maker, row: Row) -> Request | None:
    """Return what would be asked first about a row; None where that is nothing."""

    async def catch(request: Request) -> Reply:
        raise _Asked(request)

    try:
        await maker.make(row, Asker(row_id(row), catch), Made())
    except _Asked as asked:
        return asked.request
    except ROW_ERRORS:
        pass
    return None


def check_price(found: Estimate, teacher: Teacher) -> None:
    """Refuse a job that may cost more than it should."""
    price = teacher.price(found.prompt_tokens, found.reply_tokens)
    if teacher.most_price is not None and price > teacher.most_price:
        raise InputError(
            f"the first request of each of {found.rows:,} rows may cost {price:,.2f}, over teacher.most_price="
            f"{teacher.most_price:g}; raise that, or give --yes true"
        )


def print_estimate(found: Estimate, teacher: Teacher) -> None:
    """Print what a job would ask first, and how much of it there is."""
    from rich.console import Console

    console = Console()
    if found.request is not None:
        for message in found.request.messages:
            console.print(f"[{message['role']}]", style="bold", markup=False)
            console.print(str(message.get("content") or dumps(message)), markup=False, highlight=False)
        console.print(f"{found.request.sampling}", markup=False)
    price = teacher.price(found.prompt_tokens, found.reply_tokens)
    console.print(
        f"{found.rows:,} rows; their first requests have about {found.prompt_tokens:,} tokens of prompts and at most "
        f"{found.reply_tokens:,} of replies" + (f", and cost at most about {price:,.2f}" if price else ""),
        highlight=False,
        soft_wrap=True,
    )


def _prompt_tokens(request: Request) -> int:
    return len(dumps([request.messages, request.tools])) // LETTERS_A_TOKEN
