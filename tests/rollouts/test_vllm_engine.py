"""vLLM's engine where there is no vLLM, and what killed runs leave in shared memory."""

import asyncio
import gc
import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from project.errors import EngineError
from project.rollouts.engines import Sampling, vllm, weights


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


def test_an_engine_that_runs_out_of_memory_fails_every_request_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Core:
        waiting = 0

        def add_request(self, *_: object, **__: object) -> None:
            self.waiting += 1

        def has_unfinished_requests(self) -> bool:
            return self.waiting > 0

        def step(self) -> list[object]:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    fake = SimpleNamespace(SamplingParams=SimpleNamespace, TokensPrompt=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    engine = object.__new__(vllm.VLLMEngine)
    engine._llm, engine._waiting, engine._ids = SimpleNamespace(llm_engine=Core()), {}, itertools.count()
    engine._pump = engine._adapter = None

    async def ask() -> list[object]:
        asked = (engine.generate([1, 2], Sampling(1.0, 8, (0,), seed)) for seed in range(3))
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(ask())
    assert [(type(error), str(error)) for error in found] == [
        (EngineError, "vLLM failed while generating: CUDA out of memory.")
    ] * 3
    assert not engine._waiting
    engine._pump = None
    gc.collect()
    assert not caplog.records  # asyncio tells of errors that nobody took
