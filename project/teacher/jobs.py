"""A job: a program asks a teacher about each row, many at once, and can be killed at any moment.

Every reply, and what the program made of each row, goes into the journal beside the output. When no row is left, the rows that
were made are written in the input's order, as any data program writes them (`streams.py`). Running the same command again
repeats no request that was answered: what is there already is read, and the job goes on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from project.errors import InputError
from project.records import Row
from project.streams import ROW_ERRORS, Made, is_there, print_counts, run
from project.teacher.client import Endpoint, Reply, Request, Teacher
from project.teacher.engines import LocalTeacher, TransformersTeacher, VLLMTeacher
from project.teacher.journal import Journal
from project.teacher.maker import Asker, Job, Maker, prompt_tokens, row_id, rows_of
from project.teacher.work import Work
from project.tracking.datasets import log_made
from project.writing import dumps

ESTIMATED = 200
"""Rows whose prompts are looked at for an estimate."""


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
        told = decided | ({} if job.most_rows is None else {"max_samples": job.most_rows})
        if is_there(maker.name, job.inputs, job.outputs, told, strict=job.strict, force=job.force):
            return None
        if job.teacher.most_price is not None and not job.yes:
            check_price(await estimate(maker, job), job.teacher)
        journal = stack.enter_context(Journal(journal_path(next(iter(job.outputs.values())))))
        work = Work(maker, job, endpoint, student, journal, decided)
        await work.do_all()
        counts = run(
            maker.name,
            work.settled(),
            job.inputs,
            job.outputs,
            told,
            strict=job.strict,
            force=job.force,
            chunks=job.read,
            here=True,
        )
        if counts is not None:
            log_made(maker.name, job.outputs, told, counts, work.progress.seconds)
        return counts


def opened(teacher: Teacher) -> Endpoint | VLLMTeacher | TransformersTeacher:
    """Return the teacher, which opens as a block begins."""
    if teacher.engine == "endpoint":
        return Endpoint(teacher)
    return VLLMTeacher(teacher) if teacher.engine == "vllm" else TransformersTeacher(teacher)


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
    prompts = sum(prompt_tokens(request) for request in asked)
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
        for name, value in (("tools", found.request.tools), ("schema", found.request.schema)):
            if value:
                console.print(f"{name}: {dumps(value)}", markup=False, highlight=False)
        console.print(f"{found.request.sampling}", markup=False)
    price = teacher.price(found.prompt_tokens, found.reply_tokens)
    console.print(
        f"{found.rows:,} rows; their first requests have about {found.prompt_tokens:,} tokens of prompts and at most "
        f"{found.reply_tokens:,} of replies" + (f", and cost at most about {price:,.2f}" if price else ""),
        highlight=False,
        soft_wrap=True,
    )
