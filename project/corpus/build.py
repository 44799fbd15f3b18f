"""Building an index: `seeker index build --passages FILE --output_dir DIR [--engine hybrid]`.

It appears when it is complete, in the place of the one before. Encoding for dense search is slow: what a killed build has
encoded is kept beside it, and the same command goes on from there.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from project.corpus.engines.bm25 import Bm25, Bm25Settings
from project.corpus.engines.dense import PLAN, VECTORS, DenseSettings, encode_passages
from project.corpus.index import FORMAT, MANIFEST, PACKAGES, PARTS, EngineName, Index, read_manifest
from project.corpus.passage_store import ROWS_FILE, PassageStore, Texts, distinct, write_passages
from project.errors import InputError
from project.files import file_digest, read_rows
from project.manifests import manifest_of
from project.records import Passage, Row
from project.writing import write_text

Settings = Bm25Settings | DenseSettings
_BM25, _DENSE = Bm25Settings(), DenseSettings()


def write_index(
    folder: Path,
    passages: Iterable[Passage],
    engine: EngineName = "bm25",
    settings: Mapping[str, Settings] | None = None,
    source: Row | None = None,
) -> Row:
    """Write an index that takes the folder's place when it is complete, and return its manifest.

    Vectors that were encoded before a failure stay in `.NAME.building` beside the folder, for the next call.

    Args:
        folder: where; what stands there is replaced.
        passages: in the order of ties.
        engine: what it is to be searched by.
        settings: of its parts.
        source: what the manifest says of where the passages come from.

    Raises:
        InputError: there is no passage, an id occurs twice, no passage holds a word, the disk is full, or another process
            builds the same index.
    """
    chosen: dict[str, Settings] = {"bm25": _BM25, "dense": _DENSE, **(settings or {})}
    with _building(folder) as work:
        count = write_passages(work, distinct(passages))
        texts, digest = Texts(PassageStore(work)), file_digest(work / ROWS_FILE)
        for part in PARTS[engine]:
            _build_part(work / part, texts, chosen[part], digest)
        parts = {part: {"settings": asdict(chosen[part]), "versions": _versions(part)} for part in PARTS[engine]}
        files = {str(path.relative_to(work)): path.stat().st_size for path in sorted(work.rglob("*")) if path.is_file()}
        manifest = {"format": FORMAT, "passages": count, "digest": digest, "engine": engine, "parts": parts}
        manifest |= {"source": source or {}, "files": files}
        write_text(work / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return manifest


def _versions(part: str) -> dict[str, str]:
    return {name: version(name) for name in PACKAGES[part]}


def _build_part(folder: Path, texts: Texts, settings: Settings, digest: str) -> None:
    if isinstance(settings, Bm25Settings):
        Bm25.of(texts, settings).save(folder)
    else:
        encode_passages(texts, folder, settings, digest)


@contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """Give a folder beside `folder` that takes its place on success; on failure only vectors stay in it."""
    work = folder.parent / f".{folder.name}.building"
    old = folder.parent / f".{folder.name}.replaced"
    work.mkdir(parents=True, exist_ok=True)
    with _locked(work):
        _clear(work)
        try:
            yield work
        except BaseException as error:
            _clear(work)
            with suppress(OSError):
                work.rmdir()  # no vectors are in it
            if isinstance(error, OSError):
                raise InputError(f"{folder} cannot be written ({error}); what stood there stays") from error
            raise
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        work.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise InputError(f"another process writes {folder}; wait for its end, or give another --output_dir") from error
    finally:
        os.close(descriptor)


def _clear(work: Path) -> None:
    """Remove what an earlier build left, but for whole vectors."""
    vectors = work / "dense" / VECTORS
    kept = (vectors.parent,) if vectors.is_file() and vectors.stat().st_size and (vectors.parent / PLAN).exists() else ()
    for path in work.iterdir():
        if path not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def build(
    passages: Path,
    output_dir: Path,
    engine: EngineName = "bm25",
    bm25: Bm25Settings = _BM25,
    dense: DenseSettings = _DENSE,
    force: bool = False,
) -> None:
    """Index passages for search; does nothing where the index already holds these passages.

    Args:
        passages: a .jsonl or .parquet file with `id, title, text`, or Search-R1's `id, contents`.
        output_dir: the folder to write; an index that stands there is replaced when the new one is complete. Encoding goes on
            where the same command was stopped.
        engine: what it is to be searched by: bm25 (words), dense (vectors of a model), or hybrid (both).
        bm25: how BM25 counts.
        dense: how passages and queries become vectors.
        force: build also where nothing changed.
    """
    if output_dir.exists() and not (output_dir / MANIFEST).is_file() and (output_dir.is_file() or any(output_dir.iterdir())):
        raise InputError(f"{output_dir} exists and is not an index; give a new or empty folder as --output_dir")
    if not passages.is_file():
        raise InputError(f"{passages} does not exist; give a .jsonl or .parquet file of passages")
    bm25.check()
    digest = file_digest(passages)
    settings: dict[str, Settings] = {"bm25": bm25, "dense": dense}
    if not force and _is_current(output_dir, digest, engine, settings):
        print(f"{output_dir} is up to date with {passages}")
        return
    made_by = manifest_of(passages, digest)
    source = {"file": str(passages), "digest": digest} | ({"made_by": made_by} if made_by else {})
    manifest = write_index(output_dir, read_passages(passages), engine, settings, source)
    print(f"{output_dir}: {manifest['passages']} passages indexed, digest {manifest['digest']}")


def _is_current(folder: Path, source_digest: str, engine: EngineName, settings: Mapping[str, Any]) -> bool:
    try:
        manifest = read_manifest(folder)
        Index.load(folder)
    except InputError:
        return False
    held = {part: made["settings"] for part, made in manifest["parts"].items()}
    wanted = {part: asdict(settings[part]) for part in PARTS[engine]}
    return (manifest["source"].get("digest"), manifest["engine"], held) == (source_digest, engine, wanted)


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
