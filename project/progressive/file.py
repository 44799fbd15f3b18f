"""A pipeline's file and command line: phases with their config layers, overrides, and what they start from.

The file holds `name` and `phases`, each with `name`, `config` (layers), `overrides`, `start_from` (an earlier phase; the one
before by default; null or the first: its own `model.model_path`), `weights` (what it takes of that phase: `best` by its
validation metric, or `last`) and `adapter` (`merged` into the base and begun anew, or `continued`). `config`, `overrides`,
`weights` and `adapter` beside `phases` hold for all of them.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from project.errors import InputError
from project.files import read_yaml
from project.modules.hand_over import HAND_OVER, read_hand_over
from project.progressive.pipeline import Options, Phase, Pipeline
from project.tracking.store import find_run, project_root, runs_folder

SHARED_KEYS = {"config", "overrides", "weights", "adapter"}
KEYS = {"name", "phases"} | SHARED_KEYS
PHASE_KEYS = {"name", "start_from"} | SHARED_KEYS
RESERVED = ("trainer.default_root_dir", "trainer.logger", "model.export_dir", "model.start_from", "ckpt_path")
"""Options that the pipeline sets itself."""
NAME = re.compile(r"[\w.-]*\w")
PHASE_OPTION = re.compile(r"phase(\d+)\.(.+)")

CHOICES: dict[str, tuple[str, ...]] = {"weights": ("best", "last"), "adapter": ("merged", "continued")}
"""The values of each, the default first."""


def load(
    files: Sequence[Path],
    overrides: Sequence[str] = (),
    output_dir: Path | None = None,
    launcher: str | None = None,
    **choices: str | None,
) -> Pipeline:
    """Return the pipeline of a file, with further config layers and overrides for its phases, and what is done of it.

    Args:
        files: the pipeline, and config layers that go over those of every phase.
        overrides: words of a command line: `--key=value` or `--key value`, for all phases; `--phase2.key=value` for one.
        output_dir: the pipeline's folder; `runs/NAME` beside the tracking store by default.
        launcher: what runs `-m project fit …` in place of Python, such as `torchrun --nproc_per_node 8`.
        choices: `weights` and `adapter` for all phases, in place of the file's.

    Raises:
        InputError: the file is missing or no YAML, a key is missing or unknown, or a config layer does not exist.
    """
    path = files[0]
    if launcher is not None and not launcher.split():
        raise InputError("--launcher is empty; give the words that start a phase, such as 'torchrun --nproc_per_node 8'")
    if launcher is not None and shutil.which(launcher.split()[0]) is None:
        raise InputError(f"--launcher: there is no command '{launcher.split()[0]}' here; give its path")
    if not path.is_file():
        raise InputError(f"--config {path} does not exist; experiments/summary/ holds the pipelines that come with Seeker")
    settings = read_yaml(path)
    _check_keys(settings, KEYS, {"name", "phases"}, str(path))
    if not isinstance(settings["phases"], list) or not settings["phases"]:
        raise InputError(f"{path}: 'phases' is no list of phases; give at least one, with `name` and `config`")
    if not NAME.fullmatch(str(settings["name"])):
        raise InputError(f"{path}: 'name' is '{settings['name']}'; it names a folder: give letters, digits, '_', '-' or '.'")
    phases: list[Phase] = []
    for number, row in enumerate(settings["phases"], 1):
        phases.append(_phase(row, phases, settings, f"{path}, phase {number}"))
    layers = tuple(_layer(str(layer), "--config") for layer in files[1:])
    by_phase = split_overrides(overrides, phases)
    given: dict[str, Any] = {name: value for name, value in choices.items() if value is not None}
    phases = [
        replace(phase, config=(*phase.config, *layers), overrides=(*phase.overrides, *by_phase[phase.number]), **given)
        for phase in phases
    ]
    name = str(settings["name"])
    folder = Path(output_dir).expanduser().resolve() if output_dir else runs_folder() / name
    pipeline = Pipeline(name, phases, folder, launcher=launcher.split() if launcher else (sys.executable,))
    pipeline.read_manifest()
    return pipeline


def _phase(row: Any, before: Sequence[Phase], shared: Mapping[str, Any], where: str) -> Phase:  # noqa: ANN401
    _check_keys(row, PHASE_KEYS, {"name"}, where)
    names = [phase.name for phase in before]
    if str(row["name"]) in names or not NAME.fullmatch(str(row["name"])):
        raise InputError(
            f"{where}: 'name' is '{row['name']}'; give one that no other phase has, of letters, digits, '_' or '-'"
        )
    start = row.get("start_from", names[-1] if names else None)
    if start is not None and start not in names:
        raise InputError(f"{where}: 'start_from' is '{start}', expected an earlier phase: {', '.join(names) or 'none'}")
    config = tuple(_layer(name, where) for name in [*_names(shared.get("config")), *_names(row.get("config"))])
    if not config:
        raise InputError(f"{where}: 'config' is missing; give one config layer or several")
    own = options(row.get("overrides"), where)
    _refuse_model(own, start, where)
    overrides = (*options(shared.get("overrides"), where), *own)
    chosen: dict[str, Any] = {name: row.get(name, shared.get(name, values[0])) for name, values in CHOICES.items()}
    for name, values in CHOICES.items():
        if chosen[name] not in values:
            raise InputError(f"{where}: '{name}' is '{chosen[name]}', expected {' or '.join(values)}")
    return Phase(len(before) + 1, str(row["name"]), config, start, overrides=overrides, **chosen)


def _names(layers: Any) -> list[str]:  # noqa: ANN401 - whatever YAML held
    return [str(layer) for layer in layers] if isinstance(layers, list) else [str(layers)] if layers else []


def _layer(name: str, where: str) -> Path:
    """Return a config layer's path, from the current folder or else from the project's root."""
    for path in (Path(name), project_root() / name):
        if path.is_file():
            return path
    raise InputError(f"{where}: the config layer {name} does not exist; give a path from here or from {project_root()}")


def _check_keys(row: Any, known: set[str], needed: set[str], where: str) -> None:  # noqa: ANN401 - whatever YAML held
    if not isinstance(row, dict):
        raise InputError(f"{where} holds a {type(row).__name__}, expected settings with {', '.join(sorted(needed))}")
    if missing := sorted(needed - row.keys()):
        raise InputError(f"{where}: '{missing[0]}' is missing")
    if unknown := sorted(row.keys() - known):
        raise InputError(f"{where}: unknown key '{unknown[0]}'; known are {', '.join(sorted(known))}")


def options(overrides: Any, where: str) -> Options:  # noqa: ANN401 - whatever YAML held
    """Return overrides, nested or dotted, as options.

    >>> options({"model": {"learning_rate": 0.1, "lora": {}}}, "here")
    (('model.learning_rate', '0.1'), ('model.lora', '{}'))
    """
    if overrides is not None and not isinstance(overrides, dict):
        raise InputError(f"{where}: 'overrides' is {type(overrides).__name__}, expected options such as model.learning_rate")
    flat: list[tuple[str, str]] = []
    for key, value in (overrides or {}).items():
        if isinstance(value, dict) and value:
            flat += [(f"{key}.{inner}", text) for inner, text in options(value, where)]
        else:
            flat.append((str(key), value if isinstance(value, str) else json.dumps(value)))
    for key, _ in flat:
        _refuse_reserved(key, where)
    return tuple(flat)


def _refuse_model(own: Options, start: str | None, where: str) -> None:
    """Refuse a model of a phase's own where it starts from another phase's; one for all phases is the first's."""
    if start is not None and any(key == "model.model_path" for key, _ in own):
        raise InputError(f"{where}: 'model.model_path' is that of '{start}', which the phase starts from; leave it out")


def _refuse_reserved(key: str, where: str) -> None:
    if key.startswith(RESERVED):
        raise InputError(f"{where}: the override '{key}' is set by the pipeline itself; leave it out")


# --- the command line ----------------------------------------------------------------------------------------------------


def refuse_models(words: Sequence[str], phases: Sequence[Phase]) -> None:
    """Refuse a model for one phase that starts from another phase's.

    Raises:
        InputError: there is one.
    """
    for key, value in _pairs(words):
        found = PHASE_OPTION.fullmatch(key)
        if found and isinstance(start := phases[int(found[1]) - 1].start_from, str):
            _refuse_model(((found[2], value),), start, f"--phase{found[1]}")


def split_overrides(words: Sequence[str], phases: Sequence[Phase]) -> dict[int, Options]:
    """Return the overrides of each phase, by its number: those of all, then its own.

    Raises:
        InputError: a word is no option, an option has no value or is set by the pipeline, or there is no such phase.
    """
    shared: list[tuple[str, str]] = []
    own: dict[int, list[tuple[str, str]]] = {phase.number: [] for phase in phases}
    for key, value in _pairs(words):
        found = PHASE_OPTION.fullmatch(key)
        name = found[2] if found else key
        _refuse_reserved(name, "the command line")
        if found and int(found[1]) not in own:
            raise InputError(f"--{key}: there is no phase {found[1]}; the pipeline has {len(phases)}")
        (own[int(found[1])] if found else shared).append((name, value))
    return {number: (*shared, *found) for number, found in own.items()}


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    left = iter(words)
    for word in left:
        if not word.startswith("--"):
            raise InputError(f"'{word}' is no option of seeker progressive; an override is --model.learning_rate=1e-5")
        key, is_whole, value = word.removeprefix("--").partition("=")
        given = value if is_whole else next(left, None)
        if given is None or (not is_whole and given.startswith("--")):
            raise InputError(f"--{key} has no value; give --{key}=VALUE")
        yield key, given


def choose(phases: Sequence[Phase], wanted: str | None) -> list[Phase]:
    """Return the phases that `--phases` names, in the pipeline's order."""
    if wanted is None:
        return list(phases)
    words = {word.strip() for word in wanted.split(",")}
    known = {word: phase for phase in phases for word in (phase.name, str(phase.number))}
    if unknown := sorted(words - known.keys()):
        names = ", ".join(f"{p.number} ({p.name})" for p in phases)
        raise InputError(f"--phases: there is no phase '{unknown[0]}'; give {names}")
    return [phase for phase in phases if words & {phase.name, str(phase.number)}]


def started_from(pipeline: Pipeline, first: Phase, start: str) -> None:
    """Have a phase start from a checkpoint, a model folder, or what a tracked run handed on (`--from`).

    Raises:
        InputError: it is none of these, or the run handed on no such weights.
        TrackingError: there is no such run.
    """
    path = Path(start).expanduser()
    if not path.exists():
        if path.suffix == ".ckpt" or start.startswith((".", "/", "~")):
            raise InputError(f"--from {start} does not exist; give a run, a checkpoint or a model folder")
        folder = Path(find_run(start).data.tags.get("seeker.folder", ""))
        hands_on = read_hand_over(folder / HAND_OVER)
        if first.weights not in hands_on:
            raise InputError(f"--from {start}: that run kept no best weights; set `weights: last`, or give its folder merged")
        found = hands_on[first.weights]
        path = Path(str(found.checkpoint)) if first.adapter == "continued" else Path(found.model)
    if path.suffix != ".ckpt" and not (path / "config.json").is_file():
        raise InputError(f"--from {start}: {path} holds no model; give a run, a checkpoint or a folder with a config.json")
    pipeline.phases[first.number - 1] = replace(first, start_from=path.resolve())
