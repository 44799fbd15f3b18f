"""`seeker data corpus`: documents of many kinds -> passages.

Files of one document (Markdown, text, HTML, PDF: `read.py`) are cut (`cut.py`). Rows of JSON lines or Parquet (`rows.py`) are
passages already: they keep their id and stay whole, unless a way to cut is named.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from project.corpus.documents.cut import Cutting, StrategyName, pieces
from project.corpus.documents.read import READERS, Source, read_document
from project.corpus.documents.rows import as_document, passages_of
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
    inputs, skipped = find_inputs(as_paths(input_file))
    parameters = asdict(cutting) | {"rows": "cut" if strategy else "whole", "tokenizer": _tokenizer_digest(cutting)}
    parameters |= {"drop_duplicates": drop_duplicates, "drop_near_empty": drop_near_empty}
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


def find_inputs(given: Sequence[Path]) -> tuple[list[Input], Counter[str]]:
    """Return the files to read, those of folders in the order of their names, and how many others the folders hold.

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
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and not _is_hidden(file.relative_to(path))]
        found = [Input(file, path) for file in files if _is_known(file)]
        if not found:
            raise InputError(f"{path} holds no document that can be read; expected {', '.join((*READERS, *ROWS))}")
        skipped[f"files of other kinds in {path}"] = len(files) - len(found)
        inputs += found
    return inputs, +skipped


def _is_known(path: Path) -> bool:
    return suffix_of(path).lower() in (*READERS, *ROWS) and not path.name.endswith((SUFFIX, ".rejected.jsonl"))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


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
        except (ValueError, OSError, EOFError, zlib.error) as error:
            yield 1, self.id, str(error)


def _chunks(inputs: Sequence[Input], paths: Sequence[Path]) -> Iterator[Readable]:
    total, done = sum(path.stat().st_size for path in paths) or 1, 0
    for found in inputs:
        size = found.path.stat().st_size
        if suffix_of(found.path).lower() in READERS:
            yield File(found.path, found.given, found.id, (done + size) / total)
        else:
            yield from (replace(chunk, share=(done + chunk.share * size) / total) for chunk in chunked([found.path]))
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
    found = passages_of(placed.row, f"{stem_of(placed.file)}-{placed.line}")
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
