"""FSDP2: a policy in shards over the ranks (Zhao et al. 2023), loaded by the first of them, whole again in files.

`trainer.strategy: fsdp2` is Lightning's `ModelParallelStrategy` with what it leaves out here: checkpoints are those of one
process, so that one rank, several and DDP read each other's, and a frozen base, which they do not hold, is no missing weight.
Only a policy is sharded: what else a module holds is small, and the same on all ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from project.errors import InputError
from project.ranks import whole

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from project.modules.policy import Policy


INSTEAD = "experiments/strategies/ddp.yaml"


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a sharded tensor; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: Any, model: Any) -> Any:  # noqa: ANN401 - a leaf of an optimizer's state
    """Return a whole tensor sharded as `model` is, each rank cutting its own part out; anything of another shape as it is."""
    if not isinstance(model, DTensor) or isinstance(tensor, DTensor) or getattr(tensor, "shape", None) != model.shape:
        return tensor
    placed = tensor.to(model.device)
    return distribute_tensor(placed, model.device_mesh, model.placements, src_data_rank=None)


def shard(policy: Policy, mesh: DeviceMesh) -> None:
    """Give all ranks the first one's weights and shard them, layer by layer: no other rank ever holds more than one whole.

    What is no layer, the embedding and the head above all, is whole inside the policy's `forward` only.
    """
    from torch.distributed.fsdp import fully_shard

    kinds = set(policy.causal_lm._no_split_modules or ())
    for unit in [*(module for module in policy.modules() if type(module).__name__ in kinds), policy]:
        _fill(unit, torch.device(mesh.device_type))  # of GPUs, the one that Lightning has set
        fully_shard(unit, mesh=mesh)


def _fill(unit: nn.Module, device: torch.device) -> None:
    """Broadcast the parameters and buffers of a unit from the first rank into those of all; tied ones stay tied."""
    filled: dict[Tensor, Tensor] = {}
    for module in unit.modules():
        held = [*module.named_parameters(recurse=False, remove_duplicate=False), *module.named_buffers(recurse=False)]
        for name, tensor in held:
            if isinstance(tensor, DTensor):
                continue
            if tensor not in filled:
                data = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.detach().to(device)
                torch.distributed.broadcast(data, 0)
                is_parameter = isinstance(tensor, nn.Parameter)
                filled[tensor] = nn.Parameter(data, tensor.requires_grad) if is_parameter else data
            setattr(module, name, filled[tensor])


class FSDP2(ModelParallelStrategy):
    """Shards over all ranks; a module calls `shard` in `configure_model`, where it has a `device_mesh`."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - Lightning's own, by name
        """Take `process_group_backend` and `timeout`, as Lightning's."""
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    @staticmethod
    def check(module: LightningModule) -> None:
        """Raise `InputError` where a module cannot be trained in shards."""
        lora = getattr(module, "lora", None)
        if lora is not None and lora.nf4:
            raise InputError(
                f"model.lora.nf4={lora.nf4} keeps weights in blocks that FSDP cannot cut; leave it out, or take {INSTEAD}"
            )
        optimizer = getattr(module, "optimizer_name", "adamw")
        if optimizer != "adamw":
            raise InputError(f"model.optimizer={optimizer} cannot step on shards; take adamw, or {INSTEAD}")

    def setup_environment(self) -> None:
        """Make a mesh in which all ranks share the data."""
        assert self.lightning_module is not None
        self.check(self.lightning_module)
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # --- checkpoints: those of one process -----------------------------------------------------------------------------

    lightning_restore_optimizer = True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the module's state, in shards: what the module leaves out of the checkpoint is never gathered."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimizer's state, in shards."""
        return ParallelStrategy.optimizer_state(self, optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:  # noqa: ANN401
        """Gather, on all ranks together and a tensor at a time, and write on the first."""
        keep = self.is_global_zero

        def gathered(leaf: Any) -> Any:  # noqa: ANN401
            found = whole(leaf) if isinstance(leaf, Tensor) else leaf
            return found if found is leaf else found.cpu() if keep else None

        ParallelStrategy.save_checkpoint(self, tree_map(gathered, checkpoint), filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:  # noqa: ANN401
        """Read the file on every rank."""
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take each rank's shards out of the whole state."""
        assert self.lightning_module is not None
        own, held = self.lightning_module.state_dict(), checkpoint["state_dict"]
        self.lightning_module.load_state_dict({name: like(held[name], own.get(name)) for name in held}, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take each rank's shards out of the whole states."""
        states = [_cut(state, o) for state, o in zip(checkpoint["optimizer_states"], self.optimizers, strict=True)]
        ParallelStrategy.load_optimizer_state_dict(self, {"optimizer_states": states})


def _cut(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Return an optimizer's whole state as shards like those of its parameters, which it counts through its groups."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    cut = {n: {name: like(value, parameters[n]) for name, value in held.items()} for n, held in state["state"].items()}
    return {**state, "state": cut}


StrategyRegistry.register("fsdp2", FSDP2, "FSDP2 with the checkpoints of one process")
