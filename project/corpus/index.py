"""The BM25 index: passages to a folder that is memory-mapped, and searched in batches.

`seeker index build --passages FILE --output_dir DIR` and `seeker index search --index DIR --query TEXT`.

bm25s does the scoring. Seeker does the rest itself, since bm25s returns passages of score 0 for a query that matches
nothing, pads up to k, and raises for a k above the corpus. Words are folded (lower case, no accents), stop words and
question words dropped, English stems taken; single characters stay, so that "vitamin C" is found. Title and text count
alike. Ties stand in the order of the corpus.

A folder holds `manifest.json`, `bm25/` (bm25s's arrays) and the passages (`passage_store.py`).
"""

from __future__ import annotations

import json
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from project.corpus.passage_store import ROWS_FILE, PassageStore, write_passages
from project.errors import InputError
from project.files import file_digest, read_rows
from project.records import Hit, Passage, Row
from project.writing import write_text

if TYPE_CHECKING:  # without bm25s: jsonargparse runs this block for --help, and bm25s takes half a second to load
    import numpy as np
    from numpy.typing import NDArray

MANIFEST = "manifest.json"
FORMAT = 1
"""Raised when the folder's layout or the treatment of words changes; other formats are refused."""
PARAMETERS: Row = {"k1": 1.5, "b": 0.75, "method": "lucene"}
"""Lucene's BM25: its inverse document frequency is never 0, so a shared word always gives a score above 0."""
_STOP_WORDS = """
a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to was
will with what which who whom whose when where why how do does did were been has have had its from
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Return the folded words of a text without stop words, not yet stemmed.

    >>> words("Which currency is the Tögrög?")
    ['currency', 'togrog']
    """
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        text = "".join(c for c in decomposed if not unicodedata.combining(c))
    return [word for word in _WORD.findall(text.lower()) if word not in STOP_WORDS]


def _stems(terms: list[str]) -> list[str]:
    import Stemmer

    stemmed: list[str] = Stemmer.Stemmer("english").stemWords(terms)  # a stemmer is not thread-safe: one a call
    return stemmed


class Bm25Index:
    """Passages and their BM25 scores. Searching only reads: threads may share one."""

    def __init__(self, engine: Any, passages: Sequence[Passage], digest: str = "") -> None:  # noqa: ANN401 - a bm25s.BM25
        self._engine = engine
        self.passages = passages
        self.digest = digest
        """Fingerprint of the passages: 16 hexadecimal digits; empty before `save`."""

    @classmethod
    def from_passages(cls, passages: Sequence[Passage]) -> Self:
        """Index passages in memory.

        Raises:
            InputError: there is no passage, an id occurs twice, or no passage holds a word.
        """
        import bm25s

        check_passages(passages)
        ids, vocabulary = _term_ids(f"{p.title}\n{p.text}" for p in passages)
        if not vocabulary:
            raise InputError(f"none of the {len(passages)} passages holds a word to search for; check their title and text")
        engine = bm25s.BM25(**PARAMETERS)
        engine.index((ids, vocabulary), create_empty_token=False, show_progress=False)
        return cls(engine, passages)

    def save(self, folder: Path) -> None:
        """Write the index into an existing folder, the manifest last; sets `digest`. `build` makes this atomic."""
        write_passages(folder, self.passages)
        self._engine.save(folder / "bm25", show_progress=False)
        self.digest = file_digest(folder / ROWS_FILE)
        _write_manifest(folder, {"passages": len(self), "digest": self.digest})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open an index, memory-mapped.

        Raises:
            InputError: the folder is no index, is damaged, or was made by another format.
        """
        import bm25s

        manifest, passages = read_manifest(folder), PassageStore(folder)
        try:
            engine = bm25s.BM25.load(folder / "bm25", mmap=True, show_progress=False)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise InputError(f"{folder} is a damaged index ({error}); build it again with 'seeker index build'") from error
        if not len(passages) == engine.scores["num_docs"] == manifest.get("passages"):
            raise InputError(f"{folder} is a damaged index: its parts differ in size; build it again with 'seeker index build'")
        return cls(engine, passages, manifest["digest"])

    def __len__(self) -> int:
        return len(self.passages)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return for each query at most `k` passages that share a word with it, best first, ties in corpus order."""
        return [self._search_one(query, k) for query in queries]

    def _search_one(self, query: str, k: int) -> list[Hit]:
        terms: list[int] = self._engine.get_tokens_ids(_stems(words(query)))
        if not terms or k < 1:
            return []
        scores = self._engine.get_scores_from_ids(terms)
        return [Hit(self.passages[i], float(scores[i])) for i in best(scores, k)]


def best(scores: NDArray[np.float32], k: int) -> list[int]:
    """Return the positions of the `k` highest scores above 0, best first, ties by position.

    Args:
        scores: one score a passage, shape (passages,).
        k: how many at most, >= 1.
    """
    import numpy as np

    floor = np.partition(scores, -k)[-k] if k < len(scores) else 0.0
    found = np.flatnonzero((scores >= floor) & (scores > 0))
    order = np.argsort(-scores[found], kind="stable")[:k]
    return [int(i) for i in found[order]]


def _term_ids(texts: Iterable[str]) -> tuple[list[list[int]], dict[str, int]]:
    """Return the stem ids of each text, and the ids by stem, numbered as they first occur."""
    by_word: dict[str, int] = {}
    word_ids = [[by_word.setdefault(word, len(by_word)) for word in words(text)] for text in texts]
    vocabulary: dict[str, int] = {}
    stem_of = [vocabulary.setdefault(stem, len(vocabulary)) for stem in _stems(list(by_word))]
    return [[stem_of[i] for i in ids] for ids in word_ids], vocabulary


def check_passages(passages: Sequence[Passage], where: str = "the corpus") -> None:
    """Refuse an empty corpus and ids that occur twice; `where` names the source in the message."""
    if not passages:
        raise InputError(f"{where} holds no passages; an index needs at least one")
    seen: dict[str, int] = {}
    for number, passage in enumerate(passages, 1):
        if (first := seen.setdefault(passage.id, number)) != number:
            raise InputError(f"{where}, passage {number}: field 'id' is '{passage.id}' as in passage {first}; ids must differ")


def read_passages(path: Path) -> list[Passage]:
    """Read passages (`id, title, text` or Search-R1's `id, contents`), checked; a wrong row is named by line and field."""
    passages: list[Passage] = []
    lines: dict[str, int] = {}
    for line, row in read_rows(path):
        try:
            passage = Passage.from_row(row)
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}, line {line}: {error}") from error
        if passage.id in lines:
            raise InputError(
                f"{path}, line {line}: field 'id' is '{passage.id}' as in line {lines[passage.id]}; ids must differ"
            )
        lines[passage.id] = line
        passages.append(passage)
    return passages


def read_manifest(folder: Path) -> Row:
    """Return an index folder's manifest, its format checked."""
    try:
        manifest: Row = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder} is not an index (no {MANIFEST}); make one with 'seeker index build'") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / MANIFEST} cannot be read ({error}); build it again with 'seeker index build'") from error
    if manifest.get("format") != FORMAT:
        raise InputError(f"{folder} has index format {manifest.get('format')}, this version reads {FORMAT}; build it again")
    return manifest


def _write_manifest(folder: Path, values: Row) -> None:
    versions = {name: version(name) for name in ("bm25s", "PyStemmer")}
    known = {"format": FORMAT, "engine": "bm25", "parameters": PARAMETERS, "versions": versions}
    write_text(folder / MANIFEST, json.dumps(known | values, indent=2) + "\n")


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder` that takes its place on success and is removed on failure."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", ignore_cleanup_errors=True) as name:
        new, old = Path(name) / "new", Path(name) / "old"
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)


def build(passages: Path, output_dir: Path) -> None:
    """Index passages for search; does nothing where the index already holds these passages.

    Args:
        passages: a .jsonl or .parquet file with `id, title, text`, or Search-R1's `id, contents`.
        output_dir: the folder to write; an index that stands there is replaced when the new one is complete.
    """
    if output_dir.exists() and not (output_dir / MANIFEST).is_file() and (output_dir.is_file() or any(output_dir.iterdir())):
        raise InputError(f"{output_dir} exists and is not an index; give a new or empty folder as --output_dir")
    if not passages.is_file():
        raise InputError(f"{passages} does not exist; give a .jsonl or .parquet file of passages")
    digest = file_digest(passages)
    if _is_current(output_dir, digest):
        print(f"{output_dir} is up to date with {passages}")
        return
    index = Bm25Index.from_passages(read_passages(passages))
    with _replacing(output_dir) as folder:
        index.save(folder)
        _write_manifest(folder, {"passages": len(index), "digest": index.digest, "source_digest": digest})
    print(f"{output_dir}: {len(index)} passages indexed, digest {index.digest}")


def _is_current(folder: Path, source_digest: str) -> bool:
    try:
        manifest: dict[str, Any] = read_manifest(folder)
        Bm25Index.load(folder)
    except InputError:
        return False
    return manifest.get("source_digest") == source_digest and manifest.get("parameters") == PARAMETERS


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
    (hits,) = Bm25Index.load(index).search([query], topk)
    table = Table(title=escape(query), caption="" if hits else "No results.")
    for column in ("score", "id", "title", "text"):
        table.add_column(column, justify="right" if column == "score" else "left")
    for hit in hits:
        passage = hit.passage
        table.add_row(f"{hit.score:.3f}", *map(escape, (passage.id, passage.title, passage.text[:300])))
    Console().print(table)
