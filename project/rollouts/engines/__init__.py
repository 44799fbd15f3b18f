"""What turns token ids into token ids and log-probabilities: vLLM in process, servers of vLLM, or transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from project.rollouts.engines.protocol import Engine, Generation, Sampling

EngineName = Literal["vllm", "servers", "transformers"]
__all__ = ["Engine", "EngineName", "Generation", "Sampling", "make_engine"]


def make_engine(
    name: EngineName,
    model: str | Path | Any,  # noqa: ANN401
    context_tokens: int,
    seed: int = 0,
    servers: Sequence[str] = (),
    weights_dir: Path | None = None,
    alone: bool = False,
    lora_rank: int | None = None,
    memory: float | None = None,
    sleeps: bool = False,
    requests: int | None = None,
) -> Engine:
    """Start an engine on a model folder (`transformers` also takes a loaded causal LM).

    Args:
        name: which engine.
        model: folder or hub id.
        context_tokens: prompt and generation together, at most.
        seed: of requests that bring none; servers have their own.
        servers: base addresses of running servers, for `servers`.
        weights_dir: folder that those servers read, where they are on other machines.
        alone: `transformers` decodes each request by itself.
        lora_rank: largest rank of the adapters that `vllm` will be given; None where it is given full weights.
        memory: share of a GPU's memory that `vllm` takes; None leaves it to vLLM.
        sleeps: `vllm` may be asked to `sleep`.
        requests: how many `vllm` runs at once, at most; None where that is not known.

    Raises:
        EngineError: vLLM is asked for and not installed, or to sleep without a GPU, or a server is not as it must be.
    """
    if name == "servers":
        from project.rollouts.engines.servers import VLLMServers

        return VLLMServers(servers, str(model), context_tokens, weights_dir)
    if name == "vllm":
        from project.rollouts.engines.vllm import VLLMEngine

        return VLLMEngine(str(model), context_tokens, seed, lora_rank, memory, sleeps=sleeps, requests=requests)
    from project.rollouts.engines.transformers import TransformersEngine

    return TransformersEngine(model, seed, alone=alone)
