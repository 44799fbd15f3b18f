"""Time one sample's causal attention, forward and backward, by length: `project/modules/attention.py`'s two ways on this CPU.

    python scripts/benchmarks/attention.py --tokens 128,256,512,1024,2048

bf16, 9 heads of 64 on 3 key heads (SmolLM2-135M's). Prints one JSON line a length: milliseconds, the best of 5 rounds, each way
in turn in each round.
"""

from __future__ import annotations

import argparse
import json
import time

from project.runtime import prepare_process

prepare_process()

import torch  # noqa: E402

from project.modules import attention  # noqa: E402

WAYS = {"scores": 1 << 30, "flash": 0}
"""What `attention.LONG` is set to."""


def seconds(inputs: list[torch.Tensor], upstream: torch.Tensor, repeats: int) -> float:
    """Return the seconds of one forward and backward pass."""
    started = time.perf_counter()
    for _ in range(repeats):
        out, _ = attention.packed_attention(torch.nn.Identity(), *inputs, None, lengths=[inputs[0].shape[2]])
        torch.autograd.grad(out, inputs, upstream)
    return (time.perf_counter() - started) / repeats


def main() -> None:
    """Print a line a length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="128,256,512,1024,2048")
    for tokens in map(int, parser.parse_args().tokens.split(",")):
        torch.manual_seed(0)
        inputs = [torch.randn(1, heads, tokens, 64, dtype=torch.bfloat16, requires_grad=True) for heads in (9, 3, 3)]
        upstream = torch.randn(1, tokens, 9, 64, dtype=torch.bfloat16)
        best = dict.fromkeys(WAYS, float("inf"))
        for _ in range(5):
            for way, long in WAYS.items():
                attention.LONG = long
                best[way] = min(best[way], seconds(inputs, upstream, max(2, 4000 // tokens)))
        row = {f"{way}_ms": round(1000 * value, 2) for way, value in best.items()}
        print(json.dumps({"tokens": tokens, **row, "flash_over_scores": round(best["flash"] / best["scores"], 2)}), flush=True)


if __name__ == "__main__":
    main()
