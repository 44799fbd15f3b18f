"""A test set must be new to the model: what a training was trained on is kept with its run, and held against what is tested.

A training's run keeps eight bytes of each mark of its data (`overlap.lasting`: questions with their answers, traces, openings).
`seeker test` and `validate` look through the run that made the model and those before it, by their parents; also whether the
file tested is, by its digest, one that a training read or that its data were made from.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from project.errors import InputError, TrackingError
from project.files import file_digest
from project.overlap import lasting
from project.ranks import gathered_or_raised
from project.records import Row
from project.tracking.callback import checkpoint_run_id
from project.tracking.logger import SeekerLogger
from project.tracking.store import client, dataset_manifests, run_folder_id, shown_uri, tracking_uri
from project.writing import atomic_path

if TYPE_CHECKING:
    from mlflow.entities import Run

MARKS = "training_marks.npy"
"""The artifact of a training that holds its marks, sorted uint64."""
TESTED = {"test": "test", "validate": "validation"}


class GuardTest(Callback):
    """Keep what is trained on, and refuse to test on it.

    Args:
        checkpoint: that is loaded, if any.
        allow_overlap: test all the same, and say so.
    """

    def __init__(self, checkpoint: Path | None = None, *, allow_overlap: bool = False) -> None:
        super().__init__()
        self.checkpoint, self.allow_overlap = checkpoint, allow_overlap

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look through what the model was trained on, on the first rank; what is refused is refused on all.

        Raises:
            InputError: a question, trace or opening of the test set was trained on.
            TrackingError: the store of runs cannot be asked.
        """
        data: Any = getattr(trainer, "datamodule", None)
        name = TESTED.get(str(getattr(stage, "value", stage)))
        if name is None or not hasattr(data, "marks"):
            return

        def look() -> str:
            made_by = checkpoint_run_id(self.checkpoint) or run_folder_id(getattr(pl_module, "model_path", None))
            return trained_on(made_by, data.marks(name), data.data_files[name]) if made_by and trainer.is_global_zero else ""

        found = gathered_or_raised(look)[0]
        if found and not self.allow_overlap:
            raise InputError(f"{found}; test on others, or give --allow_overlap true")
        if found and trainer.is_global_zero:
            sys.stderr.write(f"seeker: {found}; tested all the same\n")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what is trained on, and what was before a resume, now that a checkpoint of other data would be refused."""
        data: Any = getattr(trainer, "datamodule", None)
        logger = next((one for one in trainer.loggers if isinstance(one, SeekerLogger)), None)
        if logger is None or not hasattr(data, "marks"):
            return
        folder, goes_on = Path(trainer.default_root_dir), trainer.ckpt_path is not None
        gathered_or_raised(lambda: keep_marks(folder, data.marks("train"), goes_on=goes_on) if trainer.is_global_zero else None)
        if trainer.is_global_zero:
            logger.keep_file(folder / MARKS)


def keep_marks(folder: Path, marks: Iterable[str], *, goes_on: bool = False) -> None:
    """Write what a run trains on into its folder; where it goes on from a checkpoint, to what it has trained on before."""
    path, numbers = folder / MARKS, _numbers(lasting(marks))
    held = [np.load(path)] if goes_on and path.is_file() else []
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.save(file, np.unique(np.concatenate([*held, numbers])))


def trained_on(run_id: str, marks: Iterable[str], file: Path) -> str:
    """Return what of a test set a run, or one that it started from, was trained on, in words; empty for nothing.

    Args:
        run_id: of the run that made the model; one that the store does not have is said, and cannot be looked through.
        marks: of the test set.
        file: the test set's.
    """
    tested, digest = sorted(lasting(marks)), file_digest(file)
    numbers = _numbers(tested)
    for run in _ancestors(run_id):
        name, held = run.info.run_name, _marks_of(run.info.run_id)
        if held is None:
            sys.stderr.write(f"seeker: the run '{name}' kept no marks of what it trained on; only files are compared\n")
        elif len(shared := np.flatnonzero(np.isin(numbers, held))):
            more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
            return f"{tested[shared[0]]} of {file}{more} was trained on by the run '{name}'"
        if digest in _digests(run):
            return f"{file} is a file that the run '{name}' was trained on, or that its training data were made from"
    return ""


def _ancestors(run_id: str) -> Iterator[Run]:
    """Yield a run and those that it started from."""
    from mlflow.exceptions import MlflowException

    seen: set[str] = set()
    while run_id and run_id not in seen:
        seen.add(run_id)
        try:
            run = client().get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise TrackingError(
                    f"what the model was trained on cannot be asked of {shown_uri(tracking_uri())}: {error.error_code}"
                ) from error
            sys.stderr.write(f"seeker: the store has no run {run_id}; what it trained on cannot be compared\n")
            return
        yield run
        run_id = run.data.tags.get("seeker.parent", "")


def _marks_of(run_id: str) -> NDArray[np.uint64] | None:
    store = client()
    if not any(one.path == MARKS for one in store.list_artifacts(run_id)):
        return None
    with tempfile.TemporaryDirectory() as folder:
        held: NDArray[np.uint64] = np.load(store.download_artifacts(run_id, MARKS, folder))
        return held


def _digests(run: Run) -> set[str]:
    """Return the digests of the files that a run trained on, and of those that they were made from."""
    tags = run.data.tags
    found = {value for name, value in tags.items() if name.startswith("dataset.train")}
    for name, manifest in dataset_manifests(run.info.run_id).items():
        if name.startswith("train"):
            found |= set(_inputs(manifest))
    return found


def _inputs(manifest: Row) -> Iterator[str]:
    for one in manifest["inputs"]:
        yield one["digest"]
        yield from _inputs(one["made_by"]) if one.get("made_by") else ()


def _numbers(marks: Iterable[str]) -> NDArray[np.uint64]:
    from xxhash import xxh3_64_intdigest

    return np.asarray([xxh3_64_intdigest(mark.encode(errors="surrogatepass")) for mark in marks], dtype=np.uint64)
