"""Prove that a stopped training, resumed, ends as if it had never been stopped: the same command, twice, compared bit for bit.

    python scripts/verify_resume.py --steps 20 -- --config experiments/quickstart/sft.yaml

What follows `--` goes to `seeker fit`. One run goes through; the other is killed (SIGKILL, its whole process group; with
`--signal INT` as by Ctrl-C) at a random step of the first half and goes on with `--ckpt_path last`. Compared are the last
checkpoints (parameters, optimizer, schedule, place in the data, random numbers) and the logged metrics of each step, but times
and memory. Exit status: 0 the same, 1 not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IGNORED = ("time/", "memory/", "system/")
"""Metrics that no two runs share."""


def command(arguments: list[str], folder: Path, steps: int, every: int) -> list[str]:
    """Return `seeker fit` for `steps` steps, with a checkpoint after `every` of them and nothing else that writes."""
    last = {"dirpath": str(folder / "checkpoints"), "filename": "last", "every_n_train_steps": every, "save_last": False}
    last |= {"auto_insert_metric_name": False, "enable_version_counter": False}
    options = {
        "max_steps": steps,
        "max_epochs": -1,
        "limit_val_batches": 0,
        "default_root_dir": folder,
        "callbacks": json.dumps([{"class_path": "ModelCheckpoint", "init_args": last}]),
        "logger.run_name": folder.name,
    }
    words = [word for name, value in options.items() for word in (f"--trainer.{name}", str(value))]
    return [sys.executable, "-m", "project", "fit", *arguments, *words, "--model.export_dir", str(folder / "merged")]


def stop_at(process: subprocess.Popen[bytes], folder: Path, step: int, steps: int, by: signal.Signals) -> int:
    """Stop the process group once its checkpoint has reached `step`, and return the step that it then stands at."""
    while not (folder / "checkpoints" / "last.ckpt").is_file() or read(folder)["global_step"] < step:
        if process.poll() is not None:
            sys.exit(f"the training ended with status {process.returncode} before step {step}; raise --steps")
        time.sleep(0.01)
    os.killpg(process.pid, by)
    process.wait()
    if (at := int(read(folder)["global_step"])) >= steps:
        sys.exit(f"the training had done all {steps} steps when it was stopped; raise --steps")
    return at


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:  # noqa: ANN401 - whatever a checkpoint holds
    """Yield the path of each leaf in which two checkpoints differ."""
    import torch

    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}, key=str):
            yield from differences(a.get(key), b.get(key), f"{path}/{key}")
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{path}/{number}")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            yield path
        elif not torch.equal(a, b):
            yield f"{path} (by {float((a.double() - b.double()).abs().max()):.1e})"
    elif a != b:
        yield f"{path} ({a} to {b})" if isinstance(a, float) and isinstance(b, float) else path


def leaves(value: Any) -> int:  # noqa: ANN401
    """Return how many values were compared."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else None
    return 1 if inner is None else sum(map(leaves, inner))


def logged(store: str, folder: Path) -> dict[str, dict[int, float]]:
    """Return metric -> step -> value of the run of a folder."""
    from mlflow import MlflowClient

    client = MlflowClient(store)
    run = (folder / "mlflow_run_id").read_text().strip()
    names = [name for name in client.get_run(run).data.metrics if not name.startswith(IGNORED)]
    return {name: {m.step: m.value for m in client.get_metric_history(run, name)} for name in names}


def read(folder: Path) -> dict[str, Any]:
    """Return the last checkpoint without its own paths and times, and without the id of its run."""
    import torch

    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    return {name: value for name, value in checkpoint.items() if name not in ("callbacks", "seeker_run_id")}


def main() -> int:
    """Run, stop, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=2, help="optimizer steps from a checkpoint to the next")
    parser.add_argument("--seed", type=int, help="of the step of the stop; by default another one each time")
    parser.add_argument("--signal", default="KILL", choices=["KILL", "TERM", "INT"])
    parser.add_argument("arguments", nargs="+", help="of seeker fit, after --")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="seeker-resume-") as scratch:
        whole, cut = Path(scratch) / "whole", Path(scratch) / "cut"
        store = f"sqlite:///{scratch}/mlflow.db"
        environment = os.environ | {"MLFLOW_TRACKING_URI": store}
        subprocess.run(command(given.arguments, whole, given.steps, given.every), env=environment, check=True)
        words = command(given.arguments, cut, given.steps, given.every)
        process = subprocess.Popen(words, env=environment, start_new_session=True)
        drawn = random.Random(given.seed).randint(1, max(1, given.steps // 2))
        at = stop_at(process, cut, drawn, given.steps, signal.Signals[f"SIG{given.signal}"])
        subprocess.run([*words, "--ckpt_path", "last"], env=environment, check=True)
        expected, found = read(whole), read(cut)
        other = list(differences(expected, found))
        metrics, resumed = logged(store, whole), logged(store, cut)
        other = [*(f"metric {path}" for path in differences(metrics, resumed)), *other]
    values = sum(len(steps) for steps in metrics.values())
    print(f"stopped by SIG{given.signal} after step {at}, resumed to step {given.steps}:")
    print(f"{leaves(expected)} values of the checkpoint and {values} logged metrics compared, ", end="")
    print(f"{len(other)} differ{': ' + ', '.join(other[:10]) if other else ''}")
    return 1 if other else 0


if __name__ == "__main__":
    sys.exit(main())
