"""PPO on two ranks with gloo, under DDP and FSDP2: the same updates as in one process, though ranks have different episodes."""

from pathlib import Path

import pytest
import torch
from metals import PASSAGES, QUESTIONS
from test_strategies import TORCHRUN, start
from tiny import tiny_model_folder

from project.corpus.build import write_index
from project.corpus.serving.handle import ServerHandle
from project.writing import write_rows

SCRIPT = str(Path(__file__).parent / "ppo_ranks.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("ranks")
    write_index(folder / "index", PASSAGES)
    model = tiny_model_folder(folder / "model")
    write_rows(folder / "questions.jsonl", (question.to_row() for question in QUESTIONS))
    with ServerHandle(folder / "index") as server:
        for strategy in ("one", "ddp", "fsdp2"):
            words = (SCRIPT, strategy, str(model), str(folder / "questions.jsonl"), server.url, str(folder / f"{strategy}.pt"))
            start(*(TORCHRUN if strategy != "one" else []), *words)
    return {strategy: torch.load(folder / f"{strategy}.pt", weights_only=False) for strategy in ("one", "ddp", "fsdp2")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["head", "model", "overlap"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_trap_18_two_ranks_train_what_one_process_trains(found, strategy, kind):
    one, two = found["one"][kind], found[strategy][kind]
    updates = 4 if kind == "overlap" else 2
    assert (two["steps"], two["version"]) == (one["steps"], one["version"]) == (updates, updates)
    assert len(two["gradients"]) == updates - (kind == "overlap")
    assert two["episodes"] == one["episodes"]
    assert {contexts for update in one["episodes"] for *_, contexts in update} == {1, 2}
    rows = [[sum(len(numbers) for numbers in update) for update in of_rank] for of_rank in two["rows"]]
    assert all(len(a) == len(b) for a, b in zip(*two["rows"], strict=True))  # micro-batches
    assert [sum(parts) for parts in zip(*rows, strict=True)] == [sum(map(len, update)) for update in one["rows"][0]]
    assert any([] in numbers for of_rank in two["rows"] for numbers in of_rank) or rows[0] != rows[1]
    for mine, theirs in zip(two["gradients"], one["gradients"], strict=True):
        assert mine.keys() == theirs.keys()
        for name, gradient in theirs.items():
            torch.testing.assert_close(mine[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
    for name, weight in one["state"].items():
        torch.testing.assert_close(two["state"][name], weight, rtol=1e-3, atol=1e-4, msg=name)
    logged = [pair for pair in one["logged"] if not pair[0].startswith(("time/", "speed/", "memory/"))]
    others = [pair for pair in two["logged"] if not pair[0].startswith(("time/", "speed/", "memory/"))]
    assert [name for name, _ in others] == [name for name, _ in logged]
    for (name, mine), (_, theirs) in zip(others, logged, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-2, abs=1e-4), name
