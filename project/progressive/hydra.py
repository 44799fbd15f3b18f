"""`python -m project.progressive.hydra OVERRIDE…`: overrides of verl's SFT trainer as options of `seeker fit`, one a line.

It is what `scripts/train_*.sh` take in place of Hydra. The table of what became what goes to stderr; an override that has no
counterpart ends it with status 2 and says what Seeker has for it. Options of Seeker (`--model.learning_rate=1e-5`) pass.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from itertools import pairwise

from project.errors import InputError

NAMES = {
    "data.train_files": "data.train_file",
    "data.val_files": "data.validation_file",
    "data.max_length": "data.micro_tokens",
    "model.partial_pretrain": "model.model_path",
    "model.path": "model.model_path",
    "model.lora_rank": "model.lora.rank",
    "model.lora_alpha": "model.lora.alpha",
    "model.enable_gradient_checkpointing": "model.gradient_checkpointing",
    "optim.lr": "model.learning_rate",
    "optim.weight_decay": "model.weight_decay",
    "optim.warmup_steps_ratio": "model.warmup_share",
    "optim.lr_warmup_steps_ratio": "model.warmup_share",
    "optim.clip_grad": "trainer.gradient_clip_val",
    "trainer.total_epochs": "trainer.max_epochs",
    "trainer.total_training_steps": "trainer.max_steps",
    "trainer.seed": "seed_everything",
    "trainer.nnodes": "trainer.num_nodes",
    "trainer.n_gpus_per_node": "trainer.devices",
}
OTHERWISE = {
    "data.train_batch_size": "--trainer.accumulate_grad_batches: a step is that many micro-batches of a rank",
    "data.micro_batch_size_per_gpu": "--data.micro_tokens: micro-batches are filled by tokens",
    "data.micro_batch_size": "--data.micro_tokens: micro-batches are filled by tokens",
    "data.truncation": "samples over --data.micro_tokens dropped whole, and counted",
    "data.prompt_key": "conversations, whose columns are fixed (`messages`)",
    "data.response_key": "conversations, whose columns are fixed (`messages`)",
    "data.multiturn": "conversations of any number of turns, without a switch",
    "trainer.default_local_dir": "the second argument of the script",
    "trainer.project_name": "one MLflow experiment, `seeker`",
    "trainer.experiment_name": "`name` in the pipeline's file",
    "trainer.logger": "MLflow, always",
    "trainer.save_freq": "`every_n_train_steps` of a ModelCheckpoint in a config layer",
    "trainer.test_freq": "--trainer.val_check_interval, in micro-batches",
    "trainer.max_ckpt_to_keep": "`save_top_k` of a ModelCheckpoint in a config layer",
    "trainer.resume_mode": "the same command again, which continues",
    "model.strategy": "a layer of experiments/strategies/ as a further --config",
    "model.fsdp_config": "a layer of experiments/strategies/ as a further --config",
    "model.target_modules": "LoRA on all linear layers but the head",
    "optim.lr_scheduler": "cosine after --model.warmup_share of warm-up",
    "optim.betas": "AdamW's own (0.9, 0.999)",
    "ulysses_sequence_parallel_size": "experiments/strategies/fsdp2.yaml, without sequence parallelism",
    "use_remove_padding": "packed micro-batches, always",
}


def translate(word: str) -> str:
    """Return an override as an option of `seeker fit`.

    >>> translate("optim.lr=1e-5")
    '--model.learning_rate=1e-5'
    >>> translate("phase3.trainer.total_epochs=5")
    '--phase3.trainer.max_epochs=5'

    Raises:
        InputError: it is no override, is unknown, or has no counterpart.
    """
    if word.startswith("--"):
        return word
    key, is_whole, value = word.lstrip("+").partition("=")
    if not is_whole:
        raise InputError(f"'{word}' is no override; expected KEY=VALUE, such as trainer.total_epochs=10")
    phase, name = key.split(".", 1) if key.startswith("phase") and "." in key else ("", key)
    prefix = f"--{phase}." if phase else "--"
    if name == "model.lora_rank" and value == "0":
        return f"{prefix}model.lora=null"
    if name in NAMES:
        return f"{prefix}{NAMES[name]}={value}"
    known = next((held for held in OTHERWISE if name == held or name.startswith(f"{held}.")), None)
    if known:
        raise InputError(f"{word} has no counterpart; in its place Seeker has {OTHERWISE[known]}")
    close = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"; {close[0]} is --{NAMES[close[0]]}" if close else ""
    raise InputError(
        f"{word}: '{name}' is not among the translated overrides{hint}; give an option of seeker fit, such as --data.limit=100"
    )


def _is_value(before: str) -> bool:
    """Return whether an option stands before whose value comes next."""
    return before.startswith("--") and "=" not in before and before != "--dry_run"


def main(words: Sequence[str]) -> int:
    """Print the options, and what became what beside."""
    try:
        options = [word if _is_value(before) else translate(word) for before, word in pairwise(["", *words])]
    except InputError as error:
        sys.stderr.write(f"seeker: {error}\n")
        return error.exit_status
    for word, option in zip(words, options, strict=True):
        if word != option:
            sys.stderr.write(f"{word:<45} -> {option}\n")
        sys.stdout.write(f"{option}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
