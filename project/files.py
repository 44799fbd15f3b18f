"""The one reader and writer of rows: JSON lines and Parquet, gzip or not, checked, atomic.

A file is read in batches with line numbers, so that a wrong row is named by file, line and field. A file is written under
a temporary name beside its own and renamed when complete: a run that dies leaves no partial output.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import tempfile
import zlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
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
objects and fills the absent ones with nulls. So are other columns that hold objects in the first row group."""
_FOOTER_KEY = "seeker"
"""Footer entry of our own Parquet files: `json`, the columns held as JSON; `absent`, the rows (from 0) that lack a column."""
_SURROGATE = re.compile("[\ud800-\udfff]")
ROW_GROUP_BYTES = 8_000_000


def local_file(path: Path | str) -> Path:
    """Return where a file lies here: `hf://datasets/OWNER/NAME[@REVISION]/FILE` is taken from the hub into its cache first.

    Raises:
        InputError: it is such an address of another form, or the hub cannot give it.
    """
    if not re.match("hf:/", str(path)):  # a Path has lost the second slash
        return Path(path)
    found = re.fullmatch(r"hf:/{1,2}datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", str(path))
    if found is None:
        raise InputError(
            f"{path} is no file of the hub; write hf://datasets/OWNER/NAME/FILE or hf://datasets/OWNER/NAME@REVISION/FILE"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, revision, file = found.groups()
    try:
        return Path(hf_hub_download(name, file, repo_type="dataset", revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        cause = str(error).partition("\n")[0]
        raise InputError(f"{file} of the hub's {name} cannot be had ({cause}); check the names and the network") from error


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
            out.write(_dumps(row) + "\n")
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
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: JSON that cannot be read ({error})") from error
            yield number, _an_object(path, number, row)


def _read_json(path: Path) -> Iterator[tuple[int, Row]]:
    with _open_text(path, "rt", gzipped=path.suffix == ".gz") as stream:
        try:
            rows = json.load(stream)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
        except RecursionError as error:
            raise InputError(f"{path} holds JSON that cannot be read ({error})") from error
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
        footer = json.loads((file.metadata.metadata or {}).get(_FOOTER_KEY.encode()) or "null")
        with file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield number + 1, _from_foreign(row) if footer is None else _from_ours(row, number, footer)
                    number += 1
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a Parquet file, or is damaged after row {number}: {error}") from error


def _from_ours(row: Row, number: int, footer: Row) -> Row:
    """Decode the JSON columns of a file that we wrote, and drop the columns that its row did not have."""
    decoded = {k: json.loads(v) if v is not None and k in footer["json"] else v for k, v in row.items()}
    return {k: v for k, v in decoded.items() if v is not None or not _holds(footer["absent"].get(k, ()), number)}


def _holds(rows: list[int] | bool | tuple[()], number: int) -> bool:
    """Return whether a sorted list holds a number; True stands for every number."""
    if isinstance(rows, bool):
        return rows
    place = bisect_left(rows, number)
    return place < len(rows) and rows[place] == number


def _from_foreign(row: Row) -> Row:
    """Decode JSON strings in the columns that may hold them, and drop the nulls with which Arrow fills objects' keys.

    Where the file says nothing, a null in an object cannot be told from one that was added; in a list it is genuine.
    """
    for name in PARQUET_JSON_COLUMNS:
        value = row.get(name)
        if isinstance(value, str) and value[:1] in ("{", "["):
            with suppress(ValueError):
                row[name] = json.loads(value)
        else:
            row[name] = _without_nulls(value)
            if value is None:
                del row[name]
    return row


def _without_nulls(value: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def _dumps(value: Any) -> str:  # noqa: ANN401 - any JSON
    """Return JSON with readable characters, or escaped where half a surrogate pair cannot be written as UTF-8."""
    text = json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if _SURROGATE.search(text) else text


def _parquet_schema(rows: list[Row], json_columns: Collection[str]) -> pa.Schema:
    """Return the schema of the first rows; a column that is all nulls or empty lists there gets the type it has later."""
    import pyarrow as pa

    later = {"correct": pa.bool_(), "needs_search": pa.bool_()}
    schema = pa.schema([])
    for name in dict.fromkeys(name for row in rows for name in row):
        kind: pa.DataType = pa.string() if name in json_columns else pa.array([row.get(name) for row in rows]).type
        if pa.types.is_null(kind):
            kind = later.get(name, pa.string())
        elif pa.types.is_list(kind) and pa.types.is_null(kind.value_type):
            kind = pa.list_(pa.string())
        schema = schema.append(pa.field(name, kind))
    return schema


def _holds_objects(value: Any) -> bool:  # noqa: ANN401 - any JSON
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value))


class _LateColumn(ValueError):
    """A row has a column that no row of the first row group had."""


class _AbsentColumns:
    """Which rows lack which columns: Arrow gives them nulls there, which reading must tell from genuine ones."""

    def __init__(self) -> None:
        self.rows: dict[str, list[int]] = {}
        self.genuine: set[str] = set()
        """Columns in which a row holds a null of its own."""

    def note(self, row: Row, number: int, names: Iterable[str]) -> None:
        for name in names:
            if name not in row:
                self.rows.setdefault(name, []).append(number)
            elif row[name] is None:
                self.genuine.add(name)

    def to_footer(self) -> dict[str, list[int] | bool]:
        """Return the rows of each column; True where every null of the column was added."""
        return {name: rows if name in self.genuine else True for name, rows in self.rows.items()}


def _write_parquet(path: Path, rows: Iterable[Row]) -> int:
    """Write row groups bounded by bytes; the schema is that of the first group, and a later row must fit it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count, size = 0, 0
    buffer: list[Row] = []
    json_columns = set(PARQUET_JSON_COLUMNS)
    absent = _AbsentColumns()
    schema: pa.Schema | None = None
    writer: pq.ParquetWriter | None = None
    with atomic_path(path) as partial:

        def flush() -> None:
            nonlocal writer, schema, size
            if schema is None:
                json_columns.update(k for row in buffer for k, v in row.items() if _holds_objects(v))
                schema = _parquet_schema(buffer, json_columns)
            stored = [{k: _dumps(v) if k in json_columns else v for k, v in row.items()} for row in buffer]
            table = pa.Table.from_pylist(stored, schema=schema)
            writer = writer or pq.ParquetWriter(partial, schema)
            writer.write_table(table)
            for number, row in enumerate(buffer, count - len(buffer)):
                if late := row.keys() - set(schema.names):
                    raise _LateColumn(f"row {number + 1} is the first with the columns {sorted(late)}")
                absent.note(row, number, schema.names)
            buffer.clear()
            size = 0

        try:
            for row in rows:
                buffer.append(row)
                size += len(_dumps(row))
                count += 1
                if size >= ROW_GROUP_BYTES:
                    flush()
            if buffer or writer is None:
                flush()
            assert writer is not None
            footer = {"json": sorted(json_columns), "absent": absent.to_footer()}
            writer.add_key_value_metadata({_FOOTER_KEY: json.dumps(footer)})
            writer.close()
        except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError, _LateColumn) as error:
            raise InputError(f"{path} cannot hold rows of different columns or types ({error}); write .jsonl") from error
    return count


def read_yaml(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Return what a YAML file holds.

    Raises:
        InputError: it is no YAML, or not UTF-8; the message names the file and, where known, the line.
    """
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: not YAML ({getattr(error, 'problem', error)})") from error
