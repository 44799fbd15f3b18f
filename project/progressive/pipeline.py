"""A pipeline: its file, the phases in it, the `seeker fit` of each, and the manifest of what each handed on.

The file holds `name` and `phases`, each with `name`, `config` (layers), `overrides`, `start_from` (an earlier phase; the one
before by default; null or the first: its own `model.model_path`), `weights` (what it takes of that phase: `best` by its
validation metric, or `last`) and `adapter` (`merged` into the base and begun anew, or `continued`). `config`, `overrides`,
`weights` and `adapter` beside `phases` hold for all of them.

The pipeline's folder holds a folder a phase and `pipeline.json`: which phases are done, under which settings, and what each
hands on, as `hand_over.json` of its training says. Nothing is decided by a file's time.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from project.errors import InputError
from project.files import file_digest, read_yaml
from project.modules.hand_over import HAND_OVER, HandedOn, read_hand_over
from project.records import Row
from project.tracking.store import find_run, project_root, run_folder_id, runs_folder
from project.writing import write_text

MANIFEST = "pipeline.json"
MEASURE_BEFORE = "project.modules.measure_before.MeasureBefore"
SHARED_KEYS = {"config", "overrides", "weights", "adapter"}
KEYS = {"name", "phases"} | SHARED_KEYS
PHASE_KEYS = {"name", "start_from"} | SHARED_KEYS
RESERVED = ("trainer.default_root_dir", "trainer.logger", "model.export_dir", "model.start_from", "ckpt_path")
"""Options that the pipeline sets itself."""
NAME = re.compile(r"[\w.-]*\w")
PHASE_OPTION = re.compile(r"phase(\d+)\.(.+)")

Options = tuple[tuple[str, str], ...]
"""Options and their values in the order of a command line, in which `callbacks+` may come again."""
Weights = Literal["best", "last"]
Adapter = Literal["merged", "continued"]
CHOICES: dict[str, tuple[str, ...]] = {"weights": ("best", "last"), "adapter": ("merged", "continued")}
"""The values of each, the default first."""


@dataclass(frozen=True)
class Phase:
    """One training of a pipeline."""

    number: int
    """Counted from 1."""
    name: str
    config: tuple[Path, ...]
    start_from: str | Path | None
    """The phase whose weights this one starts from, or a model folder or checkpoint; None: its own `model.model_path`."""
    weights: Weights
    adapter: Adapter
    overrides: Options
    """Of `seeker fit`, over the config layers."""

    def words(self) -> list[str]:
        """Return the options of `seeker fit` that the pipeline's file and the command line give."""
        layers = [word for path in self.config for word in ("--config", str(path))]
        return [*layers, *(f"--{key}={value}" for key, value in self.overrides)]


@dataclass
class Pipeline:
    """Phases, the folder they share, and its manifest."""

    name: str
    phases: list[Phase]
    folder: Path
    done: dict[str, Row] = field(default_factory=dict)
    """By phase: what the manifest says of each that has ended or begun."""
    run_id: str | None = None
    """The MLflow run that the phases' runs belong to."""
    also_validate: dict[str, dict[str, str]] = field(default_factory=dict)
    """By phase: the validation files of the others."""
    bases: dict[str, str | None] = field(default_factory=dict)
    """By phase: the `model.model_path` of its own config."""
    sets: dict[str, str] = field(default_factory=dict)
    """By phase: the name of its own validation set, which is the first phase's that validates on that file."""
    data_files: dict[str, list[str]] = field(default_factory=dict)
    """By phase: what it trains and validates on, where these are files here."""
    launcher: Sequence[str] = (sys.executable,)

    def read_manifest(self) -> None:
        """Take in what an earlier run of the pipeline noted.

        Raises:
            InputError: it is damaged.
        """
        manifest = self.folder / MANIFEST
        if not manifest.is_file():
            return
        try:
            held = json.loads(manifest.read_text(encoding="utf-8"))
            self.done, self.run_id = dict(held["phases"]), held.get("run_id")
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{manifest} is damaged ({error}); remove it to train {self.name} again") from error

    def write_manifest(self) -> None:
        """Write what is known, whole or not at all."""
        write_text(self.folder / MANIFEST, self.manifest())

    def manifest(self) -> str:
        """Return the text of `pipeline.json`."""
        return json.dumps({"name": self.name, "run_id": self.run_id, "phases": self.done}, indent=1) + "\n"

    def phase(self, name: str) -> Phase:
        """Return the phase of this name."""
        return next(phase for phase in self.phases if phase.name == name)

    def phase_folder(self, phase: Phase) -> Path:
        """Return the run's folder of a phase."""
        return self.folder / f"{phase.number}-{phase.name}"

    def is_finished(self, phase: Phase) -> bool:
        """Return whether the manifest says so and the model is there."""
        row = self.done.get(phase.name, {})
        return bool(row.get("finished")) and (Path(row["hands_on"]["last"]["model"]) / "config.json").is_file()

    def is_interrupted(self, phase: Phase) -> bool:
        """Return whether a checkpoint waits to be resumed."""
        return not self.is_finished(phase) and (self.phase_folder(phase) / "checkpoints" / "last.ckpt").is_file()

    def handed_on(self, phase: Phase) -> HandedOn:
        """Return what a finished phase hands on to one that starts from it.

        Raises:
            InputError: it left no such weights, or they are gone.
        """
        source = self.phase(str(phase.start_from))
        hands_on = self.done[source.name]["hands_on"]
        which = f"the {phase.weights} weights of phase '{source.name}', from which phase '{phase.name}' starts,"
        if phase.weights not in hands_on:
            raise InputError(
                f"{which} were not kept: it ended before a validation, or no ModelCheckpoint of it has a `monitor`; train it "
                "longer or with one, or give --weights last"
            )
        found = HandedOn(**hands_on[phase.weights])
        if phase.adapter == "continued" and found.checkpoint is None:
            raise InputError(f"{which} are in no checkpoint; train it with one, or give --adapter merged")
        needed = found.checkpoint if phase.adapter == "continued" else f"{found.model}/config.json"
        if not Path(str(needed)).is_file():
            raise InputError(f"{which} are gone: {needed} does not exist; put it back, or train that phase anew")
        return found

    def base_words(self, phase: Phase) -> list[str]:
        """Return the option for the base that a phase's adapter is trained on, if nothing is merged on the way; else none."""
        if phase.start_from is None:
            return []
        if isinstance(phase.start_from, Path):
            return [] if phase.start_from.suffix == ".ckpt" else [f"--model.model_path={phase.start_from}"]
        source = self.phase(phase.start_from)
        if phase.adapter == "merged" and self.is_finished(source):
            return [f"--model.model_path={self.handed_on(phase).model}"]
        own = self.bases.get(source.name)
        return self.base_words(source) or ([f"--model.model_path={own}"] if own else [])

    def start_words(self, phase: Phase) -> list[str]:
        """Return the options for the weights that a phase starts from; of a phase not yet trained, where they will lie."""
        if isinstance(phase.start_from, Path):
            is_checkpoint = phase.start_from.suffix == ".ckpt"
            return [f"--model.{'start_from' if is_checkpoint else 'model_path'}={phase.start_from}"]
        if phase.start_from is None:
            return []
        source = self.phase(phase.start_from)
        finished = self.is_finished(source)
        if phase.adapter == "continued":
            planned = f"{self.phase_folder(source)}/checkpoints/<{phase.weights}>.ckpt"
            checkpoint = self.handed_on(phase).checkpoint if finished else planned
            return [*self.base_words(phase), f"--model.start_from={checkpoint}"]
        folder = self.phase_folder(source) / ("merged_best" if phase.weights == "best" else "merged")
        return [f"--model.model_path={self.handed_on(phase).model if finished else folder}"]

    def fit_words(self, phase: Phase, start: Sequence[str]) -> list[str]:
        """Return the options of a phase's `seeker fit`, with these for its start."""
        folder = self.phase_folder(phase)
        words = [*phase.words(), *start]
        if self.also_validate.get(phase.name):
            words.append(f"--data.also_validate={json.dumps(self.also_validate[phase.name])}")
        if phase.number == 1:
            words += ["--trainer.num_sanity_val_steps=-1", f"--trainer.callbacks+={MEASURE_BEFORE}"]
        words += [f"--trainer.default_root_dir={folder}", f"--model.export_dir={folder / 'merged'}"]
        return [*words, f"--trainer.logger.init_args.run_name={self.name}/{phase.name}"]

    def command(self, phase: Phase) -> list[str]:
        """Return the words that run a phase."""
        words = [*self.launcher, "-m", "project", "fit", *self.fit_words(phase, self.start_words(phase))]
        words += [f"--trainer.logger.init_args.pipeline_run={self.run_id}"] if self.run_id else []
        return words + (["--ckpt_path=last"] if self.is_interrupted(phase) else [])

    def digest(self, phase: Phase) -> str:
        """Return a fingerprint of the settings that decide what a phase trains, those of the phases before it too."""
        start = [str(phase.start_from)]
        if isinstance(phase.start_from, str):
            start = [self.digest(self.phase(phase.start_from)), phase.weights, phase.adapter]
        layers = [file_digest(path) for path in phase.config]
        settings = json.dumps([layers, start, phase.overrides])
        return hashlib.sha256(settings.encode()).hexdigest()[:16]

    def source_run(self, phase: Phase) -> str | None:
        """Return the run that made the weights that a phase starts from, as far as it is known."""
        if isinstance(phase.start_from, str):
            return self.done.get(phase.start_from, {}).get("run_id")
        return run_folder_id(phase.start_from)

    def changed_files(self, phase: Phase) -> list[str]:
        """Return the data files of a phase that has begun which hold something else now."""
        held = self.done.get(phase.name, {}).get("data", {})
        return [path for path, digest in held.items() if not Path(path).is_file() or file_digest(Path(path)) != digest]

    def note_begun(self, phase: Phase, command: Sequence[str]) -> None:
        """Note under which settings and on which data a phase begins."""
        self.done[phase.name] = {
            "number": phase.number,
            "settings": self.digest(phase),
            "source_run": self.source_run(phase),
            "data": {path: file_digest(Path(path)) for path in self.data_files.get(phase.name, ())},
            "command": list(command),
        }
        self.write_manifest()

    def finished(self, phase: Phase, seconds: float) -> Row:
        """Return what the manifest is to say of a phase that has ended: what it hands on above all.

        Raises:
            InputError: its training left no word of it.
        """
        folder = self.phase_folder(phase)
        hands_on = {which: row.to_row() for which, row in read_hand_over(folder / HAND_OVER).items()}
        run_id = run_folder_id(folder, levels=0)
        return {"finished": True, "seconds": round(seconds, 1), "run_id": run_id, "hands_on": hands_on}


# --- the file ------------------------------------------------------------------------------------------------------------


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
