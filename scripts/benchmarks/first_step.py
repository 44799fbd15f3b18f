"""Time a training from its command to its first optimizer step: with nothing in the cache of samples, and again.

    python scripts/benchmarks/first_step.py -- --config experiments/squad/sft.yaml

What follows `--` is given to `seeker fit`. It does three steps; the times are those at which MLflow was told of each. `start`
is the time to the end of the first step less what the second took. Prints one JSON line a run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from project.model_cache import model_folder


def timed(arguments: list[str], scratch: Path, name: str) -> dict[str, float]:
    """Run three steps; return the seconds to the end of the first, of the second, and between them."""
    from mlflow.tracking import MlflowClient

    store = f"sqlite:///{scratch}/{name}.db"
    changed = {"MLFLOW_TRACKING_URI": store, "XDG_CACHE_HOME": str(scratch / "cache")}
    options = ["--trainer.max_steps=3", "--trainer.log_every_n_steps=1", f"--trainer.default_root_dir={scratch}/{name}"]
    started = time.time()
    subprocess.run(
        [sys.executable, "-m", "project", "fit", *arguments, *options],
        env=os.environ | changed,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    client = MlflowClient(store)
    run = client.search_runs([one.experiment_id for one in client.search_experiments()])[0]
    first, second = (
        metric.timestamp / 1000 - started for metric in client.get_metric_history(run.info.run_id, "train/loss")[:2]
    )
    return {
        "start_s": round(first - (second - first), 2),
        "first_step_s": round(first, 2),
        "a_step_s": round(second - first, 2),
    }


def main() -> None:
    """Print the times of a training with an empty cache, then with a full one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="+")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        models = scratch / "cache" / "seeker" / "models"
        models.parent.mkdir(parents=True)
        models.symlink_to(model_folder().parent)
        for name in ("first", "cached"):
            print(json.dumps({"run": name} | timed(given.arguments, scratch, name)), flush=True)


if __name__ == "__main__":
    main()
