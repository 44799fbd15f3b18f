"""vLLM's engine where there is no vLLM, and what killed runs leave in shared memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from project.errors import EngineError
from project.rollouts.engines import vllm, weights


def test_weights_of_dead_processes_are_removed_and_of_living_ones_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    monkeypatch.setattr(weights, "shared_folder", lambda: shared)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = [f"{weights.PREFIX}{ended.pid}-a", f"{weights.PREFIX}{os.getpid()}-b", f"{weights.PREFIX}x-c", "of-another"]
    for name in names:
        (shared / name).mkdir(parents=True)
        (shared / name / "model.safetensors").touch()
    weights.remove_left_behind()
    assert sorted(path.name for path in shared.iterdir()) == sorted(names[1:])


def test_a_missing_vllm_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # `import vllm` raises ImportError
    with pytest.raises(EngineError, match=r"^vLLM is not installed .*; run scripts/setup\.sh, or choose engine: transformers$"):
        vllm.VLLMEngine("nowhere", 128)
