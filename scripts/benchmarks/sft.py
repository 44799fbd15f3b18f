"""Supervised fine-tuning against TRL's SFTTrainer: real tokens a second and peak memory, same machine, rows and model.

    seeker data squad --input_file ../shared/data/squad/squad2-dev.json.gz --output_dir data/squad
    python scripts/benchmarks/sft.py --conversations data/squad/conversations_train.jsonl --output_file sft.json

Each way trains in a process of its own, one after the other, `--rounds` times over; a way's figure is the median of its
rounds. Tokens are those of the conversations, never padding; steps before `WARM` are not counted. The rate of bf16 matrix
products of SmolLM2's shapes is measured beside them: `share_of_matmul` is 6 x parameters FLOP a token over it.
Peers are left out where they are not installed (`pip install --no-deps trl==1.16.0`). TRL trains at 4 x 1,024 tokens a step,
bf16 autocast, without gradient checkpointing, which is slower. Memory is the peak of anonymous pages. Every way runs under
tcmalloc where the system has it; `LD_PRELOAD= python …` keeps glibc's malloc for all.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from project.runtime import prepare_process, start_with_tcmalloc

if __name__ == "__main__":
    start_with_tcmalloc()
prepare_process()

import torch  # noqa: E402

STEPS, WARM = 5, 2
WAYS = {
    "seeker-full": {"lora": False},
    "trl-full": {"lora": False, "packing": False},
    "trl-full-packed": {"lora": False, "packing": True},
    "seeker-lora": {"lora": True},
    "trl-lora": {"lora": True, "packing": False},
    "trl-lora-packed": {"lora": True, "packing": True},
}


class Peak(threading.Thread):
    """Samples this process's anonymous memory."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.kilobytes = 0

    def run(self) -> None:
        """Read /proc 20 times a second."""
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            self.kilobytes = max(self.kilobytes, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))
            time.sleep(0.05)


def seeker(rows: Path, tokens: int, *, lora: bool) -> list[tuple[float, int]]:
    """Return (when, tokens) of each step's end."""
    from lightning import Callback, Trainer

    from project.datamodules.conversation import ConversationDataModule
    from project.modules.policy import LoRA
    from project.modules.sft import SFT

    ends: list[tuple[float, int]] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
            ends.append((time.perf_counter(), batch["tokens"]))

    torch.manual_seed(0)
    module = SFT(lora=LoRA(16, 32) if lora else None, precision="bfloat16" if lora else "float32")
    trainer = Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        max_steps=STEPS,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=4096 // tokens,
        callbacks=[Watch()],
    )
    module.on_fit_end = lambda: None  # type: ignore[method-assign]
    data = ConversationDataModule(rows, rows.with_name("held_out.jsonl"), micro_tokens=tokens)
    trainer.fit(module, data)
    return _by_step(ends, 4096 // tokens)


def _by_step(ends: list[tuple[float, int]], parts: int) -> list[tuple[float, int]]:
    return [(ends[i + parts - 1][0], sum(n for _, n in ends[i : i + parts])) for i in range(0, len(ends), parts)]


def trl(rows: Path, *, lora: bool, packing: bool) -> list[tuple[float, int]]:
    """Return (when, tokens) of each step's end."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from project.modules.policy import resolve_model_path

    ends: list[tuple[float, int]] = []
    counts: list[int] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
            ends.append((time.perf_counter(), counts[-1]))

    path = resolve_model_path(None)
    messages = [{"messages": json.loads(line)["messages"]} for line in rows.read_text().splitlines()]
    for row in messages:
        row["messages"] = [{"role": m["role"], "content": m["content"]} for m in row["messages"]]
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        max_length=1024,
        packing=packing,
        bf16=True,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        learning_rate=1e-4,
        disable_tqdm=True,
    )
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    trainer = SFTTrainer(
        model=path,
        args=config,
        train_dataset=Dataset.from_list(messages),
        processing_class=AutoTokenizer.from_pretrained(path),
        peft_config=adapter,
        callbacks=[Watch()],
    )
    inner = trainer.data_collator

    def collate(examples: Any) -> Any:  # noqa: ANN401
        batch = inner(examples)
        counts.append(sum(len(example["input_ids"]) for example in examples))
        return batch

    trainer.data_collator = collate
    trainer.train()
    return ends


def matmul_rate() -> float:
    """Return the FLOP/s of bf16 matrix products of an MLP's shape, the best of 5."""
    a, b = torch.randn(4096, 576, dtype=torch.bfloat16), torch.randn(576, 1536, dtype=torch.bfloat16)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(20):
            a @ b
        best = max(best, 20 * 2 * 4096 * 576 * 1536 / (time.perf_counter() - started))
    return best


def one(way: str, rows: Path, tokens: int) -> dict[str, float]:
    """Measure a way in this process."""
    peak = Peak()
    peak.start()
    rate = matmul_rate()
    options = dict(WAYS[way])
    ends = seeker(rows, tokens, **options) if way.startswith("seeker") else trl(rows, **options)  # type: ignore[arg-type]
    counted = ends[WARM:]
    seconds = counted[-1][0] - ends[WARM - 1][0]
    speed = sum(n for _, n in counted) / seconds
    found = {"tokens_per_s": speed, "peak_gb": peak.kilobytes / 1e6, "matmul_flop_per_s": rate}
    return found | {"share_of_matmul": 6 * 134.5e6 * speed / rate}


def main() -> None:
    """Run every way in turn, or with --way one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=Path, required=True)
    parser.add_argument("--output_file", type=Path)
    parser.add_argument("--way", choices=list(WAYS))
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--micro_tokens", type=int, default=4096, help="Seeker's; 4,096 tokens make a step")
    arguments = parser.parse_args()
    if 4096 % arguments.micro_tokens:
        parser.error(f"--micro_tokens {arguments.micro_tokens} must divide 4096, the tokens of a step")
    if arguments.way:
        print("RESULT " + json.dumps(one(arguments.way, arguments.conversations, arguments.micro_tokens)))
        return
    ways = [w for w in arguments.ways.split(",") if not w.startswith("trl") or find_spec("trl")]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as scratch:
        lines = arguments.conversations.read_text().splitlines()
        random.Random(0).shuffle(lines)
        held_out = json.loads(lines[-1])["group"]
        rows = Path(scratch) / "rows.jsonl"
        rows.write_text("\n".join([line for line in lines if json.loads(line)["group"] != held_out][:400]) + "\n")
        rows.with_name("held_out.jsonl").write_text(lines[-1] + "\n")
        for _ in range(arguments.rounds):
            for way in ways:
                command = [sys.executable, __file__, "--conversations", str(rows), "--way", way]
                command += ["--micro_tokens", str(arguments.micro_tokens)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
                if line is None:
                    sys.exit(f"{way} failed: {done.stderr[-2000:]}")
                found[way].append(json.loads(line.removeprefix("RESULT ")))
                print(way, {k: round(v, 3) if v < 1e6 else f"{v:.3g}" for k, v in found[way][-1].items()}, flush=True)
    medians = {way: {k: statistics.median(r[k] for r in rounds) for k in rounds[0]} for way, rounds in found.items()}
    if arguments.output_file:
        arguments.output_file.write_text(json.dumps(medians, indent=1) + "\n")


if __name__ == "__main__":
    main()
