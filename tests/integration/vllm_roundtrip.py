"""Run in a process of its own by `test_vllm.py`: rollouts and a weight sync in the real vLLM, printed as one JSON line."""

import asyncio
import json
import random
import sys

from project.runtime import prepare_process

prepare_process()

import torch  # noqa: E402

from project.dialects import get_dialect  # noqa: E402
from project.modules.policy import LoRA, Policy, load_tokenizer  # noqa: E402
from project.rendering import Renderer  # noqa: E402
from project.rollouts.engines import Sampling, make_engine  # noqa: E402


def policy_score(policy, prompt, ids):
    whole = torch.tensor(prompt + ids)
    with torch.no_grad():
        hidden = policy(whole, [len(whole)])[len(prompt) - 1 : -1]
        return policy.head(hidden).float().log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]


def gap(engine, policy, prompt, ids):
    return float((torch.tensor(engine.score(prompt, ids)) - policy_score(policy, prompt, ids)).abs().mean())


async def streamed(engine, prompts, sampling):
    """Return what a watcher saw and what came back; what another that refused its 5th token got; and what is left in vLLM."""
    seen, refused = [], []

    def refuse(token):
        refused.append(token)
        if len(refused) == 5:
            raise ValueError("enough")

    watched, ended = await asyncio.gather(
        engine.generate(prompts[0], sampling, seen.append),
        engine.generate(prompts[1], sampling, refuse),
        return_exceptions=True,
    )
    left = engine._llm.llm_engine.has_unfinished_requests() or bool(engine._waiting) or bool(engine._watched)
    return {"seen": seen, "ids": list(watched.ids), "refused": len(refused), "error": str(ended), "left": left}


def main(folder):
    dialect = get_dialect("tools")
    tokenizer, _ = load_tokenizer(folder, dialect)
    renderer = Renderer(tokenizer, dialect)
    torch.manual_seed(0)
    policy = Policy(folder, tokenizer, [], LoRA())
    random.seed(5), torch.manual_seed(5)
    engine = make_engine("vllm", folder, 512, requests=24)
    drawn = random.random(), float(torch.rand(()))
    random.seed(5), torch.manual_seed(5)
    result = {"rng_kept": drawn == (random.random(), float(torch.rand(())))}
    cache = engine._llm.llm_engine.vllm_config.cache_config
    result["cache"] = [cache.num_gpu_blocks, cache.block_size]
    filler = "Answer in a few words. " * 50  # longer than a block of the prefix cache
    opening = f"<|im_start|>system\n{filler}<|im_end|>\n<|im_start|>user\nWhat is the capital of "
    prompts = [renderer.encode(f"{opening}{c}?<|im_end|>\n<|im_start|>assistant\n") for c in ("France", "Japan", "Peru")]

    async def together(temperature):
        sampling = Sampling(temperature, 24, (renderer.end_id,), 3)
        return await asyncio.gather(*(engine.generate(prompt, sampling) for prompt in prompts))

    first = asyncio.run(together(0.0))
    result["text"] = renderer.decode(first[0].ids)
    result["finish"] = [generation.finish for generation in first]
    result["streamed"] = asyncio.run(streamed(engine, prompts, Sampling(0.0, 24, (renderer.end_id,), 3)))
    warm = asyncio.run(together(0.5))[0]
    ids = list(warm.ids)
    whole = torch.tensor(prompts[0] + ids)
    with torch.no_grad():
        hidden = policy(whole, [len(whole)])[len(prompts[0]) - 1 : -1]
        processed = (policy.head(hidden).float() / 0.5).log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
    result["processed_gap"] = float((torch.tensor(warm.logprobs) - processed).abs().mean())
    result["gap_before"] = gap(engine, policy, prompts[0], list(first[0].ids))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.06, generator=torch.Generator().manual_seed(1))
    result["gap_stale"] = gap(engine, policy, prompts[0], list(first[0].ids))
    engine._sleeps = True  # on a CPU vLLM's worker keeps its memory; its scheduler sleeps and wakes as on a GPU
    engine.sleep()
    core = engine._llm.llm_engine
    result["slept"] = [core.is_sleeping(), engine._asleep]
    result["changed"] = engine.sync(policy.merged_weights())
    result["woke"] = [not core.is_sleeping(), not engine._asleep]
    result["gap_after"] = gap(engine, policy, prompts[0], list(first[0].ids))
    after = asyncio.run(together(0.0))
    result["version"] = after[0].version
    generated = torch.tensor(after[0].logprobs)
    result["gap_generated"] = float((generated - policy_score(policy, prompts[0], list(after[0].ids))).abs().mean())
    with policy.reference():
        result["gap_to_old"] = float((generated - policy_score(policy, prompts[0], list(after[0].ids))).abs().mean())
    embedding = policy.causal_lm.get_input_embeddings().weight
    with torch.no_grad():  # whose rows are the head's too
        embedding.mul_(1 + 0.3 * torch.randn(len(embedding), 1, generator=torch.Generator().manual_seed(2)))
    result["gap_stale_head"] = gap(engine, policy, prompts[0], list(first[0].ids))
    engine.sync(policy.merged_weights())
    result["gap_new_head"] = gap(engine, policy, prompts[0], list(first[0].ids))
    # More prompt tokens at once than one step of vLLM's scheduler takes, so that it could cut a prompt in two.
    many = [renderer.encode(f"{i} {'and so on ' * 60}") for i in range(60)]

    async def crowd():
        return await asyncio.gather(*(engine.generate(ids, Sampling(1.0, 4, (), i)) for i, ids in enumerate(many)))

    result["crowd"] = [len(generation.ids) for generation in asyncio.run(crowd())]
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
