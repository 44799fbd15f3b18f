"""What several seeds of one setting show together: their tests against one run, and the slope of their training reward.

    python scripts/seeds.py --against quickstart-test-sft test-ppo-seed0 test-ppo-seed1 test-ppo-seed2

Each question's scores are averaged over the seeds and compared with those of `--against`, question by question: the interval is
over questions, and says nothing of seeds that were not run. The slope is shared by the trainings that the models came from.
"""

from __future__ import annotations

import argparse
import sys

from mlflow.entities import Run

from project.errors import SeekerError
from project.tracking.compare import run_kept
from project.tracking.paired import Scores, mean_scores, paired_results
from project.tracking.store import find_run, metric_curve, quiet
from project.tracking.trend import TRAINED, pooled_trend, trained_reward


def main() -> int:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", required=True, help="the test run that all are compared with")
    parser.add_argument("runs", nargs="+", help="test runs, one a seed")
    given = parser.parse_args()
    quiet()
    try:
        runs = [find_run(name) for name in given.runs]
        for result in paired_results(_scores(find_run(given.against)), mean_scores([_scores(run) for run in runs])):
            change = f"{result.difference:+.3f} [{result.low:+.3f}, {result.high:+.3f}]"
            print(f"{result.metric:20} {change} n={result.n} p={result.p:.4f}")
        trained = [found[0] for run in runs if (found := trained_reward(run))]
        curves = [metric_curve(find_run(name).info.run_id, TRAINED) for name in trained]
        print(f"training reward of {', '.join(trained)}: {pooled_trend(curves)}")
    except SeekerError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    return 0


def _scores(run: Run) -> Scores:
    kept = run_kept(run)
    return {} if kept is None else kept.scores


if __name__ == "__main__":
    sys.exit(main())
