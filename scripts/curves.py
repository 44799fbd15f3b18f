"""Learning curves of runs as one picture: the training reward's running mean, held-out EM, KL and entropy by update.

    python scripts/curves.py RUN [RUN …] --output_file experiments/learning/curves.svg

Runs are named as in `seeker compare`. Values come from the store; of a step logged twice the last counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from project.tracking.store import find_run, metric_curve

PANELS = {
    "train/reward": "training reward, running mean of 10",
    "val/em": "held-out EM (validation)",
    "ppo/kl": "KL to the start, nats a token",
    "ppo/entropy": "entropy, nats",
}
SMOOTHED = {"train/reward": 10, "ppo/kl": 10, "ppo/entropy": 10}
"""Updates in a running mean."""


def running_mean(values: list[float], width: int) -> list[float]:
    """Return the mean of the last `width` values at each, of fewer at the start.

    >>> running_mean([1.0, 3.0, 5.0], 2)
    [1.0, 2.0, 4.0]
    """
    parts = [values[max(0, i + 1 - width) : i + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def main() -> None:
    """Draw."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--output_file", type=Path, required=True)
    arguments = parser.parse_args()
    plt.rcParams["svg.hashsalt"] = "seeker"
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.5), layout="constrained")
    for (metric, title), axis in zip(PANELS.items(), axes.flat, strict=True):
        for name in arguments.runs:
            curve = metric_curve(find_run(name).info.run_id, metric)
            steps, values = [step + 1 for step in curve], running_mean(list(curve.values()), SMOOTHED.get(metric, 1))
            axis.plot(steps, values, label=name, marker="o" if metric not in SMOOTHED else None)
        axis.set(title=title, xlabel="update")
        axis.grid(alpha=0.3)
    axes.flat[0].legend()
    arguments.output_file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output_file, metadata={"Date": None} if arguments.output_file.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
