"""What a process must set before torch is loaded, for speed on a shared CPU.

OpenMP's threads wait for each other thousands of times in a training step. Spinning for long, as libgomp does by itself, it
stands still as soon as another process wants a core; sleeping at once leaves a quarter of two cores idle. Measured here
(SmolLM2-135M LoRA steps of 2 x 200-470 tokens, 2 cores), alone and beside one busy process: sleeping at once 511 and 371
tokens/s, after 1,500 turns 618 and 277, after 6,000 turns 580 and 192; by default it does not finish.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "1500",
    "KMP_BLOCKTIME": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
}

HARMLESS = (
    ".*does not have many workers.*",
    ".*exists and is not empty.*",
    ".*You are using .* with `weights_only=False`.*",
    ".*LeafSpec.*",
    ".*no pre-optimization state.*",
    ".*Total length of `list` across ranks is zero.*",
    ".*You have overridden `transfer_batch_to_device`.*",
    ".*sync_dist=True.*",
    ".*module.s. in eval mode at the start of training.*",
)
"""Lightning's warnings that need no action here."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_LIBRARIES = [f"usr/{folder}/libtcmalloc_minimal.so.4" for folder in ("lib/*-linux-gnu", "lib64", "lib")]


def prepare_process() -> None:
    """Set the environment where the user has not. Call before torch or vllm is imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _keep_freed_memory()


@contextmanager
def own_event_loops() -> Iterator[None]:
    """Let what runs inside open event loops though this thread runs one: a notebook's, which waits meanwhile."""
    asyncio = sys.modules.get("asyncio")
    running = asyncio._get_running_loop() if asyncio else None
    if asyncio is None or running is None:
        yield
        return
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(running)
        asyncio.set_event_loop(running)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Look for cyclic garbage less often while a block lasts.

    With 64 requests in flight hundreds of objects wait for each, and Python would look through them every few: a request of a
    teacher's job took 1.1 ms of a processor so and takes 0.8.
    """
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def quiet_transformers() -> None:
    """Keep its bars of a second, and what bitsandbytes says of kernels that nobody needs, off the terminal."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def quiet_lightning() -> None:
    """Keep banners, bars of a second and the warnings that need no action off the terminal."""
    quiet_transformers()
    logging.getLogger("lightning.pytorch.loggers.mlflow").setLevel(logging.ERROR)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    for pattern in HARMLESS:
        warnings.filterwarnings("ignore", message=pattern)


def free_memory() -> int:
    """Return how many bytes this process can still take: what the system has left, and what its control group allows."""
    import psutil

    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # no limit, or another kind of control group
        group = Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return free


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed: SFT steps of 4 x 160-600 tokens ran at 568 tokens/s so and at 389 without.

    The price is a heap that grows with the mix of sizes, by half and more over a run; `return_freed_memory` empties it.
    """
    if sys.platform == "linux" and not _allocator_chosen():
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            libc.mallopt(_M_TRIM_THRESHOLD, -1)
            libc.mallopt(_M_MMAP_MAX, 0)


def _allocator_chosen() -> bool:
    return any(name.startswith(("MALLOC_", "LD_PRELOAD")) for name in os.environ)


def tcmalloc() -> Path | None:
    """Return the system's tcmalloc, if it has one."""
    return next((path for folder in _LIBRARIES for path in Path("/").glob(folder)), None)


def start_with_tcmalloc() -> None:
    """Start this process over, under the same id, with tcmalloc in place of glibc's malloc, where the system has it.

    glibc cannot give a freed aligned block to a request of the same size, and torch aligns all of its blocks: LoRA steps of
    1,408 tokens ran at 739 tokens/s in 2.6 GB with tcmalloc, at 614 in 3.7 GB without (`experiments/LOG.md`). vLLM asks for
    it on CPUs too. A user who has chosen an allocator keeps it.
    """
    library = tcmalloc()
    if sys.platform == "linux" and library and not _allocator_chosen():
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, os.environ | {"LD_PRELOAD": str(library)})


def return_freed_memory() -> None:
    """Give the pages of freed blocks back to the system, where the allocator can."""
    if sys.platform == "linux":
        process = ctypes.CDLL(None)
        if hasattr(process, "MallocExtension_ReleaseFreeMemory"):  # tcmalloc's
            process.MallocExtension_ReleaseFreeMemory()
        elif hasattr(process, "malloc_trim"):
            process.malloc_trim(0)
