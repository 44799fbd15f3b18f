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

from project.errors import InputError
from project.files import file_digest
from project.overlap import lasting
from project.records import Row
from project.tracking.logger import SeekerLogger
from project.tracking.store import client, dataset_manifests, run_folder_id

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
        """Do so on the first rank, once the data are read; what is refused is refused on all.

        Raises:
            InputError: a question, trace or opening of the test set was trained on.
        """
        data: Any = getattr(trainer, "datamodule", None)
        stage = str(getattr(stage, "value", stage))
        if stage == "fit" and trainer.is_global_zero and hasattr(data, "marks"):
            logger = next((one for one in trainer.loggers if isinstance(one, SeekerLogger)), None)
            if logger is not None:
                keep_marks(str(logger.run_id), data.marks("train"))
        found = ""
        if stage in TESTED and trainer.is_global_zero and hasattr(data, "marks"):
            made_by = run_folder_id(self.checkpoint) or run_folder_id(getattr(pl_module, "model_path", None))
            found = trained_on(made_by, data.marks(TESTED[stage]), data.data_files[TESTED[stage]]) if made_by else ""
        if found := trainer.strategy.broadcast(found):
            if not self.allow_overlap:
                raise InputError(f"{found}; test on others, or give --allow_overlap true")
            if trainer.is_global_zero:
                sys.stderr.write(f"seeker: {found}; tested all the same\n")


def keep_marks(run_id: str, marks: Iterable[str]) -> None:
    """Write what a run trains on into its artifacts."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / MARKS, np.unique(_numbers(lasting(marks))))
        client().log_artifact(run_id, str(Path(folder) / MARKS))


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
        except MlflowException:
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
