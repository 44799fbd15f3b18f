"""Which runs are meant: by name, id, the beginning of an id, tag, or as the last so many; and the list of what there is.

| word | what it means |
|---|---|
| `sft` | the newest run of this name |
| `1f0c5a…` | the run with this id, or whose id begins so (8 characters or more) |
| `tag:KEY=VALUE` | all runs with this tag, the newest first |
| `last:N` | the newest N runs that finished, the oldest of them first |
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from project.errors import InputError, TrackingError
from project.tracking.store import all_runs, find_run, reading, shown_uri, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Run


def select_runs(words: Sequence[str]) -> list[Run]:
    """Return the runs that words mean, in their order, each run once.

    Raises:
        InputError: a word is no `last:N` or `tag:KEY=VALUE` though it begins so.
        TrackingError: a word means no run, or an id's beginning several.
    """
    held = all_runs()
    found = [run for word in words for run in _meant(word, held)]
    return list({run.info.run_id: run for run in found}.values())


def select_run(word: str) -> Run:
    """Return the one run that a word means.

    Raises:
        InputError: as `select_runs`.
        TrackingError: it means none, or several.
    """
    found = select_runs([word])
    if len(found) > 1:
        held = ", ".join(f"{run.info.run_name} ({run.info.run_id})" for run in found)
        raise TrackingError(f"'{word}' means {len(found)} runs: {held}; name one of them")
    return found[0]


def _meant(word: str, held: Sequence[Run]) -> list[Run]:
    kind, _, rest = word.partition(":")
    named = any(word in (run.info.run_name, run.info.run_id) for run in held)
    if not named and kind == "last":
        return _last(rest, held)
    if not named and kind == "tag":
        return _tagged(rest, held)
    return [find_run(word, held)]


def _last(number: str, held: Sequence[Run]) -> list[Run]:
    if not number.isdecimal() or int(number) == 0:
        raise InputError(f"last:{number} names no number of runs; give one from 1, such as last:2")
    finished = [run for run in held if run.info.status == "FINISHED"]
    if len(finished) < int(number):
        raise TrackingError(f"last:{number} is more than the {len(finished)} finished runs in {shown_uri(tracking_uri())}")
    return finished[: int(number)][::-1]


def _tagged(pair: str, held: Sequence[Run]) -> list[Run]:
    key, equals, value = pair.partition("=")
    if not key or not equals:
        raise InputError(f"tag:{pair} names no tag; give tag:KEY=VALUE, such as tag:seeker.verb=test")
    found = [run for run in held if run.data.tags.get(key) == value]
    if not found:
        values = sorted({run.data.tags[key] for run in held if key in run.data.tags})
        hint = f"its values are {', '.join(values[:5])}" if values else "no run has that tag"
        raise TrackingError(f"there is no run with the tag {key}={value} in {shown_uri(tracking_uri())}; {hint}")
    return found


def runs() -> None:
    """List the tracked runs, newest first.

    Raises:
        TrackingError: the store does not answer.
    """
    from rich.markup import escape
    from rich.table import Table

    from project.tracking.terminal import console

    with reading():
        found = all_runs()
    uri = shown_uri(tracking_uri())
    table = Table("run", "verb", "status", "started", "parent", "id", title=f"{len(found)} runs in {uri}")
    names = {run.info.run_id: str(run.info.run_name) for run in found}
    for run in found:
        tags, started = run.data.tags, time.strftime("%Y-%m-%d %H:%M", time.localtime(run.info.start_time / 1000))
        parent = tags.get("seeker.parent", "")
        cells = (names[run.info.run_id], tags.get("seeker.verb", ""), run.info.status, started, names.get(parent, parent))
        table.add_row(*map(escape, cells), run.info.run_id)
    console().print(table)
