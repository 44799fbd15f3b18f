"""The index: passages to a folder that is memory-mapped, and searched in batches.

`seeker index build --passages FILE --output_dir DIR` and `seeker index search --index DIR --query TEXT`.

A folder holds `manifest.json`, the passages (`passage_store.py`) and a folder for each engine (`engines/`). Title and text of
a passage count alike.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Self

from project.corpus.engines.bm25 import PACKAGES, Bm25, Bm25Settings
from project.corpus.passage_store import ROWS_FILE, PassageStore, write_passages
from project.corpus.retrievers import Ranker, Ranking
from project.errors import InputError, RetrievalError
from project.files import file_digest, read_rows
from project.manifests import manifest_of
from project.records import Hit, Passage, Row
from project.writing import write_text

MANIFEST = "manifest.json"
FORMAT = 2
"""Raised when the folder's layout or the treatment of words changes; other formats are refused."""
_DEFAULT = Bm25Settings()
_BUILD_AGAIN = "build it again with 'seeker index build'"


class Index:
    """Passages and an engine that ranks them. Searching only reads: threads may share one."""

    def __init__(self, passages: Sequence[Passage], ranker: Ranker, digest: str = "") -> None:
        self.passages, self.ranker = passages, ranker
        self.digest = digest
        """Fingerprint of the passages: 16 hexadecimal digits; empty in memory."""

    @classmethod
    def from_passages(cls, passages: Sequence[Passage], bm25: Bm25Settings | None = None) -> Self:
        """Index passages in memory, by BM25.

        Raises:
            InputError: there is no passage, an id occurs twice, or no passage holds a word.
        """
        passages = list(_distinct(passages))
        return cls(passages, Bm25.of(map(indexed_text, passages), bm25))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open an index, memory-mapped.

        Raises:
            InputError: the folder is no index, is damaged, or was made by another format or other versions of its engine.
        """
        manifest = read_manifest(folder)
        _check_files(folder, manifest)
        passages = PassageStore(folder)
        settings = Bm25Settings(**manifest["engines"]["bm25"]["settings"])
        try:
            ranker = Bm25.load(folder / "bm25", settings)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise InputError(f"{folder} is a damaged index ({error}); {_BUILD_AGAIN}") from error
        if not len(passages) == len(ranker) == manifest["passages"]:
            raise InputError(f"{folder} is a damaged index: its parts differ in size; {_BUILD_AGAIN}")
        return cls(passages, ranker, manifest["digest"])

    def __len__(self) -> int:
        return len(self.passages)

    def find(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return for each query at most `k` hits, best first, ties in corpus order; blocks meanwhile.

        Raises:
            RetrievalError: a passage that was found cannot be read.
        """
        try:
            return [
                [Hit(self.passages[place], score) for place, score in zip(*_lists(ranking), strict=True)]
                for ranking in self.ranker.rank(queries, k)
            ]
        except (OSError, ValueError, LookupError) as error:
            raise RetrievalError(f"the index is damaged ({error}); {_BUILD_AGAIN}") from error

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Find in a thread, so that the event loop stays free; see `Retriever`."""
        return await asyncio.to_thread(self.find, queries, k)

    async def aclose(self) -> None:
        """Nothing is to be given up before the index itself is."""


def _lists(ranking: Ranking) -> tuple[list[int], list[float]]:
    return ranking.positions.tolist(), ranking.scores.tolist()


def indexed_text(passage: Passage) -> str:
    """Return what of a passage is searched."""
    return f"{passage.title}\n{passage.text}"


def read_passages(path: Path) -> Iterator[Passage]:
    """Yield passages (`id, title, text` or Search-R1's `id, contents`), checked; a wrong row is named by line and field."""
    lines: dict[int, int] = {}
    for line, row in read_rows(path):
        try:
            passage = Passage.from_row(row)
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}, line {line}: {error}") from error
        if (first := lines.setdefault(hash(passage.id), line)) != line:
            raise InputError(f"{path}, line {line}: field 'id' is '{passage.id}' as in line {first}; ids must differ")
        yield passage


def _distinct(passages: Iterable[Passage]) -> Iterator[Passage]:
    numbers: dict[int, int] = {}
    for number, passage in enumerate(passages, 1):
        if (first := numbers.setdefault(hash(passage.id), number)) != number:
            raise InputError(f"passage {number}: field 'id' is '{passage.id}' as in passage {first}; ids must differ")
        yield passage
    if not numbers:
        raise InputError("there are no passages; an index needs at least one")


def read_manifest(folder: Path) -> Row:
    """Return an index folder's manifest, its format and the versions of its engines' libraries checked."""
    try:
        manifest: Row = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder} is not an index (no {MANIFEST}); make one with 'seeker index build'") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / MANIFEST} cannot be read ({error}); {_BUILD_AGAIN}") from error
    if manifest.get("format") != FORMAT:
        raise InputError(f"{folder} has index format {manifest.get('format')}, this version reads {FORMAT}; {_BUILD_AGAIN}")
    for engine, held in manifest["engines"].items():
        for package, made_by in held["versions"].items():
            if _minor(made_by) != _minor(version(package)):
                raise InputError(
                    f"{folder}: its {engine} part was made by {package} {made_by}, here is {version(package)}; {_BUILD_AGAIN}"
                )
    return manifest


def _minor(number: str) -> list[str]:
    return number.split(".")[:2]


def _check_files(folder: Path, manifest: Row) -> None:
    """Refuse an index whose files are not as long as they were written."""
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            found = f"has {path.stat().st_size} bytes instead of {size}" if path.is_file() else "is missing"
            raise InputError(f"{folder} is a damaged index: {name} {found}; {_BUILD_AGAIN}")


def write_index(folder: Path, passages: Iterable[Passage], bm25: Bm25Settings | None = None, source: Row | None = None) -> Row:
    """Write an index that takes the folder's place when it is complete, and return its manifest.

    Args:
        folder: where; what stands there is replaced.
        passages: in the order of ties.
        bm25: how BM25 counts.
        source: what the manifest says of where the passages come from.

    Raises:
        InputError: there is no passage, an id occurs twice, no passage holds a word, or the disk is full.
    """
    settings = bm25 or Bm25Settings()
    settings.check()
    with _replacing(folder) as work:
        count = write_passages(work, _distinct(passages))
        Bm25.of(map(indexed_text, PassageStore(work)), settings).save(work / "bm25")
        engines = {"bm25": {"settings": asdict(settings), "versions": {name: version(name) for name in PACKAGES}}}
        files = {str(path.relative_to(work)): path.stat().st_size for path in sorted(work.rglob("*")) if path.is_file()}
        manifest = {"format": FORMAT, "passages": count, "digest": file_digest(work / ROWS_FILE), "engines": engines}
        manifest |= {"source": source or {}, "files": files}
        write_text(work / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return manifest


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder` that takes its place on success and is removed on failure."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", ignore_cleanup_errors=True) as name:
        new, old = Path(name) / "new", Path(name) / "old"
        new.mkdir()
        try:
            yield new
        except OSError as error:
            raise InputError(f"{folder} cannot be written ({error}); what stood there stays") from error
        if folder.exists():
            folder.rename(old)
        new.rename(folder)


def build(passages: Path, output_dir: Path, bm25: Bm25Settings = _DEFAULT, force: bool = False) -> None:
    """Index passages for search; does nothing where the index already holds these passages.

    Args:
        passages: a .jsonl or .parquet file with `id, title, text`, or Search-R1's `id, contents`.
        output_dir: the folder to write; an index that stands there is replaced when the new one is complete.
        bm25: how BM25 counts.
        force: build also where nothing changed.
    """
    if output_dir.exists() and not (output_dir / MANIFEST).is_file() and (output_dir.is_file() or any(output_dir.iterdir())):
        raise InputError(f"{output_dir} exists and is not an index; give a new or empty folder as --output_dir")
    if not passages.is_file():
        raise InputError(f"{passages} does not exist; give a .jsonl or .parquet file of passages")
    digest = file_digest(passages)
    if not force and _is_current(output_dir, digest, bm25):
        print(f"{output_dir} is up to date with {passages}")
        return
    made_by = manifest_of(passages, digest)
    source = {"file": str(passages), "digest": digest} | ({"made_by": made_by} if made_by else {})
    manifest = write_index(output_dir, read_passages(passages), bm25, source)
    print(f"{output_dir}: {manifest['passages']} passages indexed, digest {manifest['digest']}")


def _is_current(folder: Path, source_digest: str, bm25: Bm25Settings) -> bool:
    try:
        manifest = read_manifest(folder)
        Index.load(folder)
    except InputError:
        return False
    return (manifest["source"].get("digest"), manifest["engines"]["bm25"]["settings"]) == (source_digest, asdict(bm25))


def search(index: Path, query: str, topk: int = 5) -> None:
    """Ask an index one query and print what it finds.

    Args:
        index: the folder that `seeker index build` wrote.
        query: any text.
        topk: how many passages at most.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if topk < 1:
        raise InputError(f"--topk is {topk}; give 1 or more")
    (hits,) = Index.load(index).find([query], topk)
    table = Table(title=escape(query), caption="" if hits else "No results.")
    for column in ("score", "id", "title", "text"):
        table.add_column(column, justify="right" if column == "score" else "left")
    for hit in hits:
        passage = hit.passage
        table.add_row(f"{hit.score:.3f}", *map(escape, (passage.id, passage.title, passage.text[:300])))
    Console().print(table)
