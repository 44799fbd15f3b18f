"""Building an index: `seeker index build --passages FILE --output_dir DIR [--engine hybrid]`.

It appears when it is complete, in the place of the one before. Encoding for dense search is slow: what a killed build has
encoded is kept beside it, and the same command goes on from there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from project.corpus.engines.bm25 import Bm25
from project.corpus.engines.dense import PLAN, VECTORS, encode_passages
from project.corpus.engines.lance import PACKAGES as LANCE_PACKAGES
from project.corpus.engines.lance import connect, read_state, write_table
from project.corpus.engines.settings import Bm25Settings, DenseSettings, LanceSettings
from project.corpus.index import FORMAT, MANIFEST, PACKAGES, PARTS, EngineName, check_index
from project.corpus.passage_store import ROWS_FILE, PassageStore, Texts, distinct, write_passages
from project.errors import InputError
from project.files import file_digest, read_rows
from project.manifests import manifest_of
from project.model_cache import cache_folder
from project.records import Passage, Row
from project.writing import write_text

Settings = Bm25Settings | DenseSettings
_BM25, _DENSE, _LANCE = Bm25Settings(), DenseSettings(), LanceSettings()


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
        for other in {path.name for path in work.iterdir() if path.is_dir()} - {*PARTS[engine]}:
            shutil.rmtree(work / other)  # vectors of a build that was stopped
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
    """Give a folder beside `folder` that takes its place on success; see `_scratch`."""
    old = folder.parent / f".{folder.name}.replaced"
    with _scratch(folder) as work:
        if old.exists() and not folder.exists():  # a build was killed while it took the place
            old.rename(folder)
        yield work
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        work.rename(folder)  # from here on the name is another build's
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Give a folder beside `folder` that one process at a time writes in; of a failure only vectors stay in it."""
    work = folder.parent / f".{folder.name}.building"
    try:
        work.mkdir(parents=True, exist_ok=True)
        with _locked(work) as held:
            _clear(work)
            try:
                yield work
            finally:
                if _is_at(work, held):  # it did not take the folder's place
                    _clear(work)
                    with suppress(OSError):
                        work.rmdir()  # vectors are in it
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error}); what stood there stays") from error


def _is_at(folder: Path, held: int) -> bool:
    """Return whether a folder is the one that was opened."""
    try:
        return os.path.samestat(folder.stat(), os.fstat(held))
    except OSError:
        return False


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(folder, descriptor):
            raise BlockingIOError  # it has just taken its place
        yield descriptor
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
    output_dir: str,
    engine: EngineName | Literal["lance"] = "bm25",
    bm25: Bm25Settings = _BM25,
    dense: DenseSettings = _DENSE,
    lance: LanceSettings = _LANCE,
    force: bool = False,
) -> None:
    """Index passages for search; does nothing where the index already holds these passages.

    Args:
        passages: a .jsonl or .parquet file with `id, title, text`, or Search-R1's `id, contents`.
        output_dir: the folder to write, for lance also s3://… or db://…; an index that stands there is replaced when the new
            one is complete. Encoding goes on where the same command was stopped.
        engine: what it is to be searched by: bm25 (words), dense (vectors of a model), hybrid (both), or lance (LanceDB's
            table, from disk or an object store).
        bm25: how BM25 counts.
        dense: how passages and queries become vectors.
        lance: what LanceDB indexes.
        force: build also where nothing changed.
    """
    folder = Path(output_dir).resolve()
    if "://" in output_dir and engine != "lance":
        raise InputError(f"{output_dir} is no folder; only --engine lance writes there")
    if not _may_be_written(folder):
        raise InputError(f"{output_dir} exists and is not an index; give a new or empty folder as --output_dir")
    if passages.is_dir():
        raise InputError(
            f"{passages} is a folder; make passages of its documents with `seeker data corpus --input_file {passages}`"
        )
    if not passages.is_file():
        raise InputError(f"{passages} does not exist; give a .jsonl or .parquet file of passages")
    bm25.check()
    dense.check()
    digest = file_digest(passages)
    made_by = manifest_of(passages, digest)
    source = {"file": str(passages), "digest": digest} | ({"made_by": made_by} if made_by else {})
    if engine == "lance":
        _build_lance(output_dir, passages, source, lance, dense, force=force)
        return
    settings: dict[str, Settings] = {"bm25": bm25, "dense": dense}
    if not force and _is_current(folder, digest, engine, settings):
        print(f"{output_dir} is up to date with {passages}")
        return
    manifest = write_index(folder, read_passages(passages), engine, settings, source)
    print(f"{output_dir}: {manifest['passages']} passages indexed, digest {manifest['digest']}")


def _may_be_written(folder: Path) -> bool:
    """Return whether nothing stands there but an index, or what a build by LanceDB left that did not end."""
    if not folder.exists() or (folder / MANIFEST).is_file():
        return True
    return folder.is_dir() and all(path.suffix == ".lance" and path.is_dir() for path in folder.iterdir())


def _build_lance(
    uri: str, passages: Path, source: Row, settings: LanceSettings, dense: DenseSettings, *, force: bool = False
) -> None:
    settings.check()
    wanted = {"lance": asdict(settings), "dense": asdict(dense)}
    folder = None if "://" in uri else Path(uri).resolve()
    scratch = folder or cache_folder() / "indices" / hashlib.sha256(uri.encode()).hexdigest()[:16]
    held = read_state(connect(uri), uri)
    if not force and held and held["source"].get("digest") == source["digest"] and {n: held[n] for n in wanted} == wanted:
        print(f"{uri} is up to date with {passages}")
        return
    with _scratch(scratch) as work:
        write_passages(work, distinct(read_passages(passages)))
        store, digest = PassageStore(work), file_digest(work / ROWS_FILE)
        if settings.vectors:
            encode_passages(Texts(store), work / "dense", dense, digest)
        about = {"digest": digest, "source": source, "versions": {name: version(name) for name in LANCE_PACKAGES}}
        state = write_table(uri, store, settings, dense, work / "dense" if settings.vectors else None, about)
        _clear(work)
    if folder:
        parts = {"lance": {"settings": wanted, "versions": about["versions"]}}
        manifest = {
            "format": FORMAT,
            "passages": len(store),
            "digest": digest,
            "engine": "lance",
            "parts": parts,
            "source": source,
        }
        write_text(folder / MANIFEST, json.dumps(manifest | {"files": {}}, indent=2) + "\n")
    print(f"{uri}: {state['passages']} passages indexed by LanceDB, digest {digest}")


def _is_current(folder: Path, source_digest: str, engine: EngineName, settings: Mapping[str, Any]) -> bool:
    try:
        manifest = check_index(folder)
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
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"{path}, line {line}: {error}") from error
        if (first := lines.setdefault(hash(passage.id), line)) != line:
            raise InputError(f"{path}, line {line}: field 'id' is '{passage.id}' as in line {first}; ids must differ")
        yield passage
