"""Run in a process of its own by `test_export_vllm.py`: an exported folder in vLLM, beside the checkpoint it is of."""

import json
import sys
from pathlib import Path

from project.runtime import prepare_process

prepare_process()

import torch  # noqa: E402

from project.modules.policy import AgentSettings, LoRA  # noqa: E402
from project.modules.sft import SFT  # noqa: E402
from project.rollouts.engines import make_engine  # noqa: E402


def policy_score(policy, prompt, ids):
    whole = torch.tensor(prompt + ids)
    with torch.no_grad():
        hidden = policy(whole, [len(whole)])[len(prompt) - 1 : -1]
        return policy.head(hidden).float().log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]


def main(checkpoint, base, folder):
    settings = AgentSettings(**json.loads((Path(folder) / "seeker.json").read_text()))
    module = SFT(base, settings, LoRA(8, 16))
    module.configure_model()
    held = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert not module.load_state_dict(held, strict=False).unexpected_keys
    dialect, renderer = settings.make_dialect(), module.make_renderer({})
    found = []
    engine = make_engine("vllm", folder, 1024)
    for question in ("Which currency is used where Ulaanbaatar is the capital?", "Who discovered neon?"):
        prompt = renderer.encode(renderer.prompt(dialect.opening(question), dialect.tools).text)
        said = "<think>\nI look it up.\n</think>\n<|SEARCH|>\n<search>\nthe country with that capital\n</search><|im_end|>"
        ids = renderer.encode(said)
        scored, own = torch.tensor(engine.score(prompt, ids)), policy_score(module.policy, prompt, ids)
        with module.policy.reference():
            base_scored = policy_score(module.policy, prompt, ids)
        new = [place for place, token in enumerate(ids) if token in module._new_ids]
        found.append(
            {
                "gap": float((scored - own).abs().mean()),
                "gap_to_base": float((scored - base_scored).abs().mean()),
                "gap_new": float((scored - own)[new].abs().max()),
                "gap_new_to_base": float((scored - base_scored)[new].abs().min()),
                "new": len(new),
                "tokens": len(ids),
            }
        )
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
