"""Two real vLLM servers of a tiny model: log-probabilities, weights that arrive everywhere, adapters, and one server killed."""

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from test_ppo_vllm import updates
from tiny import byte_tokenizer, tiny_model_folder

from project.errors import EngineError, JudgeError
from project.records import Episode, FinishReason, Question
from project.rewards.judge import Judge
from project.rollouts.engines import Sampling, fleet, make_engine

pytestmark = pytest.mark.slow
CONTEXT = 2048
PROMPT = list(b"Which metal is liquid at room temperature?") * 4  # 168 tokens: longer than a block of the prefix cache
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def start(model, *options):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = f"--host 127.0.0.1 --port {port} --max-model-len {CONTEXT} --logprobs-mode processed_logprobs".split()
    words += ["--no-enable-chunked-prefill", "--enforce-eager", "--dtype", "float32", *options]
    log = (Path(model).parent / f"{port}.log").open("w")
    # As `vllm serve`, which does not start where the package is vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *words]
    process = subprocess.Popen(command, env=os.environ | ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
    return process, f"http://127.0.0.1:{port}", Path(log.name)


def wait(process, url, log, seconds=400):
    for _ in range(seconds):
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(1)
    pytest.fail(f"{url} did not start in {seconds} s: {log.read_text()[-4000:]}")


def stop(process):
    """Kill a server with the processes that it started, which are in a session of their own."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The tiny model with heads of 32: vLLM's attention on CPUs takes none of 8."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tiny_model_folder(tmp_path_factory.mktemp("vllm") / "model")
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig.from_pretrained(folder, hidden_size=128, head_dim=32, intermediate_size=64))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)  # far from uniform
    made.save_pretrained(folder)
    byte_tokenizer(CHAT_TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def servers(model):
    if importlib.util.find_spec("vllm") is None:
        reason = "vLLM is not installed"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    started = [start(model, "--enable-lora", "--max-lora-rank", "16") for _ in range(2)]
    try:
        for server in started:
            wait(*server)
        yield started
    finally:
        for process, *_ in started:
            stop(process)


@pytest.fixture
def engine(servers, model):
    return make_engine("servers", model, CONTEXT, servers=[url for _, url, _ in servers])


@pytest.fixture
def policy(model):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model).eval()


@torch.inference_mode()
def logprobs(policy, prompt, ids, temperature=1.0):
    logits = policy(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]


def generate(engine, count, tokens=32, temperature=0.5):
    async def all_of_them():
        prompts = [[*PROMPT, 65 + i % 26] for i in range(count)]
        sampled = (engine.generate(p, Sampling(temperature, tokens, (257,), i)) for i, p in enumerate(prompts))
        return list(zip(prompts, await asyncio.gather(*sampled), strict=True))

    return asyncio.run(all_of_them())


def gap(policy, generated, temperature=0.5):
    gaps = [(torch.tensor(g.logprobs) - logprobs(policy, p, list(g.ids), temperature)).abs().max() for p, g in generated]
    return float(max(gaps))


def changed(policy):
    """Move the model far enough that its log-probabilities are others, all but its embedding."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter.add_(0.3 * parameter.std() * noise * ("embed" not in name))
    return [(name, tensor) for name, tensor in policy.state_dict().items() if name != "lm_head.weight"]  # tied


def test_logprobs_are_those_of_transformers_at_the_sampling_temperature(engine, policy):
    generated = generate(engine, 8)
    assert gap(policy, generated) < 1e-3
    assert gap(policy, generated, temperature=1.0) > 0.1, "the check must be able to see unprocessed ones"
    assert len({g.ids for _, g in generated}) > 1
    assert all(g.finish == ("stop" if g.ids[-1] == 257 else "length") for _, g in generated)
    assert [g.ids for _, g in generate(engine, 8)] == [g.ids for _, g in generated], "the seed decides"
    ids = list(generated[0][1].ids)
    torch.testing.assert_close(torch.tensor(engine.score(PROMPT, ids)), logprobs(policy, PROMPT, ids), rtol=0, atol=1e-3)


def test_a_stop_token_is_the_last_id(engine):
    [(prompt, first)] = generate(engine, 1, temperature=0.0)
    stopped = asyncio.run(engine.generate(prompt, Sampling(0.0, 32, (first.ids[3],), 0)))
    assert stopped.finish == "stop"
    assert stopped.ids == first.ids[: first.ids.index(first.ids[3]) + 1]


def test_a_sync_moves_every_server_to_the_new_model(engine, policy):
    ids = list(b"Mercury")
    generate(engine, 4)  # fills both prefix caches
    before = torch.tensor(engine.score(PROMPT, ids))
    assert engine.sync(changed(policy)) > 0.5
    after = torch.tensor(engine.score(PROMPT, ids))  # asks all
    assert float((after - before).abs().mean()) > 0.1
    torch.testing.assert_close(after, logprobs(policy, PROMPT, ids), rtol=0, atol=1e-3)
    generated = generate(engine, 4)
    assert [g.version for _, g in generated] == [1] * 4
    assert gap(policy, generated) < 1e-3, "no cached prefix of the old weights"


def test_an_embedding_that_is_the_head_too_is_not_taken_on_a_cpu(engine, policy):
    """vLLM 0.32 goes on with the head it started with; once it does not, the refusal can go."""
    moved = [(name, tensor + 1 if "embed" in name else tensor) for name, tensor in policy.state_dict().items()]
    with pytest.raises(EngineError, match="goes on with the head that it started with"):
        engine.sync((name, tensor) for name, tensor in moved if name != "lm_head.weight")


def test_a_new_engine_does_not_meet_the_weights_of_the_run_before(servers, model, engine, policy):
    engine.sync(changed(policy))
    again = make_engine("servers", model, CONTEXT, servers=[url for _, url, _ in servers])
    original = type(policy).from_pretrained(model).eval()
    assert gap(original, generate(again, 4)) < 1e-3


def test_an_adapter_is_swapped_for_the_next_one(engine, policy, tmp_path):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(policy, LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"]))
    for version in (1, 2):
        torch.manual_seed(version)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.5)
        adapted.save_pretrained(tmp_path / str(version))
        engine.sync_adapter(tmp_path / str(version))
        generated = generate(engine, 4)
        assert [g.version for _, g in generated] == [version] * 4
        assert gap(adapted, generated) < 5e-3, "neither the adapter before nor its cached prefixes"
        with adapted.disable_adapter():
            assert gap(adapted, generated) > 0.1, "the check must be able to see a missing adapter"
    base = adapted.unload()
    engine.sync((n, t) for n, t in base.state_dict().items() if n != "lm_head.weight")
    assert gap(base, generate(engine, 4)) < 1e-3, "full weights replace the adapter"


def test_a_training_rolls_out_on_the_servers_beside_its_updates(servers, model, tmp_path):
    changes = {"engine": "servers", "servers": [url for _, url, _ in servers], "precision": "float32"}
    done = updates(model, tmp_path, changes | {"ppo": {"overlap": True}})
    assert [update["train/staleness"] for update in done["updates"]] == [1, 1]
    assert [update["sync/version"] for update in done["updates"]] == [2, 3]
    assert all(update["ppo/engine_gap"] < 0.2 for update in done["updates"])
    assert all(update["sync/changed_share"] > 0.1 for update in done["updates"])


def says(policy, text):
    """Return weights under which an answer begins with a text of different letters: its MLP knows what follows each."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            parameter.mul_("embed" in name or "norm" in name)
        table, mlp = policy.get_input_embeddings().weight, policy.model.layers[0].mlp
        for unit, (one, following) in enumerate(pairwise(f"\n{text}".encode())):
            direction = table[one] / table[one].norm()
            mlp.gate_proj.weight[unit], mlp.up_proj.weight[unit] = direction, direction
            mlp.down_proj.weight[:, unit] = table[following]
    return [(name, tensor) for name, tensor in policy.state_dict().items() if name != "lm_head.weight"]


def test_a_judge_on_a_server(servers, engine, policy, model, tmp_path):
    """Over vLLM's own chat completions; a model that says neither yes nor no is no judge."""
    (_, url, _), *_ = servers
    judge = Judge(str(model), f"{url}/v1", cache_file=tmp_path / "judge.db")
    question = Question("q", "Who wrote Hamlet?", ("William Shakespeare",))
    episodes = [Episode(question, (), (), FinishReason.ANSWER, answer) for answer in ("the bard", "Kit Marlowe", "nobody")]
    with pytest.raises(JudgeError, match="said neither yes nor no of 3 of 3 answers, but"):
        judge.judged(episodes)
    for verdict, word in enumerate(("no", "yes")):
        engine.sync(says(policy, word))
        asked = replace(judge, cache_file=tmp_path / f"{word}.db", max_tokens=len(word))
        assert [e.verdict for e in asked.judged(episodes)] == [verdict] * 3


def test_killing_one_of_two_servers_loses_no_request(servers, engine, policy):
    """The last test: it leaves one server."""
    process = servers[0][0]

    async def run():
        prompts = [[*PROMPT, 65 + i] for i in range(24)]
        tasks = [asyncio.create_task(engine.generate(p, Sampling(1.0, 300, (), i))) for i, p in enumerate(prompts)]
        while not any(task.done() for task in tasks) and engine._fleet.servers[0].busy < 12:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)  # they are being decoded
        busy = engine._fleet.servers[0].busy
        stop(process)
        return busy, list(zip(prompts, await asyncio.gather(*tasks), strict=True))

    busy, generated = asyncio.run(run())
    assert busy > 0, "the server must have been killed with requests under way"
    assert all(len(g.ids) == 300 or g.ids[-1] == 257 for _, g in generated), "vLLM ends at the model's own end too"
    assert gap(policy, generated, 1.0) < 1e-2
    assert engine._fleet.servers[0].avoid_until > time.monotonic() - fleet.AVOID_S
