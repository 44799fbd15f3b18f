"""Run in a process of its own: two updates of PPO through a Trainer under bf16 autocast, and one before them with overlap.

It takes a model folder, a folder that has an `index`, and the agent's other arguments as JSON. Rollouts run in the real vLLM
beside a live retrieval server; the metrics of each update that trained are printed as one JSON line.
"""

import json
import os
import sys
from pathlib import Path

from project.runtime import prepare_process

prepare_process()

from lightning import Callback, Trainer  # noqa: E402

from project.datamodules.question import QuestionDataModule  # noqa: E402
from project.environment.search import EpisodeLimits  # noqa: E402
from project.modules.policy import AgentSettings  # noqa: E402
from project.modules.ppo import PPO  # noqa: E402
from project.modules.ppo_settings import PPOSettings  # noqa: E402
from project.rewards.answer import AnswerReward  # noqa: E402
from project.writing import write_rows  # noqa: E402

RANKS = int(os.environ.get("WORLD_SIZE", "1"))
"""As torchrun sets them."""
COUNTRIES = ("Peru", "Japan", "Kenya", "Norway")  # `work / "index"` has a passage on each


class Chance(AnswerReward):
    """Pays by what was sampled first: the untrained model answers nothing, and its real rewards would all be 0."""

    def __call__(self, episode):
        return super().__call__(episode) | {"total": sum(episode.turns[0].ids) % 97 / 97}


class Watch(Callback):
    def __init__(self):
        self.updates = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.updates.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def main(folder: str, work: Path, changes: dict) -> None:
    questions = ({"id": c, "question": f"What is {c}?", "answers": ["a country"], "group": c} for c in COUNTRIES)
    if os.environ.get("RANK", "0") == "0":
        write_rows(work / "questions.jsonl", questions)
    numbers = {"episodes_per_question": 2, "minibatch_episodes": 8, "micro_episodes": 4} | changes.pop("ppo", {})
    plain = changes.get("sync") == "adapter" or "servers" in changes  # these cannot take token rows of our own
    module = PPO(
        model_path=folder,
        settings=AgentSettings(decision_tokens=False if plain else None),
        index=work / "index",
        limits=EpisodeLimits(max_turns=2, turn_tokens=32, context_tokens=2048),
        reward=Chance(),
        learning_rate=1e-3,
        ppo=PPOSettings(**numbers),
        **changes,
    )
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu", devices=RANKS, strategy="ddp" if RANKS > 1 else "auto", precision="bf16-mixed", max_epochs=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=work, callbacks=[watch], log_every_n_steps=1,
    )  # fmt: skip
    passes = 3 if module.ppo.overlap else 2
    trainer.fit(module, QuestionDataModule(work / "questions.jsonl", batch_questions=4, train_passes=passes))
    updates = [found for found in watch.updates if "ppo/kl" in found]
    trainer.strategy.barrier()  # the first rank has written the model
    print("RESULT " + json.dumps({"updates": updates, "files": sorted(p.name for p in (work / "merged").iterdir())}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
