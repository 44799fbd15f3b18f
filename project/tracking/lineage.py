"""What a run was made from, and what was made from a run or a file: `seeker lineage RUN`, `seeker lineage FILE`.

Data is followed by the digests of files, trainings and tests by run ids. A run's tags name its parent and its data; the
manifests that it kept say how that was made, from what, and so on. What no tracked run ever read is not known here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from project.errors import TrackingError
from project.files import file_digest
from project.manifests import manifest_of
from project.records import Row
from project.tracking.commands import Command, data_command, index_manifest, run_command
from project.tracking.select import select_run
from project.tracking.store import all_runs, dataset_manifests, reading
from project.writing import write_text

if TYPE_CHECKING:
    from mlflow.entities import Run
    from rich.tree import Tree

DATASET, DATASET_FILE, CHECKPOINT = "dataset.", "dataset_file.", "checkpoint."


def lineage(run: str, output_file: Path | None = None) -> None:
    """Show a run with its data, the runs before it and those after it; or what a data file was made from and used for.

    Args:
        run: name or id of the run (8 characters of an id are enough), or the path of a data file or an index.
        output_file: also write it as JSON.

    Raises:
        TrackingError: it is neither a run nor a file, or the store does not answer.
    """
    from project.tracking.terminal import console

    with reading():
        found = _described(run, Known())
    if output_file is not None:
        write_text(output_file, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    console().print(tree_of(found), soft_wrap=True)


def _described(word: str, known: Known) -> Row:
    path = Path(word) / "manifest.json" if Path(word).is_dir() else Path(word)
    try:
        return run_row(select_run(word), known)
    except TrackingError:
        if not path.is_file():
            raise
    return file_row(path, known)


@dataclass(frozen=True)
class DataFile:
    """A data file as a run or a manifest names it."""

    path: str
    digest: str
    manifest: Row | None
    """What it was made by, where that is known."""

    @property
    def command(self) -> Command | None:
        """The command that made it, from its manifest."""
        return data_command(self.manifest, Path(self.path).parent) if self.manifest else None

    def inputs(self) -> Iterator[DataFile]:
        """Yield what it was made from."""
        for source in (self.manifest or {}).get("inputs", ()):
            yield DataFile(str(source["file"]), source["digest"], source.get("made_by"))


class Known:
    """All that the store knows: runs, which started from which, and which file was made from which."""

    def __init__(self) -> None:
        self.runs = all_runs()
        self._manifests: dict[str, Row | None] = {}
        """By digest."""

    @cached_property
    def by_id(self) -> dict[str, Run]:
        """The runs by id."""
        return {run.info.run_id: run for run in self.runs}

    def parent(self, run: Run) -> Run | None:
        """Return the run that another started from."""
        return self.by_id.get(run.data.tags.get("seeker.parent", ""))

    def children(self, run: Run) -> list[Run]:
        """Return the runs that started from a run, the oldest first."""
        return [one for one in self.runs[::-1] if one.data.tags.get("seeker.parent") == run.info.run_id]

    def datasets(self, run: Run) -> dict[str, DataFile]:
        """Return a run's data files, by what they are for."""
        tags = run.data.tags
        digests = {name.removeprefix(DATASET): tags[name] for name in sorted(tags) if name.startswith(DATASET)}
        if not digests.keys() <= {name for name, digest in digests.items() if digest in self._manifests}:
            kept = dataset_manifests(run.info.run_id)
            for name, digest in digests.items():
                file = Path(tags.get(DATASET_FILE + name, ""))
                self._manifests[digest] = self._manifests.get(digest) or kept.get(name) or _of_index(file, digest)
        return {
            name: DataFile(tags.get(DATASET_FILE + name, name), digest, self._manifests[digest])
            for name, digest in digests.items()
        }

    @cached_property
    def made_into(self) -> dict[str, list[DataFile]]:
        """What was made from files, by their digests."""
        found: dict[str, dict[str, DataFile]] = {}
        left = [file for run in self.runs for file in self.datasets(run).values()]
        walked: set[str] = set()
        while left:
            file = left.pop()
            if file.digest in walked:
                continue
            walked.add(file.digest)
            for source in file.inputs():
                left.append(source)
                found.setdefault(source.digest, {})[file.digest] = file
        return {digest: list(files.values()) for digest, files in found.items()}

    def users(self, digest: str) -> list[tuple[str, Run]]:
        """Return the runs that read a file, the oldest first, each with what for; not those that made it."""
        return [
            (name.removeprefix(DATASET), run)
            for run in self.runs[::-1]
            for name, value in run.data.tags.items()
            if name.startswith(DATASET) and value == digest and not is_maker(run)
        ]

    def command(self, file: DataFile) -> Command | None:
        """Return the command that made a file: as a run that made it kept it, else rebuilt from the manifest."""
        for run in self.runs:
            if is_maker(run) and "seeker.command" in run.data.tags and file.digest in run.data.tags.values():
                return run_command(run)
        return file.command


def is_maker(run: Run) -> bool:
    """Return whether a run made data."""
    return bool(run.data.tags.get("seeker.verb", "").startswith("seeker data"))


def _of_index(file: Path, digest: str) -> Row | None:
    """Return the manifest of an index that is as it was when a run used it; None for any other file."""
    if file.name != "manifest.json" or not file.is_file() or file_digest(file) != digest:
        return None
    held = json.loads(file.read_text(encoding="utf-8"))
    return index_manifest(held, digest) if "parts" in held and "source" in held else None


# --- as JSON ------------------------------------------------------------------------------------------------------------------


def run_row(run: Run, known: Known) -> Row:
    """Return a run with what it was made from, and the runs that were made from it."""
    return _made_from(run, known, frozenset()) | {"children": _children(run, known, frozenset())}


def _made_from(run: Run, known: Known, seen: frozenset[str]) -> Row:
    tags = run.data.tags
    parent = known.parent(run)
    named = tags.get("seeker.parent")
    if parent is not None and parent.info.run_id not in seen:
        above: Row | None = _made_from(parent, known, seen | {run.info.run_id})
    else:
        above = {"kind": "run", "id": named, "name": None} if named and named not in seen else None
    return _run(run) | {
        "code": tags.get("git.commit"),
        "changed": tags.get("git.dirty") == "true",
        "datasets": [{"role": role} | _origin(file, known) for role, file in known.datasets(run).items()],
        "checkpoints": {name.removeprefix(CHECKPOINT): v for name, v in sorted(tags.items()) if name.startswith(CHECKPOINT)},
        "parent": above,
    }


def _run(run: Run) -> Row:
    made = run_command(run)
    return {
        "kind": "run",
        "name": run.info.run_name,
        "id": run.info.run_id,
        "verb": run.data.tags.get("seeker.verb", ""),
        "status": run.info.status,
        "command": str(made) if made else None,
    }


def _children(run: Run, known: Known, seen: frozenset[str]) -> list[Row]:
    seen |= {run.info.run_id}
    left = [child for child in known.children(run) if child.info.run_id not in seen]
    return [_run(child) | {"children": _children(child, known, seen)} for child in left]


def _origin(file: DataFile, known: Known) -> Row:
    """Return a file with what it was made from."""
    row: Row = {"kind": "file", "file": file.path, "digest": file.digest}
    if file.manifest is None:
        return row
    made = known.command(file)
    return row | {
        "program": file.manifest["program"],
        "version": file.manifest["version"],
        "parameters": file.manifest["parameters"],
        "command": str(made) if made else None,
        "notes": list(made.notes) if made else [],
        "inputs": [_origin(source, known) for source in file.inputs()],
    }


def file_row(path: Path, known: Known) -> Row:
    """Return a file with what it was made from, what was made from it, and the runs that used any of it."""
    digest = file_digest(path)
    file = DataFile(str(path), digest, manifest_of(path, digest) or _of_index(path, digest))
    return _origin(file, known) | _used(digest, known, frozenset())


def _used(digest: str, known: Known, seen: frozenset[str]) -> Row:
    seen |= {digest}
    files = [file for file in known.made_into.get(digest, ()) if file.digest not in seen]
    users = [{"role": role} | _run(run) | {"children": _children(run, known, frozenset())} for role, run in known.users(digest)]
    made = [
        {"kind": "file", "file": file.path, "digest": file.digest, "command": _text(known.command(file))}
        | _used(file.digest, known, seen)
        for file in files
    ]
    return {"used_by": users, "made_into": made}


def _text(command: Command | None) -> str | None:
    return None if command is None else str(command)


# --- as a tree ----------------------------------------------------------------------------------------------------------------


def tree_of(row: Row) -> Tree:
    """Return what `run_row` or `file_row` describes, for a terminal."""
    from rich.tree import Tree

    tree = Tree(_label(row))
    if row["kind"] == "run":
        _add_run(tree, row)
    else:
        _add_origin(tree, row)
        _add_uses(tree, row)
    return tree


def _label(row: Mapping[str, str]) -> str:
    from rich.markup import escape

    if row["kind"] == "run":
        if row["name"] is None:
            return f"{row['id']}, which the store does not have"
        return f"[bold]{escape(row['name'])}[/bold] {row['id']} {escape(row['verb'])} {row['status']}"
    return f"{escape(row['file'])} {row['digest']}"


def _add_command(tree: Tree, row: Row) -> None:
    from rich.markup import escape

    if row.get("command"):
        tree.add(f"[green]$ {escape(row['command'])}[/green]")
    for note in row.get("notes", ()):
        tree.add(f"[yellow]{escape(note)}[/yellow]")


def _add_run(tree: Tree, row: Row) -> None:
    """Add below a run its command, code, data, checkpoints, the run before it, and the runs after it."""
    from rich.markup import escape

    _add_command(tree, row)
    if row.get("code"):
        tree.add(f"code {row['code'][:12]}{' with changes' if row['changed'] else ''}")
    for file in row.get("datasets", ()):
        _add_origin(tree.add(f"dataset {escape(file['role'])} {_label(file)}"), file)
    for name, path in row.get("checkpoints", {}).items():
        tree.add(escape(f"checkpoint {name} {path}"))
    if row.get("parent"):
        _add_run(tree.add("parent").add(_label(row["parent"])), row["parent"])
    if row.get("children"):
        below = tree.add("measured by, or trained from it")
        for child in row["children"]:
            _add_run(below.add(_label(child)), child)


def _add_origin(tree: Tree, row: Row) -> None:
    """Add below a file the program and command that made it, and below these its inputs, and so on."""
    from rich.markup import escape

    if "program" not in row:
        return
    options = " ".join(f"{name}={value}" for name, value in row["parameters"].items())
    made = tree.add(escape(f"made by {row['program']} {row['version']} {options}"))
    _add_command(made, row)
    for source in row["inputs"]:
        _add_origin(made.add(f"from {_label(source)}"), source)


def _add_uses(tree: Tree, row: Row) -> None:
    """Add below a file the runs that read it, and what was made from it."""
    from rich.markup import escape

    for user in row["used_by"]:
        _add_run(tree.add(f"used for {escape(user['role'])} by {_label(user)}"), user)
    for file in row["made_into"]:
        below = tree.add(f"made into {_label(file)}")
        _add_command(below, file)
        _add_uses(below, file)
