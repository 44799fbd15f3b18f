"""Where an update of PPO spends its time, and what rolling out beside the update before gains.

    python scripts/benchmarks/updates.py --config experiments/learning/ppo.yaml --output_file updates.json

Runs `seeker fit` with the config in turns, `ppo.overlap` off and on, each a process of its own with a store of its own, for
`--updates` updates without validation, `--rounds` times. Figures are of updates that trained something, the first of them in
a run left out: seconds an update (mean), and shares of its time: generation (the engine writes at least one turn),
log-probabilities (old ones, the reference's and values), update (forward, backward, step), sync, and idle (a rollout's time in
which nothing was written). With overlap generation runs beside the others, and the shares add up to more than 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WAYS = {"one after the other": "false", "overlap": "true"}
TIMES = ("rollout", "logprobs", "train", "sync", "idle", "update")
Figures = dict[str, float]


def run(arguments: argparse.Namespace, overlap: str) -> Figures:
    """Train some updates; return the mean seconds of an update's parts, and its tokens."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        words = ["--trainer.logger.run_name", "updates", "--trainer.default_root_dir", f"{folder}/run"]
        words += ["--trainer.limit_train_batches", str(arguments.updates), "--trainer.limit_val_batches", "0"]
        words += ["--model.ppo.overlap", overlap, *arguments.words]
        command = [sys.executable, "-m", "project", "fit", "--config", str(arguments.config), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        from project.tracking.store import find_run, metric_curve

        ident = find_run("updates").info.run_id
        curves = {name: metric_curve(ident, f"time/{name}_s") for name in TIMES}
        tokens = metric_curve(ident, "train/generated_tokens")
    told = sorted(curves["logprobs"])[1:]
    found = {name: statistics.mean(curve[step] for step in told) for name, curve in curves.items()}
    return found | {"tokens_an_episode": statistics.mean(tokens[step] for step in told), "updates": len(told)}


def shares(found: Figures) -> Figures:
    """Return seconds an update, and the shares of its time."""
    parts = {
        "generation": found["rollout"] - found["idle"],
        "log-probabilities": found["logprobs"],
        "update": found["train"] - found["logprobs"],
        "sync": found["sync"],
        "idle": found["idle"],
    }
    kept = {name: found[name] for name in ("updates", "tokens_an_episode")}
    return {"seconds": found["update"]} | {name: seconds / found["update"] for name, seconds in parts.items()} | kept


def main() -> None:
    """Measure both ways in turns and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output_file", type=Path, required=True)
    arguments, arguments.words = parser.parse_known_args()
    rounds: dict[str, list[Figures]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way, overlap in WAYS.items():
            rounds[way].append(shares(run(arguments, overlap)))
    medians = {way: {name: statistics.median(r[name] for r in found) for name in found[0]} for way, found in rounds.items()}
    arguments.output_file.write_text(json.dumps({"ways": medians, "rounds": rounds}, indent=1) + "\n")
    print(json.dumps(medians, indent=1))


if __name__ == "__main__":
    main()
