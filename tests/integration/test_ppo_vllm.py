"""PPO as it is used: SmolLM2 under a Trainer with bf16 autocast, rollouts in vLLM, a retrieval server, weights synced back."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pytest import approx

from project.corpus.build import write_index
from project.records import Passage

pytestmark = pytest.mark.slow


WAYS = {"merged": {}, "adapter": {"sync": "adapter"}, "beside": {"ppo": {"overlap": True}}, "ranks": {}}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
PASSAGES = [Passage(c.lower(), c, f"{c} is a country.") for c in ("Peru", "Japan", "Kenya", "Norway")]


@pytest.fixture(scope="module", params=list(WAYS))
def result(request, default_model_dir, tmp_path_factory):
    if importlib.util.find_spec("vllm") is None:
        reason = "vLLM is not installed"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    launcher = TORCHRUN if request.param == "ranks" else []
    found = updates(default_model_dir, tmp_path_factory.mktemp("ppo"), WAYS[request.param], launcher)
    return found | {"stale": int(request.param == "beside")}


def updates(model, work, changes, launcher=()) -> dict:
    """Run two updates with these arguments, and return what they logged; all ranks must have logged the same."""
    (work / "index").mkdir()
    write_index(work / "index", PASSAGES)  # here: vLLM does not start where bm25s has loaded llvmlite
    script = str(Path(__file__).with_name("ppo_updates.py"))
    command = [sys.executable, *launcher, script, str(model), str(work), json.dumps(changes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Failed to load weights" not in done.stdout + done.stderr, "vLLM's word at each sync, of layers that have none"
    found = [json.loads(line.removeprefix("RESULT ")) for line in lines]
    assert len(found) == (2 if launcher else 1)
    for update, others in zip(found[0]["updates"], found[-1]["updates"], strict=True):
        own = ("time/", "speed/", "memory/")
        assert {k: v for k, v in others.items() if not k.startswith(own)} == approx(
            {k: v for k, v in update.items() if not k.startswith(own)}, abs=1e-6, nan_ok=True
        )
    return found[0]


def test_the_engine_samples_from_the_policy_that_is_trained(result):
    first, second = result["updates"]
    assert first["train/staleness"] == second["train/staleness"] == result["stale"]
    assert first["ppo/kl"] == approx(0, abs=1e-6)
    if result["stale"]:  # its episodes come from before the first update, so that the estimate of the KL may be of any size
        assert second["ppo/engine_gap"] > 1.5 * first["ppo/engine_gap"], "the policy must have moved since"
    else:
        assert abs(second["ppo/kl"]) > 1e-4, "the second update's episodes must come from a policy that moved"
    for update in (first, second):
        assert update["ppo/engine_gap"] < (0.4 if result["stale"] else 0.1)  # one update's step is in it
        assert update["train/generated_tokens"] > 1


def test_trap_14_every_update_reaches_the_engine(result):
    first = 1 + result["stale"]  # with overlap the first update trains nothing
    assert [update["sync/version"] for update in result["updates"]] == [first, first + 1]
    for update in result["updates"]:
        assert update["sync/changed_share"] > 0.01
        assert update["sync/canary_gap"] < 0.15


def test_the_merged_model_is_handed_on(result):
    assert {"config.json", "model.safetensors", "tokenizer.json", "seeker.json"} <= set(result["files"])
