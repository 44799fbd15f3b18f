"""`seeker demo --engine vllm`: what its model does with the real vLLM on the real model."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def result(default_model_dir):
    if importlib.util.find_spec("vllm") is None:
        reason = "vLLM is not installed"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    script = Path(__file__).with_name("demo_vllm.py")
    done = subprocess.run(
        [sys.executable, str(script), str(default_model_dir)], capture_output=True, text=True, timeout=1000, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(lines[-1].removeprefix("RESULT "))


def test_a_person_sees_each_token_as_it_comes(result):
    assert result["seen"] == result["ids"]
    assert len(result["ids"]) == 96
    assert result["moments_apart"] > 10, "not a whole turn at once"
    assert "1." in result["text"] or "countr" in result["text"].lower()


def test_it_stops_in_the_middle_of_a_turn_and_answers_the_next(result):
    how, seconds, tokens = result["stopped"]
    assert how == "Stopped"
    assert seconds < 5
    assert 8 <= tokens < 400


def test_two_people_at_once_are_told_what_one_is(result):
    assert len(result["together"]) == 2
    for ids in result["together"]:
        assert len(ids) == 96
        same = sum(one == other for one, other in zip(ids, result["ids"], strict=True))
        assert same > 20, "greedy, but for the rounding of a batch"
