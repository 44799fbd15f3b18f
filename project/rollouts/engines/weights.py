"""Full weights as a model folder in shared memory, which vLLM reloads in place: in this process, or in a server beside it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from project.errors import EngineError

PREFIX = "seeker-weights-"


class WeightFolders:
    """Writes weights for an engine to read, and counts what changed since the last that it took."""

    def __init__(self, model: str, dtype: torch.dtype, parent: Path | None = None, *, head_stays: bool = False) -> None:
        """Take whose weights they are, and where they go.

        Args:
            model: folder of the causal LM, or its hub id; its json files go with the weights.
            dtype: the engine's: a delta that its rounding takes away has not arrived, and is not counted.
            parent: folder that the engine can read; this machine's shared memory by default.
            head_stays: True for an engine that goes on with the head it started with, where that is the embedding.
        """
        self._model, self._dtype, self._parent = model, dtype, None if parent is None else parent.absolute()
        self._last: dict[str, Tensor] | None = None
        self._head_stays = head_stays
        if parent is None:
            remove_left_behind()

    @contextmanager
    def written(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[Path, float]]:
        """Give a folder with the weights, which is there until the block ends, and the share of values that changed.

        Once a block has failed, what changes is counted from the model's own weights again.

        Raises:
            EngineError: the folder cannot be written, or the engine could not take a tied head that changed.
        """
        last, self._last = self._last if self._last is not None else self._own_weights(), None
        state, moved = dict[str, Tensor](), list[str]()
        changed = total = 0
        for name, tensor in weights:
            state[name] = new = tensor.detach().to("cpu", self._dtype, copy=True)
            if (old := last.pop(name, None)) is not None:  # gone at once, so that both are never held whole
                differ = int((new != old).sum())
                changed, total = changed + differ, total + new.numel()
                moved += [name] if differ else []
        if self._head_stays:
            self._check_head({name: state[name] for name in moved})
        with self._new_folder() as folder:
            with _said(folder):
                _write(state, local_folder(self._model), folder)
            yield folder, changed / max(1, total)
        self._last = state

    @contextmanager
    def original(self) -> Iterator[Path]:
        """Give a folder with the model's own weights: the model's folder, or until the block ends a copy in `parent`.

        Raises:
            EngineError: the copy cannot be written.
        """
        if self._parent is None:
            yield local_folder(self._model).absolute()
            return
        with self._new_folder() as folder:
            with _said(folder):
                for path in local_folder(self._model).iterdir():
                    if path.suffix in (".safetensors", ".json"):
                        shutil.copyfile(path, folder / path.name)
            yield folder

    def adapter(self, folder: Path) -> Path:
        """Return where the engine finds an adapter's folder: the folder itself, or a copy in `parent`.

        Raises:
            EngineError: the copy cannot be written.
        """
        if self._parent is None:
            return folder.absolute()
        with _said(self._parent):
            copied = self._made()
            shutil.copytree(folder, copied, dirs_exist_ok=True, copy_function=shutil.copyfile)
        return copied

    def remove_adapter(self, folder: Path | None) -> None:
        """Remove what `adapter` made, if it made anything."""
        if folder is not None and folder.parent == self._parent and folder.name.startswith(PREFIX):
            shutil.rmtree(folder)

    def _made(self) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self._parent or shared_folder(), prefix=f"{PREFIX}{os.getpid()}-"))
        folder.chmod(0o755)  # a server may run as another user
        return folder

    @contextmanager
    def _new_folder(self) -> Iterator[Path]:
        with _said(self._parent or shared_folder()):
            folder = self._made()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    def _check_head(self, changed: dict[str, Tensor]) -> None:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(local_folder(self._model)).get_text_config()
        for name, tensor in changed.items():
            if config.tie_word_embeddings and tensor.shape[0:1] == (config.vocab_size,):
                raise EngineError(
                    f"{name} has changed, which is the model's head too, and vLLM on a CPU goes on with the head that it "
                    "started with; train an adapter that leaves it alone, in a model.precision that does not round it, or take "
                    "GPUs"
                )

    def _own_weights(self) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        state: dict[str, Tensor] = {}
        for path in sorted(local_folder(self._model).glob("*.safetensors")):
            state.update({name: tensor.to(self._dtype) for name, tensor in load_file(path).items()})
        return state


def local_folder(model: str) -> Path:
    """Return a model's folder; that of a hub id is where `transformers` has downloaded it.

    Raises:
        EngineError: it was not downloaded.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise EngineError(f"the model {model} is not on this machine; download it first, or give its folder") from error


def shared_folder() -> Path:
    """Return the folder of shared memory, or where there is none that of temporary files."""
    return Path("/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir())


def remove_left_behind() -> None:
    """Remove the weights that killed processes left in shared memory."""
    for path in shared_folder().glob(f"{PREFIX}*-*"):
        owner = path.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not _is_alive(int(owner)):
            shutil.rmtree(path, ignore_errors=True)


def _write(state: dict[str, Tensor], model: Path, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    for path in model.glob("*.json"):
        if not path.name.endswith(".index.json"):
            shutil.copy(path, folder)
    (folder / "model.safetensors").chmod(0o644)


@contextmanager
def _said(folder: Path) -> Iterator[None]:
    """Say of a folder that cannot be written which it is."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise EngineError(f"the weights cannot be written to {folder} ({error}); make room there, or choose another") from error


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
