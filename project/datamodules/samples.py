"""Tokenised conversations, on disk and mapped into memory: made once, in parallel, under a key of all that decides them.

The key covers the file's content, the tokenizer with its template, dialect, history, weights and the code that makes samples,
so that a changed one makes another set. A set is written beside its place and renamed: it is whole or absent, and of two
processes that make the same one the later finds it there. What no one has used for a month goes when a set is made.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from project.errors import InputError
from project.files import file_digest, read_records
from project.overlap import marks
from project.records import Conversation
from project.rendering import Renderer, Sample

CODE = ("rendering.py", "dialects.py", "records.py", "files.py", "overlap.py", "answers.py", "datamodules/samples.py")
"""What makes samples, in the package."""
PACKAGES = ("tokenizers", "transformers", "datasets", "jinja2", "polars")
PARALLEL = 1000
"""Conversations from which a second process is worth its start."""
LISTS = {"marks": "string", "ids": "int32", "kinds": "int8", "weights": "float32"}
"""Columns with a list a sample, and what their values are stored as."""
KEPT_SECONDS = 30 * 24 * 3600
CONTENT = "content"
"""The file of a set that holds the digest of its samples."""


@dataclass(frozen=True)
class Samples(Sequence[Sample]):
    """Some of the samples of memory-mapped tables, in an order; reading one touches nothing but its own tokens."""

    table: Any
    """A `datasets.Dataset` with a row a sample."""
    rows: Sequence[int]
    key: str
    """What tells these samples, in this order, from any others, whoever made them."""

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Samples:
        """Return samples that were made elsewhere, held in memory."""
        from datasets import Dataset

        columns = _columns([(number, sample, [sample.id]) for number, sample in enumerate(samples)])
        table = Dataset.from_dict(columns, features=_features())
        return cls(table, range(len(samples)), _content(table))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Samples: ...
    def __getitem__(self, index: int | slice) -> Sample | Samples:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        row = self.table[self.rows[index]]
        return Sample(row["id"], row["ids"], row["kinds"], row["weights"])

    def take(self, indices: Sequence[int]) -> Samples:
        """Return the samples at `indices`, of which one may stand there more than once."""
        return Samples(self.table, [self.rows[i] for i in indices], _digest([self.key, list(indices)]))

    def column(self, name: str) -> list[Any]:
        """Return of each sample its `tokens`, `total` (weight of its labels), `conversation` (its number) or `marks`."""
        values = self.table.data.column(name).to_pylist()
        return [values[row] for row in self.rows]

    def marks(self) -> set[str]:
        """Return what none of these samples may share with another side of a split; see `overlap.marks`."""
        return {mark for held in self.column("marks") for mark in held}


def join(parts: Sequence[Samples]) -> Samples:
    """Return all samples of the parts, one part after the other."""
    from datasets import concatenate_datasets

    starts = [sum(len(part.table) for part in parts[:number]) for number in range(len(parts))]
    rows = [start + row for start, part in zip(starts, parts, strict=True) for row in part.rows]
    return Samples(concatenate_datasets([part.table for part in parts]), rows, _digest([part.key for part in parts]))


def cache_folder() -> Path:
    """Return where tokenised sets are kept: `seeker/samples` in $XDG_CACHE_HOME or ~/.cache. It may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seeker" / "samples"


def tokenised(path: Path, renderer: Renderer, row_weight: str | None = None) -> Samples:
    """Return all samples of a file of conversations, from the cache or made now.

    Args:
        path: `.jsonl[.gz]` or `.parquet`.
        renderer: makes the samples.
        row_weight: an SQL expression over the conversations' columns that multiplies their weights; see `row_weights`.

    Raises:
        InputError: a row is wrong, a weight is not a finite number from 0, or the cache cannot be written.
        RenderingError: a conversation cannot be rendered.
    """
    from datasets import load_from_disk

    if not Path(path).is_file():
        raise InputError(f"{path} does not exist; make it with `seeker data`, or give the conversations that you have")
    content = file_digest(path)
    key = _digest([content, renderer_key(renderer), row_weight, _code()])
    folder = cache_folder() / key
    if not folder.is_dir():

        def make(scratch: Path) -> Any:  # noqa: ANN401 - a Dataset
            made = _made(path, renderer, row_weight, scratch)
            if file_digest(path) != content:
                raise InputError(f"{path} was written while it was read; run the same command again")
            return made

        _sweep(folder.parent)
        _write(folder, make)
    with contextlib.suppress(OSError):  # of a cache that may only be read
        os.utime(folder)
    table = load_from_disk(folder)
    return Samples(table, range(len(table)), (folder / CONTENT).read_text())


def renderer_key(renderer: Renderer) -> str:
    """Return a digest of what a renderer does with a conversation."""
    tokenizer = renderer.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    dialect = [renderer.dialect.identity, renderer.dialect.decision_tokens]
    said = [vocabulary, tokenizer.chat_template, sorted(tokenizer.all_special_tokens), dialect, renderer.history]
    return _digest([*said, sorted(renderer.weights.items())])


def row_weights(conversations: Sequence[Conversation], expression: str) -> list[float]:
    """Return the value of an SQL expression (polars') for each conversation.

    Its columns are `id`, `question`, `group`, `turns` (the agent's), `answers` (a list) and every field of `extra_info`.

    Raises:
        InputError: the expression is wrong, or a value is not a finite number from 0.
    """
    import polars as pl
    from polars.exceptions import PolarsError

    own = [
        {"id": c.id, "question": c.question, "group": c.group, "turns": c.assistant_turns, "answers": list(c.answers)}
        for c in conversations
    ]
    rows = [dict(c.extra_info) | row for c, row in zip(conversations, own, strict=True)]
    try:
        frame = pl.DataFrame(rows, infer_schema_length=None, strict=False)
        found = frame.select(pl.sql_expr(expression).cast(pl.Float64).alias("weight"))["weight"]
    except PolarsError as error:
        known = ", ".join(sorted({name for row in rows for name in row}))
        cause = str(error).partition("\n")[0]
        raise InputError(f"row_weight '{expression}' cannot be computed ({cause}); the columns are {known}") from error
    values = found.to_list() * (len(rows) if len(found) == 1 else 1)
    for conversation, value in zip(conversations, values, strict=False):
        if value is None or not 0 <= value < math.inf:
            raise InputError(
                f"row_weight '{expression}' is {value} for conversation '{conversation.id}'; a weight is a finite number from 0"
            )
    return values[: len(rows)]


def _made(path: Path, renderer: Renderer, row_weight: str | None, scratch: Path) -> Any:  # noqa: ANN401
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    conversations = read_records(path, Conversation.from_row)
    if not conversations:
        raise InputError(f"{path} holds no conversation")
    factors = row_weights(conversations, row_weight) if row_weight else [1.0] * len(conversations)
    numbers = [number for number, factor in enumerate(factors) if factor > 0]
    if not numbers:
        raise InputError(f"row_weight '{row_weight}' is 0 for all {len(conversations)} conversations of {path}")
    held = {"number": numbers, "row": [pickle.dumps(_weighted(conversations[i], factors[i])) for i in numbers]}
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = os.environ
    try:
        return Dataset.from_dict(held).map(
            _render,
            batched=True,
            batch_size=200,
            fn_kwargs={"renderer": renderer},
            remove_columns=list(held),
            features=_features(),
            num_proc=processes if len(numbers) >= PARALLEL and processes > 1 else None,
            new_fingerprint="made",  # by default a digest of all arguments, which a tokenizer's pickle does not keep
            cache_file_name=str(scratch / "made.arrow"),
        )
    except RuntimeError as error:
        if "abruptly died" not in str(error):
            raise
        raise InputError(
            f"a process that tokenised {path} was killed, as the system does when memory ends; free some and run this again"
        ) from error
    finally:
        os.environ = environment  # noqa: B003 - datasets leaves a copy there, which no one who holds the first one sees change


def _weighted(conversation: Conversation, factor: float) -> Conversation:
    if factor == 1:
        return conversation
    return replace(conversation, messages=tuple(replace(m, weight=m.weight * factor) for m in conversation.messages))


def _render(batch: dict[str, list[Any]], renderer: Renderer) -> dict[str, list[Any]]:
    made = []
    for number, row in zip(batch["number"], batch["row"], strict=True):
        conversation: Conversation = pickle.loads(row)
        made += [(number, sample, sorted(marks(conversation))) for sample in renderer.samples(conversation)]
    return _columns(made)


def _columns(made: Sequence[tuple[int, Sample, list[str]]]) -> dict[str, list[Any]]:
    return {
        "id": [sample.id for _, sample, _ in made],
        "conversation": [number for number, _, _ in made],
        "marks": [held for _, _, held in made],
        "tokens": [len(sample.ids) for _, sample, _ in made],
        "total": [sum(sample.weights[1:]) for _, sample, _ in made],  # nothing predicts a first token
        "ids": [sample.ids for _, sample, _ in made],
        "kinds": [sample.kinds for _, sample, _ in made],
        "weights": [sample.weights for _, sample, _ in made],
    }


def _features() -> Any:  # noqa: ANN401
    from datasets import Features, List, Value

    types = {"id": "string", "conversation": "int64", "tokens": "int64", "total": "float64"}
    return Features({n: Value(t) for n, t in types.items()} | {n: List(Value(t)) for n, t in LISTS.items()})


def _write(folder: Path, make: Callable[[Path], Any]) -> None:
    """Have a table made with a folder for scratch, and put it in place whole."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    except OSError as error:
        raise InputError(
            f"the cache {folder.parent} cannot be written ({error}); set XDG_CACHE_HOME to a folder that can"
        ) from error
    try:
        table = make(scratch)
        table.save_to_disk(scratch / "set")
        (scratch / "set" / CONTENT).write_text(_content(table))
        (scratch / "set").replace(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was first, with the same set
            raise InputError(f"the cache {folder} cannot be written ({error}); free space, or set XDG_CACHE_HOME") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Delete what was neither made nor used for a month: old sets, and what a killed process left half-made."""
    for folder in parent.glob("*"):
        with contextlib.suppress(OSError):  # another process has finished with it
            if time.time() - folder.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(folder)


def _content(table: Any) -> str:  # noqa: ANN401 - a Dataset
    """Return a digest of a table's samples, however it is cut into chunks."""
    digest = hashlib.sha256(json.dumps(table["id"][:]).encode())
    for name in ("conversation", "tokens", "ids", "kinds", "weights"):
        for chunk in table.data.column(name).chunks:
            values = chunk.flatten() if name in LISTS else chunk
            digest.update(values.to_numpy(zero_copy_only=False))
    return digest.hexdigest()[:24]


def _code() -> list[str]:
    root = Path(__file__).resolve().parents[1]
    return [*(file_digest(root / name) for name in CODE), *(importlib.metadata.version(name) for name in PACKAGES)]


def _digest(said: Any) -> str:  # noqa: ANN401 - whatever JSON can hold
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:24]
