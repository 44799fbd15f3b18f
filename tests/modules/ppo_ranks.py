"""PPO for two updates under a strategy, alone or as a rank of `torchrun`; what it did goes into a file.

It takes the strategy, a model folder, a question file, an address of a retrieval server and the file to write.
"""

import sys
from pathlib import Path

import torch
from lightning import Trainer
from metals import METALS
from test_ppo import SEARCH, Gradients, Script, make

from project.datamodules.question import QuestionDataModule
from project.environment.search import EpisodeLimits
from project.modules.sharding import whole
from project.ranks import gathered, world
from project.rollouts.engines.protocol import Generation

KINDS = {"head": {}, "model": {"critic_in": "model"}, "overlap": {"overlap": True}}


class SomeFold(Script):
    """Answers, after a search and a summary where its number is even: ranks have different numbers of rows."""

    async def generate(self, prompt_ids, sampling):
        prompt = bytes(i for i in prompt_ids if i < 256).decode()
        number = int(prompt.partition("has number ")[2][:1])
        good = sampling.seed // 1009 % 2 == 0
        text = f"<answer>\n{METALS[number] if good else 'Zinc'}\n</answer>"
        if number % 2 == 0 and "<summary>" not in prompt.partition("Question:")[2]:
            text = "<summary>\nwhat I read\n</summary>" if "<fold/>" in prompt else SEARCH
        ids = [*text.encode(), 257]
        return Generation(tuple(ids), tuple(self.score(prompt_ids, ids)), "stop", self.version)


def main(strategy: str, model: str, questions: str, url: str, path: str) -> None:
    found = {kind: updates(strategy, kind, model, questions, url, Path(path).with_suffix(f".{kind}")) for kind in KINDS}
    if world()[0] == 0:
        torch.save(found, path)


def updates(strategy: str, kind: str, model: str, questions: str, url: str, root: Path) -> dict:
    """Return what two updates did: with a critic on a head, as a model of its own, and rolling out beside the updates."""
    ranks = {} if strategy == "one" else {"strategy": strategy, "devices": 2}
    ppo = {"micro_episodes": 3, "episodes_per_question": 3, "kl_target": 0.01, "minibatch_episodes": 64} | KINDS[kind]
    module = make(model, url=url, engine=None, ppo=ppo)
    module.limits = EpisodeLimits(max_turns=3, turn_tokens=48, context_tokens=2048, fold_turns=1)
    module._start_engine = lambda: setattr(module, "_engine", module._engine or SomeFold(model))
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=root,
        enable_checkpointing=False, callbacks=[Gradients()], max_epochs=1, **ranks,
    )  # fmt: skip
    passes = 2 if module.ppo.overlap else 1  # so that episodes are trained that older weights have written
    data = QuestionDataModule(questions, validation_file=questions, batch_questions=2, check_split=False, train_passes=passes)
    trainer.fit(module, data)
    trainer.save_checkpoint(root / "last.ckpt")
    gradients = [{name: whole(value) for name, value in step.items()} for step in module.gradients]
    state = {name: whole(value.detach()) for name, value in module.state_dict(keep_vars=True).items() if value.requires_grad}
    found = {
        "logged": module.logged,
        "gradients": gradients,
        "state": state,
        "episodes": [[(e.question.id, e.answer, e.contexts) for e in episodes] for episodes in module.all_episodes],
        "rows": gathered([[batch["numbers"] for batch in update] for update in module.micro]),
        "version": module._engine.version,
        "steps": trainer.global_step,
    }
    everyone = gathered({name: found[name] for name in ("logged", "episodes", "version", "steps")})
    assert len({repr([each[name] for name in ("episodes", "version", "steps")]) for each in everyone}) == 1
    timed = ("time/", "speed/", "memory/")
    logged = [[pair for pair in each["logged"] if not pair[0].startswith(timed)] for each in everyone]
    assert all(repr(each) == repr(logged[0]) for each in logged), "ranks logged different numbers"
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
