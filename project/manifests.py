"""What a data program made its files from: `FILE.manifest.json` beside each of them.

A manifest holds the program and its version, its parameters, each input's digest with that input's own manifest, the rows and
digest of each output, and the counts with their reasons. It holds no time and no machine: the same run writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from project import __version__
from project.errors import InputError
from project.files import file_digest
from project.records import Row
from project.writing import Sink, atomic_path

SUFFIX = ".manifest.json"


def manifest_path(path: Path) -> Path:
    """Return where the manifest of a file lies."""
    return path.with_name(path.name + SUFFIX)


def read_manifest(path: Path) -> Row | None:
    """Return a file's manifest; None where it has none."""
    try:
        found = json.loads(manifest_path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{manifest_path(path)} is no JSON ({error}); delete it, or make {path.name} anew") from error
    return found if isinstance(found, dict) else None


def plan(program: str, parameters: Mapping[str, Any], inputs: Sequence[Path]) -> Row:
    """Return what decides a program's outputs: itself, its parameters and its inputs."""
    return {
        "program": program,
        "version": __version__,
        "code": code_digest(),
        "parameters": dict(parameters),
        "inputs": [_input(path) for path in inputs],
    }


def _input(path: Path) -> Row:
    digest = file_digest(path)
    made_by = manifest_of(path, digest)
    return {"file": str(path), "digest": digest} | ({"made_by": made_by} if made_by else {})


def manifest_of(path: Path, digest: str) -> Row | None:
    """Return the manifest of a file that is as it was made; None where it has none, or was changed since."""
    held = read_manifest(path)
    return held if held and held.get("outputs", {}).get(path.name, {}).get("digest") == digest else None


def is_made(planned: Row, outputs: Sequence[Path], *, force: bool = False) -> bool:
    """Return whether all outputs are there, made so and not changed since.

    Raises:
        InputError: one is there that was made otherwise, or changed since, and `force` is False.
    """
    differences = [_difference(planned, path) for path in outputs]
    if not any(differences):
        return True
    for path, difference in zip(outputs, differences, strict=True):
        if path.exists() and difference and not force:
            raise InputError(f"{path} is there and {difference}; give another name, or replace it with --force true")
    return False


def _difference(planned: Row, path: Path) -> str:
    """Return how a file differs from what the plan would write; empty where it does not."""
    if not path.exists():
        return "is not there"
    held = read_manifest(path)
    if held is None:
        return "has no manifest that says how it was made"
    if held.get("outputs", {}).get(path.name, {}).get("digest") != file_digest(path):
        return "was changed since it was made"
    for name in ("program", "version", "code"):
        if held.get(name) != planned[name]:
            return f"was made by another {name} ({held.get(name)}, now {planned[name]})"
    if _names(held) != _names(planned):
        return "was made from other inputs"
    before, now = held["parameters"], json.loads(json.dumps(planned["parameters"]))
    changed = [
        f"{name}={before.get(name)}, now {now.get(name)}" for name in {**before, **now} if before.get(name) != now.get(name)
    ]
    return f"was made with {', '.join(changed)}" if changed else ""


def _names(told: Row) -> list[tuple[str, str]]:
    """Return the inputs' names and digests; a name can be in what was made of it."""
    return [(Path(one["file"]).name, one["digest"]) for one in told["inputs"]]


def write_outputs(
    planned: Row, outputs: Mapping[Path, Iterable[Row]], counts: Mapping[str, int] | None = None, *, force: bool = False
) -> bool:
    """Write rows that fit into memory with their manifests, all files or none; False where they are there, made so.

    Raises:
        InputError: one is there that was made otherwise, or changed since, and `force` is False.
    """
    refuse_inputs(outputs, [Path(one["file"]) for one in planned["inputs"]])
    if is_made(planned, list(outputs), force=force):
        return False
    with ExitStack() as stack:
        sinks = [stack.enter_context(Sink(path)) for path in outputs]
        for sink, rows in zip(sinks, outputs.values(), strict=True):
            sink.extend(rows)
            sink.keep()
        write_manifests(planned, sinks, counts or {}, stack)
    return True


def refuse_inputs(outputs: Iterable[Path], inputs: Collection[Path]) -> None:
    """Refuse to write over what is read."""
    for path in outputs:
        if any(path.resolve() == given.resolve() for given in inputs):
            raise InputError(f"{path} is the input file and would be the output; give another name")


def write_manifests(planned: Row, sinks: Sequence[Sink], counts: Mapping[str, int], stack: ExitStack) -> None:
    """Write the manifest of each output that is kept; they appear when the stack of the outputs ends, just before these do.

    So a failure leaves everything as it was. A kill in between leaves manifests without their files, which the next run does
    not mind; files that were to be replaced it takes for changed, and asks for `force` again.
    """
    held = {sink.path.name: {"rows": sink.rows, "digest": sink.digest} for sink in sinks}
    text = json.dumps(planned | {"outputs": held, "counts": dict(counts)}, ensure_ascii=False, indent=1) + "\n"
    encoded = text.encode(errors="backslashreplace")  # a name that is not UTF-8 holds half surrogates, which JSON escapes so
    for sink in sinks:
        stack.enter_context(atomic_path(manifest_path(sink.path))).write_bytes(encoded)


@cache
def code_digest() -> str:
    """Return a digest of the package's source: what tells one state of it from another between two versions."""
    root = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]
