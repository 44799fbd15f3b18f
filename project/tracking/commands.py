"""The commands that made data files and runs, from what they recorded: a file's manifest, a run's tags and `config.yaml`.

A manifest holds what decides a file's bytes, which is not quite what its command line said: `TOLD_AS` turns the names of the
one into those of the other, `RECORDED` names what is no option (digests and versions), and what else is no option, or cannot
be known, is said in `Command.notes`. Options whose value is today's default are left out.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from project.cli import VERBS
from project.records import Row
from project.tracking.store import client
from project.writing import suffix_of

if TYPE_CHECKING:
    from mlflow.entities import Run

INDEX = "seeker index build"
RECORDED = ("code", "maker", "packages", "digest", "joined", "ids", "template", "rows", "prompts")
"""Parameters of manifests that follow from the program, its version, or the inputs."""
SAMPLING = ("temperature", "max_tokens", "top_p", "repetition_penalty", "stop")


@dataclass(frozen=True)
class Command:
    """What made something."""

    words: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What the words leave open, each a clause."""

    def __str__(self) -> str:
        """Return it as a shell takes it."""
        return shlex.join(self.words)


def data_command(manifest: Row, folder: Path, inputs: Sequence[str] | None = None) -> Command | None:
    """Return the command that makes the files of a manifest; None for a program that is none of this version's.

    Args:
        manifest: theirs, or that of an index.
        folder: where they are to lie; of an index, itself.
        inputs: where its inputs lie, in the manifest's order; by default where the manifest says.
    """
    verb = str(manifest["program"]).removeprefix("seeker ")
    if verb not in VERBS:
        return None
    options = signature(_function(verb)).parameters
    given = [str(one["file"]) for one in manifest["inputs"]] if inputs is None else list(inputs)
    told, notes = dict(manifest["parameters"]), list[str]()
    if verb in TOLD_AS:
        told = TOLD_AS[verb](told, notes)
    if "output_file" in options:
        placed: Row = {"output_file": str(folder / next(iter(manifest["outputs"])))}
    else:
        placed = {"output_dir": str(folder)}
        if "file_format" in options:
            told["file_format"] = _format(next(iter(manifest["outputs"])))
    words = _input_words(verb, given) + _words(placed, options, notes) + _words(told, options, notes)
    return Command(("seeker", *verb.split(), *words), tuple(notes))


def _function(verb: str) -> Callable[..., None]:
    module, _, name = VERBS[verb][0].partition(":")
    return getattr(import_module(module), name)  # type: ignore[no-any-return]


def _format(name: str) -> str:
    return suffix_of(name) + (".gz" if name.endswith(".gz") else "")


def _input_words(verb: str, inputs: Sequence[str]) -> list[str]:
    names = {"index build": ("passages",), "data hotpotqa": ("input_file", "traces")}.get(verb, ("input_file",))
    if len(inputs) <= len(names):
        return [word for name, path in zip(names, inputs, strict=False) for word in (f"--{name}", path)]
    return [f"--{names[0]}", json.dumps(list(inputs), ensure_ascii=False)]


def _words(told: Mapping[str, Any], options: Mapping[str, Parameter], notes: list[str]) -> list[str]:
    """Return options with their values, without those that are the default; notes what is no option."""
    words: list[str] = []
    for name, value in told.items():
        head, _, field = name.partition(".")
        if head not in options:
            if head.partition("_")[0] not in (*RECORDED, "prompt") and value not in (None, []):
                notes.append(f"{name}={json.dumps(value, ensure_ascii=False)} is recorded, and no option of this version")
            continue
        default = options[head].default
        default = getattr(default, field, None) if field else default
        if value not in (_plain(default), [] if default is None else None):
            words += [f"--{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
    return words


def _plain(value: Any) -> Any:  # noqa: ANN401 - any default
    """Return a default as JSON holds it."""
    value = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return json.loads(json.dumps(value, default=str))


# --- a manifest's parameters as options -------------------------------------------------------------------------------------


def _facts(told: Row, notes: list[str]) -> Row:
    del notes
    return {f"{split}_questions": count for split, count in told.pop("sizes", {}).items()} | told


def _split(told: Row, notes: list[str]) -> Row:
    if "near_duplicates" in told:
        notes.append("near duplicates were sought in all files that were split at once; give those together")
    return {f"{side}_share": told.pop(side) for side in ("validation", "test") if side in told} | told


def _corpus(told: Row, notes: list[str]) -> Row:
    if told.get("rows") == "whole":  # then no way to cut was named
        told = {name: value for name, value in told.items() if name not in ("strategy", "size", "overlap")}
    return _tokenizer(told, notes)


def _tokenizer(told: Row, notes: list[str]) -> Row:
    digest = told.pop("tokenizer", None)
    if digest is not None:
        notes.append(
            f"the tokenizer's digest {digest} is recorded and not its name; give --tokenizer unless it was the default"
        )
    return told


def _squad(told: Row, notes: list[str]) -> Row:
    del notes
    return {"input_file": told.pop("hub_id")} | told if "hub_id" in told else told


def _asked(told: Row, notes: list[str]) -> Row:
    """Return what a program that asks a teacher was told; where the teacher is, is not recorded."""
    for name in ("teacher", "student"):
        if name in told:
            told[f"{name}.model"] = told.pop(name)
            notes.append(f"the address of the {name} is not recorded; give --{name}.base_url or --{name}.engine")
    return told


def _sampled(told: Row, notes: list[str]) -> Row:
    told = {f"sampling.{name}" if name in SAMPLING else name: value for name, value in told.items()}
    if likeness := told.pop("likeness", None):
        told |= dict(zip(("likeness.low", "likeness.high"), likeness, strict=True))
    return _asked(told, notes)


def _summaries(told: Row, notes: list[str]) -> Row:
    return {"summariser": "teacher"} | _sampled(told, notes) if "maker" in told else told


def _distill(told: Row, notes: list[str]) -> Row:
    for name in ("repetition_penalty", "stop"):  # always Sampling's own
        told.pop(name, None)
    retrieval = str(told.pop("retrieval", ""))
    where = {"retrieval_url": retrieval} if "://" in retrieval else {"index": retrieval.rpartition("@")[0]}
    if judged := told.pop("judge", None):
        told |= dict(zip(("judge.model", "judge.base_url", "judge.max_words", "judge.max_tokens"), judged, strict=False))
    return where | {"max_assistant_turns": told.pop("max_turns", None)} | _asked(told, notes)


TOLD_AS: dict[str, Callable[[Row, list[str]], Row]] = {
    "data facts": _facts,
    "data split": _split,
    "data corpus": _corpus,
    "data traces": _tokenizer,
    "data squad": _squad,
    "data qas": _asked,
    "data questions": _sampled,
    "data paraphrase": _sampled,
    "data summaries": _summaries,
    "data distill": _distill,
}
"""By verb: what its manifest's parameters are as options, with notes of what they leave open."""


# --- indexes and runs ---------------------------------------------------------------------------------------------------------


def index_manifest(held: Row, digest: str) -> Row:
    """Return an index's `manifest.json` as the manifests of data files are.

    Args:
        held: what the file holds.
        digest: the file's own.
    """
    settings = {f"{part}.{name}": value for part, of in held["parts"].items() for name, value in _settings(of).items()}
    return {
        "program": INDEX,
        "version": f"format {held['format']}",
        "parameters": {"engine": held["engine"], **settings},
        "inputs": [held["source"]],
        "outputs": {"manifest.json": {"rows": held["passages"], "digest": digest}},
    }


def _settings(part: Row) -> Row:
    """Return a part's settings; LanceDB's are those of two options."""
    return {name: value for name, value in part["settings"].items() if not isinstance(value, dict)}


def run_command(run: Run) -> Command | None:
    """Return the command line that made a run, or one that gives the config that it kept; None where it kept neither."""
    if said := run.data.tags.get("seeker.command"):
        return Command(tuple(shlex.split(said)))
    config, verb = config_path(run), run.data.tags.get("seeker.verb")
    return Command(("seeker", verb, "--config", config)) if config and verb else None


def config_path(run: Run) -> str | None:
    """Return where the resolved config of a run is kept: a file, or a URI; None where it is not."""
    if not any(entry.path == "config.yaml" for entry in client().list_artifacts(run.info.run_id)):
        return None
    return f"{run.info.artifact_uri}/config.yaml".removeprefix("file://")
