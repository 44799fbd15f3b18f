"""What the demo's agents search: indexes that are there, a server elsewhere, and documents that people bring."""

from __future__ import annotations

import re
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
from project.tracking.store import project_root

OWN = "documents"
"""Name of the folder below `lightning_logs/demo` that holds what people brought."""


@dataclass
class Corpora:
    """Corpora by name, each opened when it is first searched."""

    places: dict[str, str]
    """An index's folder, or a server's address, by the name that people see."""
    _open: dict[str, Retriever] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def find(cls, index: Path | None, retrieval_url: str | None) -> Corpora:
        """Take what was given, and the indexes below `data/` and of documents that were brought before.

        Raises:
            InputError: both are given, or nothing was given or found.
        """
        if index is not None and retrieval_url is not None:
            raise InputError("--index and --retrieval_url are both given; give one of them")
        given = [str(index)] if index is not None else [retrieval_url] if retrieval_url else []
        found = [path.parent for path in sorted(project_root().glob(f"data/**/{MANIFEST}"))]
        brought = [path.parent for path in sorted(brought_folder().glob(f"*/index/{MANIFEST}"))]
        names = {place: shown_name(place) for place in [*given, *map(str, found), *map(str, brought)]}
        if not names:
            raise InputError(
                "there is no index to search; run scripts/quickstart.sh, or build one of your own by `seeker data corpus` and "
                "`seeker index build`, and give it as --index"
            )
        corpora = cls({name: place for place, name in reversed(names.items())})
        corpora.places = dict(reversed(corpora.places.items()))
        if given:
            corpora.get(names[given[0]])  # what cannot be opened is said at once
        return corpora

    def get(self, name: str) -> Retriever:
        """Return a corpus, opened.

        Raises:
            InputError: it is not there any longer, or cannot be opened.
        """
        with self._lock:
            if name not in self.places:
                raise InputError(f"there is no corpus '{name}'; choose one of {', '.join(self.places)}")
            if name not in self._open:
                place = self.places[name]
                if place.startswith(("http://", "https://")):
                    self._open[name], _ = open_engine(None, "http", RankingSettings(), Remote(place))
                else:
                    self._open[name], _ = open_engine(place, None, RankingSettings(), Remote())
            return self._open[name]

    def add(self, files: Sequence[Path], name: str) -> tuple[str, int]:
        """Cut documents into passages, index them, and return the corpus's name and how many passages it has.

        What was brought under the name before is replaced.

        Args:
            files: documents (.md, .txt, .html, .pdf) and rows (.jsonl, .json, .parquet).
            name: what people call it.

        Raises:
            InputError: there is no file, one is of another kind, none of them holds text, or the disk is full.
        """
        if not files:
            raise InputError("no document was given; choose one or several .md, .txt, .html or .pdf files")
        slug = re.sub(r"[^\w-]+", "-", name.strip()).strip("-").lower() or OWN
        folder = brought_folder() / slug
        folder.mkdir(parents=True, exist_ok=True)
        passages, index = folder / "passages.jsonl", folder / "index"
        corpus(list(files), passages, force=True)
        build(passages, str(index))
        shown = shown_name(str(index))
        with self._lock:
            self.places[shown] = str(index)
            self._open.pop(shown, None)
        opened = self.get(shown)
        return shown, len(opened)  # type: ignore[arg-type]  # an Index has a length


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
