"""The retrieval server under load, against the index and bm25s called directly in the same run.

    python scripts/benchmarks/retrieval.py --folder DIR [--passages 100000] [--requests 4000] [--engine bm25|lance]

Makes passages of 60 words drawn by Zipf's law (no stop words among them), indexes them, and starts `seeker serve retrieval`
without its cache. Clients of a process of their own send one query each and wait for the answer, 1, 16 and 64 at once. Prints
one JSON line a way: queries/s, milliseconds, the mean batch that formed, seconds of processor time of server and clients a
second, and requests that failed. For `bm25` the direct ways are ours and bm25s's `retrieve`, query by query and in batches of
the size that formed; queries are split and stemmed in each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
import psutil
from measured import folder_bytes, show
from measured import timed as measured

from project.corpus.engines.choose import Remote, open_engine
from project.corpus.index import Index, RankingSettings
from project.corpus.serving.handle import ServerHandle
from project.corpus.words import stems, words
from project.records import Passage
from project.writing import write_records

WORDS, LENGTH, TOPK = 50_000, 60, 3
QUERY_WORDS = 6


def draw(count: int, length: int, seed: int) -> list[str]:
    """Return texts of words drawn by Zipf's law."""
    shares = 1 / np.arange(1, WORDS + 1)
    ids = np.random.default_rng(seed).choice(WORDS, (count, length), p=shares / shares.sum())
    return [" ".join(f"w{i:x}" for i in row) for row in ids]


def build(folder: Path, passages: int, engine: str) -> Path:
    """Make the passages and the index, where they are not there."""
    path, index = folder / f"{passages}.jsonl", folder / f"{passages}.{engine}"
    if not path.exists():
        write_records(path, (Passage(str(i), "", text) for i, text in enumerate(draw(passages, LENGTH, 0))))
    command = ["-m", "project", "index", "build", f"--passages={path}", f"--output_dir={index}", f"--engine={engine}"]
    seconds, peak = measured([sys.executable, *command])
    told = {"way": f"index build --engine {engine}", "passages": passages, "seconds": seconds, "peak_gb": peak}
    show(told | {"bytes": folder_bytes(index)})
    return index


def timed(queries: Sequence[str], size: int, search: Callable[[Sequence[str]], object]) -> dict[str, float]:
    """Return the queries a second of a direct way, and a call's milliseconds; the first batches warm it up."""
    for start in range(0, min(4 * size, len(queries)), size):
        search(queries[start : start + size])
    times, began = [], time.perf_counter()
    for start in range(0, len(queries), size):
        before = time.perf_counter()
        search(queries[start : start + size])
        times.append(time.perf_counter() - before)
    seconds = time.perf_counter() - began
    quantiles = {f"p{q}_ms": 1000 * float(np.quantile(times, q / 100)) for q in (50, 99)}
    return {"batch": size, "queries_per_second": len(queries) / seconds, **quantiles}


async def client(port: int, bodies: Sequence[bytes], times: list[float], failed: list[int]) -> None:
    """Send requests one after the other over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for body in bodies:
        start = time.perf_counter()
        head = f"POST /retrieve HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        content = await reader.readexactly(length)
        times.append(time.perf_counter() - start)
        if not answer.startswith(b"HTTP/1.1 200") or len(json.loads(content)["result"]) != 1:
            failed.append(1)
    writer.close()


async def clients(port: int, queries: Sequence[str], at_once: int) -> dict[str, float]:
    """Send all queries, so many at once."""
    bodies = [json.dumps({"queries": [query], "topk": TOPK, "return_scores": True}).encode() for query in queries]
    times: list[float] = []
    failed: list[int] = []
    began, own = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client(port, bodies[i::at_once], times, failed) for i in range(at_once)))
    seconds = time.perf_counter() - began
    quantiles = {f"p{q}_ms": 1000 * float(np.quantile(times, q / 100)) for q in (50, 99)}
    cpu = (time.process_time() - own) / seconds
    lost = len(failed) + len(queries) - len(times)
    return {"queries_per_second": len(queries) / seconds, **quantiles, "clients_cpu": cpu, "failed": lost}


def served(index: Path, queries: Sequence[str], at_once: int) -> dict[str, float]:
    """Return what clients of another process see of the server."""
    with ServerHandle(index, options=["--limits.cache_hits", "0"]) as server:
        run = [sys.executable, __file__, "--clients", str(at_once), "--port", str(server.port)]
        subprocess.run(run, input="\n".join(queries[:200]), capture_output=True, text=True, check=True)
        process = psutil.Process(httpx.get(f"{server.url}/health", trust_env=False).json()["pid"])
        before, batches = sum(process.cpu_times()[:2]), _batches(server.url)
        done = subprocess.run(run, input="\n".join(queries), capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        seconds = len(queries) / found["queries_per_second"]
        count, total = (now - then for now, then in zip(_batches(server.url), batches, strict=True))
        found["server_cpu"] = (sum(process.cpu_times()[:2]) - before) / seconds
        found["mean_batch"] = total / max(count, 1)
        found["server_rss"] = process.memory_info().rss
    return found


def _batches(url: str) -> tuple[float, float]:
    """Return how many batches the server made, and how many queries they held."""
    lines = httpx.get(f"{url}/metrics", trust_env=False).text.splitlines()
    values = {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("seeker_retrieval_batch_queries_")}
    return values["seeker_retrieval_batch_queries_count"], values["seeker_retrieval_batch_queries_sum"]


def direct(index: Path, queries: Sequence[str], sizes: Sequence[int], engine: str) -> None:
    """Print the direct ways."""
    if engine != "bm25":
        retriever, _ = open_engine(str(index), None, RankingSettings(), Remote())
        loop = asyncio.new_event_loop()
        for size in sizes:
            found = timed(queries, size, lambda batch: loop.run_until_complete(retriever.search(batch, TOPK)))
            print(json.dumps({"way": f"{engine} direct"} | found), flush=True)
        return
    import bm25s

    ours, theirs = Index.load(index), bm25s.BM25.load(index / "bm25", mmap=True, show_progress=False)
    ways = {"ours direct": lambda batch: ours.find(batch, TOPK)}
    split: Callable[[Sequence[str]], list[list[str]]] = lambda batch: [stems(words(query)) for query in batch]  # noqa: E731
    ways["bm25s direct"] = lambda batch: theirs.retrieve(split(batch), k=TOPK, show_progress=False)
    for size in sizes:
        for way, search in ways.items():
            print(json.dumps({"way": way} | timed(queries, size, search)), flush=True)


def main() -> None:
    """Run the ways one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--engine", default="bm25")
    parser.add_argument("--clients", type=int, help="be the clients")
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    if options.clients:
        queries = sys.stdin.read().splitlines()
        print(json.dumps(asyncio.run(clients(options.port, queries, options.clients))))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    index = build(options.folder, options.passages, options.engine)
    queries = draw(options.requests, QUERY_WORDS, 1)
    sizes = [1]
    for at_once in (1, 16, 64):
        found = served(index, queries, at_once)
        print(json.dumps({"way": "served", "at_once": at_once} | found), flush=True)
        sizes.append(max(1, round(found["mean_batch"])))
    direct(index, queries, sorted({*sizes}), options.engine)


if __name__ == "__main__":
    main()
