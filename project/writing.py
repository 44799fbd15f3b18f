"""Rows to files: JSON lines or Parquet, whole or not at all.

`encode` turns rows into what a file of a suffix holds, in whichever process; a `Sink` takes that, piece by piece, under a
temporary name beside its own, and is renamed when it is complete: a run that dies leaves no partial output.
"""

from __future__ import annotations

import fcntl
import glob
import gzip
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Protocol, Self

import msgspec

from project.errors import InputError
from project.records import Row

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

PARQUET_JSON_COLUMNS = ("extra_info", "messages", "tools", "steps", "context", "target")
"""Columns that Parquet holds as JSON strings: an empty object cannot be a struct, and Arrow merges the keys of different
objects and fills the absent ones with nulls. So are other columns that hold objects in the first rows."""
FOOTER_KEY = "seeker"
"""Footer entry of our own Parquet files: `json`, the columns held as JSON; `absent`, the rows (from 0) that lack a column."""
ROW_GROUP_BYTES = 8_000_000
PARTIAL = ".part"
_TYPES_OF_NULLS = ("correct", "needs_search", "label_teacher", "label_answerability", "label_self_knowledge")
"""Columns of true and false, which may be all nulls in the first rows; others are then taken for strings."""


class Record(Protocol):
    """A record that can be written."""

    def to_row(self) -> Row:
        """Return the record as a JSON object."""


def dumps(value: Any) -> str:  # noqa: ANN401 - any JSON
    """Return JSON with readable characters, or escaped where half a surrogate pair cannot be written as UTF-8."""
    return json_bytes(value).decode()


def _line(row: Row) -> bytes:
    return json_bytes(row) + b"\n"


def json_bytes(value: Any) -> bytes:  # noqa: ANN401 - any JSON
    """Return JSON in UTF-8, or in ASCII where half a surrogate pair cannot be written."""
    try:
        text = msgspec.json.encode(value)
    except (UnicodeEncodeError, TypeError):  # half a surrogate pair; a key that is no text
        return json.dumps(value, separators=(",", ":")).encode()
    # msgspec, four times as fast as json, writes NaN and infinity as null.
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() if b"null" in text else text


def is_text(text: str) -> bool:
    """Return whether a string can be written as UTF-8: it holds no half of a surrogate pair."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def suffix_of(path: Path | str) -> str:
    """Return `jsonl`, `json`, `parquet` or what else a file's name ends with, `.gz` aside."""
    return Path(path).name.removesuffix(".gz").rsplit(".", 1)[-1]


def stem_of(path: Path) -> str:
    """Return a file's name without its suffix, `.gz` included."""
    return path.name.removesuffix(".gz").removesuffix(f".{suffix_of(path)}")


def path_beside(path: Path, name: str) -> Path:
    """Return `STEM_name` with the same suffix, in the same folder."""
    stem = stem_of(path)
    return path.with_name(f"{stem}_{name}{path.name.removeprefix(stem)}")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path` that is renamed to it on success and removed on failure.

    One that a killed process has left there is removed: whoever writes one holds a lock on it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path.parent, path.name)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    partial = Path(name)
    try:
        with suppress(OSError):  # a file system without locks; then nothing is ever taken for abandoned there
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield partial
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        os.close(descriptor)


def _remove_left(place: Path, name: str) -> None:
    """Remove what killed processes have left of a name in a folder."""
    for left in place.glob(f".{glob.escape(name)}.*{PARTIAL}"):
        _remove_abandoned(left)


def _remove_abandoned(partial: Path) -> None:
    """Remove a temporary file or folder that nobody holds; one of the last minute may be about to be locked."""
    with suppress(OSError):
        if time.time() - partial.stat().st_mtime < 60:
            return
        is_folder = partial.is_dir()
        descriptor = os.open(partial, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_folder:
                shutil.rmtree(partial)
            else:
                partial.unlink()
        finally:
            os.close(descriptor)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder, which on success becomes a new one or fills an empty one, and on failure is removed.

    An empty one stays the same folder, as it may be the current one. What a killed process has left is removed, as by
    `atomic_path`.

    Raises:
        InputError: it was filled meanwhile.
    """
    folder = folder.absolute()
    place = folder if folder.exists() else folder.parent
    place.mkdir(parents=True, exist_ok=True)
    _remove_left(folder.parent, folder.name)
    partial = Path(tempfile.mkdtemp(dir=place, prefix=f".{folder.name}.", suffix=PARTIAL))
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield partial
        partial.chmod(0o755)
        if place == folder:
            _fill(folder, list(partial.iterdir()))
        else:
            partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(descriptor)


def _fill(folder: Path, made: Sequence[Path]) -> None:
    if taken := [one.name for one in made if (folder / one.name).exists()]:
        raise InputError(f"{folder} was filled while this was made, and holds {taken[0]}; name another folder")
    for one in made:
        one.rename(folder / one.name)


def is_taken(folder: Path) -> bool:
    """Return whether a path is a file, or a folder that holds something; what a killed `new_folder` left there is removed."""
    if not folder.is_dir():
        return folder.exists()
    _remove_left(folder, folder.absolute().name)
    return any(folder.iterdir())


def write_text(path: Path | str, text: str) -> None:
    """Write a small text file atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_rows(path: Path | str, rows: Iterable[Row]) -> int:
    """Write objects to `.jsonl[.gz]` or `.parquet` (by suffix) and return how many."""
    with Sink(Path(path)) as sink:
        sink.extend(rows)
        sink.keep()
    return sink.rows


def write_records(path: Path | str, records: Iterable[Record]) -> int:
    """Write records and return how many."""
    return write_rows(path, (record.to_row() for record in records))


@dataclass(slots=True)
class Lines:
    """Rows as JSON lines."""

    lines: list[bytes]

    def only(self, mask: Sequence[bool]) -> Lines:
        """Return the rows for which the mask is true."""
        return Lines(list(compress(self.lines, mask)))

    def rename(self, names: Mapping[int, str]) -> None:
        """Give rows other `id`s."""
        for index, ident in names.items():
            self.lines[index] = _line(json.loads(self.lines[index]) | {"id": ident})


@dataclass(slots=True)
class Columns:
    """Rows as an Arrow table."""

    table: pa.Table
    json: set[str]
    """Columns that hold JSON."""
    absent: dict[str, list[int]] = field(default_factory=dict)
    """The rows that lack a column, in which Arrow has nulls."""
    genuine: set[str] = field(default_factory=set)
    """Columns in which a row holds a null of its own."""

    def only(self, mask: Sequence[bool]) -> Columns:
        """Return the rows for which the mask is true."""
        import pyarrow as pa

        place = {row: new for new, row in enumerate(compress(range(len(mask)), mask))}
        absent = {name: [place[row] for row in rows if row in place] for name, rows in self.absent.items()}
        return Columns(self.table.filter(pa.array(mask)), self.json, absent, self.genuine)

    def rename(self, names: Mapping[int, str]) -> None:
        """Give rows other `id`s."""
        if not names:
            return
        import pyarrow as pa

        held = [names.get(index, ident) for index, ident in enumerate(self.table["id"].to_pylist())]
        self.table = self.table.set_column(self.table.schema.get_field_index("id"), "id", pa.array(held, pa.string()))


Encoded = Lines | Columns


def encode(rows: Sequence[Row], name: str) -> Encoded:
    """Return rows as a file of that name holds them.

    Raises:
        InputError: nothing is written under such a suffix, or the rows' columns have no one type.
    """
    if suffix_of(name) == "jsonl":
        return Lines([_line(row) for row in rows])
    if name.endswith(".parquet"):
        import pyarrow as pa

        try:
            return _columns(rows)
        except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
            raise _no_one_type(name, str(error)) from error
    raise InputError(f"{name} cannot be written; its suffix must be .jsonl, .jsonl.gz or .parquet")


def _no_one_type(name: Path | str, why: str) -> InputError:
    return InputError(f"{name} cannot hold rows of different columns or types ({why}); write .jsonl")


def _columns(rows: Sequence[Row]) -> Columns:
    import pyarrow as pa

    names = list(dict.fromkeys(name for row in rows for name in row))
    held = {k for row in rows for k, v in row.items() if k in PARQUET_JSON_COLUMNS or _holds_objects(v)}
    stored = [{k: dumps(v) if k in held else v for k, v in row.items()} for row in rows]
    schema = pa.schema([pa.field(name, _type(name, rows, held)) for name in names])
    absent = {name: lacking for name in names if (lacking := [i for i, row in enumerate(rows) if name not in row])}
    genuine = {name for row in rows for name, value in row.items() if value is None}
    return Columns(pa.Table.from_pylist(stored, schema=schema), held, absent, genuine)


def _type(name: str, rows: Sequence[Row], held: Collection[str]) -> pa.DataType:
    """Return a column's Arrow type; one of nulls only, or of empty lists, gets the type it may have later."""
    import pyarrow as pa

    kind: pa.DataType = pa.string() if name in held else pa.array([row.get(name) for row in rows]).type
    if pa.types.is_null(kind):
        return pa.bool_() if name in _TYPES_OF_NULLS else pa.string()
    return pa.list_(pa.string()) if pa.types.is_list(kind) and pa.types.is_null(kind.value_type) else kind


def _holds_objects(value: Any) -> bool:  # noqa: ANN401 - any JSON
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value))


class _Hashed(io.RawIOBase):
    """Counts and digests what is written to a file. Closing it leaves the file open."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self.file, self.sha256, self.bytes = file, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:  # noqa: ANN401 - any buffer
        self.sha256.update(data)
        self.bytes += self.file.write(data)
        return len(data)

    def tell(self) -> int:
        return self.bytes


class Sink:
    """A file that is being written: `.jsonl`, `.jsonl.gz` or `.parquet`. It appears when its block ends after `keep`."""

    def __init__(self, path: Path) -> None:
        """Take the file's final name.

        Raises:
            InputError: nothing is written under such a suffix.
        """
        if suffix_of(path) != "jsonl" and path.suffix != ".parquet":
            raise InputError(f"{path} cannot be written; its suffix must be .jsonl, .jsonl.gz or .parquet")
        self.path, self.rows, self.digest = path, 0, ""
        self._kept = False
        self._writer: pq.ParquetWriter | None = None
        self._schema: pa.Schema | None = None
        self._json: set[str] = set()
        self._absent: dict[str, list[int]] = {}
        self._genuine: set[str] = set()

    def __enter__(self) -> Self:
        self._made_folder = not self.path.parent.exists()
        self._atomic = atomic_path(self.path)
        self._partial = self._atomic.__enter__()
        self._file = self._partial.open("wb")
        self._hashed = _Hashed(self._file)
        self._lines: Any = self._hashed
        if self.path.suffix == ".gz":
            self._lines = gzip.GzipFile("", "wb", 6, self._hashed, mtime=0)
        return self

    @property
    def bytes(self) -> int:
        """How much was written."""
        return self._hashed.bytes

    def write(self, encoded: Encoded) -> None:
        """Write rows.

        Raises:
            InputError: their columns do not fit those of the rows before.
        """
        if isinstance(encoded, Lines):
            self._lines.write(b"".join(encoded.lines))
            self.rows += len(encoded.lines)
        elif len(encoded.table):
            self._write_columns(encoded)
            self.rows += len(encoded.table)

    def extend(self, rows: Iterable[Row]) -> None:
        """Encode rows and write them, in pieces."""
        piece: list[Row] = []
        size = 0
        for row in rows:
            piece.append(row)
            size += len(str(row))
            if size >= ROW_GROUP_BYTES:
                self.write(encode(piece, self.path.name))
                piece, size = [], 0
        if piece:
            self.write(encode(piece, self.path.name))

    def keep(self) -> None:
        """Complete the file, so that it appears."""
        if self.path.suffix == ".parquet":
            self._close_parquet()
        elif self._lines is not self._hashed:
            self._lines.close()
        self._file.close()
        self.digest = self._hashed.sha256.hexdigest()[:16]
        self._kept = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._kept and error is None:
            self._atomic.__exit__(None, None, None)
            return
        if self._writer is not None and self._writer.is_open:
            self._writer.close()
        self._file.close()
        self._partial.unlink(missing_ok=True)
        if self._made_folder:
            with suppress(OSError):  # something else is in it by now
                self.path.parent.rmdir()

    def _write_columns(self, encoded: Columns) -> None:
        import pyarrow as pa

        if self._writer is None:
            self._open_parquet(encoded.table.schema)
            self._json = encoded.json
        assert self._writer is not None
        try:
            table = self._fitted(encoded)
        except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError) as error:
            raise _no_one_type(self.path, str(error)) from error
        for name, rows in encoded.absent.items():
            self._absent.setdefault(name, []).extend(self.rows + row for row in rows)
        self._genuine |= encoded.genuine
        self._writer.write_table(table, row_group_size=max(1, len(table) * ROW_GROUP_BYTES // max(table.nbytes, 1)))

    def _fitted(self, encoded: Columns) -> pa.Table:
        """Return the table with the file's columns, in their order and of their types."""
        import pyarrow as pa

        assert self._schema is not None
        table, schema = encoded.table, self._schema
        if late := set(table.column_names) - set(schema.names):
            raise ValueError(f"row {self.rows + 1} or one after it is the first with the columns {sorted(late)}")
        columns = []
        for wanted in schema:
            if wanted.name not in table.column_names:
                encoded.absent[wanted.name] = list(range(len(table)))
                columns.append(pa.nulls(len(table), wanted.type))
                continue
            column = table[wanted.name]
            if wanted.name in self._json and wanted.name not in encoded.json:
                lacking = set(encoded.absent.get(wanted.name, ()))
                texts = [None if i in lacking else dumps(value) for i, value in enumerate(column.to_pylist())]
                columns.append(pa.array(texts, pa.string()))
            elif (wanted.name in encoded.json) != (wanted.name in self._json):
                raise ValueError(f"the column '{wanted.name}' holds objects in some rows only")
            else:
                columns.append(column if column.type == wanted.type else pa.array(column.to_pylist(), wanted.type))
        return pa.Table.from_arrays(columns, schema=schema)

    def _open_parquet(self, schema: pa.Schema) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema = schema
        self._writer = pq.ParquetWriter(pa.PythonFile(self._hashed, mode="w"), schema)

    def _close_parquet(self) -> None:
        import pyarrow as pa

        if self._writer is None:
            self._open_parquet(pa.schema([]))
        assert self._writer is not None
        absent = {name: rows if name in self._genuine else True for name, rows in self._absent.items()}
        footer = {"json": sorted(self._json), "absent": absent}
        self._writer.add_key_value_metadata({FOOTER_KEY: json.dumps(footer)})
        self._writer.close()
