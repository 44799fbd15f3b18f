"""Runs side by side: what differs, intervals, and the paired test against numbers worked by hand."""

import json
from pathlib import Path

import pytest
from pytest import CaptureFixture, approx

from project.cli import main
from project.errors import InputError
from project.tracking.compare import metric_rows
from project.tracking.paired import paired_bootstrap, read_scores
from project.tracking.store import client


def _run(name: str, em: dict[str, list[float]], parent: str = "", **params: str) -> str:
    store = client()
    experiment = store.get_experiment_by_name("seeker")
    experiment_id = experiment.experiment_id if experiment else store.create_experiment("seeker")
    run_id = store.create_run(experiment_id, run_name=name, tags={"seeker.parent": parent} if parent else {}).info.run_id
    for key, value in params.items():
        store.log_param(run_id, key, value)
    store.log_metric(run_id, "test/em", sum(sum(values) for values in em.values()) / sum(map(len, em.values())))
    rows = [{"question_id": key, "em": value} for key, values in em.items() for value in values]
    store.log_text(run_id, "".join(json.dumps(row) + "\n" for row in rows), "scores.jsonl")
    return str(run_id)


@pytest.fixture(autouse=True)
def _artifacts_in_tmp(tmp_path: Path, store: Path) -> None:
    client().create_experiment("seeker", artifact_location=(tmp_path / "artifacts").as_uri())


def test_paired_bootstrap_by_hand() -> None:
    # Always one better: every resample has mean 1, moved to 0; none is as far from 0 as 1, so p = (1 + 0) / 10,001.
    assert paired_bootstrap([1.0, 1.0, 1.0]) == (1.0, 1.0, 1.0, approx(1 / 10_001))
    # No difference: every resample is as far from 0 as 0 is.
    assert paired_bootstrap([0.0, 0.0]) == (0.0, 0.0, 0.0, 1.0)
    # (1, 0): the resamples have means 0, 1/2, 1 with shares 1/4, 1/2, 1/4; moved by 1/2 the outer two are as far: p = 1/2.
    mean, low, high, p = paired_bootstrap([1.0, 0.0])
    assert (mean, low, high) == (0.5, 0.0, 1.0)
    assert p == approx(0.5, abs=0.02)
    # (1, 1, 1, -1): mean 1/2; a resample with k of -1 has mean 1 - k/2, moved to 1/2 - k/2: as far for k = 0, 2, 3, 4, that
    # is all but k = 1, whose share is 4 * 1/4 * (3/4)^3 = 27/64: p = 37/64 = 0.578.
    assert paired_bootstrap([1, 1, 1, -1])[3] == approx(37 / 64, abs=0.02)
    # two groups of ten samples: a resample draws both 0, both 1 (a quarter each) or one of each
    assert paired_bootstrap([0.0] * 10 + [1.0] * 10, groups=["a"] * 10 + ["b"] * 10)[:3] == (0.5, 0.0, 1.0)
    assert paired_bootstrap([0.0] * 10 + [1.0] * 10)[1] > 0.2
    assert paired_bootstrap([1, 0, 1], seed=3) == paired_bootstrap([1, 0, 1], seed=3)
    with pytest.raises(InputError, match="share no question"):
        paired_bootstrap([])


def test_trap_19_metrics_have_n_and_an_interval() -> None:
    metrics = {"test/em": 0.8125, "test/em_low": 0.75, "test/em_high": 0.87, "test/n": 200.0}
    rows = metric_rows([metrics, {"loss": 2.0}])
    assert rows["test/em"] == ["0.8125 [0.75, 0.87] n=200", "-"]
    assert "test/em_low" not in rows
    assert rows["loss"] == ["-", "2"]


def test_trap_19_compare_pairs_runs_by_question(tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    # Common questions a, b, c: SFT - base = 1 - 0, 1 - 0, 1 - 0; in base `c` was asked twice with mean 0, `d` is not common.
    base = _run("base", {"a": [0.0], "b": [0.0], "c": [0.0, 0.0], "d": [1.0]}, lr="0.1", seed="0")
    _run("sft", {"a": [1.0], "b": [1.0], "c": [1.0]}, parent=base, lr="0.2", seed="0")
    assert main(["compare", "base", "sft", "--output_file", str(tmp_path / "out.json")]) == 0
    shown = capsys.readouterr().out
    [line] = [line for line in shown.splitlines() if "test/em" in line]  # base: (0 + 0 + 0 + 0 + 1) / 5
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    assert cells == ["test/em", "0.2", "1", "+1.000 [+1.000, +1.000] n=3 p=0.0001"]
    assert "sft - base, paired" in shown
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["parameters"] == {"lr": ["0.1", "0.2"]}
    assert report["paired"] == [
        {
            "run": "sft",
            "against": "base",
            "metric": "em",
            "n": 3,
            "difference": 1.0,
            "low": 1.0,
            "high": 1.0,
            "p": approx(1 / 10_001),
        }
    ]
    assert report["runs"][1]["seeker.parent"] == base


def test_runs_of_one_name_are_not_mixed_up(capsys: CaptureFixture[str]) -> None:
    # a: 0 then 1 then 1; differences of neighbours +1 and 0.
    ids = [_run("seed", {"a": [value]}) for value in (0.0, 1.0, 1.0)]
    assert main(["compare", *ids]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "test/em" in line]
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    assert [cell.split(" ")[0] for cell in cells[-2:]] == ["+1.000", "+0.000"]


def test_runs_without_scores_say_so(capsys: CaptureFixture[str]) -> None:
    assert main(["compare", _run("a", {"x": [0.0]}), _run("b", {"y": [1.0]})]) == 0
    assert "no two neighbours kept scores" in " ".join(capsys.readouterr().out.split())


def test_runs_and_lineage(capsys: CaptureFixture[str]) -> None:
    base = _run("base", {"a": [0.0]})
    _run("sft", {"a": [1.0]}, parent=base)
    assert main(["runs"]) == 0
    assert base in capsys.readouterr().out
    assert main(["lineage", "sft"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("sft") < shown.index("parent") < shown.index(f"base {base}")


def test_one_run_is_not_a_comparison(capsys: CaptureFixture[str]) -> None:
    _run("base", {"a": [0.0]})
    assert main(["compare", "base"]) == 2
    assert main(["compare", "base", "bsae"]) == 1
    assert "closest: base" in capsys.readouterr().err


def test_scores_without_questions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text('{"em": 1.0}\n')
    with pytest.raises(InputError, match="row 1: no question_id"):
        read_scores(path)
