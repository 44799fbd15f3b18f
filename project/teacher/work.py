"""A job that is being done: rows in work, requests in flight, what fails, and the user who ends it.

As many requests are in flight as may be, and as soon as one ends another goes out. A row that cannot be made now, as the
teacher or the search has failed, is put off until all others are done; where one after the other fails, and a question of no
consequence is not answered either, the job ends and can go on later. What a row's program raises is why the row is rejected.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from aiolimiter import AsyncLimiter

from project.errors import InputError, SeekerError
from project.records import Row
from project.runtime import rare_collections
from project.streams import ROW_ERRORS, Made, Marks, Placed, Program
from project.teacher.client import Endpoint, Failed, Refused, Reply, Request, TeacherError
from project.teacher.engines import LocalTeacher
from project.teacher.journal import Journal, key_of
from project.teacher.maker import Asker, Job, Maker, prompt_tokens, row_id, rows_of
from project.teacher.progress import Progress

FAILURES = 5
"""Rows in a row that fail, or requests that are refused before any is answered, before what fails is looked at."""
ROWS = 2
"""Rows in work for each request in flight: while some search or wait, the others ask."""


class Interrupted(SeekerError):
    """The user ended the job; it can go on."""


class Stopped(Exception):
    """The job ends: no new request is begun."""


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
    """What decides what is made of a row."""
    put_off: list[Row] = field(default_factory=list)
    """Rows that could not be made at first."""

    def __post_init__(self) -> None:
        """Begin with nothing asked."""
        self._slots = asyncio.Semaphore(self.job.teacher.max_concurrent)
        rate = self.job.teacher.tokens_per_minute
        self._rate, self._turn = AsyncLimiter(rate) if rate else None, asyncio.Lock()
        self._failures = self._refusals = 0
        self._answered = False
        self._asking: dict[str, asyncio.Future[None]] = {}
        self._stopped: Exception | None = None
        self._ended = asyncio.Event()
        self.progress = Progress(self.maker.name, self.job.teacher)

    async def do_all(self) -> None:
        """Work on all rows until none is left that could be made.

        Raises:
            TeacherError: the teacher is down, or refuses everything.
            Interrupted: by the user.
        """
        with self.progress.shown(), self._interruptible(), rare_collections():
            await self._all(rows_of(self.job), last=False)
            if self._stopped is None:
                await self._all(((row, 1.0) for row in self.put_off), last=True)
        if self._stopped is not None:
            raise self._stopped

    async def _all(self, rows: Iterator[tuple[Row, float]], *, last: bool) -> None:
        """Work on rows, as many at once as may be; what goes wrong ends the others before it is raised."""

        async def work() -> None:
            try:
                for row, share in rows:
                    if self._stopped is not None:
                        return
                    await self._row(row, last=last)
                    self.progress.share = max(self.progress.share, share)
            except Exception as error:  # noqa: BLE001 - raised when the others have ended
                self._stop(error)

        await asyncio.gather(*(work() for _ in range(ROWS * self.job.teacher.max_concurrent)))

    async def _row(self, row: Row, *, last: bool) -> None:
        key = self._key(row)
        if key in self.journal:
            self.progress.held += 1
            return
        asker, made = Asker(row_id(row), self._ask), Made()
        try:
            async with asyncio.timeout(self.job.teacher.row_seconds):
                await self.maker.make(row, asker, made)
        except Stopped:
            return
        except Failed as error:
            await self._fail(row, str(error), made.counts + asker.counts, last=last)
        except TimeoutError:
            why = f"took over teacher.row_seconds={self.job.teacher.row_seconds:g}"
            await self._fail(row, why, made.counts + asker.counts, last=last)
        except ROW_ERRORS as error:
            self._reject(row, str(error), made.counts + asker.counts)
        else:
            self._keep(key, _entry(made, asker.counts))
            self.progress.accepted += 1

    async def _fail(self, row: Row, reason: str, counts: Counter[str], *, last: bool) -> None:
        """Put a row off, or reject it at last; first stop where it fails because nothing is answered."""
        self._failures += 1
        if last or self._failures >= FAILURES:
            try:
                await self._probe()
            except SeekerError as error:
                kept = f"{self.journal.path} holds what was done before: run the same command again when it is up"
                self._stop(TeacherError(f"one row after the other fails ({reason}), and {error}; {kept}"))
                return
            self._failures = 0
        if last:
            self._reject(row, reason, counts)
        else:
            self.put_off.append(row)

    async def _probe(self) -> None:
        """Raise a `SeekerError` where the teacher, the student or the tool is down."""
        await self.endpoint.check()
        if self.student is not self.endpoint:
            await self.student.check()
        if self.maker.tool is not None:
            await self.maker.tool.check()

    def _reject(self, row: Row, reason: str, counts: Counter[str]) -> None:
        self._keep(self._key(row), {"rejected": reason, "counts": dict(counts)})
        self.progress.rejected[reason] += 1
        if self.job.strict:
            self._stop(InputError(f"row '{row_id(row)}': {reason}"))

    def _key(self, row: Row) -> str:
        return key_of("row", self.maker.name, self.decided, row)

    def _keep(self, key: str, found: Row) -> None:
        if key not in self.journal:  # the same row may stand twice
            self.journal.add(key, found)

    # --- requests ----------------------------------------------------------------------------------------------------

    async def _ask(self, request: Request) -> Reply:
        """Return the reply that there is; else ask, once for all that ask the same now."""
        endpoint = self.student if request.student else self.endpoint
        key = request.key(endpoint.model, self.job.seed, self.maker.version)
        while key in self._asking:
            await asyncio.wait([self._asking[key]])
        if (held := self.journal.get(key)) is not None:
            self._answered = True
            return Reply.from_row(held["reply"])
        asking = self._asking[key] = asyncio.get_running_loop().create_future()
        try:
            reply = await self._asked(endpoint, request, int(key[:8], 16) >> 1)
            self._keep(key, {"row": request.row, "reply": reply.to_row()})
        except Refused as error:
            self._refuse(error)
            raise
        finally:
            del self._asking[key]
            asking.set_result(None)
        self._answered, self._failures = True, 0
        self.progress.count(reply)
        self._check_cost()
        return reply

    async def _asked(self, endpoint: Endpoint | LocalTeacher, request: Request, seed: int) -> Reply:
        await self._wait_for_rate(request)
        async with self._slots:
            if self._stopped is not None:
                raise Stopped
            seconds = self.job.teacher.request_seconds
            try:
                with self.progress.in_flight():
                    async with asyncio.timeout(seconds) as limit:
                        return await endpoint.ask(request, seed)
            except TimeoutError as error:
                if limit.expired():
                    raise Failed(f"a request took over teacher.request_seconds={seconds:g}") from error
                raise

    async def _wait_for_rate(self, request: Request) -> None:
        """Wait until the request's tokens may be asked for, those that came first before, or until the job ends."""
        if self._rate is None:
            return
        tokens = min(prompt_tokens(request) + request.sampling.max_tokens, self._rate.max_rate)
        async with self._turn:
            waiting = {asyncio.ensure_future(self._rate.acquire(tokens)), asyncio.ensure_future(self._ended.wait())}
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in waiting:
                    one.cancel()

    def _refuse(self, error: Refused) -> None:
        """Take a refusal for the row's fault only once a request was answered: the first may all be refused for their options.

        Raises:
            TeacherError: so many were refused, and none answered.
            Failed: not yet so many.
        """
        if self._answered:
            return
        self._refusals += 1
        if self._refusals >= FAILURES:
            raise TeacherError(
                f"the first {self._refusals} requests were all refused ({error}); change what it does not take, or start it "
                "with what it lacks, and run this again"
            ) from error
        raise Failed(str(error)) from error

    def _check_cost(self) -> None:
        most, cost = self.job.teacher.most_price, self.progress.cost
        if most is not None and cost > most and not self.job.yes:
            self._stop(
                InputError(
                    f"this run has cost {cost:,.2f}, over teacher.most_price={most:g}; {self.journal.path} holds what was "
                    "said: raise that, or go on with --yes true"
                )
            )

    # --- the end -----------------------------------------------------------------------------------------------------

    def _stop(self, error: Exception) -> None:
        """Begin nothing more; what is in flight ends, and is kept."""
        self._stopped = self._stopped or error
        self._ended.set()

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


def _entry(made: Made, counts: Counter[str]) -> Row:
    marks = {output: [[one.once, one.alike, one.named] for one in of] for output, of in made.marks.items()}
    return {"rows": made.rows, "marks": marks, "counts": dict(made.counts + counts)}


def _made(entry: Row) -> Made:
    marks = {
        output: [Marks(tuple(once), tuple(alike), tuple(named) if named else None) for once, alike, named in of]
        for output, of in entry["marks"].items()
    }
    return Made(entry["rows"], marks, Counter(entry["counts"]))
