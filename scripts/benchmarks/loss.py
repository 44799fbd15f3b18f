"""The loss alone, forward and backward: fused `weighted_cross_entropy` against plain logits and cross-entropy.

    python scripts/benchmarks/loss.py --shapes 4096x49152x576,16384x151936x1024 [--device cuda]

Positions x vocabulary x hidden size, bf16, hidden states and table both trained, all weights 1. Each way runs in a process of
its own; prints one JSON line a shape with seconds (the best of 3) and peak memory over that of the inputs and their gradients:
resident pages on CPU, allocated memory on CUDA. A way that does not fit says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from project.runtime import prepare_process

prepare_process()

import torch  # noqa: E402

from project.losses import weighted_cross_entropy  # noqa: E402


def peak_bytes(device: str) -> int:
    """Return the peak so far: the kernel's high-water mark of resident memory, as nothing here maps files meanwhile."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def one(way: str, positions: int, vocabulary: int, width: int, device: str) -> dict[str, float]:
    """Measure a way in this process."""
    torch.manual_seed(0)
    hidden = torch.randn(positions, width, dtype=torch.bfloat16, device=device)
    table = 0.02 * torch.randn(vocabulary, width, dtype=torch.bfloat16, device=device)
    labels = torch.randint(vocabulary, (positions,), device=device)
    weights = torch.ones(positions, device=device)
    # What any way must hold: gradients as large as the inputs. Written to, so that their pages exist.
    hidden.grad, table.grad = torch.ones_like(hidden), torch.ones_like(table)
    hidden.requires_grad_()
    table.requires_grad_()
    before, best = peak_bytes(device), float("inf")
    for _ in range(3):
        started = time.perf_counter()
        if way == "fused":
            loss, *_ = weighted_cross_entropy(hidden, table, labels, weights)
        else:
            entropy = torch.nn.functional.cross_entropy((hidden @ table.T).float(), labels, reduction="none")
            loss = (weights * entropy).sum()
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return {"seconds": best, "peak_gb": (peak_bytes(device) - before) / 1e9}


def main() -> None:
    """Print a line a shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="4096x49152x576,16384x151936x1024")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--way", choices=["fused", "plain"])
    arguments = parser.parse_args()
    for shape in arguments.shapes.split(","):
        if arguments.way:
            positions, vocabulary, width = map(int, shape.split("x"))
            print(json.dumps(one(arguments.way, positions, vocabulary, width, arguments.device)))
            continue
        found = {"shape": shape}
        for way in ("fused", "plain"):
            command = [sys.executable, __file__, "--shapes", shape, "--way", way, "--device", arguments.device]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found[way] = json.loads(done.stdout) if done.returncode == 0 else f"failed with {done.returncode}"
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
