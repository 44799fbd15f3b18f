"""The real vLLM as a teacher in this machine's processes, on the real model."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def said(default_model_dir):
    if importlib.util.find_spec("vllm") is None:
        reason = "vLLM is not installed"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    command = [sys.executable, str(Path(__file__).with_name("teacher_vllm.py")), str(default_model_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Exception ignored" not in done.stderr
    return json.loads(lines[-1].removeprefix("RESULT "))


def test_it_answers_in_its_own_template(said):
    assert "Paris" in said["greedy"]["text"]
    assert said["greedy"]["finish"] in ("stop", "length")
    assert said["greedy"]["prompt_tokens"] > 10
    assert 0 < said["greedy"]["completion_tokens"] <= 24


def test_the_seed_decides(said):
    assert said["one"]["text"] == said["again"]["text"]
    assert said["one"]["text"] != said["two"]["text"]


def test_a_stop_is_not_part_of_the_reply(said):
    assert said["stopped"]["finish"] == "stop"
    assert said["greedy"]["text"].startswith(said["stopped"]["text"])
    assert "capital" not in said["stopped"]["text"]


def test_a_reply_holds_to_its_schema(said):
    assert list(json.loads(said["json"]["text"])) == ["city"]
