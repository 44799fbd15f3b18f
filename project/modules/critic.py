"""The critic: a small head on the policy's hidden states."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Critic(nn.Module):
    """Value of each position from detached hidden states: a two-layer head, float32, starting at 0."""

    def __init__(self, hidden: int) -> None:
        """Take the policy's hidden size."""
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, 256), nn.GELU(), nn.Linear(256, 1))
        nn.init.zeros_(self.net[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.net[-1].bias)  # type: ignore[arg-type]

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """Return values (N,)."""
        with torch.autocast(hidden_NH.device.type, enabled=False):
            return self.net(hidden_NH.detach().float()).squeeze(-1)  # type: ignore[no-any-return]
