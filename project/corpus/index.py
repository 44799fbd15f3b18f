"""The index: passages to a folder that is memory-mapped, and searched in batches.

`build.py` writes one, `search.py` searches one from the command line. A folder holds `manifest.json`, the passages
(`passage_store.py`) and a folder for each engine (`engines/`). Title and text of a passage count alike.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

from project.corpus.engines.bm25 import PACKAGES as BM25_PACKAGES
from project.corpus.engines.bm25 import Bm25
from project.corpus.engines.dense import PACKAGES as DENSE_PACKAGES
from project.corpus.engines.dense import VECTORS, Dense
from project.corpus.engines.expand import Expanded
from project.corpus.engines.hybrid import Fusion, Hybrid
from project.corpus.engines.rerank import Reranked
from project.corpus.engines.settings import Bm25Settings, DenseSettings
from project.corpus.passage_store import ROWS_FILE, PassageStore, Texts, distinct
from project.corpus.retrievers import Ranker, Ranking
from project.errors import InputError, RetrievalError
from project.files import file_digest
from project.records import Hit, Passage, Row
from project.runtime import free_memory

MANIFEST = "manifest.json"
FORMAT = 2
"""Raised when the folder's layout or the treatment of words changes; other formats are refused."""
MODEL_BYTES = 500_000_000
"""What PyTorch and a small model take, about."""
BUILD_AGAIN = "build it again with 'seeker index build'"
EngineName = Literal["bm25", "dense", "hybrid"]
PARTS: dict[EngineName, tuple[str, ...]] = {"bm25": ("bm25",), "dense": ("dense",), "hybrid": ("bm25", "dense")}
"""What of an index's folder an engine needs."""
PACKAGES = {"bm25": BM25_PACKAGES, "dense": DENSE_PACKAGES}
"""Whose versions the manifest holds."""


@dataclass(frozen=True)
class RankingSettings:
    """How engines are combined."""

    fusion: Fusion = "rrf"
    """How hybrid adds up: reciprocal ranks, or weighted scores."""
    dense_weight: float = 0.5
    """The share of the dense part in hybrid, from 0 to 1."""
    expand: bool = False
    """Add terms of the best passages to the query (RM3), for BM25 and its part of hybrid."""
    rerank: str | None = None
    """A cross-encoder that orders the best passages again: a folder, or a name on the hub."""
    rerank_depth: int = 50
    """How many passages it reads."""

    def check(self) -> None:
        """Refuse values that cannot be."""
        if not 0 <= self.dense_weight <= 1 or self.rerank_depth < 1:
            raise InputError(f"dense_weight={self.dense_weight}, rerank_depth={self.rerank_depth}: give 0 to 1, and 1 or more")


class Index:
    """Passages and an engine that ranks them. Searching only reads: threads may share one."""

    def __init__(self, passages: Sequence[Passage], ranker: Ranker, digest: str = "", engine: EngineName = "bm25") -> None:
        self.passages, self.ranker, self.engine = passages, ranker, engine
        self.digest = digest
        """Fingerprint of the passages: 16 hexadecimal digits; empty in memory."""

    @classmethod
    def from_passages(cls, passages: Sequence[Passage], settings: Bm25Settings | None = None) -> Self:
        """Index passages in memory, by BM25.

        Raises:
            InputError: there is no passage, an id occurs twice, or no passage holds a word.
        """
        passages = list(distinct(passages))
        return cls(passages, Bm25.of(Texts(passages), settings))

    @classmethod
    def load(cls, folder: Path, engine: EngineName | None = None, ranking: RankingSettings | None = None) -> Self:
        """Open an index, memory-mapped.

        Args:
            folder: what `seeker index build` wrote.
            engine: by which of its engines to search; None is that for which it was built.
            ranking: how engines are combined.

        Raises:
            InputError: the folder is no index, is damaged, lacks a part of the engine, was made by another format or other
                versions of its libraries, or needs more memory than is free.
        """
        manifest = check_index(folder)
        engine = engine or _engine(folder, manifest)
        _check_memory(folder, manifest, PARTS[engine])
        passages = PassageStore(folder)
        ranker = _ranker(folder, manifest, engine, ranking or RankingSettings(), Texts(passages))
        return cls(passages, ranker, manifest["digest"], engine)

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
            raise RetrievalError(f"the index is damaged ({error}); {BUILD_AGAIN}") from error

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Find in a thread, so that the event loop stays free; see `Retriever`."""
        return await asyncio.to_thread(self.find, queries, k)

    async def aclose(self) -> None:
        """Nothing is to be given up before the index itself is."""


def _ranker(folder: Path, manifest: Row, engine: EngineName, ranking: RankingSettings, texts: Texts) -> Ranker:
    """Open the parts of an engine and put them together."""
    ranking.check()
    if missing := [part for part in PARTS[engine] if part not in manifest["parts"]]:
        raise InputError(f"{folder} has no {missing[0]} part; build it again with --engine {engine}")
    parts = {part: _part(folder, manifest["parts"][part]["settings"], part, texts) for part in PARTS[engine]}
    if wrong := next((part for part, held in parts.items() if len(held) != len(texts)), None):
        raise InputError(f"{folder} is a damaged index: its {wrong} part differs in size; {BUILD_AGAIN}")
    rankers: dict[str, Ranker] = dict(parts)
    if ranking.expand:
        if "bm25" not in parts:
            raise InputError(f"ranking.expand needs BM25, and the engine is {engine}; give --engine bm25 or hybrid")
        rankers["bm25"] = Expanded(parts["bm25"], _together(rankers, ranking), texts)
    ranker = _together(rankers, ranking)
    return Reranked(ranker, texts, ranking.rerank, ranking.rerank_depth) if ranking.rerank else ranker


def _together(rankers: Mapping[str, Ranker], ranking: RankingSettings) -> Ranker:
    if len(rankers) == 1:
        return next(iter(rankers.values()))
    return Hybrid([rankers["bm25"], rankers["dense"]], (1 - ranking.dense_weight, ranking.dense_weight), ranking.fusion)


def _part(folder: Path, settings: Row, part: str, texts: Texts) -> Any:  # noqa: ANN401 - a Bm25 or a Dense
    try:
        if part == "bm25":
            return Bm25.load(folder / part, Bm25Settings(**settings))
        return Dense.load(folder / part, DenseSettings(**settings), [texts[0], texts[-1]])
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise InputError(f"{folder} is a damaged index ({error}); {BUILD_AGAIN}") from error


def _lists(ranking: Ranking) -> tuple[list[int], list[float]]:
    return ranking.positions.tolist(), ranking.scores.tolist()


def read_manifest(folder: Path) -> Row:
    """Return an index folder's manifest, its format and the versions of its engines' libraries checked."""
    try:
        manifest: Row = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder} is not an index (no {MANIFEST}); make one with 'seeker index build'") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / MANIFEST} cannot be read ({error}); {BUILD_AGAIN}") from error
    if manifest.get("format") != FORMAT:
        raise InputError(f"{folder} has index format {manifest.get('format')}, this version reads {FORMAT}; {BUILD_AGAIN}")
    for part, held in manifest["parts"].items():
        for package, made_by in held["versions"].items():
            if _minor(made_by) != _minor(version(package)):
                raise InputError(
                    f"{folder}: its {part} part was made by {package} {made_by}, here is {version(package)}; {BUILD_AGAIN}"
                )
    return manifest


def check_index(folder: Path) -> Row:
    """Return the manifest of an index whose files are all there, as long as they were written, with the passages indexed."""
    manifest = read_manifest(folder)
    _check_files(folder, manifest)
    if len(PassageStore(folder)) != manifest["passages"] or file_digest(folder / ROWS_FILE) != manifest["digest"]:
        raise InputError(f"{folder} is a damaged index: its passages are not those that were indexed; {BUILD_AGAIN}")
    return manifest


def _engine(folder: Path, manifest: Row) -> EngineName:
    engine: EngineName = manifest["engine"]
    if engine not in PARTS:
        raise InputError(f"{folder} was built for the engine '{engine}', which this version does not have; {BUILD_AGAIN}")
    return engine


def _minor(number: str) -> list[str]:
    return number.split(".")[:2]


def _check_files(folder: Path, manifest: Row) -> None:
    """Refuse an index whose files are not as long as they were written."""
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            found = f"has {path.stat().st_size} bytes instead of {size}" if path.is_file() else "is missing"
            raise InputError(f"{folder} is a damaged index: {name} {found}; {BUILD_AGAIN}")


def _check_memory(folder: Path, manifest: Row, parts: Sequence[str]) -> None:
    """Refuse an index that needs more memory than is free: what it holds, and the vectors, which every search reads."""
    sizes: dict[str, int] = manifest["files"]
    needed = 0
    if "bm25" in parts:
        needed += 10 * sizes.get("bm25/vocab.index.json", 0) + 8 * manifest["passages"]
    if "dense" in parts:
        needed += sizes.get(f"dense/{VECTORS}", 0) + MODEL_BYTES
    if needed > (free := free_memory()):
        raise InputError(
            f"{folder} needs about {needed / 1e9:.1f} GB of memory to be searched by {' and '.join(parts)}, and "
            f"{free / 1e9:.1f} GB are free; free some, or search by --engine bm25"
        )
