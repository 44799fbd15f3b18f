"""GRPO against TRL's GRPOTrainer with transformers' generation: updates an hour and peak memory, same model and prompts.

    pip install --no-deps --target trl-package trl==1.16.0
    PYTHONPATH=trl-package python scripts/benchmarks/grpo.py --model lightning_logs/runs/learning-sft/merged \
        --questions data/learning/facts/questions_train.jsonl --output_file grpo.json

Both take `--questions_an_update` prompts, `GROUP` completions each of at most `TOKENS` tokens at temperature 1, one optimizer
step under bf16 autocast, LoRA on all linear layers, and a KL to the model without it. A completion is one turn: nothing is
searched.
The reward is drawn from the completion, so that every group is trained. TRL's micro-batches are as large as Seeker's, and
without gradient checkpointing, which is slower; TRL's other settings are its own. `trl-float32` trains without autocast,
`seeker-transformers` has transformers as its engine too: what is between it and `seeker` is vLLM's.

Ways take turns, each in a process of its own, `--rounds` times; an update's seconds are the median of a round's, the first left
out, and figures the medians of rounds. Memory is the peak of anonymous pages; the weights on their way to vLLM lie beside it in
shared memory (`/dev/shm`), as large as the model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from measured import Peak

from project.runtime import prepare_process, start_with_tcmalloc

if __name__ == "__main__":
    start_with_tcmalloc()
prepare_process()

from project.environment.search import EpisodeLimits  # noqa: E402
from project.files import read_records  # noqa: E402
from project.modules.policy import AgentSettings, LoRA, load_tokenizer  # noqa: E402
from project.records import Episode, Question  # noqa: E402
from project.rendering import Renderer  # noqa: E402
from project.rewards.answer import AnswerReward  # noqa: E402
from project.writing import write_rows  # noqa: E402

WAYS = ("seeker", "seeker-transformers", "trl", "trl-float32")
GROUP, MICRO, TOKENS, CONTEXT = 4, 4, 128, 512
LEARNING_RATE, KL = 1e-5, 0.02
Figures = dict[str, Any]


def draw(ids: Sequence[int]) -> float:
    """Return a reward that every completion has by chance."""
    return sum(ids) % 97 / 97


class Chance(AnswerReward):
    """Pays by `draw`."""

    def __call__(self, episode: Episode) -> dict[str, float]:
        """Return the breakdown with another total."""
        return super().__call__(episode) | {"total": draw(episode.turns[0].ids)}


def seeker(arguments: argparse.Namespace, folder: Path) -> Figures:
    """Train by Seeker."""
    from lightning import Callback, Trainer

    from project.datamodules.question import QuestionDataModule
    from project.modules.ppo import PPO
    from project.modules.ppo_settings import PPOSettings

    done, tokens = list[float](), list[float]()

    class Watch(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:  # noqa: ANN401
            done.append(time.perf_counter())

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *rest: Any) -> None:  # noqa: ANN401
            done.append(time.perf_counter())
            tokens.append(pl_module.logged_now["train/generated_tokens"] * GROUP * arguments.questions_an_update)

    numbers = {
        "episodes_per_question": GROUP,
        "micro_episodes": MICRO,
        "minibatch_episodes": GROUP * arguments.questions_an_update,
    }
    module = PPO(
        model_path=arguments.model,
        ppo=PPOSettings(estimator="grpo", kl_coef=KL, **numbers),
        lora=LoRA(),
        learning_rate=LEARNING_RATE,
        limits=EpisodeLimits(max_turns=1, turn_tokens=TOKENS, context_tokens=CONTEXT),
        reward=Chance(),
        engine="vllm" if arguments.ways == ["seeker"] else "transformers",
    )
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="auto", devices=1, precision="bf16-mixed", default_root_dir=folder, max_steps=arguments.updates,
        max_epochs=-1, callbacks=[Watch()], **options,
    )  # fmt: skip
    trainer.fit(module, QuestionDataModule(arguments.questions, batch_questions=arguments.questions_an_update))
    return figures(done, tokens)


def trl(arguments: argparse.Namespace, folder: Path) -> Figures:
    """Train by TRL, on the same rendered prompts."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]

    dialect = (AgentSettings.load(Path(arguments.model)) or AgentSettings()).make_dialect()
    tokenizer, _ = load_tokenizer(arguments.model, dialect)
    renderer, count = Renderer(tokenizer, dialect), GROUP * arguments.questions_an_update
    questions = read_records(Path(arguments.questions), Question.from_row)
    prompts = [{"prompt": renderer.prompt(dialect.opening(q.question), dialect.tools).text} for q in questions]
    done, tokens, bf16 = list[float](), list[float](), arguments.ways == ["trl"]

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:  # noqa: ANN401
        tokens.append(sum(map(len, completion_ids)))
        return [draw(ids) for ids in completion_ids]

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
            done.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
            done.append(time.perf_counter())

    config = GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=MICRO, gradient_accumulation_steps=count // MICRO,
        num_generations=GROUP, max_completion_length=TOKENS, temperature=1.0, beta=KL, learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant", max_steps=arguments.updates, bf16=bf16, use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False, loss_type="grpo", shuffle_dataset=False, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    lora = LoRA()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16 if bf16 else torch.float32),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Watch()],
    )
    trainer.train()
    return figures(done, tokens)


def figures(done: Sequence[float], tokens: Sequence[float]) -> Figures:
    """Return what updates took, from the times at which each was done; the first warms up."""
    seconds = [after - before for before, after in pairwise(done[1:])]
    middle = statistics.median(seconds)
    return {"seconds": middle, "updates_an_hour": 3600 / middle, "tokens": statistics.mean(tokens[1:]), "each": seconds}


def main() -> None:
    """Measure both ways in turns and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--questions", required=True)
    parser.add_argument("--questions_an_update", type=int, default=4)
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--output_file", type=Path, required=True)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        with tempfile.TemporaryDirectory() as folder:
            found = (trl if arguments.ways[0].startswith("trl") else seeker)(arguments, Path(folder))
        arguments.output_file.write_text(json.dumps(found))
        return
    rounds: dict[str, list[Figures]] = {way: [] for way in arguments.ways}
    questions = read_records(Path(arguments.questions), Question.from_row)[: arguments.updates * arguments.questions_an_update]
    drawn = arguments.output_file.with_suffix(".questions.jsonl")
    write_rows(drawn, (question.to_row() for question in questions))
    numbers = ["--questions_an_update", str(arguments.questions_an_update), "--updates", str(arguments.updates)]
    for way in arguments.ways * arguments.rounds:
        part = arguments.output_file.with_suffix(f".{way}.json")
        words = ["--model", arguments.model, "--questions", str(drawn), "--ways", way, "--output_file", str(part)]
        process = subprocess.Popen([sys.executable, __file__, *words, *numbers, "--alone"], stdout=subprocess.DEVNULL)
        peak = Peak(process.pid)
        peak.start()
        if process.wait():
            sys.exit(f"{way} failed")
        rounds[way].append(json.loads(part.read_text()) | {"peak_gb": peak.kilobytes / 1e6})
        part.unlink()
    drawn.unlink()
    names = ("seconds", "updates_an_hour", "tokens", "peak_gb")
    medians = {way: {name: statistics.median(r[name] for r in found) for name in names} for way, found in rounds.items()}
    arguments.output_file.write_text(json.dumps({"ways": medians, "rounds": rounds}, indent=1) + "\n")
    print(json.dumps(medians, indent=1))


if __name__ == "__main__":
    main()
