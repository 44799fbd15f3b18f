"""Checkpoint files that are whole or absent."""

from __future__ import annotations

import os
from pickle import UnpicklingError
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from project.errors import InputError


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's own, but for files: written beside the target and renamed, and a damaged one is refused in one sentence.

    Lightning writes into the temporary folder and moves; to another file system a move is a copy that can be cut in two.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:  # noqa: ANN401
        """Write the whole checkpoint or nothing."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        partial = f"{path}.part"
        super().save_checkpoint(checkpoint, partial, storage_options)
        os.replace(partial, path)

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
