"""The one reader and writer of rows: JSON lines and Parquet, gzip or not, checked, atomic.

A file is read in batches with line numbers, so that a wrong row is named by file, line and field. A file is written under
a temporary name beside its own and renamed when complete: a run that dies leaves no partial output.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeVar

from project.errors import InputError
from project.records import Row

if TYPE_CHECKING:
    import pyarrow as pa


class Record(Protocol):
    """A record that can be written."""

    def to_row(self) -> Row:
        """Return the record as a JSON object."""


R = TypeVar("R")
PARQUET_JSON_COLUMNS = ("extra_info", "messages", "tools", "steps", "context", "target")
"""Columns that Parquet holds as JSON strings: an empty object cannot be a struct, and Arrow merges the keys of different
objects and fills the absent ones with nulls."""
ROW_GROUP_BYTES = 8_000_000


def read_rows(path: Path | str) -> Iterator[tuple[int, Row]]:
    """Yield (line or row number from 1, object) of a `.jsonl[.gz]`, `.json[.gz]` (a list) or `.parquet` file.

    Raises:
        InputError: the file is missing, empty, damaged, of an unknown suffix, or holds a line that is no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a .jsonl, .json or .parquet file")
    suffix = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
    readers: dict[str, Callable[[Path], Iterator[tuple[int, Row]]]] = {
        "jsonl": _read_jsonl,
        "json": _read_json,
        "parquet": _read_parquet,
    }
    if suffix not in readers:
        raise InputError(f"{path} has the suffix '.{suffix}'; expected .jsonl, .json or .parquet (also with .gz)")
    empty = True
    try:
        for number, row in readers[suffix](path):
            empty = False
            yield number, row
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path} is damaged, or not the kind of file that its suffix says: {error}") from error
    if empty:
        raise InputError(f"{path} holds no rows; check the command that made it")


def read_records(path: Path | str, parse: Callable[[Row], R]) -> list[R]:
    """Read a whole file as records; a wrong row is an `InputError` with file, line and field."""
    records = []
    for number, row in read_rows(path):
        try:
            records.append(parse(row))
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    return records


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path` that is renamed to it on success and removed on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_rows(path: Path | str, rows: Iterable[Row]) -> int:
    """Write objects to `.jsonl[.gz]` or `.parquet` (by suffix) and return how many."""
    path = Path(path)
    if path.suffix == ".parquet":
        return _write_parquet(path, rows)
    if path.name.removesuffix(".gz").rsplit(".", 1)[-1] != "jsonl":
        raise InputError(f"{path} cannot be written; its suffix must be .jsonl, .jsonl.gz or .parquet")
    count = 0
    with atomic_path(path) as partial, _open_text(partial, "wt", gzipped=path.suffix == ".gz") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_records(path: Path | str, records: Iterable[Record]) -> int:
    """Write records and return how many."""
    return write_rows(path, (record.to_row() for record in records))


def write_text(path: Path | str, text: str) -> None:
    """Write a small text file atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def file_digest(path: Path | str) -> str:
    """Return the first 16 hexadecimal digits of the file's SHA-256."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def _open_text(path: Path, mode: str, *, gzipped: bool) -> IO[str]:
    if gzipped:
        return gzip.open(path, mode, encoding="utf-8", newline="\n")  # type: ignore[return-value]
    return path.open(mode, encoding="utf-8", newline="\n")


def _read_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    with _open_text(path, "rt", gzipped=path.suffix == ".gz") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from error
            yield number, _an_object(path, number, row)


def _read_json(path: Path) -> Iterator[tuple[int, Row]]:
    with _open_text(path, "rt", gzipped=path.suffix == ".gz") as stream:
        try:
            rows = json.load(stream)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
        yield number, _an_object(path, number, row)


def _an_object(path: Path, number: int, row: Any) -> Row:  # noqa: ANN401 - whatever JSON held
    if not isinstance(row, dict):
        raise InputError(f"{path}, line {number}: a JSON {type(row).__name__}, expected an object")
    return row


def _read_parquet(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow.parquet as pq

    number = 0
    try:
        file = pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from error
    with file:
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, _from_parquet(row)


def _from_parquet(row: Row) -> Row:
    for name in PARQUET_JSON_COLUMNS:
        if isinstance(row.get(name), str):
            row[name] = json.loads(row[name])
    return row


def _parquet_schema(rows: list[Row]) -> pa.Schema:
    """Return the schema of the first rows; a column that is all nulls or empty lists there gets the type it has later."""
    import pyarrow as pa

    later = {"correct": pa.bool_(), "needs_search": pa.bool_()}
    schema = pa.Table.from_pylist(rows).schema
    for number, column in enumerate(schema):
        if pa.types.is_null(column.type):
            schema = schema.set(number, column.with_type(later.get(column.name, pa.string())))
        elif pa.types.is_list(column.type) and pa.types.is_null(column.type.value_type):
            schema = schema.set(number, column.with_type(pa.list_(pa.string())))
    return schema


def _write_parquet(path: Path, rows: Iterable[Row]) -> int:
    """Write row groups bounded by bytes; the schema is that of the first group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count, size = 0, 0
    buffer: list[Row] = []
    schema: pa.Schema | None = None
    writer: pq.ParquetWriter | None = None
    with atomic_path(path) as partial:

        def flush() -> None:
            nonlocal writer, schema, size
            schema = schema or _parquet_schema(buffer)
            table = pa.Table.from_pylist(buffer, schema=schema)
            writer = writer or pq.ParquetWriter(partial, table.schema)
            writer.write_table(table)
            buffer.clear()
            size = 0

        for row in rows:
            stored = {k: json.dumps(v, ensure_ascii=False) if k in PARQUET_JSON_COLUMNS else v for k, v in row.items()}
            buffer.append(stored)
            size += sum(len(v) for v in stored.values() if isinstance(v, str)) + 64
            count += 1
            if size >= ROW_GROUP_BYTES:
                flush()
        if buffer or writer is None:
            flush()
        if writer:
            writer.close()
    return count
