"""A program that asks twice about each row; by itself, a job of it: `python echo_job.py URL IN OUT CONCURRENT`."""

import sys
from pathlib import Path

from project.teacher.client import Sampling, Teacher
from project.teacher.jobs import do
from project.teacher.maker import Job, Maker


async def echo(row, asker, made):
    first = await asker.ask([{"role": "user", "content": row["text"]}], Sampling())
    again = await asker.ask([{"role": "user", "content": f"again {first.text}"}], Sampling(), turn=1)
    made.put("rows", {"id": row["id"], "said": again.text})
    made.counts["echoes"] += 1


ECHO = Maker("echo", 1, echo, {"words": "any"})


def job(url, path, out, *, concurrent=8, **options):
    teacher = {name: options.pop(name) for name in list(options) if name in Teacher.__dataclass_fields__}
    return Job([path], {"rows": out}, Teacher(base_url=url, max_concurrent=concurrent, **teacher), **options)


if __name__ == "__main__":
    from project.errors import SeekerError

    url, given, out, concurrent = sys.argv[1:]
    try:
        print(do(ECHO, job(url, Path(given), Path(out), concurrent=int(concurrent))))
    except SeekerError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_status)
