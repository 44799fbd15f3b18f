"""`seeker progressive --config FILE`: train phase after phase, each an ordinary `seeker fit` from the model of the one before.

The file holds `name`, `overrides` for all phases, and `phases`: each with `name`, `config` (layers), `overrides`, and
`start_from` (an earlier phase; the one before by default; the first starts from its own `model.model_path`). A phase runs
as a process of its own, which `--dry_run true` prints and which can be run by hand.

The pipeline's folder, `runs/NAME` beside the tracking store, holds a folder a phase and `pipeline.json`: which phases are
done, under which settings, and the model each hands on. Nothing is decided by a file's time. Run again, finished phases are
left alone and an interrupted one resumes from its checkpoint. MLflow's parent of a phase is the phase it starts from.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from project.errors import InputError, SeekerError, TrainingError
from project.files import file_digest, read_yaml
from project.records import Row
from project.tracking.store import project_root, run_folder_id, runs_folder
from project.writing import write_text

MANIFEST = "pipeline.json"
LOCK = ".lock"
KEYS = {"name", "phases", "overrides"}
PHASE_KEYS = {"name", "config", "overrides", "start_from"}
RESERVED = ("trainer.default_root_dir", "trainer.logger", "model.export_dir", "ckpt_path")
"""Options that the pipeline sets itself."""


@dataclass(frozen=True)
class Phase:
    """One training of a pipeline."""

    number: int
    """Counted from 1."""
    name: str
    config: tuple[Path, ...]
    start_from: str | None
    """The phase whose model this one starts from; None starts from its own `model.model_path`."""
    overrides: Mapping[str, str]
    """Options of `seeker fit`, over the config layers."""

    def digest(self) -> str:
        """Return a fingerprint of the settings that decide what the phase trains."""
        layers = [file_digest(path) for path in self.config]
        settings = json.dumps([layers, self.start_from, sorted(self.overrides.items())])
        return hashlib.sha256(settings.encode()).hexdigest()[:16]


@dataclass
class Pipeline:
    """Phases, the folder they share, and its manifest."""

    name: str
    phases: list[Phase]
    folder: Path
    done: dict[str, Row] = field(default_factory=dict)
    """By phase: what the manifest says of each that has ended or begun."""

    @classmethod
    def load(cls, path: Path) -> Pipeline:
        """Read a pipeline's file, checked, and the manifest of an earlier run."""
        name, phases = read_pipeline(path)
        pipeline = cls(name, phases, runs_folder() / name)
        manifest = pipeline.folder / MANIFEST
        if manifest.is_file():
            try:
                pipeline.done = dict(json.loads(manifest.read_text(encoding="utf-8"))["phases"])
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{manifest} is damaged ({error}); remove it to train {name} again") from error
        return pipeline

    def phase_folder(self, phase: Phase) -> Path:
        """Return the run's folder of a phase."""
        return self.folder / f"{phase.number}-{phase.name}"

    def model(self, phase: Phase) -> Path:
        """Return the folder of the model that a phase hands on."""
        return self.phase_folder(phase) / "merged"

    def is_finished(self, phase: Phase) -> bool:
        """Return whether the manifest says so and the model is there."""
        return bool(self.done.get(phase.name, {}).get("finished")) and (self.model(phase) / "config.json").is_file()

    def is_interrupted(self, phase: Phase) -> bool:
        """Return whether a checkpoint waits to be resumed."""
        return not self.is_finished(phase) and (self.phase_folder(phase) / "checkpoints" / "last.ckpt").is_file()

    def command(self, phase: Phase) -> list[str]:
        """Return the words that run a phase."""
        folder = self.phase_folder(phase)
        words = [sys.executable, "-m", "project", "fit"]
        words += [word for path in phase.config for word in ("--config", str(path))]
        words += [f"--{key}={value}" for key, value in phase.overrides.items()]
        if phase.start_from is not None:
            source = next(p for p in self.phases if p.name == phase.start_from)
            words.append(f"--model.model_path={self.model(source)}")
        words += [f"--trainer.default_root_dir={folder}", f"--model.export_dir={self.model(phase)}"]
        words.append(f"--trainer.logger.init_args.run_name={self.name}/{phase.name}")
        return words + (["--ckpt_path=last"] if self.is_interrupted(phase) else [])

    def record(self, phase: Phase, **values: Any) -> None:  # noqa: ANN401 - JSON
        """Write what is known of a phase into the manifest."""
        known = {"number": phase.number, "settings": phase.digest(), "start_from": phase.start_from}
        self.done[phase.name] = known | values
        write_text(self.folder / MANIFEST, json.dumps({"name": self.name, "phases": self.done}, indent=1) + "\n")


def progressive(config: Path, phases: str | None = None, dry_run: bool = False) -> None:
    """Train phase after phase, each from the model of the one before; run again, it continues where it stopped.

    Args:
        config: the pipeline: `name`, `phases` (each `name`, `config`, `overrides`, `start_from`), and `overrides` for all.
        phases: only these, by name or number from 1, separated by commas; all by default.
        dry_run: print the command of each phase that is left, and run nothing.
    """
    pipeline = Pipeline.load(config)
    chosen = choose(pipeline.phases, phases)
    _check(pipeline, chosen)
    left = [phase for phase in chosen if not pipeline.is_finished(phase)]
    if dry_run:
        for phase in left:
            sys.stdout.write(f"# phase {phase.number}, {phase.name}\n{shlex.join(pipeline.command(phase))}\n")
    if not left:
        sys.stdout.write(f"{pipeline.name}: already done; {_models(pipeline, chosen)}\n")
    if dry_run or not left:
        return
    with _locked(pipeline.folder) as lock:
        for phase in chosen:
            _run(pipeline, phase, lock)
    sys.stdout.write(f"{pipeline.name}: done; {_models(pipeline, chosen)}\n")


def read_pipeline(path: Path) -> tuple[str, list[Phase]]:
    """Return the name and the phases of a pipeline's file.

    Raises:
        InputError: the file is missing or no YAML, a key is missing or unknown, or a config layer does not exist.
    """
    if not path.is_file():
        raise InputError(f"--config {path} does not exist; experiments/summary/ holds the pipelines that come with Seeker")
    settings = read_yaml(path)
    _check_keys(settings, KEYS, {"name", "phases"}, str(path))
    if not isinstance(settings["phases"], list) or not settings["phases"]:
        raise InputError(f"{path}: 'phases' is no list of phases; give at least one, with `name` and `config`")
    if not re.fullmatch(r"[\w.-]*\w", str(settings["name"])):
        raise InputError(f"{path}: 'name' is '{settings['name']}'; it names a folder: give letters, digits, '_', '-' or '.'")
    shared = options(settings.get("overrides"), str(path))
    found: list[Phase] = []
    for number, row in enumerate(settings["phases"], 1):
        found.append(_phase(row, number, found, shared, f"{path}, phase {number}"))
    return str(settings["name"]), found


def _phase(row: Any, number: int, before: Sequence[Phase], shared: Mapping[str, str], where: str) -> Phase:  # noqa: ANN401
    _check_keys(row, PHASE_KEYS, {"name", "config"}, where)
    names = [phase.name for phase in before]
    if str(row["name"]) in names or not re.fullmatch(r"[\w.-]*\w", str(row["name"])):
        raise InputError(
            f"{where}: 'name' is '{row['name']}'; give one that no other phase has, of letters, digits, '_' or '-'"
        )
    start = row.get("start_from", names[-1] if names else None)
    if start is not None and start not in names:
        raise InputError(f"{where}: 'start_from' is '{start}', expected an earlier phase: {', '.join(names) or 'none'}")
    layers = row["config"] if isinstance(row["config"], list) else [row["config"]]
    config = tuple(_layer(str(layer), where) for layer in layers)
    return Phase(number, str(row["name"]), config, start, {**shared, **options(row.get("overrides"), where)})


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


def options(overrides: Any, where: str) -> dict[str, str]:  # noqa: ANN401 - whatever YAML held
    """Return overrides, nested or dotted, as options.

    >>> options({"model": {"learning_rate": 0.1}}, "here")
    {'model.learning_rate': '0.1'}
    """
    if overrides is not None and not isinstance(overrides, dict):
        raise InputError(f"{where}: 'overrides' is {type(overrides).__name__}, expected options such as model.learning_rate")
    flat: dict[str, str] = {}
    for key, value in (overrides or {}).items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": text for inner, text in options(value, where).items()}
        else:
            flat[str(key)] = value if isinstance(value, str) else json.dumps(value)
    if reserved := [key for key in flat if key.startswith(RESERVED)]:
        raise InputError(f"{where}: the override '{reserved[0]}' is set by the pipeline itself; leave it out")
    return flat


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


def _check(pipeline: Pipeline, chosen: Sequence[Phase]) -> None:
    """Refuse a phase whose start is not there, and one that has begun under other settings."""
    names = {phase.name for phase in chosen}
    by_name = {phase.name: phase for phase in pipeline.phases}
    for phase in chosen:
        if phase.start_from and phase.start_from not in names and not pipeline.is_finished(by_name[phase.start_from]):
            raise InputError(
                f"phase '{phase.name}' starts from '{phase.start_from}', which is not finished in {pipeline.folder}; run it too"
            )
        begun = pipeline.is_finished(phase) or pipeline.is_interrupted(phase)
        if begun and pipeline.done.get(phase.name, {}).get("settings") != phase.digest():
            raise InputError(
                f"phase '{phase.name}' was trained in {pipeline.phase_folder(phase)} with other settings; put them back, give "
                "the pipeline another name, or remove that folder"
            )


def _run(pipeline: Pipeline, phase: Phase, lock: int) -> None:
    if pipeline.is_finished(phase):
        sys.stdout.write(f"{pipeline.name}: phase {phase.number}, {phase.name}: already done\n")
        return
    resumed = pipeline.is_interrupted(phase)
    how = "resumes" if resumed else f"starts from {phase.start_from or 'its own model_path'}"
    sys.stdout.write(f"{pipeline.name}: phase {phase.number}, {phase.name}: {how}\n")
    sys.stdout.flush()
    command = pipeline.command(phase)
    pipeline.record(phase, command=command)
    started = time.monotonic()
    status = _call(command, lock)
    if status or not (pipeline.model(phase) / "config.json").is_file():
        raise _failure(pipeline, phase, status)
    folder = pipeline.phase_folder(phase)
    pipeline.record(
        phase,
        command=command,
        finished=True,
        seconds=round(time.monotonic() - started, 1),
        run_id=run_folder_id(folder),
        model=str(pipeline.model(phase)),
        last_checkpoint=str(folder / "checkpoints" / "last.ckpt"),
    )


def _failure(pipeline: Pipeline, phase: Phase, status: int) -> SeekerError:
    again = "mend it and run the same command again"
    what = f"phase {phase.number}, '{phase.name}', of {pipeline.name}"
    if status == InputError.exit_status:
        return InputError(f"{what} refused its input (its message is above); {again}")
    if status:
        return TrainingError(f"{what} ended with status {status} (its message is above); {again} to continue")
    return TrainingError(f"{what} ended without writing {pipeline.model(phase)}; run the same command again to continue")


def _call(command: Sequence[str], lock: int) -> int:
    """Run a command to its end. It inherits the lock, so that it holds the pipeline even if this process is killed."""
    process = subprocess.Popen(command, pass_fds=(lock,))
    try:
        return process.wait()
    except KeyboardInterrupt:  # the terminal interrupts the training too, which then saves what it has
        process.wait()
        raise
    finally:
        if process.poll() is None:
            process.terminate()


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Hold the pipeline's folder for one run at a time; gives the lock's file descriptor."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"the pipeline in {folder} is running already; wait for it, or stop it first") from error
        yield handle.fileno()


def _models(pipeline: Pipeline, phases: Sequence[Phase]) -> str:
    return f"the model of its last phase is {pipeline.model(phases[-1])}"
