"""What a report reads: a test's results as columns of numbers, and the whole rows of the few questions that it shows.

The messages, which are nearly all of a results file, are read for the shown rows only, a row group at a time.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from project.errors import InputError, TrackingError
from project.evaluation.metrics import Numbers, group_numbers
from project.evaluation.results import RESULTS, SUMMARY
from project.files import read_chunks
from project.records import Row

if TYPE_CHECKING:
    import pyarrow as pa

NEEDED = ("question_id", "group", "kind", "sample", "question", "answers")
"""Columns that every results file has."""
READ = ("question_id", "group", "kind", "sample", "answers", "evidence", "finish", "needs_search")
"""Columns that are read of all rows beside the metrics."""


@dataclass(frozen=True)
class Results:
    """The results of a test, a row an episode (N rows). Several rows of one question are its samples."""

    name: str
    path: Path
    about: Row
    """What `summary.json` says; empty where there is none."""
    is_summary: bool
    """Whether summaries were measured, not an agent."""
    columns: dict[str, list[Any]]
    """N values each, of those of `READ` that the file has."""
    scores: dict[str, Numbers]
    """By metric: (N,), NaN where it does not apply."""
    groups: Numbers
    """(N,): a number for each group of rows that hang together."""

    @property
    def n(self) -> int:
        """How many rows there are."""
        return len(self.columns["question_id"])

    @property
    def questions(self) -> int:
        """How many questions there are."""
        return len(set(self.columns["question_id"]))


def find_results(where: str, folder: Path) -> Results:
    """Return the results in a folder, of a file, or of a tracked run by its name or id.

    Args:
        where: folder, `results.parquet` file, or run.
        folder: an empty one, into which a run's files are downloaded.

    Raises:
        InputError: there is no such file, or it is no results file.
        TrackingError: there is no such run, or it kept no results.
    """
    path = Path(where)
    if path.is_dir():
        if not (path / RESULTS).is_file():
            raise InputError(f"the folder {path} holds no {RESULTS}; give one that `seeker test` wrote, or a run's name")
        return read_results(path / RESULTS)
    if path.is_file() or path.suffix == ".parquet":
        return read_results(path)
    return _downloaded(where, folder)


def _downloaded(name: str, folder: Path) -> Results:
    from project.tracking.store import client, find_run

    run, store = find_run(name), client()
    held = {entry.path for entry in store.list_artifacts(run.info.run_id)}
    if RESULTS not in held:
        raise TrackingError(f"the run '{name}' kept no {RESULTS}; test its model again with this version of Seeker")
    for file in {RESULTS, SUMMARY} & held:
        store.download_artifacts(run.info.run_id, file, str(folder))
    return replace(read_results(folder / RESULTS), name=str(run.info.run_name))


def read_results(path: Path) -> Results:
    """Return the results in a file, with what the `summary.json` beside it says.

    Raises:
        InputError: the file is missing, damaged, empty, or no results file.
    """
    table = _read_columns(path)
    about = _read_summary(path.with_name(SUMMARY))
    columns: dict[str, list[Any]] = {name: table[name].to_pylist() for name in READ if name in table.column_names}
    for name in ("question_id", "group"):
        columns[name] = [str(value) for value in columns[name]]
    scores = {name: table[name].to_numpy() for name in table.column_names if name not in columns and name not in NEEDED}
    name = str(about.get("run") or path.resolve().parent.name)
    return Results(name, path, about, "summarised" in scores, columns, scores, group_numbers(columns["group"]))


def _read_columns(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise InputError(f"{path} does not exist; give a folder or {RESULTS} that `seeker test` wrote, or a run's name")
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            lacking = [name for name in NEEDED if name not in schema.names]
            metrics = [field.name for field in schema if pa.types.is_floating(field.type)]
            if lacking or not metrics:
                what = f"no column '{lacking[0]}'" if lacking else "no metrics"
                raise InputError(f"{path} is no results file, as it has {what}; give the {RESULTS} that `seeker test` wrote")
            table = file.read([*(name for name in READ if name in schema.names), *metrics])
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a Parquet file, or is damaged: {error}") from error
    if not len(table):
        raise InputError(f"{path} holds no rows; check the test that wrote it")
    return table


def _read_summary(path: Path) -> Row:
    if not path.is_file():
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); test again, or move it away to report without it") from error
    if not isinstance(about, dict):
        raise InputError(f"{path} holds no JSON object; test again, or move it away to report without it")
    return about


def told_apart(results: Sequence[Results]) -> list[Results]:
    """Return the results with a number after each name that another before it has."""
    names: list[str] = []
    for one in results:
        same, name = 1, one.name
        while name in names:
            same += 1
            name = f"{one.name} ({same})"
        names.append(name)
    return [replace(one, name=name) for one, name in zip(results, names, strict=True)]


def whole_rows(results: Results, places: Collection[int]) -> dict[int, Row]:
    """Return the rows at these places, from 0, with their messages."""
    chunks = list(read_chunks([results.path], 1))
    ends = [*(chunk.first for chunk in chunks[1:]), results.n + 1]
    found: dict[int, Row] = {}
    for chunk, end in zip(chunks, ends, strict=True):
        if any(chunk.first <= place + 1 < end for place in places):
            found |= {number - 1: row for number, row, _ in chunk.rows() if number - 1 in places and isinstance(row, dict)}
    return found


@dataclass(frozen=True)
class Shared:
    """The questions that all of some results hold (Q of them), in the order of their ids."""

    ids: list[str]
    groups: list[str]
    means: list[dict[str, Numbers]]
    """Of each of the results, by metric: (Q,), the mean over a question's samples, NaN where it applies to none."""


def shared_questions(results: Sequence[Results]) -> Shared:
    """Return the questions that all results hold.

    Raises:
        InputError: there is none.
    """
    ids = sorted(set.intersection(*(set(one.columns["question_id"]) for one in results)))
    if not ids:
        names = " and ".join(f"'{one.name}'" for one in results)
        raise InputError(f"{names} share no question; report results of the same test questions together")
    group_of = dict(zip(results[0].columns["question_id"], results[0].columns["group"], strict=True))
    return Shared(ids, [group_of[ident] for ident in ids], [_means(one, ids) for one in results])


def _means(results: Results, ids: Sequence[str]) -> dict[str, Numbers]:
    place = {ident: number for number, ident in enumerate(ids)}
    place_N = np.asarray([place.get(ident, -1) for ident in results.columns["question_id"]])
    means = {}
    for metric, values_N in results.scores.items():
        is_in = (place_N >= 0) & ~np.isnan(values_N)
        counts_Q = np.bincount(place_N[is_in], minlength=len(ids))
        sums_Q = np.bincount(place_N[is_in], values_N[is_in], len(ids))
        means[metric] = np.divide(sums_Q, counts_Q, out=np.full(len(ids), np.nan), where=counts_Q > 0)
    return means
