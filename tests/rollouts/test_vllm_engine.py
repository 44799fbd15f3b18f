"""vLLM's engine where there is no vLLM, and what killed runs leave in shared memory."""

import asyncio
import gc
import itertools
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from project.errors import EngineError
from project.rollouts.engines import Sampling, vllm, weights


@pytest.fixture(autouse=True)
def vllm_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of vLLM about a model, of SmolLM2-135M's shape; its own answer is asked in `test_vllm.py`."""
    shape = SimpleNamespace(
        get_num_layers=lambda _: 30, get_num_kv_heads=lambda _: 3, get_head_size=lambda: 64, dtype=torch.bfloat16
    )
    asked = SimpleNamespace(create_model_config=lambda: shape)
    monkeypatch.setitem(sys.modules, "vllm.config", SimpleNamespace(ParallelConfig=lambda: None))
    monkeypatch.setitem(sys.modules, "vllm.engine", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", SimpleNamespace(EngineArgs=lambda **_: asked))


BYTES = 128 * 2 * 30 * 3 * 64 * 2
"""In a block of 128 tokens: keys and values of 30 layers with 3 heads of 64 numbers, of 2 bytes each."""


@pytest.mark.parametrize(
    ("context", "requests", "expected"),
    [
        (1024, 16, 16 * 8 * BYTES),
        (1025, 16, 16 * 9 * BYTES),
        (1024, 64, 1 << 30),
        (1024, None, 1 << 30),
        (65536, 2, 512 * BYTES),  # more than a gigabyte for one
    ],
)
def test_the_cache_is_for_what_runs_at_once(context: int, requests: int | None, expected: int) -> None:
    assert vllm.cache_bytes("folder", context, requests) == expected + BYTES  # a block is vLLM's own


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
    engine._llm, engine._ids = SimpleNamespace(llm_engine=Core()), itertools.count()
    engine._waiting, engine._watched = {}, {}
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


class Sleeper:
    """Writes down what vLLM is asked, in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.held, self.known = {"layers.0.qkv_proj": 0, "layers.0.o_proj": 0}, {"layers.0.qkv_proj": 0, "layers.0.o_proj": 0}
        manager = SimpleNamespace(list_adapters=lambda: {1: SimpleNamespace(loras=self.held)}, modules=self.known)
        self.worker = SimpleNamespace(model_runner=SimpleNamespace(lora_manager=SimpleNamespace(_adapter_manager=manager)))
        self.llm_engine = SimpleNamespace(add_lora=lambda _: self.asked.append("add_lora"))

    def sleep(self, level: int) -> None:
        self.asked.append(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> bool:
        self.asked.append(f"wake {' '.join(tags)}")
        return "kv_cache" in tags

    def collective_rpc(self, method: object, args: tuple[int, ...] = (), **_: object) -> list[object]:
        self.asked.append(str(getattr(method, "__name__", method)))
        return [method(self.worker, *args) if args and callable(method) else None]

    def reset_prefix_cache(self) -> None:
        self.asked.append("reset")


def sleeper(level: int, *, sleeps: bool = True) -> tuple[vllm.VLLMEngine, Sleeper]:
    engine, llm = object.__new__(vllm.VLLMEngine), Sleeper()
    engine._llm, engine._sleeps, engine._asleep, engine._sleep_level = llm, sleeps, False, level
    engine.version, engine._adapter, engine._adapter_ids = 0, None, itertools.count(1)
    engine._weights = SimpleNamespace(written=lambda _: nullcontext((Path("folder"), 1.0)))  # type: ignore[assignment]
    return engine, llm


def test_full_weights_come_before_the_cache_takes_its_memory_back() -> None:
    """Else the folder's weights, the cache and the trainer would be on the GPU at once."""
    engine, llm = sleeper(2)
    for _ in range(2):
        engine.sleep()
        engine.sync([])
        engine.sync([])  # awake already
    once = ["sleep 2", "wake weights", "reload_weights", "_renew_tied_head", "wake kv_cache", "reset"]
    assert llm.asked == [*once, "reload_weights", "_renew_tied_head", "reset"] * 2


@pytest.fixture
def with_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    request = SimpleNamespace(LoRARequest=lambda *_: SimpleNamespace(lora_int_id=1))
    for name, module in (("vllm", SimpleNamespace()), ("vllm.lora", SimpleNamespace()), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("with_lora")
def test_an_adapter_comes_to_an_engine_that_is_awake(tmp_path: Path) -> None:
    engine, llm = sleeper(1)
    engine.sleep()
    engine.sync_adapter(tmp_path)
    assert llm.asked == ["sleep 1", "wake weights kv_cache", "add_lora", "_bound_layers", "reset"]
    assert engine.version == 1


@pytest.mark.usefixtures("with_lora")
@pytest.mark.parametrize(
    ("held", "said"),
    [
        (
            ["layers.0.qkv_proj", "model.layers.0.up_proj"],
            r"bound 1 of the adapter's 2 layers, not model\.layers\.0\.up_proj;",
        ),
        ([], "bound 0 of the adapter's 0 layers, not any; give model.sync: merge"),
    ],
)
def test_trap_14_an_adapter_that_the_engine_does_not_bind_is_refused(held: list[str], said: str, tmp_path: Path) -> None:
    engine, llm = sleeper(1)
    llm.held.clear()
    llm.held.update(dict.fromkeys(held, 0))
    with pytest.raises(EngineError, match=said):
        engine.sync_adapter(tmp_path)
    assert engine.version == 0


def test_an_engine_that_was_not_told_to_sleep_does_not() -> None:
    engine, llm = sleeper(2, sleeps=False)
    engine.sleep()
    engine.sync([])
    assert llm.asked == ["reload_weights", "_renew_tied_head", "reset"]


def test_sleep_without_a_gpu_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        EngineError, match=r"^vLLM sleeps on a GPU only: leave model\.engine_sleeps out, for there is none here$"
    ):
        vllm.VLLMEngine("nowhere", 128, sleeps=True)


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, AssertionError, torch.OutOfMemoryError])
def test_a_vllm_that_does_not_start_is_one_sentence(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def start(**_: object) -> None:
        raise kind("No available memory\n  for the cache blocks.")

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=start))
    said = r"^vLLM does not start on nowhere \(No available memory for the cache blocks\.\); its memory is model\.engine_memory"
    with pytest.raises(EngineError, match=said):
        vllm.VLLMEngine("nowhere", 128)


@pytest.mark.parametrize(("cuda", "device"), [(False, "3"), (True, "1")])
def test_each_rank_has_an_engine_on_its_own_device(cuda: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM reads them: its default would put every rank's engine on the first GPU."""
    seen = {}

    def start(**options: object) -> None:
        seen.update(options, rank=os.environ["RANK"], device=os.environ["LOCAL_RANK"])
        raise ValueError

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=start))
    monkeypatch.setattr(vllm, "world", lambda: (3, 4))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)  # the second GPU of the second machine
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(EngineError):
        vllm.VLLMEngine("nowhere", 128)
    assert (seen["distributed_executor_backend"], seen["rank"], seen["device"]) == ("external_launcher", "3", device)
    assert (os.environ["LOCAL_RANK"], os.environ.get("RANK")) == ("0", None)


def test_a_rank_alone_has_vllm_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def start(**options: object) -> None:
        seen.update(options)
        raise ValueError

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=start))
    with pytest.raises(EngineError):
        vllm.VLLMEngine("nowhere", 128)
    assert "distributed_executor_backend" not in seen
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    with pytest.raises(EngineError, match="the trainer is on 1; hide the others from both by CUDA_VISIBLE_DEVICES=1"):
        vllm.VLLMEngine("nowhere", 128)


def test_an_engine_that_finds_no_room_to_wake_is_one_sentence() -> None:
    engine, llm = sleeper(2)
    engine.sleep()

    def wake_up(**_: object) -> None:
        raise RuntimeError("CUDA Error: out of memory\n at cumem_allocator.cpp:62")

    llm.wake_up = wake_up  # type: ignore[method-assign, assignment]
    with pytest.raises(
        EngineError, match=r"does not wake beside the training \(CUDA Error: out of memory at \S+\); lower model"
    ):
        engine.sync([])
    assert engine.version == 0
