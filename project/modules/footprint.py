"""What a training step holds in memory, worked out without holding it.

The policy is made from its config alone, and two steps run on tensors that have shapes and no values (PyTorch's fake tensors),
under a mode that counts the bytes of each storage from its making to its end. So the peak is that of the code that will run,
checkpointing, adapters and all, on a machine that could never hold it. PyTorch's own `MemTracker` counts so too, but takes no
frozen parameters. Libraries, allocators' gaps and kernels' scratch are not in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from project.losses import weighted_cross_entropy
from project.modules.optimization import make_optimizer
from project.modules.policy import LoRA, Policy, Precision

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight in NF4: 4 bits, a byte for each block of 64, and a float for each 256 of those (Dettmers et al. 2023)."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of a step's parts at its peak, on one device that holds everything."""

    parameters: int
    """How many there are."""
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    """AdamW's two moments."""
    activations: int
    """What backward needs and what is worked with, at the peak."""

    @property
    def total(self) -> int:
        """All parts."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def sharded(self, devices: int, whole: int) -> Footprint:
        """Return what one of several devices holds under FSDP2, with `whole` bytes of weights gathered at once."""
        parts = {name: getattr(self, name) // devices for name in ("weights", "gradients", "optimizer")}
        return replace(self, **parts | {"weights": parts["weights"] + whole})


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that live, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._held: set[int] = set()

    def note(self, tensor: Tensor) -> None:
        """Count a tensor's storage until it is freed; once, whatever views there are of it."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._held:
            return
        self._held.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._held.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run an operation, and count what it makes."""
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return made


@dataclass(frozen=True)
class Step:
    """What a training step does."""

    lengths: Sequence[int]
    """Tokens of the samples of one micro-batch."""
    precision: Precision = "bfloat16"
    autocast: bool = True
    """Whether the trainer computes in bf16 over weights of another dtype."""
    gradient_checkpointing: bool = False
    accumulates: bool = False
    """Whether gradients of a micro-batch are there while the next is worked on."""
    device: str = "cpu"


def footprint(model_path: str, tokenizer: Any, new_ids: Sequence[int], lora: LoRA | None, step: Step) -> Footprint:  # noqa: ANN401
    """Return what training a model takes.

    Args:
        model_path: a folder or hub id, of which the config is read alone.
        tokenizer: prepared for the dialect.
        new_ids: tokens that it was given.
        lora: the adapter; None trains all weights.
        step: what a step does.
    """
    plain = replace(lora, nf4=False) if lora is not None else None
    policy = Policy(model_path, tokenizer, new_ids, plain, step.precision, step.gradient_checkpointing, empty=True)
    found = _stepped(policy, step)
    return found if lora is None or not lora.nf4 else _quantised(found, policy)


def _stepped(policy: Policy, step: Step) -> Footprint:
    tokens = sum(step.lengths)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _materialise(policy, step.device)
        optimizer = make_optimizer(policy, 1e-3)
        ids, weights = torch.zeros(tokens, dtype=torch.long, device=step.device), torch.ones(tokens - 1, device=step.device)

        def loss_of(hidden: Tensor) -> Tensor:
            return weighted_cross_entropy(hidden[:-1], policy.head_weight(), ids[1:], weights)[0]

        with LiveBytes() as live:
            live.note(ids)
            live.note(weights)
            batch = live.live
            for tensor in (*policy.parameters(), *policy.buffers()):
                live.note(tensor)
            held = live.live - batch
            _train(policy, ids, step, loss_of)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            moments = live.live - held - batch
            live.peak = live.live
            for _ in range(1 + step.accumulates):
                _train(policy, ids, step, loss_of)
                gradients = live.live - held - moments - batch
            optimizer.step()
    counted = [parameter.numel() for parameter in policy.parameters()]
    trained = [parameter.numel() for parameter in policy.parameters() if parameter.requires_grad]
    worked = max(0, live.peak - held - moments - gradients)
    return Footprint(sum(counted), sum(trained), held, gradients, moments, worked)


def _train(policy: Policy, ids: Tensor, step: Step, loss_of: Callable[[Tensor], Tensor]) -> None:
    with torch.autocast(step.device, torch.bfloat16, enabled=step.autocast):
        loss = policy(ids, list(step.lengths), loss_of)
    loss.backward()


def _materialise(module: nn.Module, device: str) -> None:
    """Give a module on the meta device parameters and buffers on another; tied ones stay tied."""
    made: dict[Tensor, Tensor] = {}
    for part in module.modules():
        held = [*part.named_parameters(recurse=False, remove_duplicate=False), *part.named_buffers(recurse=False)]
        for name, tensor in held:
            if tensor not in made:
                data = torch.empty_like(tensor, device=device)
                made[tensor] = nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
            setattr(part, name, made[tensor])


def _quantised(found: Footprint, policy: Policy) -> Footprint:
    """Return the footprint with the base's linear layers in NF4, the largest of which is whole while it is computed."""
    from peft.tuners.lora import LoraLayer

    bases: list[Any] = [module.get_base_layer().weight for module in policy.model.modules() if isinstance(module, LoraLayer)]
    saved = sum(int(weight.numel() * (weight.element_size() - NF4_BYTES)) for weight in bases)
    largest = max(weight.numel() * weight.element_size() for weight in bases)
    return replace(found, weights=found.weights - saved, activations=found.activations + largest)
