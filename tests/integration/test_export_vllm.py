"""An exported folder of the default model in the real vLLM: the log-probabilities of the checkpoint that it is of."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from project.cli import main
from project.dialects import Action, get_dialect
from project.modules.sft import SFT
from project.records import Conversation, Document
from project.writing import write_rows

pytestmark = pytest.mark.slow
DIALECT = get_dialect("tags")


def conversation(n):
    search = Action("I look it up.", (f"discoverer of element {n}",))
    found = DIALECT.results([[Document(f"Element {n} was found in {1700 + n}.", f"Element {n}")]], search)
    answer = DIALECT.write(Action("It says so.", answer=str(1700 + n)))
    opening = DIALECT.opening(f"When was element {n} found?")
    return Conversation(f"c{n}", (*opening, DIALECT.write(search), *found, answer)).to_row()


@pytest.fixture
def trained(default_model_dir, tmp_path, monkeypatch):
    """SFT of the default model on eight conversations by the command line: eight steps that move it far from its base."""
    if importlib.util.find_spec("vllm") is None:
        reason = "vLLM is not installed"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    for name, numbers in {"train": range(8), "validation": range(20, 22)}.items():
        write_rows(f"{name}.jsonl", [conversation(n) for n in numbers])
    model = {"lora": {"rank": 8, "alpha": 16}, "learning_rate": 2e-3, "model_path": str(default_model_dir)}
    config = {
        "model": {"class_path": f"{SFT.__module__}.SFT", "init_args": model},
        "data": {
            "class_path": "ConversationDataModule",
            "init_args": {"train_file": "train.jsonl", "validation_file": "validation.jsonl", "micro_tokens": 600},
        },
        "trainer": {"accelerator": "cpu", "max_steps": 8, "enable_progress_bar": False, "default_root_dir": "sft"},
    }
    Path("sft.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "sft.yaml"]) == 0
    return tmp_path / "sft"


@pytest.mark.skipif(torch.cuda.is_available(), reason="its bound is of vLLM's CPU build")
def test_vllm_gives_the_checkpoints_own_logprobs(trained, default_model_dir, tmp_path):
    """A trained adapter with rows of new tokens: merged, bf16 rounds each weight once, and vLLM's kernels sum otherwise."""
    assert main(["export", "sft", "--to", str(tmp_path / "out")]) == 0
    script = Path(__file__).with_name("export_vllm.py")
    words = [sys.executable, str(script), str(trained / "checkpoints/last.ckpt"), str(default_model_dir), str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    print(lines[-1])
    for found in json.loads(lines[-1].removeprefix("RESULT ")):
        assert found["new"] == 1, "<|SEARCH|> is compared"
        assert found["gap"] < 0.05, "bf16 rounding is about 0.03 nats a token"
        assert found["gap_new"] < 0.3, "of one token, whose logit is near 28: there two steps of bf16 are 0.25"
        assert found["gap_new_to_base"] > 1
        assert found["gap_to_base"] > 20 * found["gap"], "the check must be able to see the base"
