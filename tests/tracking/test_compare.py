"""Runs side by side: what differs, intervals, and the paired test against numbers worked by hand."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest import CaptureFixture, approx
from scipy.stats import binomtest

from project.cli import main
from project.errors import InputError, TrackingError
from project.tracking.compare import metric_rows
from project.tracking.curves import Curves, Histories, sparkline, thinned
from project.tracking.paired import paired_bootstrap, read_scores
from project.tracking.select import select_run, select_runs
from project.tracking.store import client
from project.writing import write_rows


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
    # Always one better: the sum is 3, and of 8 ways to give three ones signs two have a sum as far from 0: p = 1/4.
    assert paired_bootstrap([1.0, 1.0, 1.0]) == (1.0, 1.0, 1.0, 0.25)
    assert paired_bootstrap([0.0, 0.0]) == (0.0, 0.0, 0.0, 1.0)
    # (1, 0): the resamples have means 0, 1/2, 1; with t of one degree of freedom, 12.706 / 1.96, and the root of 2 the ends are
    # 0.5 * 6.483 * 1.4142 = 4.584 from the mean. All four signs leave a sum of 1: p = 1.
    assert paired_bootstrap([1.0, 0.0]) == (0.5, approx(-4.084, abs=1e-3), approx(5.084, abs=1e-3), 1.0)
    # (1, 1, 1, -1): the sum is 2; of 16 ways those with one sign unlike the others or none leave |sum| >= 2: 2 + 8 = 10.
    assert paired_bootstrap([1, 1, 1, -1])[3] == 10 / 16
    # two groups of ten samples have two sums: (0, 10), as (1, 0) above
    assert paired_bootstrap([0.0] * 10 + [1.0] * 10, groups=["a"] * 10 + ["b"] * 10) == paired_bootstrap([1.0, 0.0])
    assert paired_bootstrap([0.0] * 10 + [1.0] * 10)[1] > 0.2
    assert paired_bootstrap([1, 0, 1], seed=3) == paired_bootstrap([1, 0, 1], seed=3)
    # one group says nothing: no interval, and p = 1
    assert str(paired_bootstrap([0.3, 0.4], groups=["a", "a"])[1:]) == "(nan, nan, 1.0)"
    # 16 times one better, by drawn signs: 2 of 2^16 ways, so hardly ever drawn; p is never 0
    assert paired_bootstrap([1.0] * 16)[3] < 0.001


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=14, max_size=40))
def test_drawn_signs_say_what_a_sign_test_says(differences: list[float]) -> None:
    wins, losses = differences.count(1.0), differences.count(-1.0)
    exact = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert paired_bootstrap(differences)[3] == approx(exact, abs=0.03)


def test_nothing_in_common_is_refused() -> None:
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
    assert cells == ["test/em", "0.2", "1", "+1.000 [+1.000, +1.000] n=3 p=0.2500"]
    assert "sft - base, paired" in shown
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["parameters"] == {"lr": ["0.1", "0.2"]}
    assert report["paired"] == [
        {
            "run": "sft",
            "against": "base",
            "metric": "em",
            "n": 3,
            "groups": 3,
            "difference": 1.0,
            "low": 1.0,
            "high": 1.0,
            "p": 0.25,
        }
    ]
    assert report["runs"][1]["seeker.parent"] == base


def test_compare_tests_the_figures_of_decisions_in_pairs(tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    # The first run searches always, macro-F1 (4/6 + 0) / 2; the second as it should. See `evaluation/test_paired_decisions.py`.
    needed, found = (True, True, False, False), tmp_path / "results.parquet"
    for name, searched, macro_f1 in (("base", (1, 1, 1, 1), 1 / 3), ("sft", (1, 1, 0, 0), 1.0)):
        rows = [
            {"question_id": f"q{number}", "group": f"q{number}", "needs_search": needs, "search_probability": 0.5}
            | {"decision_accuracy": float(did == needs)}
            for number, (did, needs) in enumerate(zip(searched, needed, strict=True))
        ]
        write_rows(found, rows)
        run_id = client().create_run("1", run_name=name).info.run_id
        client().log_artifact(run_id, str(found))
        client().log_metric(run_id, "test/decision_macro_f1", macro_f1)
    assert main(["compare", "base", "sft", "--output_file", str(tmp_path / "out.json")]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "test/decision_macro_f1" in line]
    assert "+0.667" in line
    assert "n=4 p=0.5000" in line
    paired = {row["metric"]: row for row in json.loads((tmp_path / "out.json").read_text())["paired"]}
    assert paired["decision_macro_f1"]["difference"] == approx(2 / 3)


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


def test_runs_are_listed(capsys: CaptureFixture[str]) -> None:
    base = _run("base [1]", {"a": [0.0]})
    _run("sft", {"a": [1.0]}, parent=base)
    assert main(["runs"]) == 0
    shown = capsys.readouterr().out
    assert base in shown
    assert shown.count("base [1]") == 2  # itself, and the parent of the other


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


def _started(name: str, *, at: int, finished: bool = True, **tags: str) -> str:
    run_id = str(client().create_run("1", run_name=name, start_time=at, tags=tags).info.run_id)
    if finished:
        client().set_terminated(run_id)
    return run_id


def test_runs_are_meant_by_name_id_prefix_tag_and_number() -> None:
    old = _started("sft", at=1, stage="a=b")
    new = _started("sft", at=2)
    killed = _started("ppo", at=3, finished=False, stage="a=b")
    test = _started("last:9", at=4)

    def ids(*words: str) -> list[str]:
        return [run.info.run_id for run in select_runs(words)]

    assert ids("sft", old, new[:8], old) == [new, old]  # each once
    assert ids("tag:stage=a=b") == [killed, old]  # the newest first
    assert ids("last:2") == [new, test]  # the oldest first; one was not finished
    assert ids("last:3", "ppo") == [old, new, test, killed]
    assert ids("last:9") == [test]  # a name counts before what it may mean otherwise
    assert select_run(killed[:12]).info.run_id == killed


@pytest.mark.parametrize(
    ("word", "error", "said"),
    [
        ("last:0", InputError, "from 1"),
        ("last:two", InputError, "last:two"),
        ("last:4", TrackingError, "more than the 3 finished"),
        ("tag:stage", InputError, "tag:KEY=VALUE"),
        ("tag:stage=b", TrackingError, "its values are a"),
        ("tag:other=b", TrackingError, "no run has that tag"),
        ("sfft", TrackingError, "closest: sft"),
        ("abcdefg", TrackingError, "there is no run"),
        ("last:2", TrackingError, "means 2 runs"),
    ],
)
def test_a_word_that_means_no_run_or_several_is_refused(word: str, error: type[Exception], said: str) -> None:
    for at, tag in enumerate(("a", "a", "a")):
        _started("sft", at=at, stage=tag)
    with pytest.raises(error, match=said):
        select_run(word)


def test_a_prefix_of_two_ids_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [_started("a", at=1), _started("b", at=2)]
    runs = [client().get_run(ident) for ident in held]
    for run, ident in zip(runs, ("0123456789", "0123456777"), strict=True):
        run.info._run_id = ident
    monkeypatch.setattr("project.tracking.select.all_runs", lambda: runs)
    with pytest.raises(TrackingError, match=r"ids of 2 runs begin with '01234567'.*0123456789 \(a\)"):
        select_run("01234567")
    assert select_run("012345678").info.run_name == "a"
    with pytest.raises(TrackingError, match="there is no run '0123456'"):
        select_run("0123456")


def test_lines_of_blocks_by_hand() -> None:
    # Eight blocks from 0 to 8: 0 -> 0, 3.9 -> 3, 4 -> 4, 8 -> 7 (the top belongs to the last).
    assert sparkline({0: 0.0, 1: 3.9, 2: 4.0, 3: 8.0}, (0, 3), (0.0, 8.0), 4) == "▁▄▅█"
    # Two steps a cell: means 1 and 6; a step that lies outside the curve leaves a blank.
    assert sparkline({10: 0.0, 11: 2.0, 14: 6.0}, (10, 15), (0.0, 8.0), 3) == "▂ ▇"
    assert sparkline({0: 5.0}, (0, 0), (5.0, 5.0), 1) == "▅"  # no range: half way
    # One axis for both: the second run is half as long and half as high.
    curves = Curves("loss", [{0: 0.0, 1: 2.0, 2: 4.0, 3: 8.0}, {0: 4.0, 1: 0.0}])
    assert curves.lines() == ["▁▃▅█", "▅▁  "]
    # 500 steps: every third (500 / 240, rounded up), and the last.
    steps, values = thinned({step: -float(step) for step in range(500)})
    assert (steps[:3], steps[-2:], len(steps)) == ([0, 3, 6], [498, 499], 168)
    assert values[-1] == -499.0


def _trained(name: str, losses: list[tuple[int, float]], **metrics: float) -> str:
    run_id = str(client().create_run("1", run_name=name, start_time=1_000).info.run_id)
    for moment, (step, value) in enumerate(losses):
        client().log_metric(run_id, "train/loss", value, timestamp=moment, step=step)
    for metric, value in metrics.items():
        client().log_metric(run_id, metric.replace("__", "/"), value, step=1)
    client().set_tag(run_id, "dataset.train", "0123456789abcdef")
    client().set_terminated(run_id, end_time=76_000)
    return run_id


def _cells(shown: str, starts: str) -> list[list[str]]:
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    return [cells for cells in lines if cells[0] == starts or (len(cells) > 1 and cells[1] == starts)]


def test_compare_shows_cost_data_and_curves(capsys: CaptureFixture[str]) -> None:
    # a was resumed: step 1 was written as 9, later as 4; 75 s for 3 steps, 25 s a step.
    _trained("a", [(0, 8.0), (1, 9.0), (1, 4.0), (2, 0.0)], train__tokens=1200.0, memory__peak_gib=1.5, **{"test__em": 0.5})
    _trained("b", [(0, 8.0), (1, 2.0)], memory__peak_gib=2.5)
    assert main(["compare", "a", "b"]) == 0
    shown = capsys.readouterr().out
    assert _cells(shown, "wall time") == [["wall time", "1 min 15 s", "1 min 15 s"]]
    assert _cells(shown, "wall time a step") == [["wall time a step", "25 s", "37.5 s"]]
    assert _cells(shown, "trained tokens") == [["trained tokens", "1,200", "-"]]
    assert _cells(shown, "memory/peak_gib, most") == [["memory/peak_gib, most", "1.5", "2.5"]]
    assert _cells(shown, "dataset.train") == [["dataset.train", "0123456789abcdef", "0123456789abcdef"]]
    [a], [b] = _cells(shown, "a")[-1:], _cells(shown, "b")[-1:]
    assert (a, b) == (["", "a", "█▅▁", "8", "0"], ["", "b", "█▃", "8", "2"])
    assert "0 to 8, steps 0 to 2" in shown
    assert _cells(shown, "test/em") == [["test/em", "0.5", "-"]]


def test_metric_limits_what_is_shown(capsys: CaptureFixture[str]) -> None:
    _trained("a", [(0, 8.0), (1, 4.0)], test__em=0.5, test__f1=0.5, val__em=0.1)
    _trained("b", [(0, 8.0)], test__em=0.5, test__f1=0.75)
    assert main(["compare", "a", "b", "--metric", "test/*", "--metric=val/em"]) == 0
    shown = capsys.readouterr().out
    assert _cells(shown, "test/em") == [["test/em", "0.5", "0.5"]]  # shown though they agree
    assert _cells(shown, "val/em") == [["val/em", "0.1", "-"]]
    assert _cells(shown, "train/loss") == []
    assert main(["compare", "a", "b", "--metric", "test/nothing"]) == 1
    assert "no run has a metric 'test/nothing'; there are test/em" in capsys.readouterr().err
    assert main(["compare", "a", "b", "--metric", "train/loss"]) == 0
    assert "█▁" in capsys.readouterr().out


def test_html_is_escaped_and_needs_no_network(tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    evil = "<script>alert('x')</script> $x_1$ & [bold]"
    _trained(evil, [(0, 8.0), (1, 4.0), (2, 1.0)], test__em=0.5)
    other = _trained("b", [(0, 8.0), (1, 2.0), (2, float("nan"))], test__em=0.25)
    client().log_param(other, "prompt", "<img src=x onerror=alert(1)>")
    client().set_tag(other, "seeker.command", "seeker fit --config 'a&b.yaml'")
    page = tmp_path / "out" / "compare.html"
    assert main(["compare", evil, "b", "--html", str(page)]) == 0
    assert "[bold]" in capsys.readouterr().out  # nor does a name style the terminal
    text = page.read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; $x_1$ &amp; [bold]" in text
    assert "http://" not in text
    assert "https://" not in text
    assert re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?(?!#)[^"\')]', text.replace("src=x", "")) == []
    assert text.count("<svg") == 1
    assert "prefers-color-scheme: dark" in text
    for drawn in ("#4c8bf5", "#e8710a", "currentColor"):
        assert drawn in text[text.index("<svg") :]


def test_html_holds_the_paired_tests_of_all_pairs(tmp_path: Path) -> None:
    # a: 0, 1, 1 in three runs: differences of pairs (1, 0), (2, 0), (2, 1) are +1, +1, 0.
    ids = [_run(f"r{number}", {"a": [value]}) for number, value in enumerate((0.0, 1.0, 1.0))]
    page = tmp_path / "compare.html"
    assert main(["compare", *ids, "--html", str(page)]) == 0
    rows = page.read_text().split("Paired tests on shared questions")[1].split("<tr><td>")[1:]
    assert [(row[:2], row.split("<td>")[1][:2], "+1.000" in row) for row in rows] == [
        ("r1", "r0", True),
        ("r2", "r0", True),
        ("r2", "r1", False),
    ]


def test_infinity_as_mlflow_keeps_it_is_not_drawn() -> None:
    run_id = _run("infinite", {"a": [1.0]})
    for step, value in enumerate((1.0, float("inf"), float("nan"), -float("inf"), 2.0)):
        client().log_metric(run_id, "loss", value, step=step)
    assert Histories([select_run("infinite")]).of("loss") == [{0: 1.0, 4: 2.0}]
