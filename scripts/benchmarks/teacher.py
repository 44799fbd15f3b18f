"""What a teacher's job costs beside the teacher: requests a second at a fixed latency, memory over many rows, and going on.

    python scripts/benchmarks/teacher.py --output_file teacher.json

A stub in a process of its own answers after `--latency` seconds. The ideal rate is `--concurrent` / latency. `seeker` is a job
of `--rows` rows, one request each, by the figures between its first and last tenth; `aiohttp` the same requests from a bare
client, as many in flight. `many` is a job of `--many` rows without latency: its own memory (anonymous pages) after a tenth of
them and after nine tenths, and, with a row more in the input, the seconds of the same command until that row has its reply
(`resume_seconds`) and until all is written.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from measured import memory

from project.records import Row
from project.streams import Made
from project.teacher.client import Reply, Sampling, Teacher
from project.teacher.jobs import do
from project.teacher.maker import Asker, Job, Maker
from project.teacher.progress import Progress
from project.writing import write_rows

CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "A reply of some words. " * 8}}
REPLY = {
    "id": "1", "object": "chat.completion", "created": 0, "model": "stub", "choices": [CHOICE],
    "usage": {"prompt_tokens": 40, "completion_tokens": 48, "total_tokens": 88},
}  # fmt: skip


async def serve(latency: float) -> None:
    """Answer until the process is killed; print the port."""
    body = json.dumps(REPLY).encode()

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(latency)
        return web.Response(body=body, content_type="application/json")

    async def models(_: web.Request) -> web.Response:
        return web.json_response(
            {"object": "list", "data": [{"id": "stub", "object": "model", "created": 0, "owned_by": "us"}]}
        )

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server: Any = site._server
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


async def ask(row: Row, asker: Asker, made: Made) -> None:
    """Ask once about a row."""
    reply = await asker.ask([{"role": "user", "content": row["text"]}], Sampling())
    made.put("rows", {"id": row["id"], "text": reply.text})


def middle_rate(times: Sequence[float]) -> float:
    """Return events a second between the first and the last tenth."""
    low, high = len(times) // 10, len(times) - len(times) // 10 - 1
    return (high - low) / (times[high] - times[low])


async def bare(url: str, texts: Sequence[str], concurrent: int) -> list[float]:
    """Return when each of the requests of a bare client was answered."""
    times, left = list[float](), iter(texts)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrent)) as session:

        async def work() -> None:
            for text in left:
                body = {"model": "stub", "messages": [{"role": "user", "content": text}]}
                async with session.post(f"{url}/chat/completions", json=body) as answer:
                    await answer.json()
                times.append(time.perf_counter())

        await asyncio.gather(*(work() for _ in range(concurrent)))
    return times


class Watched:
    """Notes when replies come, and the process's memory after a tenth of them."""

    def __init__(self, rows: int) -> None:
        self.times: list[float] = []
        self.early = self.late = 0.0
        count = Progress.count

        def counted(progress: Progress, reply: Reply) -> None:
            count(progress, reply)
            self.times.append(time.perf_counter())
            if len(self.times) == rows // 10:
                self.early = memory().get("RssAnon", 0) / 1e6
            if len(self.times) == rows * 9 // 10:
                self.late = memory().get("RssAnon", 0) / 1e6

        Progress.count = counted  # type: ignore[method-assign]


def job(arguments: argparse.Namespace) -> Row:
    """Do one job, and return its figures."""
    watched, started = Watched(arguments.rows), time.perf_counter()
    teacher = Teacher("stub", base_url=arguments.url, max_concurrent=arguments.concurrent)
    folder = Path(arguments.folder)
    do(Maker("benchmark", 1, ask, {}), Job([folder / "in.jsonl"], {"rows": folder / "out.jsonl"}, teacher))
    rate = middle_rate(watched.times) if len(watched.times) > 9 else 0.0
    seconds = time.perf_counter() - started
    first = watched.times[0] - started if watched.times else 0.0
    return {"rate": rate, "seconds": seconds, "first_seconds": first, "early_gb": watched.early, "late_gb": watched.late}


def main() -> None:
    """Measure all, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--concurrent", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--output_file", type=Path, required=True)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--job", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.latency))
        return
    if arguments.job:
        arguments.output_file.write_text(json.dumps(job(arguments)))
        return
    found: Row = {"ideal": arguments.concurrent / arguments.latency}
    with tempfile.TemporaryDirectory() as folder:
        found |= rates(arguments, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        found |= many(arguments, Path(folder))
    arguments.output_file.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def rates(arguments: argparse.Namespace, folder: Path) -> Row:
    """Return the rates at the latency."""
    texts = [f"Row {number} asks something." for number in range(arguments.rows)]
    with Server(arguments.latency) as url:
        plain = middle_rate(asyncio.run(bare(url, texts, arguments.concurrent)))
        ours = in_process(folder, url, arguments.rows, arguments.concurrent)
    ideal = arguments.concurrent / arguments.latency
    return {"aiohttp": plain, "seeker": ours["rate"], "aiohttp_share": plain / ideal, "seeker_share": ours["rate"] / ideal}


def many(arguments: argparse.Namespace, folder: Path) -> Row:
    """Return memory and the seconds of going on, over many rows."""
    with Server(0.0) as url:
        first = in_process(folder, url, arguments.many, arguments.concurrent)
        for path in folder.glob("out.jsonl*"):
            if "journal" not in path.name:
                path.unlink()
        with (folder / "in.jsonl").open("a") as rows:
            rows.write(json.dumps({"id": "new", "text": "A row more."}) + "\n")
        again = in_process(folder, url, arguments.many, arguments.concurrent)
    names = {"rows": arguments.many, "rows_a_second": first["rate"], "early_gb": first["early_gb"], "late_gb": first["late_gb"]}
    return {"many": names | {"resume_seconds": again["first_seconds"], "resumed_in_seconds": again["seconds"]}}


def in_process(folder: Path, url: str, rows: int, concurrent: int) -> Row:
    """Return what a job does in a process of its own."""
    if not (folder / "in.jsonl").exists():
        write_rows(folder / "in.jsonl", ({"id": str(i), "text": f"Row {i} asks something."} for i in range(rows)))
    part = folder / "figures.json"
    words = ["--job", "--url", url, "--folder", str(folder), "--rows", str(rows), "--concurrent", str(concurrent)]
    subprocess.run([sys.executable, __file__, *words, "--output_file", str(part)], check=True, stdout=subprocess.DEVNULL)
    figures: Row = json.loads(part.read_text())
    return figures


class Server:
    """The stub while a block lasts."""

    def __init__(self, latency: float) -> None:
        self.latency = latency

    def __enter__(self) -> str:
        words = [sys.executable, __file__, "--serve", "--latency", str(self.latency), "--output_file", "-"]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        return f"http://127.0.0.1:{self.process.stdout.readline().strip()}/v1"

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    main()
