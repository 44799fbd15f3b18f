"""What turns token ids into token ids and log-probabilities: vLLM in process, or transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from project.rollouts.engines.protocol import Engine, Generation, Sampling

EngineName = Literal["vllm", "transformers"]
__all__ = ["Engine", "EngineName", "Generation", "Sampling", "make_engine"]


def make_engine(name: EngineName, model: str | Path | Any, context_tokens: int, seed: int = 0) -> Engine:  # noqa: ANN401
    """Start an engine on a model folder (`transformers` also takes a loaded causal LM).

    Raises:
        EngineError: vLLM is asked for and not installed.
    """
    if name == "vllm":
        from project.rollouts.engines.vllm import VLLMEngine

        return VLLMEngine(str(model), context_tokens, seed)
    from project.rollouts.engines.transformers import TransformersEngine

    return TransformersEngine(model, seed)
