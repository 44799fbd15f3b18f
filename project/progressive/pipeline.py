"""A pipeline: its phases, the `seeker fit` of each, and the manifest of what each handed on.

The pipeline's folder holds a folder a phase and `pipeline.json`: which phases are done, under which settings, and what each
hands on, as `hand_over.json` of its training says. Nothing is decided by a file's time.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from project.errors import InputError
from project.files import file_digest
from project.modules.hand_over import HAND_OVER, HandedOn, read_hand_over
from project.records import Row
from project.tracking.store import run_folder_id
from project.writing import write_text

MANIFEST = "pipeline.json"
MEASURE_BEFORE = "project.modules.measure_before.MeasureBefore"
Options = tuple[tuple[str, str], ...]
"""Options and their values in the order of a command line, in which `callbacks+` may come again."""
Weights = Literal["best", "last"]
Adapter = Literal["merged", "continued"]


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
