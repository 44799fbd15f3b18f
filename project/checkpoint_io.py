"""Checkpoint files that are whole or absent."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from project.errors import InputError, TrainingError


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's own, but for files: written beside the target and renamed, and a damaged one is refused in one sentence.

    Lightning writes into the temporary folder and moves; to another file system a move is a copy that can be cut in two.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:  # noqa: ANN401
        """Write the whole checkpoint or nothing.

        Raises:
            TrainingError: it cannot be written, as where the disk is full; the one before it stays.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        partial = f"{path}.part"
        try:
            super().save_checkpoint(checkpoint, partial, storage_options)
            os.replace(partial, path)
        except OSError as error:
            Path(partial).unlink(missing_ok=True)
            cause = str(error).partition("\n")[0] or type(error).__name__
            raise TrainingError(
                f"the checkpoint {path} cannot be written ({cause}); free space, and go on with --ckpt_path last"
            ) from error

    def load_checkpoint(self, path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401 - Lightning's own
        """Read a checkpoint.

        Raises:
            InputError: the file is empty, cut off, or no checkpoint.
        """
        try:
            return super().load_checkpoint(path, *args, **kwargs)
        except (EOFError, OSError, RuntimeError, UnpicklingError) as error:  # a cut-off zip is an OSError or a RuntimeError
            cause = str(error).partition("\n")[0] or type(error).__name__
            raise InputError(
                f"the checkpoint {path} cannot be read ({cause}); give another, or leave --ckpt_path out to start afresh"
            ) from error


def is_whole(path: Path) -> bool:
    """Return whether a checkpoint file has its end, where PyTorch writes what is in it; a folder is a strategy's own matter."""
    return path.is_dir() or is_zipfile(path)


def furthest(paths: Iterable[Path]) -> Path | None:
    """Return the training's whole checkpoint with the most optimizer steps, None where there is none."""
    import torch

    def steps(path: Path) -> int:
        try:
            return int(torch.load(path, map_location="cpu", mmap=True, weights_only=True)["global_step"])
        except (EOFError, OSError, RuntimeError, UnpicklingError, KeyError, TypeError):  # cut off, or of something else
            return -1

    found = {path: steps(path) for path in paths if path.is_file()}
    best = max(found, key=lambda path: found[path], default=None)
    return best if best is not None and found[best] >= 0 else None
