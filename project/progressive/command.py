"""`seeker progressive --config FILE`: train phase after phase, each an ordinary `seeker fit` from the weights before it.

A phase runs as a process of its own, whose words `--dry_run` prints. Before the first one begins, the options and data of all
that are left are checked. Run again, finished phases are left alone, and an interrupted one resumes from its checkpoint.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from project.errors import InputError, SeekerError, TrainingError
from project.modules.hand_over import HAND_OVER, read_hand_over
from project.progressive import forgetting
from project.progressive.file import choose, load, refuse_models, started_from
from project.progressive.pipeline import Adapter, Phase, Pipeline, Weights
from project.runtime import prepare_process

LOCK = ".lock"
ROUNDED = "would be rounded to NF4 anew, which loses most of what its adapter has learnt"


def progressive(
    config: list[Path],
    phases: str | None = None,
    from_: str | None = None,
    dry_run: bool = False,
    measure: bool = False,
    weights: Weights | None = None,
    adapter: Adapter | None = None,
    output_dir: Path | None = None,
    launcher: str | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """Train phase after phase, each from the weights of the one before; run again, it continues where it stopped.

    Any further option is one of seeker fit and holds for all phases (`--trainer.max_epochs 3`), or for one
    (`--phase2.model.learning_rate 1e-5`).

    Args:
        config: the pipeline (`name`, `phases`), and after it config layers that go over those of each phase.
        phases: only these, by name or number from 1, separated by commas; all by default.
        from_: what the first of them starts from: a tracked run, a model folder, or a checkpoint, whose
            adapter goes on.
        dry_run: print the command and config of each phase that is left, and its steps, tokens and memory; run nothing.
        measure: with --dry_run, run three steps of each phase for their time and memory.
        weights: what each phase takes of the one before: best (by validation) or last; as the file says by default.
        adapter: whether a LoRA adapter is merged into the base and begun anew, or continued; as the file says by default.
        output_dir: the folder of the phases' runs; runs/NAME beside the tracking store by default.
        launcher: what starts `-m project fit …` in place of Python, such as "torchrun --nproc_per_node 8".
        overrides: further options, as words.
    """
    pipeline = load(config, overrides, output_dir, launcher, weights=weights, adapter=adapter)
    chosen = choose(pipeline.phases, phases)
    if from_ is not None:
        started_from(pipeline, chosen[0], from_)
        chosen = choose(pipeline.phases, phases)
    refuse_models(overrides, pipeline.phases)
    _check_started(pipeline, chosen)
    left = [phase for phase in chosen if not pipeline.is_finished(phase)]
    if not left:
        sys.stdout.write(f"{pipeline.name}: already done; {_models(pipeline, chosen)}\n")
        return
    _resolve(pipeline, chosen)
    if dry_run:
        for phase in left:
            with _at(phase, pipeline):
                _show(pipeline, phase, measure)
        return
    for phase in left:
        with _at(phase, pipeline):
            _prepare(pipeline, phase)
    from mlflow.exceptions import MlflowException

    with _locked(pipeline.folder) as lock:
        pipeline.read_manifest()  # another run may have ended meanwhile
        _check_started(pipeline, chosen)
        try:
            with forgetting.tracked(pipeline, config[0]):
                for phase in chosen:
                    _run(pipeline, phase, lock)
        except BrokenPipeError:
            raise
        except (OSError, MlflowException) as error:
            raise TrainingError(
                f"{pipeline.name}: {pipeline.folder} or the tracking store cannot be written ({error}); make room and run the "
                "same command again, which goes on"
            ) from error
    sys.stdout.write(f"{pipeline.name}: done; {_models(pipeline, chosen)}\n")


# --- before a phase begins -----------------------------------------------------------------------------------------------


def _check_started(pipeline: Pipeline, chosen: Sequence[Phase]) -> None:
    """Refuse a phase whose start is not there, and one that has begun under other settings or from other weights."""
    names = {phase.name for phase in chosen}
    for phase in chosen:
        start = phase.start_from
        if isinstance(start, str) and start not in names and not pipeline.is_finished(pipeline.phase(start)):
            raise InputError(
                f"phase '{phase.name}' starts from '{start}', which is not finished in {pipeline.folder}; run it too, or give "
                "--from"
            )
        if not (pipeline.is_finished(phase) or pipeline.is_interrupted(phase)):
            continue
        known = pipeline.done.get(phase.name, {})
        gone = isinstance(start, str) and not pipeline.is_finished(pipeline.phase(start))
        if known.get("settings") != pipeline.digest(phase):
            what = "with other settings; put them back, give the pipeline another name or --output_dir,"
        elif changed := pipeline.changed_files(phase):
            what = f"on other data: {changed[0]} has changed; put it back, give --output_dir,"
        elif gone or known.get("source_run") != pipeline.source_run(phase):
            what = f"from a run of '{start}' that is no longer there; put it back"
        else:
            continue
        raise InputError(f"phase '{phase.name}' was trained in {pipeline.phase_folder(phase)} {what} or remove that folder")


def _resolve(pipeline: Pipeline, chosen: Sequence[Phase]) -> None:
    """Have each phase validate on the others' validation files too, which it may forget, and note its base."""
    from project.lightning_cli import resolved

    prepare_process()
    configs: dict[str, Any] = {}
    for phase in pipeline.phases:
        with _at(phase, pipeline):
            configs[phase.name] = resolved(phase.words()).settings
    data = {name: config.data.init_args for name, config in configs.items()}
    files = {name: str(one.validation_file) for name, one in data.items() if one.get("validation_file") is not None}
    pipeline.sets = forgetting.own_sets(files)
    for phase in pipeline.phases:
        own = pipeline.sets.get(phase.name)
        if phase in chosen:
            with _at(phase, pipeline):
                _check_start(phase, configs)
            _check_checkpoints(pipeline, phase, configs[phase.name].trainer)
        pipeline.data_files[phase.name] = _files(data[phase.name])
        pipeline.bases[phase.name] = configs[phase.name].model.init_args.get("model_path")
        if own is None or "also_validate" not in data[phase.name]:
            continue
        given = {name: str(path) for name, path in (data[phase.name].also_validate or {}).items()}
        others = {name: files[name] for name in dict.fromkeys(pipeline.sets.values()) if name != own}
        pipeline.also_validate[phase.name] = others | given


def _files(data: Any) -> list[str]:  # noqa: ANN401 - a namespace
    """Return the files that a phase trains and validates on, those of the hub left out."""
    given = [data.get("train_file"), data.get("validation_file")]
    names = [str(name) for one in given if one is not None for name in (one if isinstance(one, dict) else [one])]
    return [str(Path(name).resolve()) for name in names if Path(name).is_file()]


def _check_start(phase: Phase, configs: Mapping[str, Any]) -> None:
    """Refuse a start that would not be what the pipeline hands on."""
    config = configs[phase.name]
    model = config.model.init_args
    if config.get("ckpt_path") is not None:
        raise InputError(f"ckpt_path={config.ckpt_path} in a config layer is set by the pipeline itself; leave it out")
    lora = model.get("lora")
    if isinstance(phase.start_from, Path) and lora is not None and lora.nf4 and _was_nf4(phase.start_from):
        raise InputError(f"model.lora.nf4: {phase.start_from} {ROUNDED}; give the checkpoint beside it")
    if not isinstance(phase.start_from, str):
        return
    if model.get("start_from") is not None:
        raise InputError(f"model.start_from={model.start_from} in a config layer: the phase starts from '{phase.start_from}'")
    before = configs[phase.start_from].model.init_args.get("lora")
    if phase.adapter == "merged" and lora is not None and lora.nf4 and before is not None and before.nf4:
        raise InputError(f"model.lora.nf4: what '{phase.start_from}' merges {ROUNDED}; give --adapter continued")
    if phase.adapter == "continued" and lora != before:
        raise InputError(
            f"model.lora={lora} goes on with the adapter of '{phase.start_from}', which is {before}; give the same"
        )


def _was_nf4(model: Path) -> bool:
    """Return whether a model folder was merged of a base in NF4."""
    from project.modules.adapter_checkpoint import trained_lora

    if not (model.parent / HAND_OVER).is_file():
        return False
    return any(
        "nf4=True" in trained_lora(Path(one.checkpoint))
        for one in read_hand_over(model.parent / HAND_OVER).values()
        if one.checkpoint
    )


def _check_checkpoints(pipeline: Pipeline, phase: Phase, trainer: Any) -> None:  # noqa: ANN401 - a namespace
    """Refuse a phase whose training would not keep what the next ones take."""
    takes = [one for one in pipeline.phases if one.start_from == phase.name]
    kept = [one.init_args for one in trainer.callbacks or [] if one.class_path.endswith("ModelCheckpoint")]
    kept = kept if trainer.enable_checkpointing is not False else []
    for one in takes:
        if one.weights == "best" and not any(row.get("monitor") for row in kept):
            raise InputError(
                f"phase '{one.name}' starts from the best weights of '{phase.name}', which monitors nothing; give its "
                "ModelCheckpoint `monitor: val/loss`, or give --weights last"
            )
        if one.adapter == "continued" and not kept:
            raise InputError(
                f"phase '{one.name}' goes on with the adapter of '{phase.name}', which keeps no checkpoint; give it a "
                "ModelCheckpoint, or give --adapter merged"
            )


def _prepare(pipeline: Pipeline, phase: Phase) -> None:
    """Check a phase's options and read its data, with the base of its start where that is not trained yet."""
    from project.apps.plan import check

    is_checkpoint = isinstance(phase.start_from, Path) and phase.start_from.suffix == ".ckpt"
    check(pipeline.fit_words(phase, pipeline.start_words(phase) if is_checkpoint else pipeline.base_words(phase)))


def _show(pipeline: Pipeline, phase: Phase, measure: bool) -> None:
    """Print a phase's command, and as comments its config and its plan."""
    from project.apps.plan import plan_of
    from project.lightning_cli import resolved

    words = pipeline.fit_words(phase, pipeline.base_words(phase))
    plan = plan_of([*words, *(["--measure=true"] if measure else [])])
    comments = [f"phase {phase.number}, {phase.name}: starts from {_start(pipeline, phase)}", "plan:"]
    comments += [f"  {what}: {found}" for what, found in plan.lines]
    comments += ["config:", *(f"  {line}" for line in resolved(words).text.splitlines())]
    text = "".join(f"# {line}\n" for line in comments)
    sys.stdout.write(f"{text}{shlex.join(pipeline.command(phase))}\n")
    sys.stdout.flush()


def _start(pipeline: Pipeline, phase: Phase) -> str:
    if isinstance(phase.start_from, str):
        how = "its adapter goes on" if phase.adapter == "continued" else "merged"
        return f"the {phase.weights} weights of {phase.start_from}, {how}"
    return str(phase.start_from or pipeline.bases.get(phase.name) or "the embedded model")


# --- a phase -------------------------------------------------------------------------------------------------------------


def _run(pipeline: Pipeline, phase: Phase, lock: int) -> None:
    where = f"{pipeline.name}: phase {phase.number}, {phase.name}:"
    if pipeline.is_finished(phase):
        sys.stdout.write(f"{where} already done\n")
        return
    how = "resumes" if pipeline.is_interrupted(phase) else f"starts from {_start(pipeline, phase)}"
    sys.stdout.write(f"{where} {how}\n")
    sys.stdout.flush()
    command = pipeline.command(phase)
    pipeline.note_begun(phase, command)
    started = time.monotonic()
    if status := _call(command, lock):
        raise _failure(pipeline, phase, status)
    pipeline.done[phase.name] |= pipeline.finished(phase, time.monotonic() - started)
    forgetting.record(pipeline)
    pipeline.write_manifest()  # last: what was not recorded is not done


def _failure(pipeline: Pipeline, phase: Phase, status: int) -> SeekerError:
    again = "mend it and run the same command again"
    what = f"phase {phase.number}, '{phase.name}', of {pipeline.name}"
    if status == InputError.exit_status:
        return InputError(f"{what} refused its input (its message is above); {again}")
    return TrainingError(f"{what} ended with status {status} (its message is above); {again} to continue")


def _call(command: Sequence[str], lock: int) -> int:
    """Run a command to its end. It inherits the lock, so that it holds the pipeline even if this process is killed."""
    stopped: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, _: object) -> None:
        stopped.append(number)
        if process is not None:
            process.send_signal(_asked(number))  # the training saves what it has and ends

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        # In a session of its own it hears of Ctrl-C once, from here, and not from the terminal too: a second ends it unsaved.
        process = subprocess.Popen(command, pass_fds=(lock,), start_new_session=True)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(process.pid).encode(), 0)
        for number in stopped[:1]:
            process.send_signal(_asked(number))
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped:
        raise KeyboardInterrupt if stopped[0] == signal.SIGINT else SystemExit(128 + stopped[0])
    return status


def _asked(number: int) -> int:
    """Return the signal by which a training is asked to stop: a terminal that closes is no reason to lose anything."""
    return signal.SIGTERM if number == signal.SIGHUP else number


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Hold the pipeline's folder for one run at a time; gives the lock's file descriptor."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            which = f" (process {pid})" if (pid := handle.read().strip()) else ""
            raise InputError(f"the pipeline in {folder} is running already{which}; wait for it, or stop it first") from error
        yield handle.fileno()


@contextmanager
def _at(phase: Phase, pipeline: Pipeline) -> Iterator[None]:
    """Name the phase in an error of its input."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{pipeline.name}, phase {phase.number} ({phase.name}): {error}") from error


def _models(pipeline: Pipeline, phases: Sequence[Phase]) -> str:
    hands_on = pipeline.done[phases[-1].name]["hands_on"]
    return f"the model of its last phase is {hands_on['last']['model']}" + (
        f", the best by validation {hands_on['best']['model']}" if "best" in hands_on else ""
    )
