"""One protocol for all engines: token ids in; ids, processed log-probabilities, finish reason and policy version out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. Top-p, top-k and penalties do not exist here: log-probabilities must be those of the whole softmax."""

    temperature: float
    """0 = greedy; log-probabilities are then those at temperature 1."""
    max_tokens: int
    stop_ids: tuple[int, ...]
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """What an engine returns for one request."""

    ids: tuple[int, ...]
    """Sampled tokens, the stop token included."""
    logprobs: tuple[float, ...]
    """Natural logs, under the distribution that was sampled from."""
    finish: Literal["stop", "length"]
    version: int
    """Number of weight syncs the engine had seen."""
    prompt_ids: tuple[int, ...] = ()
    """What the engine says that it read; empty where it says nothing."""


Seen = Callable[[int], None]
"""Is given each token as soon as it is sampled; what it raises ends its request and reaches the request's caller."""


class Engine(Protocol):
    """Generates for many callers at once; a call waits for its own result only."""

    version: int

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, seen: Seen | None = None) -> Generation:
        """Continue `prompt_ids`; `seen` is given the tokens one by one (servers send a turn's all at once)."""

    def score(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> list[float]:
        """Return log p of each of `ids` after `prompt_ids` at temperature 1: the canary of a weight sync."""

    def sleep(self) -> None:
        """Give the memory of a GPU to the training until the next sync; an engine that holds none of it does nothing."""

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> float:
        """Take new weights, forget cached prefixes, raise `version`; return the share of values that changed."""

    def sync_adapter(self, folder: Path) -> None:
        """Take a LoRA adapter as PEFT saves it, forget cached prefixes, raise `version`. The folder stays until the next."""


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Give back the random state of Python, numpy and torch afterwards: vLLM reseeds and draws from them."""
    import numpy as np

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
