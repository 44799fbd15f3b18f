"""Run in a process of its own by `test_vllm.py` on a GPU: what sleep gives back, and whether a sync wakes the engine whole."""

import asyncio
import json
import sys

from project.runtime import prepare_process

prepare_process()

import torch  # noqa: E402

from project.dialects import get_dialect  # noqa: E402
from project.modules.policy import Policy, load_tokenizer  # noqa: E402
from project.rendering import Renderer  # noqa: E402
from project.rollouts.engines import Sampling, make_engine  # noqa: E402


def main(folder):
    dialect = get_dialect("tools")
    tokenizer, _ = load_tokenizer(folder, dialect)
    renderer = Renderer(tokenizer, dialect)
    policy = Policy(folder, tokenizer, [], None).cuda()
    free = lambda: torch.cuda.mem_get_info()[0]  # noqa: E731
    before = free()
    engine = make_engine("vllm", folder, 512, memory=0.5, sleeps=True)
    awake = free()
    engine.sleep()
    asleep = free()
    engine.sync(policy.merged_weights())
    engine.sleep()  # the second time what the first left behind would be seen
    engine.sync(policy.merged_weights())
    prompt, ids = renderer.encode("The capital of France is"), renderer.encode(" Paris, a city on the Seine.")
    whole = torch.tensor(prompt + ids, device="cuda")
    with torch.no_grad():
        hidden = policy(whole, [len(whole)])[len(prompt) - 1 : -1]
        own = policy.head(hidden).float().log_softmax(-1).gather(1, whole[len(prompt) :, None])[:, 0].cpu()
    gap = float((torch.tensor(engine.score(prompt, ids)) - own).abs().mean())
    written = asyncio.run(engine.generate(prompt, Sampling(1.0, 24, (), 0)))  # decodes with the graphs that were captured awake
    sampled = float((torch.tensor(engine.score(prompt, list(written.ids))) - torch.tensor(written.logprobs)).abs().mean())
    print("RESULT " + json.dumps({"taken": before - awake, "freed": asleep - awake, "gap": max(gap, sampled)}))


if __name__ == "__main__":
    main(sys.argv[1])
