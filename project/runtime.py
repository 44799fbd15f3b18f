"""What a process must set before torch is loaded, for speed on a shared CPU.

Measured here on 2 cores (SmolLM2-135M LoRA step of 4x300 tokens): with one busy process beside it, OpenMP's spinning
barrier took over 25 s a step; with `OMP_WAIT_POLICY=PASSIVE` 2.9 s.
"""

from __future__ import annotations

import os

_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


def prepare_process() -> None:
    """Set the environment where the user has not. Call before torch or vllm is imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
