"""Whether the training reward rises: slope and interval against numbers worked by hand."""

import json
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import pytest
from pytest import CaptureFixture, approx

from project.cli import main
from project.errors import TrackingError
from project.tracking.paired import mean_scores
from project.tracking.store import client
from project.tracking.trend import pooled_trend, trend
from project.writing import write_rows


@pytest.fixture(autouse=True)
def _store(store: object) -> None:
    del store


def test_trend_by_hand() -> None:
    # 0, 2, 1 at 0, 1, 2: slope sum((x - 1)(y - 1)) / sum((x - 1)^2) = (1 + 0 + 0) / 2 = 1/2; line 1/2, 1, 3/2; residuals
    # -1/2, 1, -1/2: s^2 = 1.5 / (3 - 2), standard error sqrt(1.5 / 2); t with 1 degree of freedom at 97.5 % = 12.7062.
    found = trend({7: 1.0, 3: 2.0, 1: 0.0})
    assert found is not None
    reach = 12.7062 * (1.5 / 2) ** 0.5
    assert (found.first, found.last, found.n) == (0.0, 1.0, 3)
    assert (found.slope, found.low, found.high) == (approx(0.5), approx(0.5 - reach, rel=1e-4), approx(0.5 + reach, rel=1e-4))
    assert str(found) == "0.000 to 1.000, +0.5000 [-10.5039, +11.5039] n=3"
    assert trend({0: 0.0, 1: 1.0}) is None


def test_pooled_trend_by_hand() -> None:
    """0, 1, 2 and 10, 10, 13, each about its mean: -1 0 1 and -1 -1 2 over places -1 0 1, so slope (2 + 3) / 4 = 1.25.

    Residuals 0.25 0 -0.25 and 0.25 -1 0.75: squares 1.75 over 6 - 2 - 1 = 3 degrees, error sqrt(1.75 / 3 / 4) = 0.3819;
    t(0.975, 3) = 3.1824.
    """
    found = pooled_trend([{5: 0.0, 6: 1.0, 9: 2.0}, {0: 10.0, 1: 10.0, 2: 13.0}])
    assert (found.first, found.last, found.slope, found.n) == (5.0, 7.5, approx(1.25), 6)
    assert (found.low, found.high) == (approx(1.25 - 3.1824 * 0.3819, abs=1e-3), approx(1.25 + 3.1824 * 0.3819, abs=1e-3))
    one = {0: 1.0, 1: 2.0, 2: 2.0, 3: 4.0}
    expected = trend(one)
    assert expected is not None
    assert astuple(pooled_trend([one])) == approx(astuple(expected))
    with pytest.raises(TrackingError, match="at least 3 values, got \\[3, 2\\]"):
        pooled_trend([{0: 0.0, 1: 1.0, 2: 2.0}, {0: 1.0, 1: 2.0}])


def test_mean_scores_by_hand() -> None:
    runs = [{"em": {"a": 1.0, "b": 0.0}, "f1": {"a": 1.0}}, {"em": {"a": 0.0, "b": 0.0, "c": 1.0}}]
    assert mean_scores(runs) == {"em": {"a": 0.5, "b": 0.0}}


def test_what_seeds_show_together(tmp_path: Path) -> None:
    of = client()
    experiment = of.create_experiment("seeker", artifact_location=(tmp_path / "artifacts").as_uri())

    def run(name: str, rewards: list[float], parent: str | None = None) -> str:
        run_id = str(of.create_run(experiment, run_name=name).info.run_id)
        write_rows(tmp_path / "scores.jsonl", ({"question_id": f"q{i}", "reward": r} for i, r in enumerate(rewards)))
        of.log_artifact(run_id, str(tmp_path / "scores.jsonl"))
        if parent:
            of.set_tag(run_id, "seeker.parent", parent)
        return run_id

    run("sft", [0.0, 0.0, 1.0])
    for seed, reward in ((0, 1.0), (1, 0.0)):
        ppo = of.create_run(experiment, run_name=f"ppo{seed}").info.run_id
        for step in range(3):
            of.log_metric(ppo, "train/reward", step / 2, step=step)
        run(f"test{seed}", [reward, 1.0, 1.0], ppo)
    script = Path(__file__).resolve().parents[2] / "scripts" / "seeds.py"
    words = [sys.executable, str(script), "--against", "sft", "test0"]
    done = subprocess.run([*words, "test1"], capture_output=True, text=True, check=True)
    assert "reward               +0.500 [" in done.stdout
    assert "training reward of ppo0, ppo1: 0.000 to 1.000, +0.5000 [+0.5000, +0.5000] n=6" in done.stdout
    wrong = subprocess.run([*words, "nowhere"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)


def test_compare_shows_the_training_reward_of_what_a_run_was_made_from(tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    of = client()
    experiment = of.create_experiment("seeker")
    sft, ppo, test = (of.create_run(experiment, run_name=name).info.run_id for name in ("sft", "ppo", "test"))
    of.set_tag(ppo, "seeker.parent", sft)
    of.set_tag(test, "seeker.parent", ppo)
    for time, (step, value) in enumerate(((1, 9.0), (1, 0.25), (2, 0.5), (3, 0.75))):  # a resume logged step 1 again
        of.log_metric(ppo, "train/reward", value, step=step, timestamp=time)
    report = tmp_path / "report.json"
    assert main(["compare", "sft", "test", "--output_file", str(report)]) == 0
    assert [run["train/reward"] for run in json.loads(report.read_text())["runs"]] == [
        None,
        {"run": "ppo", "first": 0.25, "last": 0.75, "slope": 0.25, "low": 0.25, "high": 0.25, "n": 3},
    ]
    [line] = [line for line in capsys.readouterr().out.splitlines() if "slope an update" in line]
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    assert cells[1:3] == ["-", "0.250 to 0.750, +0.2500 [+0.2500, +0.2500] n=3 of ppo"]


def test_a_run_whose_parent_is_in_another_store_is_compared_all_the_same(capsys: CaptureFixture[str]) -> None:
    of = client()
    experiment = of.create_experiment("seeker")
    for name in ("a", "b"):
        run_id = of.create_run(experiment, run_name=name).info.run_id
        of.set_tag(run_id, "seeker.parent", "0123456789abcdef0123456789abcdef")
    assert main(["compare", "a", "b"]) == 0
    assert "slope an update" not in capsys.readouterr().out
