"""`seeker data push`: files that data programs made -> a dataset on the Hugging Face Hub, with a card from their manifests.

Only what a manifest vouches for is pushed, and no config whose sides share anything. `--dry_run true` writes what would be
pushed into a folder and needs no network.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from project.errors import InputError
from project.files import file_digest, kind_of
from project.hub import Repo, check_licence, push_folder
from project.manifests import manifest_path, read_manifest
from project.records import Row
from project.streams import as_paths, print_counts
from project.traces.card import Part, by_config, without_folders, write_card
from project.traces.check import SPLITS, check_files
from project.writing import is_taken, new_folder, stem_of, suffix_of, write_text

Place = Callable[[Path, Path], object]
"""Puts a file at a place in the tree: copies it, or links to it."""
_MANIFEST = {"program", "version", "code", "parameters", "inputs", "outputs", "counts"}


def push(
    input_file: list[Path] | Path,
    repo: str,
    licence: str,
    sources: list[str] | None = None,
    private: bool = True,
    revision: str | None = None,
    title: str | None = None,
    dry_run: bool = False,
    output_dir: Path | None = None,
) -> None:
    """Push files of data programs to the Hugging Face Hub as one dataset, with a card written from their manifests.

    NAME_train, NAME_validation and NAME_test become the splits of the config NAME; another file is the train split of a config
    of its name. The card replaces the one on the hub: push all configs of a dataset at once.

    Args:
        input_file: one or several files (.parquet, .jsonl or .jsonl.gz), each with its manifest beside it.
        repo: the dataset on the hub, OWNER/NAME; it is made where it is not there.
        licence: the hub's id of the dataset's licence, such as apache-2.0 or cc-by-sa-4.0.
        sources: what the data comes from and under which licences, a line each, as in '["HotpotQA, CC BY-SA 4.0"]'.
        private: only its owner sees the dataset.
        revision: the branch to push to, made where it is not there; the main one where not given.
        title: the card's title; NAME where not given.
        dry_run: write the tree that would be pushed into output_dir, and push nothing.
        output_dir: the new folder of a dry run.
    """
    hub = Repo(repo, "dataset", "--repo")
    check_licence(licence)
    _check_revision(revision)
    _check_output(output_dir, dry_run=dry_run)
    parts = parts_of(as_paths(input_file))
    for held in by_config(parts).values():
        if len(held) > 1:
            check_files([part.path for part in held])
    card = write_card(repo, licence, parts, sources or [], title=title, revision=revision)
    if output_dir is not None:
        write_folder(output_dir, parts, card)
        where = str(output_dir)
    else:
        with tempfile.TemporaryDirectory(prefix="seeker-push-") as folder:
            write_tree(Path(folder), parts, card, lambda source, place: place.symlink_to(source.resolve()))
            message = "Push with seeker data push"
            where = push_folder(Path(folder), hub, private=private, message=message, revision=revision)
    print_counts("written, not pushed" if dry_run else f"pushed {repo}", {part.target: part.rows for part in parts})
    print(where)


def _check_revision(revision: str | None) -> None:
    if revision is not None and not re.fullmatch(r"\w[\w.-]*", revision, re.ASCII):
        raise InputError(f"--revision is {revision}; name a branch, of letters, digits, '-', '_' and '.'")


def _check_output(output_dir: Path | None, *, dry_run: bool) -> None:
    if dry_run and output_dir is None:
        raise InputError("--output_dir is missing; name the folder that --dry_run true writes into")
    if output_dir is None:
        return
    if not dry_run:
        raise InputError(f"--output_dir is {output_dir}, and only a dry run writes there; add --dry_run true, or leave it out")
    if is_taken(output_dir):
        raise InputError(f"{output_dir} is there and not an empty folder; give another --output_dir")


def parts_of(paths: Sequence[Path]) -> list[Part]:
    """Return the files as parts of a dataset, by config, each config's splits in the order train, validation, test.

    Raises:
        InputError: a file is missing, has no manifest, is not as its manifest says, or is empty; two are the same split; some
            are Parquet and some JSON lines, which `datasets` does not load from one dataset.
    """
    parts: dict[tuple[str, int], Part] = {}
    for path in paths:
        part = _part(path)
        other = parts.setdefault((part.config, SPLITS.index(part.split)), part)
        if other is not part:
            raise InputError(
                f"{other.path} and {path} would both be the {part.split} split of '{part.config}'; give one of them"
            )
    kinds = {suffix_of(part.path): part.path for part in parts.values()}
    if len(kinds) > 1:
        raise InputError(
            f"{' and '.join(map(str, kinds.values()))} are of two formats, which datasets.load_dataset does not read from one "
            "dataset; make all with one --file_format"
        )
    return [parts[key] for key in sorted(parts)]


def _part(path: Path) -> Part:
    if kind_of(path) not in ("parquet", "jsonl"):
        raise InputError(f"{path} cannot be pushed; its suffix must be .parquet, .jsonl or .jsonl.gz")
    manifest, told = _vouched(path)
    stem = stem_of(path)
    name, _, side = stem.rpartition("_")
    config, split = (name or "default", side) if side in SPLITS else (stem, "train")
    if not re.fullmatch(r"\w[\w.-]*", config, re.ASCII):
        raise InputError(f"{path} would be the config '{config}'; give it a name of letters, digits, '-', '_' and '.'")
    return Part(path, config, split, told["rows"], told["digest"], without_folders(manifest))


def _vouched(path: Path) -> tuple[Row, Row]:
    """Return a file's manifest and what it says of the file, which is so."""
    manifest = read_manifest(path)
    if manifest is None:
        raise InputError(
            f"{path} has no manifest that says how it was made; push what a seeker data program wrote, with the "
            f"{manifest_path(path).name} that it wrote beside it"
        )
    _check_whole(manifest, manifest_path(path))
    told = manifest["outputs"].get(path.name)
    if told is None:
        raise InputError(f"{manifest_path(path)} does not tell of {path.name}; give the file the name it was made under")
    if told["digest"] != file_digest(path):
        raise InputError(f"{path} was changed since it was made; make it anew with {manifest['program']} --force true")
    if not told["rows"]:
        raise InputError(f"{path} holds no rows; leave it out")
    return manifest, told


def _check_whole(manifest: Row, path: Path) -> None:
    """Refuse a manifest that lacks something, or whose inputs' manifests do."""
    if lacking := sorted(_MANIFEST - manifest.keys()):
        raise InputError(f"{path} lacks {', '.join(lacking)}; make the file anew with --force true")
    for given in manifest["inputs"]:
        if "made_by" in given:
            _check_whole(given["made_by"], path)


def write_folder(folder: Path, parts: Sequence[Part], card: str) -> None:
    """Write the tree into a new or empty folder, which appears whole or not at all."""
    with new_folder(folder) as partial:
        write_tree(partial, parts, card, shutil.copyfile)


def write_tree(folder: Path, parts: Sequence[Part], card: str, place: Place) -> None:
    """Write README.md, data/ and manifests/; folders of this machine are taken out of the manifests."""
    (folder / "data").mkdir()
    for part in parts:
        place(part.path, folder / part.target)
        manifest = folder / "manifests" / manifest_path(part.path).name
        write_text(manifest, json.dumps(part.manifest, ensure_ascii=False, indent=1) + "\n")
    write_text(folder / "README.md", card)
