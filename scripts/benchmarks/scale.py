"""How the engines grow with the corpus: time and memory of indexing, size on disk, memory and speed of searching.

    python scripts/benchmarks/scale.py --folder DIR [--passages 10000 100000 1000000]

Passages and queries are those of `retrieval.py`; vectors are random, 384 numbers a passage, since a model would take days to
make them here. Each way is a process of its own: it opens the index, warms up, and searches one query at a time and 64 at once,
for 3 hits each. `mapped` ways map their files into memory, `loaded` ones read them. Memory is in MB: `own` is what the process
holds, `mapped` what the system holds of its files for as long as it likes. Prints one JSON line a build and a way.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measured import folder_bytes, memory, show
from measured import timed as measured
from retrieval import QUERY_WORDS, TOPK, build, draw, timed

from project.corpus.engines.bm25 import Bm25
from project.corpus.engines.dense import VECTORS, Dense
from project.corpus.engines.lance import Lance, write_table
from project.corpus.engines.settings import Bm25Settings, DenseSettings, LanceSettings
from project.corpus.index import Index
from project.corpus.passage_store import PassageStore

DIMENSION = 384
BATCHES = (1, 64)
Search = Callable[[Sequence[str]], object]


class RandomVectors:
    """Stands in for the model: among random vectors any is as good a query as another."""

    def queries(self, texts: Sequence[str]) -> Any:  # noqa: ANN401 - an array
        """Return random vectors of length 1, (texts, 384)."""
        return unit(np.random.default_rng(len(texts)), len(texts))


def unit(dice: np.random.Generator, count: int) -> Any:  # noqa: ANN401 - an array
    """Return vectors of length 1."""
    vectors = dice.standard_normal((count, DIMENSION), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_vectors(folder: Path, count: int) -> None:
    """Write the passages' vectors."""
    folder.mkdir(exist_ok=True)
    dice = np.random.default_rng(0)
    with (folder / VECTORS).open("wb") as out:
        for start in range(0, count, 1 << 16):
            out.write(unit(dice, min(1 << 16, count - start)).tobytes())


def write_lance(table: Path, index: Path, vectors: Path) -> None:
    """Write the passages of an index and their vectors as LanceDB's table."""
    passages = PassageStore(index)
    about = {"digest": "made-up", "source": {}, "versions": {}}
    write_table(str(table), passages, LanceSettings(vectors=True), DenseSettings(), vectors, about)


def opened(way: str, index: Path, table: Path, vectors: Path) -> Search:
    """Return a way's search."""
    engine, _, how = way.partition(" ")
    if engine == "lance":
        lance = Lance(str(table), how)
        lance._encoder = RandomVectors()  # type: ignore[assignment]
        loop = asyncio.new_event_loop()
        return lambda batch: loop.run_until_complete(lance.search(batch, TOPK))
    if way == "bm25 mapped":
        found = Index.load(index)
    elif way == "bm25 loaded":
        import bm25s

        scores = bm25s.BM25.load(index / "bm25", mmap=False, show_progress=False)
        found = Index(PassageStore(index), Bm25(scores, Bm25Settings()))
    else:
        path = vectors / VECTORS
        held: Any = np.memmap(path, np.float32, "r") if how == "mapped" else np.fromfile(path, np.float32)
        found = Index(PassageStore(index), Dense(held.reshape(-1, DIMENSION), RandomVectors()), "", "dense")  # type: ignore[arg-type]
    return lambda batch: found.find(batch, TOPK)


WAYS = ("bm25 mapped", "bm25 loaded", "dense mapped", "dense loaded", "lance text", "lance vector", "lance hybrid")


def searched(way: str, folders: Sequence[Path], count: int) -> None:
    """Print a way's numbers."""
    before, started = memory(), time.perf_counter()
    search = opened(way, *folders)
    found: dict[str, Any] = {"way": way, "passages": count, "open_s": time.perf_counter() - started}
    for size in BATCHES:
        calls = max(64, size) * (2 if "dense" in way else 8)
        numbers = timed(draw(calls, QUERY_WORDS, size), size, search)
        found |= {f"queries_per_second_{size}": numbers["queries_per_second"], f"p50_ms_{size}": numbers["p50_ms"]}
    after = memory()
    names = {"own_mb": "RssAnon", "mapped_mb": "RssFile"}
    show(found | {name: (after[kind] - before[kind]) / 1e3 for name, kind in names.items()})


def grow(folder: Path, count: int) -> None:
    """Build and search with so many passages."""
    build(folder, count, "bm25")
    table, vectors = folder / f"{count}.table", folder / f"{count}.vectors"
    write_vectors(vectors, count)
    command = [sys.executable, __file__, "--folder", str(folder), "--passages", str(count)]
    seconds, peak = measured([*command, "--build"])
    show({"way": "lance build", "passages": count, "seconds": seconds, "peak_gb": peak, "bytes": folder_bytes(table)})
    for way in WAYS:
        subprocess.run([*command, "--way", way], check=True)


def main() -> None:
    """Grow the corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--passages", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--way", choices=WAYS, help="search by one way only")
    parser.add_argument("--build", action="store_true", help="write LanceDB's table only")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for count in options.passages:
        folders = [options.folder / f"{count}.{name}" for name in ("bm25", "table", "vectors")]
        if options.build:
            write_lance(folders[1], folders[0], folders[2])
        elif options.way:
            searched(options.way, folders, count)
        else:
            grow(options.folder, count)


if __name__ == "__main__":
    main()
