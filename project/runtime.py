"""What a process must set before torch is loaded, for speed on a shared CPU.

OpenMP's threads wait for each other thousands of times in a training step. Spinning for long, as libgomp does by itself, it
stands still as soon as another process wants a core; sleeping at once leaves a quarter of two cores idle. Measured here
(SmolLM2-135M LoRA steps of 2 x 200-470 tokens, 2 cores), alone and beside one busy process: sleeping at once 511 and 371
tokens/s, after 1,500 turns 618 and 277, after 6,000 turns 580 and 192; by default it does not finish.
"""

from __future__ import annotations

import ctypes
import os
import sys

_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "1500",
    "KMP_BLOCKTIME": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def prepare_process() -> None:
    """Set the environment where the user has not. Call before torch or vllm is imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed: SFT steps of 4 x 160-600 tokens ran at 568 tokens/s so and at 389 without.

    The price is a heap that grows with the mix of sizes, by half and more over a run; `return_freed_memory` empties it.
    """
    if sys.platform == "linux" and not any(name.startswith(("MALLOC_", "LD_PRELOAD")) for name in os.environ):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            libc.mallopt(_M_TRIM_THRESHOLD, -1)
            libc.mallopt(_M_MMAP_MAX, 0)


def return_freed_memory() -> None:
    """Give the pages of freed blocks back to the system, where the C library can."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
