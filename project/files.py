"""The one reader of rows: JSON lines and Parquet, gzip or not, whole (`read_rows`) or in chunks (`read_chunks`).

Every row comes with its line or row number, so that a wrong one is named by file, line and field.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeVar

from project.errors import InputError
from project.records import Row
from project.writing import FOOTER_KEY, PARQUET_JSON_COLUMNS, suffix_of

R = TypeVar("R")


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
    readers: dict[str, Callable[[Path], Iterator[tuple[int, Row]]]] = {
        "jsonl": _read_jsonl,
        "json": _read_json,
        "parquet": _read_parquet,
    }
    empty = True
    try:
        for number, row in readers[kind_of(path)](path):
            empty = False
            yield number, row
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise _damaged(path, error) from error
    if empty:
        raise InputError(f"{path} holds no rows; check the command that made it")


def kind_of(path: Path) -> str:
    """Return `jsonl`, `json` or `parquet`; a missing file, or one of another suffix, is an `InputError`."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a .jsonl, .json or .parquet file")
    if (suffix := suffix_of(path)) not in ("jsonl", "json", "parquet"):
        raise InputError(f"{path} has the suffix '.{suffix}'; expected .jsonl, .json or .parquet (also with .gz)")
    return suffix


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is damaged, or not the kind of file that its suffix says: {error}")


def read_records(path: Path | str, parse: Callable[[Row], R]) -> list[R]:
    """Read a whole file as records; a wrong row is an `InputError` with file, line and field."""
    records = []
    for number, row in read_rows(path):
        try:
            records.append(parse(row))
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    return records


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a file, not yet parsed."""

    path: Path
    first: int
    """The number of its first line or row, from 1."""
    share: float
    """How much of all files ends with this chunk, from 0 to 1."""
    lines: tuple[bytes, ...] = ()
    objects: tuple[Any, ...] = ()
    """Of a `.json` file."""
    row_group: int | None = None
    """Of a `.parquet` file."""

    @property
    def given(self) -> Path:
        """The input that it belongs to."""
        return self.path

    def rows(self) -> Iterator[tuple[int, Row | str, str]]:
        """Yield (line, object, ""), or (line, text, reason) of what is no JSON object."""
        if self.row_group is not None:
            yield from ((number, row, "") for number, row in _read_row_group(self.path, self.row_group, self.first - 1))
        for number, value in enumerate(self.objects, self.first):
            yield (number, value, "") if isinstance(value, dict) else (number, str(value), _not_an_object(value))
        for number, line in enumerate(self.lines, self.first):
            if line.strip():
                yield number, *_parsed_line(line)


def read_chunks(paths: Sequence[Path], size: int) -> Iterator[Chunk]:
    """Yield the files in chunks of about `size` bytes of JSON lines, or of one row group of Parquet.

    Raises:
        InputError: a file is missing, empty, damaged, or of an unknown suffix.
    """
    kinds = {path: kind_of(path) for path in paths}
    readers = {"jsonl": _line_chunks, "json": _object_chunks, "parquet": _group_chunks}
    total, done = sum(path.stat().st_size for path in paths), 0
    for path in paths:
        empty = True
        try:
            for chunk, read in readers[kinds[path]](path, size):
                empty = empty and not any(map(bytes.strip, chunk.lines)) and not chunk.objects and chunk.row_group is None
                yield replace(chunk, share=min((done + read) / total, 1.0))
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise _damaged(path, error) from error
        if empty:
            raise InputError(f"{path} holds no rows; check the command that made it")
        done += path.stat().st_size


def _line_chunks(path: Path, size: int) -> Iterator[tuple[Chunk, int]]:
    with path.open("rb") as raw:
        stream: IO[bytes] = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw  # type: ignore[assignment]
        first = 1
        while lines := stream.readlines(size):
            yield Chunk(path, first, 0.0, tuple(lines)), raw.tell()
            first += len(lines)


def _object_chunks(path: Path, size: int) -> Iterator[tuple[Chunk, int]]:
    del size  # the whole list is in memory already
    values = tuple(_json_list(path))
    yield Chunk(path, 1, 0.0, objects=values), path.stat().st_size


def _group_chunks(path: Path, size: int) -> Iterator[tuple[Chunk, int]]:
    del size
    metadata, _ = _opened(path)
    first = 1
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if rows:
            yield Chunk(path, first, 0.0, row_group=group), path.stat().st_size * (first + rows - 1) // metadata.num_rows
        first += rows


def _parsed_line(line: bytes) -> tuple[Row | str, str]:
    try:
        value = json.loads(line.decode())
    except json.JSONDecodeError as error:
        return line.decode(errors="replace"), f"not JSON ({error.msg} at column {error.colno})"
    except UnicodeDecodeError as error:
        return line.decode(errors="backslashreplace"), f"not UTF-8 at byte {error.start}"
    except (ValueError, RecursionError) as error:
        return line.decode(errors="replace"), f"JSON that cannot be read ({error})"
    return (value, "") if isinstance(value, dict) else (line.decode(), _not_an_object(value))


def file_digest(path: Path | str) -> str:
    """Return the first 16 hexadecimal digits of the file's SHA-256."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="\n")
    return path.open(encoding="utf-8", newline="\n")


def _read_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    with _open_text(path) as lines:
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
    for number, row in enumerate(_json_list(path), 1):
        yield number, _an_object(path, number, row)


def _json_list(path: Path) -> list[Any]:
    """Return the values of a file that holds one JSON list, or one value."""
    with _open_text(path) as stream:
        try:
            rows = json.load(stream)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
        except UnicodeDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} holds JSON that cannot be read ({error})") from error
    return rows if isinstance(rows, list) else [rows]


def _an_object(path: Path, number: int, row: Any) -> Row:  # noqa: ANN401 - whatever JSON held
    if not isinstance(row, dict):
        raise InputError(f"{path}, line {number}: {_not_an_object(row)}")
    return row


def _not_an_object(value: object) -> str:
    return f"a JSON {type(value).__name__}, expected an object"


def _read_parquet(path: Path) -> Iterator[tuple[int, Row]]:
    metadata, _ = _opened(path)
    first = 0
    for group in range(metadata.num_row_groups):
        yield from _read_row_group(path, group, first)
        first += metadata.row_group(group).num_rows


def _opened(path: Path) -> tuple[Any, Row | None]:
    """Return a Parquet file's metadata, and what its footer says where we wrote it."""
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path)
        return metadata, json.loads((metadata.metadata or {}).get(FOOTER_KEY.encode()) or "null")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a Parquet file, or is damaged: {error}") from error


def _read_row_group(path: Path, group: int, first: int) -> Iterator[tuple[int, Row]]:
    """Yield (row number from 1, object) of a row group that begins after `first` rows."""
    import pyarrow.parquet as pq

    _, footer = _opened(path)
    number = first
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024, row_groups=[group]):
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
