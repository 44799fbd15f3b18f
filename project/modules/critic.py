"""Critics: what each position of an episode is worth.

By default a small head on the policy's hidden states, which costs no pass of the model and never pulls on the policy. A
`DeepCritic` has layers of its own: a LoRA adapter over the policy's frozen weights, or a whole model. It is a second set of
layers and no second adapter of PEFT's, whose switching freezes the policy's (trap 18).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from project.losses import Metrics, value_loss
from project.modules.policy import Policy
from project.modules.ppo_batches import Batch, Update, deal
from project.modules.ppo_settings import PPOSettings

Loss = Callable[[], tuple[Tensor, Metrics]]
"""Makes this rank's share of a step's loss."""


class Critic(nn.Module):
    """Value of each position from hidden states: a two-layer head, float32, starting at 0."""

    def __init__(self, hidden: int) -> None:
        """Take the policy's hidden size."""
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, 256), nn.GELU(), nn.Linear(256, 1))
        nn.init.zeros_(self.net[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.net[-1].bias)  # type: ignore[arg-type]

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """Return values (N,)."""
        with torch.autocast(hidden_NH.device.type, enabled=False):
            return self.net(hidden_NH.float()).squeeze(-1)  # type: ignore[no-any-return]

    def groups(self) -> list[list[nn.Parameter]]:
        """Return what is trained, in parts that an optimizer may step together."""
        return [list(self.parameters())]

    def values(self, batch: Batch, hidden_NH: Tensor) -> Tensor:
        """Return values (N,) before each trained token of a micro-batch, whose hidden states of the policy these are."""
        del batch
        return self(hidden_NH)  # type: ignore[no-any-return]

    def steps(self, update: Update, ppo: PPOSettings, generator: torch.Generator) -> Iterator[list[Loss]]:
        """Yield the steps that fit it to an update's returns, on the hidden states that its values were taken from.

        A step draws tokens from all ranks' rows, and each rank takes what is its own of them.
        """
        hidden, values, returns = (torch.cat([b[name] for b in update.micro]) for name in ("hidden", "old_values", "returns"))
        counts = [len(note["penalty"]) for note in update.notes]
        tokens = torch.arange(sum(counts)).split(counts)
        mine = torch.cat([torch.zeros(0, dtype=torch.long), *(tokens[i] for batch in update.micro for i in batch["numbers"])])
        for _ in range(ppo.critic_steps):
            drawn = torch.randperm(sum(counts), generator=generator)[: ppo.critic_rows]
            rows = torch.isin(mine, drawn).nonzero()[:, 0].to(hidden.device)
            yield [partial(self._loss, hidden[rows], values[rows], returns[rows], len(drawn), ppo)]

    def _loss(self, hidden: Tensor, values: Tensor, returns: Tensor, total: float, ppo: PPOSettings) -> tuple[Tensor, Metrics]:
        return value_loss(self(hidden), values, returns, total, ppo.value_clip)


class DeepCritic(nn.Module):
    """A head on layers of its own, which are trained with it."""

    def __init__(self, body: Policy) -> None:
        """Take the layers."""
        super().__init__()
        self.body, self.head = body, Critic(body.hidden_size)

    def groups(self) -> list[list[nn.Parameter]]:
        """Return what is trained, in parts: FSDP2 cuts the body in shards, and not the head."""
        return [[p for p in part.parameters() if p.requires_grad] for part in (self.body, self.head)]

    def values(self, batch: Batch, hidden_NH: Tensor) -> Tensor:
        """Return values (N,) before each trained token of a micro-batch; the policy's hidden states are not asked."""
        del hidden_NH
        trained = batch["trained"][1:]
        return self.body(batch["input_ids"], batch["lengths"], lambda hidden: self.head(hidden[:-1][trained]))  # type: ignore[no-any-return]

    def steps(self, update: Update, ppo: PPOSettings, generator: torch.Generator) -> Iterator[list[Loss]]:
        """Yield the steps that fit it to an update's returns, dealt as the policy's are."""
        for _ in range(ppo.critic_epochs):
            for step in deal(update, ppo.minibatch_episodes, "token", generator):
                yield [partial(self._loss, update.micro[i], step.divisor, ppo) for i in step.micro]

    def _loss(self, batch: Batch, total: float, ppo: PPOSettings) -> tuple[Tensor, Metrics]:
        values = self.values(batch, batch["hidden"])
        return value_loss(values, batch["old_values"], batch["returns"], total, ppo.value_clip)


def share_frozen(body: Policy, policy: Policy) -> None:
    """Give an empty body the policy's own frozen weights and buffers, and copies of what is trained."""
    theirs = {**dict(policy.named_parameters(remove_duplicate=False)), **dict(policy.named_buffers(remove_duplicate=False))}
    for prefix, module in body.named_modules(remove_duplicate=False):
        for name in [*module._parameters, *module._buffers]:
            tensor = theirs.get(f"{prefix}.{name}")
            if tensor is not None and tensor.requires_grad:
                tensor = nn.Parameter(tensor.detach().clone())
            if tensor is not None:
                setattr(module, name, tensor)
