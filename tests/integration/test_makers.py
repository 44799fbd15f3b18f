"""The six makers for real: vLLM's own server on the real model, by the benchmark's script; what each is given is counted."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).resolve().parents[2] / "scripts/benchmarks/makers.py"
ROWS = 6


@pytest.fixture(scope="module")
def found(default_model_dir, tmp_path_factory):
    if importlib.util.find_spec("vllm") is None:
        reason = "vLLM is not installed"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    folder = tmp_path_factory.mktemp("makers")
    command = [sys.executable, str(SCRIPT), "--folder", str(folder), "--rows", str(ROWS), "--teacher", str(default_model_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_row_gives_something_or_is_rejected(found):
    """A model so small may write no question at all; then the command says so."""
    made = {one["maker"]: one for one in found if "maker" in one}
    assert list(made) == ["qas", "distill", "questions", "paraphrase", "summaries"]
    makers = {name: one["counts"] for name, one in made.items() if "counts" in one}
    assert {"distill", "paraphrase", "summaries"} <= makers.keys()
    kept = {
        "qas": ["rows written"],
        "distill": ["questions answered", "questions without a kept conversation"],
        "summaries": ["samples written"],
    }
    for name, counts in makers.items():
        lost = sum(count for what, count in counts.items() if what.startswith("rows rejected"))
        if name in kept:
            assert sum(counts.get(what, 0) for what in kept[name]) + lost == counts["rows read"]
        assert counts["reply tokens"] > 0
    assert makers["distill"]["rows read"] == makers["paraphrase"]["rows read"] == ROWS
    assert makers["paraphrase"]["requests"] >= 3 * ROWS, "one a style"


def test_what_was_made_for_training_trains(found):
    trained = {one["trained"]: one for one in found if "trained" in one}
    assert {"qas_conversations.jsonl", "distilled.jsonl", "phases/summary_only.jsonl"} <= trained.keys()
    assert all(one["steps"] == (2 if one["rows"] else 0) for one in trained.values())
    assert any(one["rows"] for one in trained.values()), "samples that nothing stands before need no summary"
