"""`seeker data corpus`: documents of many kinds -> passages.

Files of one document (Markdown, text, HTML, PDF: `read.py`) are cut (`cut.py`). Rows of JSON lines or Parquet (`rows.py`) are
passages already: they keep their id and stay whole, unless a way to cut is named.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from project.corpus.documents.cut import Cutting, StrategyName, pieces
from project.corpus.documents.read import READERS, Source, read_document
from project.corpus.documents.rows import IDS, as_document, passages_of
from project.errors import InputError
from project.manifests import SUFFIX
from project.records import Passage, Row
from project.streams import ROW_ERRORS, Made, Placed, Readable, as_paths, chunked, print_counts, run
from project.writing import is_text, stem_of, suffix_of

ROWS = ("jsonl", "json", "parquet")
SIZES: dict[StrategyName, int] = {"fixed": 1000, "tokens": 256, "sentences": 1000, "sections": 1000, "paragraphs": 1000}
DEFAULT: StrategyName = "sentences"
FEW_WORDS = 5
"""A passage with fewer words in its text is near-empty."""


def corpus(
    input_file: list[Path] | Path,
    output_file: Path,
    strategy: StrategyName | None = None,
    size: int | None = None,
    overlap: int = 0,
    tokenizer: str | None = None,
    drop_duplicates: bool = False,
    drop_near_empty: bool = False,
    strict: bool = False,
    force: bool = False,
) -> None:
    """Turn documents into passages for `seeker index build`.

    Args:
        input_file: files and folders: documents (.md, .txt, .html, .pdf) and rows (.jsonl, .json, .parquet), also with .gz.
        output_file: the passages to write (.parquet, .jsonl or .jsonl.gz).
        strategy: how documents are cut: fixed (characters), tokens, sentences (packed up to the size), paragraphs, sections
            (at headings, which go into the titles); default: sentences for documents, and rows stay whole.
        size: the longest a passage may be, in characters, in tokens for tokens; default: 1000, or 256 tokens.
        overlap: how much of a passage the next one repeats, at most, in the same unit.
        tokenizer: what cuts tokens: a model's folder or its name on the hub; by default the default model's.
        drop_duplicates: leave out passages whose title and text another one has, instead of counting them.
        drop_near_empty: leave out passages of fewer than 5 words, instead of counting them.
        strict: stop at the first document or row that cannot be read, instead of listing it in OUTPUT.rejected.jsonl.
        force: replace an output that was made otherwise.
    """
    chosen = strategy or DEFAULT
    cutting = Cutting(chosen, SIZES[chosen] if size is None else size, overlap, tokenizer)
    if strategy is None and (size is not None or overlap):
        raise InputError("--size and --overlap need a --strategy; give fixed, tokens, sentences, sections or paragraphs")
    inputs, skipped = find_inputs(as_paths(input_file), output_file)
    parameters = asdict(cutting) | {"rows": "cut" if strategy else "whole", "tokenizer": _tokenizer_digest(cutting)}
    parameters |= {"drop_duplicates": drop_duplicates, "drop_near_empty": drop_near_empty}
    ids = "\n".join(found.id for found in inputs).encode(errors="surrogateescape")
    parameters["ids"] = hashlib.sha256(ids).hexdigest()[:16]
    program = partial(_program, cutting, strategy is not None, drop_duplicates, drop_near_empty)
    outputs = {"passages": output_file}
    files = [found.path for found in inputs]
    read = partial(_chunks, inputs)
    counts = run("seeker data corpus", program, files, outputs, parameters, strict=strict, force=force, chunks=read)
    print_counts("corpus", None if counts is None else Counter(counts) + skipped)


def _tokenizer_digest(cutting: Cutting) -> str | None:
    from project.model_cache import tokenizer_digest

    return tokenizer_digest(cutting.tokenizer) if cutting.strategy == "tokens" else None


@dataclass(frozen=True, slots=True)
class Input:
    """A file to read."""

    path: Path
    given: Path
    """The file or folder that the user named."""

    @property
    def id(self) -> str:
        """Of its document: where it lies in the folder that was named."""
        return self.path.name if self.path == self.given else self.path.relative_to(self.given).as_posix()

    @property
    def stem(self) -> str:
        """The id without the file's suffix."""
        return self.id[: len(self.id) - len(self.path.name)] + stem_of(self.path)


def find_inputs(given: Sequence[Path], output: Path | None = None) -> tuple[list[Input], Counter[str]]:
    """Return the files to read, those of folders in the order of their names, and how many others the folders hold.

    An output that lies in a folder is none of its documents.

    Raises:
        InputError: a path is not there, is a file of another suffix, or is a folder without any document.
    """
    inputs, skipped = [], Counter[str]()
    for path in given:
        if path.is_file() and _is_known(path):
            inputs.append(Input(path, path))
            continue
        if not path.is_dir():
            known = ", ".join(f".{suffix}" for suffix in (*READERS, *ROWS))
            raise InputError(
                f"{path} {'has another suffix than' if path.exists() else 'does not exist; give a folder, or'} {known}"
            )
        files = [file for file in _walk(path) if not (output and output.exists() and file.samefile(output))]
        found = [Input(file, path) for file in files if _is_known(file)]
        if not found:
            raise InputError(f"{path} holds no document that can be read; expected {', '.join((*READERS, *ROWS))}")
        skipped[f"files of other kinds in {path}"] = len(files) - len(found)
        inputs += found
    first: dict[str, Input] = {}
    for one in inputs:
        if (other := first.setdefault(one.id, one)) is not one:
            raise InputError(
                f"{other.path} and {one.path} would both be '{one.id}'; give a folder that holds both, or rename one"
            )
    return inputs, +skipped


def _walk(folder: Path) -> list[Path]:
    """Return the files below a folder, links followed, without what begins with a dot."""
    files, seen = [], set[str]()

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}); give folders that can be")

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        seen.add(os.path.realpath(parent))
        folders[:] = [name for name in folders if name[0] != "." and os.path.realpath(Path(parent, name)) not in seen]
        files += [Path(parent, name) for name in names if name[0] != "."]
    return sorted(file for file in files if file.is_file())


def _is_known(path: Path) -> bool:
    is_ours = path.name.endswith((SUFFIX, ".rejected.jsonl"))
    return not is_ours and (suffix_of(path) in ROWS or suffix_of(path).lower() in READERS)


@dataclass(frozen=True, slots=True)
class File:
    """A file of one document, not yet read; a `Readable`."""

    path: Path
    given: Path
    id: str
    share: float

    def rows(self) -> Iterator[tuple[int, Row | str, str]]:
        """Yield the document as one object, or the reason why it cannot be read."""
        try:
            yield 1, read_document(self.path, self.id).to_row(), ""
        except (*ROW_ERRORS, OSError, EOFError, zlib.error) as error:
            yield 1, self.id, str(error)


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a file; a `Readable`. Rows without an id are named by the file and their line."""

    chunk: Readable
    given: Path
    stem: str
    share: float

    @property
    def path(self) -> Path:
        """The file."""
        return self.chunk.path

    def rows(self) -> Iterator[tuple[int, Row | str, str]]:
        """Yield as the chunk does."""
        for line, row, reason in self.chunk.rows():
            if isinstance(row, dict) and all(row.get(name) in (None, "") for name in IDS):
                row = row | {"id": f"{self.stem}-{line}"}
            yield line, row, reason


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file of rows that cannot be read at all; a `Readable`."""

    path: Path
    given: Path
    share: float
    reason: str

    def rows(self) -> Iterator[tuple[int, Row | str, str]]:
        """Yield the reason."""
        yield 1, self.path.name, self.reason


def _chunks(inputs: Sequence[Input], paths: Sequence[Path]) -> Iterator[Readable]:
    total, done = sum(path.stat().st_size for path in paths) or 1, 0
    for found in inputs:
        size = found.path.stat().st_size
        if suffix_of(found.path).lower() in READERS:
            yield File(found.path, found.given, found.id, (done + size) / total)
        else:
            try:
                for chunk in chunked([found.path]):
                    yield Rows(chunk, found.given, found.stem, (done + chunk.share * size) / total)
            except InputError as error:
                if found.path == found.given:
                    raise
                yield Unreadable(found.path, found.given, (done + size) / total, str(error))
        done += size


def _program(
    cutting: Cutting, cut_rows: bool, drop_duplicates: bool, drop_near_empty: bool, rows: Sequence[Placed], made: Made
) -> Iterator[tuple[Placed, str]]:
    for placed in rows:
        try:
            found = _passages(placed, cutting, cut_rows=cut_rows)
        except ROW_ERRORS as error:
            yield placed, str(error)
            continue
        for passage in found:
            if is_near_empty(passage):
                made.counts["near-empty passages left out" if drop_near_empty else "near-empty passages"] += 1
                if drop_near_empty:
                    continue
            text, row = _digest(passage.title, passage.text), _digest(passage.id, passage.title, passage.text)
            once, alike = ((row, text), ()) if drop_duplicates else ((row,), (text,))
            made.put("passages", passage.to_row(), once=once, alike=alike, same_id="refuse")


def _passages(placed: Placed, cutting: Cutting, *, cut_rows: bool) -> list[Passage]:
    if suffix_of(placed.file).lower() in READERS:
        return list(pieces(Source.from_row(placed.row), cutting))
    found = passages_of(placed.row)
    for passage in found:
        if not is_text(passage.id + passage.title + passage.text + passage.source):
            msg = "the id, title or text holds half a surrogate pair, which is no text"
            raise ValueError(msg)
    return [piece for passage in found for piece in pieces(as_document(passage), cutting)] if cut_rows else found


def is_near_empty(passage: Passage) -> bool:
    """Return whether a passage's text has fewer than 5 words."""
    return len(passage.text.split()) < FEW_WORDS


def _digest(*texts: str) -> bytes:
    return hashlib.sha256("\n".join(texts).encode()).digest()
