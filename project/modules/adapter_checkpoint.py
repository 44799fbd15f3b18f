"""Checkpoints of a model with a frozen base: they leave the base out and pin it, a folder by digest and a hub id by name.

They also pin what a resumed optimizer would silently keep, its learning rate and weight decay, and hold the state of every
rank's random numbers. Training goes on at any number of ranks with the same `accumulate_grad_batches` x ranks, which is what
a step is. All they hold are plain types and tensors: `torch.load(…, weights_only=True)` reads them.
"""

from __future__ import annotations

import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from project.errors import InputError
from project.files import file_digest
from project.modules.sharding import like
from project.ranks import gathered

BASE_DIGEST = "seeker_base"
OPTIMIZER_SETTINGS = "seeker_optimizer"
RANDOM_STATES = "seeker_random"
ACCUMULATE = "seeker_accumulate"
PINNED = {
    "learning_rate": "learning_rate",
    "critic_learning_rate": "critic_learning_rate",
    "weight_decay": "weight_decay",
    "optimizer": "optimizer_name",
    "precision": "precision_name",
    "lora": "lora",
    "ppo.estimator": "estimator_name",
    "ppo.overlap": "overlap",
}
"""What training must go on with: its name in a config, and in the module."""


class AdapterCheckpoint:
    """Mixed into a LightningModule with a `model_path`; put it before the module's own base class."""

    model_path: str
    _base: str = ""
    _random: dict[str, Any] | None = None
    """Read from a checkpoint, and not yet set."""
    _random_of_step: dict[str, Any] | None = None
    """As the optimizer step began."""
    _step_anew: bool = False
    """True where the checkpoint was saved inside an optimizer step."""

    def pin_base(self) -> None:
        """Note which base is loaded; call it where the weights are read, as the folder may be written anew later."""
        self._base = base_digest(self.model_path)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen base out, and note which it was."""
        frozen = frozen_state(self)  # type: ignore[arg-type]
        state = checkpoint["state_dict"].items()
        checkpoint["state_dict"] = {name: value for name, value in state if not _belongs(name, frozen)}
        checkpoint[OPTIMIZER_SETTINGS] = self._optimizer_settings()
        trainer = self._own_trainer()
        parts = trainer.accumulate_grad_batches if trainer is not None else 1
        inside = parts > 1 and trainer.fit_loop.epoch_loop.batch_progress.current.ready % parts
        checkpoint[RANDOM_STATES] = gathered(self._random or (inside and self._random_of_step) or random_state())
        checkpoint[ACCUMULATE] = parts
        if frozen:
            checkpoint[BASE_DIGEST] = self._base

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the base back as `model_path` holds it; a name missing from what was trained is still an error.

        Raises:
            InputError: `model_path` holds another base than the one that the checkpoint was trained on, training would go on
                with another learning rate or weight decay than this module's, or it was saved inside a micro-batch.
        """
        held, trainer = checkpoint.get(OPTIMIZER_SETTINGS, {}), self._own_trainer()
        fitting = trainer is not None and trainer.state.fn == "fit"
        for name, value in self._optimizer_settings().items() if fitting else ():
            if held.get(name, value) != value:
                raise InputError(
                    f"model.{name}={value}, and the training in the checkpoint goes on with {held[name]}; give that, or start "
                    "a new training without --ckpt_path"
                )
        trained_on = checkpoint.get(BASE_DIGEST)
        if trained_on is not None and trained_on != self._base:
            raise InputError(
                f"the checkpoint was trained on a base with digest {trained_on}, and model.model_path={self.model_path} has "
                f"{self._base}; give the base it was trained on, or train anew without --ckpt_path"
            )
        checkpoint["state_dict"] = {**frozen_state(self), **checkpoint["state_dict"]}  # type: ignore[arg-type]
        if fitting and "loops" in checkpoint:
            loop, now = checkpoint["loops"]["fit_loop"], trainer.accumulate_grad_batches
            counts = loop["epoch_loop.batch_progress"]["total"]
            if counts["processed"] < counts["ready"]:
                raise InputError(
                    "the checkpoint was saved inside a micro-batch, by save_on_exception or a scheduler's signal, and does not "
                    "say what that had done; give one that was saved after a micro-batch"
                )
            self._step_anew = recount(loop, checkpoint.get(ACCUMULATE, now), now)
        states = checkpoint.get(RANDOM_STATES, [])
        rank = trainer.global_rank if trainer is not None else 0
        self._random = states[rank] if fitting and rank < len(states) else None

    def on_train_start(self) -> None:
        """Have Lightning do what was due right after a micro-batch whose end saved the checkpoint."""
        trainer = self._own_trainer()
        loop = trainer.fit_loop
        if loop.restarted_mid_epoch and loop.epoch_loop.restarted_on_train_batch_end and not self._step_anew:
            finish_batch(loop)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ANN401 - Lightning's hook
        """Set the checkpoint's random numbers: what runs before, the loader's start above all, may draw some."""
        del batch
        if self._random is not None:
            set_random_state(self._random)
            self._random = None
        parts = self._own_trainer().accumulate_grad_batches
        if parts > 1 and batch_idx % parts == 0:
            self._random_of_step = random_state()

    def _own_trainer(self) -> Any:  # noqa: ANN401 - LightningModule's `trainer` raises where there is none
        return getattr(self, "_trainer", None)

    def _optimizer_settings(self) -> dict[str, float | str]:
        found = {name: getattr(self, attribute) for name, attribute in PINNED.items() if hasattr(self, attribute)}
        return {name: value if isinstance(value, (int, float, str)) else repr(value) for name, value in found.items()}


def finish_batch(fit_loop: Any) -> None:  # noqa: ANN401 - Lightning's own loop
    """Go on right after the hooks of a micro-batch's end: a validation or the epoch's end that is due comes, as it would have.

    Lightning takes the validation as done, and the epoch too where that was its last micro-batch.
    """
    loop = fit_loop.epoch_loop
    last, due = loop.batch_progress.is_last_batch, loop._should_check_val_fx(fit_loop._data_fetcher)
    if not last and not due:
        return
    if last:
        for counts in (fit_loop.epoch_progress.total, fit_loop.epoch_progress.current):
            counts.processed -= 1
            counts.completed -= 1
    loop.batch_progress.increment_completed()
    if due:
        loop._restart_stage = "restarted_on_last"  # as from a validation's end: the micro-batch is counted
        loop.val_loop.restarting = False  # its counts are those of the validation before
        loop.val_loop._restart_stage = "restarted_mid_evaluation"
    else:
        loop._batches_that_stepped += 1
        loop.on_iteration_done()
        fit_loop.on_iteration_done()
        fit_loop.on_advance_end()


def recount(fit_loop: dict[str, Any], before: int, now: int) -> bool:
    """Have Lightning's loop count the micro-batches of whole steps, as if a step had `now` of them, not `before`.

    What was gathered inside a step is lost with its process: the step is done anew. Lightning saves inside a micro-batch's
    hooks: each count keeps its distance from `ready`, the micro-batches begun.
    """
    progress = fit_loop["epoch_loop.batch_progress"]
    inside = progress["current"]["ready"] % before
    for counts in (progress["total"], progress["current"]):
        moved = counts["ready"] // before * now - counts["ready"]
        counts.update({name: count + moved for name, count in counts.items()})
        if inside:  # as the step before was saved: in its last micro-batch's hooks, and not yet counted
            counts["completed"] = counts["processed"] - 1
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= bool(inside)
    return bool(inside)


def load_weights(module: Any, file: Path) -> None:  # noqa: ANN401 - an AdapterCheckpoint and LightningModule with a policy
    """Give a module's policy the trained weights of another training's checkpoint, and nothing else of it.

    Raises:
        InputError: it cannot be read, was trained on another base or with another adapter, or holds other weights.
    """
    held = check_weights(module, file)
    state = {name: value for name, value in held["state_dict"].items() if name.startswith("policy.")}
    now = module.state_dict()
    wanted = {name for name, parameter in module.named_parameters() if parameter.requires_grad and name.startswith("policy.")}
    if odd := sorted((wanted - state.keys()) | {n for n, t in state.items() if n not in now or now[n].shape != t.shape}):
        raise InputError(
            f"{file} has no '{odd[0]}' of the shape that model.model_path={module.model_path} has; give its own base"
        )
    module.load_state_dict({name: like(value, now[name]) for name, value in state.items()}, strict=False)


def check_weights(module: Any, file: Path) -> dict[str, Any]:  # noqa: ANN401 - an AdapterCheckpoint
    """Return what another training's checkpoint holds, whose weights a module could go on with.

    Raises:
        InputError: it cannot be read, or was trained on another base or with another adapter.
    """
    try:
        held: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        held["state_dict"].items()
    except (OSError, RuntimeError, EOFError, KeyError, AttributeError, pickle.UnpicklingError) as error:
        raise InputError(f"the checkpoint {file} cannot be read ({type(error).__name__}); give one of seeker fit") from error
    settings, own = held.get(OPTIMIZER_SETTINGS, {}), module._optimizer_settings()
    if settings.get("lora", own.get("lora")) != own.get("lora"):
        raise InputError(f"{file} was trained with lora={settings['lora']}, and model.lora is {own.get('lora')}; give that")
    base = module._base or base_digest(module.model_path)
    if held.get(BASE_DIGEST, base) != base:
        raise InputError(
            f"{file} was trained on a base with digest {held[BASE_DIGEST]}, and model.model_path={module.model_path} has "
            f"{base}; give the base it was trained on"
        )
    return held


def held_in(file: Path) -> dict[str, Any]:
    """Return what a checkpoint holds; nothing where it cannot be read."""
    try:
        held: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return {}
    return held


def trained_lora(file: Path) -> str:
    """Return how the adapter of a checkpoint is written in it; empty where it cannot be read or has none."""
    return str(held_in(file).get(OPTIMIZER_SETTINGS, {}).get("lora", ""))


def frozen_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the entries of a module's state that training leaves alone: checkpoints need not hold what `model_path` holds."""
    state = module.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, nn.Parameter) and not value.requires_grad}


def _belongs(name: str, frozen: dict[str, Tensor]) -> bool:
    """Return whether an entry is a frozen weight, or says what a quantised one stands for (`….weight.absmax`)."""
    owner, _, _ = name.partition(".weight.")
    return name in frozen or f"{owner}.weight" in frozen


def random_state() -> dict[str, Any]:
    """Return the state of this process's random numbers, of Python, NumPy and PyTorch, as tensors and plain types."""
    import random

    import numpy as np

    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state()
    name, keys, *rest = numpy_state
    return {
        "python": [version, list(words), gauss],
        "numpy": [
            str(name),
            torch.from_numpy(keys.astype("int64")),
            *(float(x) if isinstance(x, float) else int(x) for x in rest),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned."""
    import random

    import numpy as np

    version, words, gauss = state["python"]
    name, keys, *rest = state["numpy"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state((name, keys.numpy().astype("uint32"), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])


def base_digest(model_path: str) -> str:
    """Return what tells a base from another: the digests of a folder's weight files, or a hub id as it stands."""
    files = sorted(path for pattern in ("*.safetensors", "*.bin") for path in Path(model_path).glob(pattern))
    return "+".join(_digest(path, path.stat().st_size, path.stat().st_mtime_ns) for path in files) or model_path


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed_ns: int) -> str:
    del size, changed_ns  # they only key the cache
    return file_digest(path)
