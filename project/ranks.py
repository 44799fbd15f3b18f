"""What ranks that share a training tell each other; a process alone talks to itself. All ranks must call these together."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from project.errors import EngineError, SeekerError

Found = TypeVar("Found")


def world() -> tuple[int, int]:
    """Return this process's rank and the number of ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def gathered(mine: Found) -> list[Found]:
    """Return every rank's value, in order."""
    _, size = world()
    if size == 1:
        return [mine]
    everyone: list[Any] = [None] * size
    torch.distributed.all_gather_object(everyone, mine)
    return everyone


def gathered_or_raised(work: Callable[[], Found]) -> list[Found]:
    """Do a rank's work and return every rank's; what one of them fails with is raised on all, which would else wait for it."""
    try:
        mine: Found | SeekerError = work()
    except Exception as error:
        rank, size = world()
        if size == 1:
            raise
        failed = f"rank {rank} failed with {type(error).__name__}: {error}"
        mine = error if isinstance(error, SeekerError) else EngineError(failed)
    everyone = gathered(mine)
    for found in everyone:
        if isinstance(found, SeekerError):
            raise found
    return everyone  # type: ignore[return-value]


def first_here() -> int:
    """Return the first of the ranks on this machine."""
    machines = gathered(platform.node())
    return machines.index(platform.node())


def part_of(count: int) -> slice:
    """Return this rank's part of `count` things: each rank's are neighbours, and their numbers differ by at most one."""
    rank, size = world()
    return slice(count * rank // size, count * (rank + 1) // size)


def whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor's whole, which all ranks must ask for together; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def same_on_all(module: nn.Module) -> None:
    """Give all ranks the first one's parameters."""
    if world()[1] > 1:
        for parameter in module.parameters():
            torch.distributed.broadcast(parameter.data, 0)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up all ranks' gradients; those of sharded parameters come as their mean, which FSDP2 has taken."""
    _, size = world()
    for parameter in (p for p in parameters if p.requires_grad and size > 1):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if isinstance(parameter.grad, DTensor):
            parameter.grad.mul_(size)
        else:
            torch.distributed.all_reduce(parameter.grad)


def clip_gradients(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """Scale gradients, sharded ones and plain ones together, to a norm of at most `most`; return the norm that they had."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    kinds = [[g for g in gradients if isinstance(g, DTensor) == sharded] for sharded in (True, False)]
    norms = [whole(nn.utils.get_total_norm(kind)).float() for kind in kinds if kind]
    norm = torch.stack(norms).square().sum().sqrt()
    if float(norm) > most:
        for gradient in gradients:
            gradient.mul_(most / float(norm))
    return norm


def summed(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the sums over ranks of scalars of the same names."""
    if world()[1] == 1 or not values:
        return values
    stacked = torch.stack([value.detach().float() for value in values.values()])
    torch.distributed.all_reduce(stacked)
    return dict(zip(values, stacked, strict=True))
