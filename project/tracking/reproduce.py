"""`seeker reproduce RUN`: the commands that make a run again, and running those whose results are not there.

Data comes first, each command once, then the trainings from the first to the run itself, each with the config that it kept.
A file is there if it holds the recorded bytes, a training if what the next one loads of it exists; what only leads to something
that is there is not needed. Everything is made in `--output_dir`: nothing is written where the first run wrote.
"""

from __future__ import annotations

import copy
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from project.errors import InputError, TrackingError
from project.files import file_digest, read_yaml
from project.records import Row
from project.tracking.commands import INDEX, config_path, data_command
from project.tracking.lineage import DataFile, Known, is_maker
from project.tracking.provenance import git_tags
from project.tracking.select import select_run
from project.tracking.store import SHOWN_UNDER, all_runs, client, reading, runs_folder, with_parents

if TYPE_CHECKING:
    from mlflow.entities import Run

State = Literal["there", "not needed", "would run", "missing"]

NOT_AGAIN = ("parent_run", "pipeline_run", "resume_run_id", "register")
"""The logger's options that would touch other runs, or a registered model."""


def reproduce(run: str, dry_run: bool = False, output_dir: Path | None = None) -> None:
    """Make a run again: the data that is missing, the trainings before it whose model is missing, and the run itself.

    Args:
        run: name or id of the run; 8 characters of an id are enough.
        dry_run: only show the commands, and what is there already.
        output_dir: the new folder for all that is made; runs/NAME-again beside the tracking store by default.

    Raises:
        InputError: output_dir holds something, or something is missing and nothing says how it was made.
        TrackingError: there is no such run; a command failed, whose exit status is kept; or data came out otherwise.
    """
    with reading():
        target = select_run(run)
        folder = (output_dir or runs_folder() / f"{_folder_name(target)}-again").expanduser().resolve()
        plan = Plan(target, folder)
        sys.stderr.writelines(f"seeker: {line}\n" for line in code_differs(target))
    for step in plan.steps:
        sys.stdout.write(f"{step}\n")
    sys.stdout.flush()
    if not dry_run:
        plan.run()


def code_differs(run: Run) -> Iterator[str]:
    """Yield in one sentence how the code was another when a run was made, if it was."""
    tags, now = run.data.tags, git_tags()
    then, changed = tags.get("git.commit"), tags.get("git.dirty") == "true"
    if then is None or (then == now.get("git.commit") and not changed and now.get("git.dirty") == "false"):
        return
    held = {entry.path for entry in client().list_artifacts(run.info.run_id)}
    kept = (
        f", kept as its artifact git.diff: {run.info.artifact_uri}/git.diff" if "git.diff" in held else ", which were not kept"
    )
    own = f"{str(now.get('git.commit', 'no commit'))[:12]}{' with changes' if now.get('git.dirty') == 'true' else ''}"
    yield f"{run.info.run_name} was made by commit {then[:12]}{f' with changes{kept}' if changed else ''}; here is {own}"


@dataclass
class Step:
    """One command."""

    title: str
    state: State
    words: tuple[str, ...] = ()
    """Of `seeker`, without it."""
    notes: tuple[str, ...] = ()
    files: dict[Path, str] = field(default_factory=dict)
    """What it makes, with the recorded digests."""
    folder: Path | None = None
    """Of a training or test: the new run's."""
    config: tuple[str, Path] | None = None
    """Of a training or test: the run whose config it takes, and the file that is to hold it."""

    def __str__(self) -> str:
        """Return state, what it is for, and the command, a line each."""
        lines = [
            f"{self.state + ':':<12} {self.title}",
            *([f"    {shlex.join(('seeker', *self.words))}"] if self.words else []),
        ]
        return "\n".join([*lines, *(f"    {note}" for note in self.notes)])


class Plan:
    """What is there, and what must be made in which order.

    Args:
        target: the run to make again.
        folder: for all that is made.
    """

    def __init__(self, target: Run, folder: Path) -> None:
        self.target, self.folder, self.known = target, folder, Known()
        self.moved: dict[Path, Path] = {}
        """Where what is made anew lies, by where it lay."""
        self.steps: list[Step] = []
        self._made: dict[str, Step] = {}
        runs = list(with_parents(target))
        needed = self._needed_runs(runs)
        for run in runs[::-1]:
            for file in self.known.datasets(run).values():
                self._add_file(file, needed=run in needed, again=is_maker(run))
        for run in runs[::-1]:
            if not is_maker(run):
                self.steps.append(self._run_step(run, needed=run in needed))

    def _needed_runs(self, runs: Sequence[Run]) -> list[Run]:
        """Return the runs to make: the first, and each whose child, which is made, loads of it what is gone."""
        needed = [runs[0]]
        for child, run in pairwise(runs):
            home = _home(run)
            if child not in needed or home is None:
                break
            loaded = [path for path in _paths(run_config(child)) if path.is_relative_to(home)]
            if loaded and all(path.exists() for path in loaded):
                break
            needed.append(run)
        return needed

    def _add_file(self, file: DataFile, *, needed: bool, again: bool = False) -> None:
        """Add the steps that make a file, its inputs' before its own."""
        path = Path(file.path).expanduser().resolve()
        there = path.is_file() and file_digest(path) == file.digest
        make = again or (needed and not there)
        key = json.dumps(file.manifest, sort_keys=True) if file.manifest else file.digest
        held = self._made.get(key)
        if held is not None and (held.state in ("would run", "missing") or not make):
            return
        for source in file.inputs():
            self._add_file(source, needed=make)
        state: State = "would run" if make else "there" if there else "not needed"
        step = self._data_step(file, path, state)
        if held is not None:
            self.steps.remove(held)
        if file.manifest or state != "there":
            self._made[key] = step
            self.steps.append(step)

    def _data_step(self, file: DataFile, path: Path, state: State) -> Step:
        """Return the step of a file; one that is to be made is led to a folder of its own."""
        made = data_command(file.manifest, Path(file.path).parent) if file.manifest else None
        others = len((file.manifest or {}).get("outputs", ())) - 1
        title = f"{file.path} ({file.digest}){f' and {others} with it' if others > 0 else ''}"
        if made is None or file.manifest is None:
            why = (f"{file.path} holds something else now" if path.exists() else f"{file.path} is gone",)
            return Step(title, "missing" if state == "would run" else state, notes=why if state == "would run" else ())
        if state != "would run":
            return Step(title, state, made.words[1:], made.notes)
        outputs: Mapping[str, Row] = file.manifest["outputs"]
        home = self.folder / "data" / f"{len(self.moved) + 1}-{made.words[2]}"
        if file.manifest["program"] == INDEX:
            self.moved[path.parent] = home
            files: dict[Path, str] = {}  # its manifest names the versions and the file that it was built of
        else:
            self.moved |= {path.parent / name: home / name for name in outputs}
            files = {home / name: str(of["digest"]) for name, of in outputs.items()}
        inputs = [str(self.moved.get(Path(one.path).expanduser().resolve(), one.path)) for one in file.inputs()]
        made = data_command(file.manifest, home, inputs) or made
        return Step(title, "would run", made.words[1:], made.notes, files)

    def _run_step(self, run: Run, *, needed: bool) -> Step:
        verb, title = run.data.tags.get("seeker.verb", ""), f"{run.info.run_name} ({run.info.run_id})"
        home = _home(run)
        if not needed:
            return Step(title, "there" if home is not None and home.exists() else "not needed")
        if verb == "progressive":
            phases = ", ".join(str(one.info.run_name) for one in self.known.runs if _is_shown_under(one, run))
            raise InputError(
                f"{run.info.run_name} is a pipeline; reproduce its last phase, of {phases or 'none that is tracked'}"
            )
        folder = self.folder / _folder_name(run)
        if home is not None:
            self.moved[home] = folder
        config = run_config(run)
        changed = self._again(config, folder, run)
        words = [f"--{name}={text}" for name, text in _differences(config, changed)]
        file = self._config_file(run)
        return Step(title, "would run", (verb, "--config", str(file), *words), folder=folder, config=(run.info.run_id, file))

    def _again(self, config: Row, folder: Path, run: Run) -> Row:
        """Return a run's config for the new folder: nothing resumed, all paths led to what is made anew."""
        changed: Row = self._led(copy.deepcopy(config))
        changed["trainer"]["default_root_dir"] = str(folder)
        checkpoint, is_fit = config.get("ckpt_path"), run.data.tags.get("seeker.verb") == "fit"
        if is_fit and checkpoint is not None and (checkpoint == "last" or _is_under(checkpoint, _home(run))):
            changed["ckpt_path"] = None  # what is measured at a checkpoint is not measured without it
        exported = (config.get("model") or {}).get("init_args", {}).get("export_dir")
        if exported is not None and not _is_under(exported, _home(run)):
            self.moved[Path(exported).expanduser().resolve()] = folder / "merged"
            changed["model"]["init_args"]["export_dir"] = str(folder / "merged")
        own = changed["trainer"].get("logger")
        if isinstance(own, dict):
            arguments = own.setdefault("init_args", {})
            arguments["run_name"] = f"{run.info.run_name}-again"
            arguments |= {name: None for name in NOT_AGAIN if arguments.get(name)}
        return changed

    def _led(self, value: Any) -> Any:  # noqa: ANN401 - any YAML
        """Return a value with each path in it led to what is made anew."""
        if isinstance(value, dict):
            return {self._led(key): self._led(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._led(inner) for inner in value]
        if not isinstance(value, str) or not _is_path(value):
            return value
        path = Path(value).expanduser().resolve()
        for old, new in self.moved.items():
            if path.is_relative_to(old):
                return str(new / path.relative_to(old))
        return value

    def _config_file(self, run: Run) -> Path:
        """Return where the config of a run is, or where `run` will put it."""
        kept = config_path(run) or ""
        return Path(kept) if kept.startswith("/") else self.folder / f"{_folder_name(run)}.yaml"

    # --- running it ---------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run what is to be made, in order.

        Raises:
            InputError: see `reproduce`.
            TrackingError: see `reproduce`.
        """
        if self.folder.exists() and any(self.folder.iterdir()):
            raise InputError(f"{self.folder} holds something; give another --output_dir, or remove it")
        if lost := [step for step in self.steps if step.state == "missing"]:
            raise InputError(f"{lost[0].title}: {lost[0].notes[0]}, and nothing says how it was made; put it back")
        for step in self.steps:
            if step.state == "would run":
                _call(step)
        self._compare()

    def _compare(self) -> None:
        """Print how the new files and the new run stand to the old ones."""
        new = self.steps[-1].folder
        if new is not None:
            made = next((run for run in all_runs() if run.data.tags.get("seeker.folder") == str(new)), None)
            if made is not None:
                sys.stdout.write(f"seeker compare {self.target.info.run_id} {made.info.run_id}\n")
        files = {path: digest for step in self.steps for path, digest in step.files.items()}
        found = {path: file_digest(path) for path in files}
        for path, digest in files.items():
            said = "as recorded" if found[path] == digest else f"otherwise: {found[path]}, recorded {digest}"
            sys.stdout.write(f"{path}: {said}\n")
        if other := [path for path, digest in files.items() if found[path] != digest]:
            raise TrackingError(
                f"{len(other)} of {len(files)} files came out otherwise, {other[0]} first; the code or a package differs"
            )


def _call(step: Step) -> None:
    """Run a step as a process of its own; one that fails ends this one with its status."""
    if step.config is not None and not step.config[1].exists():
        run_id, file = step.config
        file.parent.mkdir(parents=True, exist_ok=True)
        Path(client().download_artifacts(run_id, "config.yaml", str(file.parent))).rename(file)
    sys.stdout.write(f"seeker {shlex.join(step.words)}\n")
    sys.stdout.flush()
    status = subprocess.run([sys.executable, "-m", "project", *step.words], check=False).returncode
    if status:
        failed = TrackingError(f"`seeker {' '.join(step.words[:2])} …` for {step.title} ended with status {status}; see above")
        failed.exit_status = status if status > 0 else 128 - status
        raise failed


# --- what a run kept ----------------------------------------------------------------------------------------------------------


def run_config(run: Run) -> Row:
    """Return the resolved config of a run.

    Raises:
        TrackingError: it kept none.
    """
    if config_path(run) is None:
        raise TrackingError(
            f"{run.info.run_name} ({run.info.run_id}) kept no config.yaml, without which it cannot be made again"
        )
    with tempfile.TemporaryDirectory() as folder:
        return dict(read_yaml(Path(client().download_artifacts(run.info.run_id, "config.yaml", folder))))


def _home(run: Run) -> Path | None:
    """Return a run's own folder."""
    folder = run.data.tags.get("seeker.folder")
    return Path(folder).resolve() if folder else None


def _folder_name(run: Run) -> str:
    return str(run.info.run_name).replace("/", "-")


def _is_shown_under(run: Run, pipeline: Run) -> bool:
    return bool(run.data.tags.get(SHOWN_UNDER) == pipeline.info.run_id)


def _is_path(text: str) -> bool:
    """Return whether a text may be a path: it has a folder, and is no address and no sentence."""
    return "/" in text and "://" not in text and "\n" not in text and len(text) < 4096


def _is_under(text: Any, home: Path | None) -> bool:  # noqa: ANN401 - any YAML
    return home is not None and isinstance(text, str) and Path(text).expanduser().resolve().is_relative_to(home)


def _paths(value: Any) -> Iterator[Path]:  # noqa: ANN401 - any YAML
    """Yield what may be paths in a config."""
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    for one in inner:
        yield from _paths(one)
    if isinstance(value, str) and _is_path(value):
        yield Path(value).expanduser().resolve()


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401 - any YAML
    """Yield what to set in a config to make another of it, as (option, value)."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() <= new.keys() and name.count(".") < 4:
        for key, value in new.items():
            yield from _differences(old.get(key), value, f"{name}.{key}".removeprefix("."))
    elif old != new:
        yield name, new if isinstance(new, str) else json.dumps(new)
