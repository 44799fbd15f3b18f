"""Which weights `seeker export` means: those of a tracked run, a training's folder, a checkpoint, or a merged model folder.

A training that ended has merged folders, and its `hand_over.json` says which; one that was stopped has its `last.ckpt` only.
What is merged is taken as it is; of a checkpoint the policy is built again, from the base that the run's config names.

Several trainings may have had one folder. A merged folder and a checkpoint hold the id of the run that made them: those of
another run than the one meant are not taken.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from project.errors import InputError, TrackingError
from project.modules.hand_over import HAND_OVER, HandedOn, read_hand_over
from project.records import Row
from project.tracking.reproduce import run_config
from project.tracking.select import select_run
from project.tracking.store import SHOWN_UNDER, all_runs, reading, run_folder_id, run_of_id, shown_uri, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Run

    from project.modules.sft import SFT

Which = Literal["best", "last"]
MERGED, LAST = "merged", "checkpoints/last.ckpt"


@dataclass(frozen=True)
class Source:
    """Weights that can be exported, and what is known of them."""

    name: str
    model: Path | None
    """The merged folder; None where there is none, and the checkpoint holds all there is."""
    checkpoint: Path | None
    run: Run | None
    """The training; None where it was not tracked, or the store does not have it."""
    which: str = "last"
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """What the last validation before measured."""
    ended: bool = True
    """Whether the training went to its end."""

    @cached_property
    def arguments(self) -> Row:
        """The arguments of the run's model, as its config has them.

        Raises:
            InputError: no run is known.
            TrackingError: it kept no config.
        """
        if self.run is None:
            raise InputError(
                f"{self.name} has no tracked run whose config names the base of its adapter; export with --merge true, or set "
                "MLFLOW_TRACKING_URI to the store that has it"
            )
        with reading():
            found: Row = run_config(self.run)["model"]["init_args"]
        return found


def find_source(word: str, weights: Which | None) -> Source:
    """Return what a word of the command line means.

    Args:
        word: a run's name or id, a training's folder, a checkpoint, or a merged folder.
        weights: which of a training's; by default the best where there are such.

    Raises:
        InputError: there are no such weights.
        TrackingError: there is no such run, or the store does not answer.
    """
    path = Path(word).expanduser()
    if not path.exists():
        with reading():
            named = select_run(word)
            folder = _folder_of(named)
        return _of_training(folder, named, weights)
    run = _run_of(path)
    is_model = (path / "config.json").is_file()
    if weights and (is_model or path.is_file()):
        raise InputError(f"{path} holds one set of weights, and --weights {weights} chooses of a training's; leave it out")
    if path.is_file():
        return _of_checkpoint(path.resolve(), run)
    return _of_model(path.resolve(), run) if is_model else _of_training(path.resolve(), run, weights)


def _run_of(path: Path) -> Run | None:
    """Return the run that wrote a folder or checkpoint, if it says so and the store has it."""
    run_id = _maker(path) or run_folder_id(path)
    if run_id is None:
        return None
    with reading():
        run = run_of_id(run_id)
    if run is None:
        where = shown_uri(tracking_uri())
        sys.stderr.write(f"seeker: {where} does not have the run {run_id} of {path}: the card tells nothing of its training\n")
    return run


def _maker(path: Path | None) -> str | None:
    """Return the id of the run that made a merged folder or a checkpoint, as that itself says."""
    if path is None or path.is_dir():
        return run_folder_id(path, levels=0)
    from project.modules.adapter_checkpoint import held_in
    from project.tracking.callback import RUN_ID

    return held_in(path).get(RUN_ID)


def _is_of(run_id: str | None, path: Path | None) -> bool:
    """Return whether nothing says that a merged folder or a checkpoint is of another run."""
    return run_id is None or _maker(path) in (None, run_id)


def _folder_of(run: Run) -> Path:
    """Return a training's folder.

    Raises:
        InputError: the run is no training, or its folder is gone.
    """
    name, tags = str(run.info.run_name), run.data.tags
    verb = tags.get("seeker.verb", "")
    if verb == "progressive":
        phases = [str(one.info.run_name) for one in all_runs() if one.data.tags.get(SHOWN_UNDER) == run.info.run_id]
        raise InputError(f"{name} is a pipeline; export one of its phases, {', '.join(phases) or 'of which none is tracked'}")
    if verb != "fit":
        parent = run_of_id(tags["seeker.parent"]) if "seeker.parent" in tags else None
        other = f"such as {parent.info.run_name}, whose model it took" if parent else "which `seeker runs` lists"
        raise InputError(f"{name} is a run of {verb or 'nothing'} and trained no model; export a training, {other}")
    folder = Path(tags.get("seeker.folder", ""))
    if not folder.is_dir() or not folder.is_absolute():
        raise InputError(
            f"the folder of {name}, {folder}, is gone; give its merged folder if it lies elsewhere, or make it again with "
            f"`seeker reproduce {run.info.run_id}`"
        )
    return folder


def _of_training(folder: Path, run: Run | None, weights: Which | None) -> Source:
    name = str(run.info.run_name) if run is not None else folder.name
    run_id = run.info.run_id if run is not None else run_folder_id(folder, levels=0)
    if (folder / HAND_OVER).is_file() and _handed_on_by(run_id, folder):
        return _handed_on(folder, run, name, weights)
    found = _exported(folder, run), folder / LAST if (folder / LAST).is_file() else None
    merged, last = (path if _is_of(run_id, path) else None for path in found)
    if merged is None and last is None:
        raise _nothing(folder, name, run_id, next(filter(None, map(_maker, found)), None))
    if weights == "best":
        raise InputError(
            f"{name} hands on its last weights only; leave out --weights, or give the file of its best checkpoint as RUN"
        )
    if merged is None:
        sys.stderr.write(
            f"seeker: the training in {folder} did not end; its last checkpoint is taken. To finish it first, run the command "
            "that began it with --ckpt_path last\n"
        )
    return Source(name, merged, last, run, step=step_of(last), ended=merged is not None)


def _nothing(folder: Path, name: str, run_id: str | None, other: str | None) -> InputError:
    """Return why a folder has no weights of a training: another's are there, or none."""
    if other is not None:
        return InputError(
            f"{folder} holds the weights of the run {other}, which was trained there too, and not those of {name} ({run_id}); "
            f"export that run, or make {name} again with `seeker reproduce {run_id}`"
        )
    return InputError(
        f"{folder} holds neither {HAND_OVER}, nor a model in {MERGED}, nor {LAST}; give the folder of a training, or "
        "finish it with the command that began it and --ckpt_path last"
    )


def _exported(folder: Path, run: Run | None) -> Path | None:
    """Return where a training without `hand_over.json`, as PPO once was, put its model, if it ended."""
    if (folder / MERGED / "config.json").is_file():
        return folder / MERGED
    if run is None:
        return None
    with reading():
        try:
            named = run_config(run)["model"]["init_args"].get("export_dir")
        except TrackingError:  # it kept none
            return None
    return Path(named).resolve() if named and (Path(named) / "config.json").is_file() else None


def _handed_on_by(run_id: str | None, folder: Path) -> bool:
    """Return whether `hand_over.json` names weights of this run; one of a training before it may still be there."""
    places = [_located(folder, row) for row in read_hand_over(folder / HAND_OVER).values()]
    return all(_is_of(run_id, model or checkpoint) for model, checkpoint in places)


def _located(folder: Path, row: HandedOn) -> tuple[Path | None, Path | None]:
    """Return where the model and the checkpoint are, also of a folder that was moved."""
    held = Path(row.checkpoint or "")
    model = next((one for one in (Path(row.model), folder / Path(row.model).name) if (one / "config.json").is_file()), None)
    return model, next((one for one in (held, folder / "checkpoints" / held.name) if one.is_file()), None)


def _handed_on(folder: Path, run: Run | None, name: str, weights: Which | None) -> Source:
    rows = read_hand_over(folder / HAND_OVER)
    which = weights or ("best" if "best" in rows else "last")
    if which not in rows:
        raise InputError(
            f"{name} handed on no best weights, as no ModelCheckpoint of it monitors a metric; give --weights last"
        )
    row = rows[which]
    model, checkpoint = _located(folder, row)
    of_run = _is_of(_maker(model) or (run.info.run_id if run is not None else None), checkpoint)
    if not of_run or step_of(checkpoint) not in (None, row.step):  # a training that went on, or began there, wrote over it
        checkpoint = None
    if model is None and checkpoint is None:
        raise InputError(
            f"{folder / HAND_OVER} names {row.model} and {row.checkpoint or 'no checkpoint'}, of which neither is there as it "
            "was; put one back, or train that run anew"
        )
    reached = step_of(folder / LAST) if run is not None and _maker(folder / LAST) == run.info.run_id else None
    if reached is not None and reached > rows["last"].step:
        sys.stderr.write(
            f"seeker: {name} went on after it had handed on these weights of step {row.step}, up to step {reached}; for its "
            f"newest give {folder / LAST}, or finish the training with --ckpt_path last\n"
        )
    return Source(name, model, checkpoint, run, which, row.step, dict(row.metrics))


def _of_checkpoint(file: Path, run: Run | None) -> Source:
    if file.suffix != ".ckpt":
        raise InputError(f"{file} is no checkpoint; give a run, a training's folder, a .ckpt file or a merged model folder")
    name = f"{run.info.run_name if run is not None else file.parent.name}-{file.stem.replace('=', '')}"
    return Source(name, None, file, run, file.name, step_of(file))


def _of_model(folder: Path, run: Run | None) -> Source:
    """Return a merged folder, with the checkpoint of the same weights where a hand-over beside it names one."""
    from project.modules.policy import AgentSettings

    if AgentSettings.load(folder) is None:
        raise InputError(f"{folder} was not written by Seeker, as it has no seeker.json; give a run or a training's folder")
    beside = folder.parent / HAND_OVER
    for which, row in read_hand_over(beside).items() if beside.is_file() else ():
        if Path(row.model).resolve() == folder:
            name = str(run.info.run_name) if run is not None else folder.parent.name
            return _handed_on(folder.parent, run, name, "best" if which == "best" else "last")
    last = folder.parent / LAST
    name = str(run.info.run_name) if run is not None else folder.name
    checkpoint = last if last.is_file() and folder.name == MERGED and _is_of(_maker(folder), last) else None
    return Source(name, folder, checkpoint, run, step=step_of(checkpoint))


def step_of(checkpoint: Path | None) -> int | None:
    """Return the step after which a checkpoint was saved; None where it cannot be read."""
    from project.modules.adapter_checkpoint import held_in

    held = held_in(checkpoint) if checkpoint is not None else {}
    return held.get("global_step")


def load_trained(source: Source) -> SFT:
    """Return a module whose policy has the weights of a checkpoint, of SFT or PPO, on the base that they were trained on.

    Raises:
        InputError: the base cannot be named, is gone or another, or the checkpoint cannot be read.
        TrackingError: the run kept no config.
    """
    from project.modules.adapter_checkpoint import load_weights
    from project.modules.policy import AgentSettings, LoRA
    from project.modules.sft import SFT
    from project.runtime import quiet_transformers

    if source.checkpoint is None:
        raise InputError(f"{source.name} has merged weights only and no checkpoint of them; export it with --merge true")
    given = source.arguments
    base = base_path(given.get("model_path"), source)
    quiet_transformers()
    settings: Any = given.get("settings")
    agent = AgentSettings(**settings) if settings else AgentSettings.load(Path(base)) or AgentSettings()
    lora = LoRA(**given["lora"]) if given.get("lora") else None
    module = SFT(base, agent, lora, given.get("precision", "bfloat16"))
    module.configure_model()
    load_weights(module, source.checkpoint)
    return module


def base_path(named: str | None, source: Source) -> str:
    """Return the folder or hub id of the base, after a look whether the checkpoint was trained on that.

    Raises:
        InputError: it is gone, or holds other weights.
    """
    from project.modules.adapter_checkpoint import BASE_DIGEST, base_digest, held_in
    from project.modules.policy import resolve_model_path

    assert source.checkpoint is not None
    base = resolve_model_path(named)
    pinned, found = held_in(source.checkpoint).get(BASE_DIGEST), base_digest(base)
    if pinned is not None and pinned != found:
        gone = "" if Path(base).exists() else f", of which there is no folder in {Path.cwd()}"
        raise InputError(
            f"{source.checkpoint} was trained on a base with digest {pinned}, and {base} has {found}{gone}; put the base back, "
            "or export what was merged with --merge true"
        )
    return base
