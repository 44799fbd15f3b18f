"""What the demo's agents search: indexes that are there, a server elsewhere, and documents that people bring.

Documents are brought by somebody: on a page that others reach they are shown to that session only.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from project.corpus.build import build
from project.corpus.documents import corpus
from project.corpus.engines.choose import Remote, open_engine
from project.corpus.index import MANIFEST, RankingSettings
from project.corpus.retrievers import Retriever
from project.errors import InputError
from project.records import Hit
from project.tracking.store import project_root

QUICKSTART = Path("data/quickstart/index")
"""The index that the page opens with where none is given."""
LONGEST = 60
"""Letters of a name."""


@dataclass
class Corpora:
    """Corpora by name, each opened when it is first searched."""

    places: dict[str, str]
    """An index's folder, or a server's address, by the name that people see."""
    shared: bool = True
    """Whether all sessions see what any of them brings."""
    _owners: dict[str, str] = field(default_factory=dict)
    _open: dict[str, Retriever] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def find(cls, index: Path | None, retrieval_url: str | None, *, shared: bool = True) -> Corpora:
        """Take what was given, the indexes below `data/`, and where all is shared those of documents that were brought before.

        Raises:
            InputError: both are given, nothing was given or found, or what was given cannot be opened.
        """
        if index is not None and retrieval_url is not None:
            raise InputError("--index and --retrieval_url are both given; give one of them")
        given = [str(index)] if index is not None else [retrieval_url] if retrieval_url else []
        indexes = [path.parent for path in sorted(project_root().glob(f"data/**/{MANIFEST}"))]
        found = [str(path) for path in sorted(indexes, key=lambda path: path != project_root() / QUICKSTART)]
        brought = [str(path.parent) for path in sorted(brought_folder().glob(f"*/index/{MANIFEST}"))] if shared else []
        corpora = cls({}, shared)
        apart = {
            place if "://" in place else str(Path(place).resolve()): place for place in reversed([*given, *found, *brought])
        }
        for place in reversed(apart.values()):
            corpora.places[corpora._free_name(shown_name(place))] = place
        if not corpora.places:
            raise InputError(
                "there is no index to search; run scripts/quickstart.sh, or build one of your own by `seeker data corpus` and "
                "`seeker index build`, and give it as --index"
            )
        if given:
            corpora.get(next(iter(corpora.places)), "")  # what cannot be opened is said at once
        return corpora

    def names(self, session: str) -> list[str]:
        """Return the corpora that a session sees."""
        return [name for name in [*self.places] if self.shared or self._owners.get(name, session) == session]

    def get(self, name: str, session: str) -> Retriever:
        """Return a corpus, opened.

        Raises:
            InputError: the session sees no such corpus, or it cannot be opened.
        """
        with self._lock:
            if name not in self.names(session):
                raise InputError(f"there is no corpus '{name}'; choose one of {', '.join(self.names(session))}")
            if name not in self._open:
                place = self.places[name]
                if place.startswith(("http://", "https://")):
                    self._open[name], _ = open_engine(None, "http", RankingSettings(), Remote(place))
                else:
                    self._open[name], _ = open_engine(place, None, RankingSettings(), Remote())
            return self._open[name]

    def search(self, name: str, session: str, query: str, topk: int) -> list[Hit]:
        """Return what a corpus has for a query, from one thread for all: engines keep connections by event loop.

        Raises:
            InputError: as `get`.
            RetrievalError: the search failed.
        """
        retriever = self.get(name, session)
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="demo-corpora", daemon=True).start()
        (hits,) = asyncio.run_coroutine_threadsafe(retriever.search([query], topk), self._loop).result()
        return hits

    def add(self, files: Sequence[Path], name: str, session: str) -> tuple[str, int]:
        """Cut documents into passages, index them, and return the corpus's name and how many passages it has.

        A name that is taken gets a number: nobody's corpus is ever replaced.

        Args:
            files: documents (.md, .txt, .html, .pdf) and rows (.jsonl, .json, .parquet).
            name: what people call it; by default the first file's.
            session: whose it is.

        Raises:
            InputError: there is no file, one is of another kind, none of them holds text, or the disk is full.
        """
        if not files:
            raise InputError("no document was given; choose one or several .md, .txt, .html or .pdf files")
        slug = re.sub(r"[^\w-]+", "-", (name.strip() or files[0].stem)).strip("-").lower()[:LONGEST] or "documents"
        with self._lock:
            free = self._free_name(slug, brought_folder())
            folder = brought_folder() / free
            folder.mkdir(parents=True)
        index = folder / "index"
        try:
            corpus(list(files), folder / "passages.jsonl")
            build(folder / "passages.jsonl", str(index))
        except BaseException:
            shutil.rmtree(folder)
            raise
        with self._lock:
            self.places[free], self._owners[free] = str(index), session
        opened = self.get(free, session)
        return free, len(opened)  # type: ignore[arg-type]  # an Index has a length

    def _free_name(self, name: str, folder: Path | None = None) -> str:
        """Return a name that no corpus has, nor a file in a folder."""
        free, number = name, 1
        while free in self.places or (folder is not None and (folder / free).exists()):
            number += 1
            free = f"{name}-{number}"
        return free


def brought_folder() -> Path:
    """Return the folder of documents that people brought."""
    return project_root() / "lightning_logs" / "demo"


def shown_name(place: str) -> str:
    """Return what people see of an index's folder or a server's address.

    >>> shown_name("data/quickstart/index"), shown_name("http://127.0.0.1:8001")
    ('quickstart', 'http://127.0.0.1:8001')
    """
    if "://" in place:
        return place
    path = Path(place).resolve()
    return path.parent.name if path.name == "index" else path.name
