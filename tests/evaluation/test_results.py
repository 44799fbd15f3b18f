"""Rows and figures of a test: by kind, over samples, on two ranks as on one, and what the files hold."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from project.evaluation.grouped import ResultMetrics
from project.evaluation.metrics import SCORES, Estimate, score_episode
from project.evaluation.results import ResultsFile, episode_row
from project.files import read_rows
from project.modules.measuring import over_samples
from project.records import Episode, FinishReason, Message, Question, Turn
from project.rewards.answer import AnswerReward


def _row(
    number: int, *, right: bool, kind: str = "one_hop", needs: bool | None = True, searched: bool = True
) -> dict[str, Any]:
    question = Question(f"q{number}", "Which?", ("a b",), ("p",), needs, kind, group=f"g{number // 2}")
    messages = (Message("user", "Question: Which?"), Message("assistant", "<answer>\na b\n</answer>"))
    turns = (Turn((1, 2), (3,), (-0.5,), 0, True, True),)
    queries, found = (("x",), (("p", "r"),)) if searched else ((), ())
    made = Episode(question, turns, messages, FinishReason.ANSWER, "a b" if right else "c", queries, found)
    probability = 0.9 if searched else 0.2
    return episode_row(made, 0, score_episode(made, AnswerReward(), probability))


ROWS = [
    _row(0, right=True),
    _row(1, right=False),
    _row(2, right=True, kind="two_hop", needs=False, searched=False),
    _row(3, right=True, kind="two_hop", needs=False),
    _row(4, right=False, kind="", needs=None, searched=False),
]


def _figures(rows: list[dict[str, Any]]) -> tuple[dict[str, Estimate], int]:
    metrics = ResultMetrics(SCORES)
    metrics.kinds = ("one_hop", "two_hop")
    for row in rows:
        metrics.take(row)
    return metrics.compute()


def test_figures_by_hand() -> None:
    figures, count = _figures(ROWS)
    assert count == 5
    assert (figures["em"].mean, figures["em"].n) == (0.6, 5)
    assert figures["em_one_hop"][::3] == (0.5, 2)
    assert figures["em_two_hop"][::3] == (1.0, 2)
    # Needed and done twice, not needed and not done once: 3 of 4 right.
    assert figures["decision_accuracy"][::3] == (0.75, 4)
    assert figures["decision_majority"].mean == 0.5
    # Of four pairs of needed (0.9, 0.9) and not (0.2, 0.9) two are right and two tied.
    assert figures["decision_auroc"].mean == 0.75
    assert figures["evidence_precision"][::3] == (0.5, 3)
    assert "verdict" not in figures, "nobody was asked"
    assert figures["em"].low < 0.6 < figures["em"].high


def _rank(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    uneven, nothing = ROWS[:4] if rank == 0 else ROWS[4:], ROWS if rank == 0 else []
    found = [_figures(uneven), _figures(nothing)]
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_two_ranks_have_the_figures_of_one(tmp_path: Path, free_port: int) -> None:
    """One with other numbers of rows, and one with none."""
    torch.multiprocessing.start_processes(_rank, (free_port, str(tmp_path)), 2, start_method="fork")
    expected = json.loads(json.dumps(_figures(ROWS)))
    for rank in (0, 1):
        uneven, nothing = json.loads((tmp_path / f"{rank}.json").read_text())
        assert uneven == nothing == expected


def test_samples_of_a_question() -> None:
    """The third question's first sample failed: what its other one got stands there, and pass@2 is not known."""
    scores = [{"em": value} for value in (1.0, 0.0, 0.0, 0.0, math.nan, 1.0, math.nan, math.nan)]
    found = over_samples(scores, 2)
    average, best = ([row[name] for row in found] for name in ("avg_at_2", "pass_at_2"))
    assert {i: value for i, value in enumerate(average) if not math.isnan(value)} == {0: 0.5, 2: 0.0, 5: 1.0}
    assert {i: value for i, value in enumerate(best) if not math.isnan(value)} == {0: 1.0, 2: 0.0}
    assert over_samples(scores, 1) == [{}] * 8


def test_the_files(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path)
    file.extend(ROWS[:2])
    assert not (tmp_path / "results.parquet").exists()
    file.extend(ROWS[2:])
    figures, count = _figures(ROWS)
    rows_path, summary_path = file.finish(figures, {"task": "agent", "n": count})
    rows = [row for _, row in read_rows(rows_path)]
    assert [row["question_id"] for row in rows] == [f"q{i}" for i in range(5)]
    assert rows[0]["messages"] == ROWS[0]["messages"]
    assert (rows[0]["group"], rows[0]["needs_search"], rows[4]["needs_search"]) == ("g0", True, None)
    assert math.isnan(rows[4]["decision_accuracy"])
    summary = json.loads(summary_path.read_text())
    assert summary["task"] == "agent"
    assert summary["metrics"]["em"] == figures["em"]._asdict()


def test_a_test_that_fails_leaves_no_file(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path / "run")
    file.extend(ROWS)
    file.close()
    assert not (tmp_path / "run").exists()


def test_trap_09_a_failure_of_the_environment_is_no_score() -> None:
    failed = Episode(Question("q", "?", ("x",)), (), (), FinishReason.TOOL_ERROR, error="down")
    row = episode_row(failed, 0, dict.fromkeys(SCORES, math.nan))
    assert (row["finish"], row["error"]) == ("tool_error", "down")
    assert all(math.isnan(row[name]) for name in SCORES)


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
