"""`seeker plan --config …`: what a `seeker fit` would take, before it runs; the options are those of `fit`.

Parameters and memory are worked out on shapes alone (`modules/footprint.py`), the steps of an epoch from the data as they
would be packed. `--measure true` really runs three optimizer steps, for their time and the process's peak memory. Nothing
is tracked, and no checkpoint is written.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from project.datamodules.conversation import ConversationDataModule
from project.datamodules.question import QuestionDataModule
from project.errors import InputError, TrainingError
from project.lightning_cli import SeekerCLI, run_with
from project.modules import attention
from project.modules.adapter_checkpoint import check_weights
from project.modules.footprint import Footprint, Step, footprint
from project.modules.policy import LoRA
from project.modules.ppo import PPO
from project.modules.sft import SFT, refuse_float16
from project.modules.sharding import FSDP2
from project.runtime import free_memory

MEASURED = 3
"""Optimizer steps that are run; the first warms up and is not timed."""

DEFAULT_EPOCHS = 1000
"""Lightning's own, where neither epochs nor steps are limited."""

GAPS = 0.14
"""Of the activations: what a process grew by over them in a LoRA training of SmolLM2-135M (1.53 GB for 1.34; QLoRA 1.52)."""

VLLM_SHARE = 0.9
"""Of a GPU's memory, which vLLM takes by itself."""


def run(args: list[str]) -> None:
    """Plan what `seeker fit` with these words would do."""
    show(plan_of(args))


def plan_of(args: Sequence[str]) -> Plan:
    """Return the plan of a `seeker fit` with these words."""
    return cast(PlanCLI, run_with(PlanCLI, ["fit", *args])).plan


def check(args: Sequence[str]) -> None:
    """Build what `seeker fit` with these words would, but the weights and the trainer, and read its data.

    Raises:
        InputError: an option, a file or its contents are wrong, or training and validation share something.
    """
    run_with(CheckCLI, ["fit", *args])


@dataclass
class Setting:
    """What data modules ask of a trainer, and a plan of its config, without one: its GPUs need not be here."""

    lightning_module: LightningModule
    world_size: int
    accumulate_grad_batches: int
    limit_train_batches: int | float
    epochs: int
    max_steps: int
    strategy: str
    autocast: bool
    on_gpu: bool
    global_rank: int = 0
    fast_dev_run: bool = False

    @classmethod
    def of(cls, module: LightningModule, trainer: Any) -> Setting:  # noqa: ANN401 - a namespace
        """Read a trainer's config."""
        devices = trainer.devices
        count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else _devices_here()
        strategy = trainer.strategy
        return cls(
            module,
            count * (trainer.num_nodes or 1),
            trainer.accumulate_grad_batches,
            1.0 if trainer.limit_train_batches is None else trainer.limit_train_batches,
            -1
            if trainer.max_epochs is None and trainer.max_steps not in (None, -1)
            else DEFAULT_EPOCHS
            if trainer.max_epochs is None
            else trainer.max_epochs,
            -1 if trainer.max_steps is None else trainer.max_steps,
            str(strategy.get("class_path") if hasattr(strategy, "get") else strategy).rpartition(".")[2].lower(),
            "mixed" in str(trainer.precision),
            trainer.accelerator in ("gpu", "cuda")
            or (trainer.accelerator == "auto" and (count > 1 or torch.cuda.is_available())),
        )

    def steps(self, epoch: int) -> int:
        """Return the steps of the whole training, of which an epoch has so many: until the first of both limits."""
        limits = [self.max_steps] * (self.max_steps > 0) + [epoch * self.epochs] * (self.epochs > 0)
        if not limits:
            raise InputError("trainer.max_epochs and trainer.max_steps set no end; give one of them to plan for")
        return min(limits)

    def taken(self, batches: int) -> int:
        """Return how many of an epoch's batches are used: `limit_train_batches` is a number of them, or a share."""
        limit = self.limit_train_batches
        return min(int(limit), batches) if isinstance(limit, int) or limit > 1 else int(batches * limit)


def _devices_here() -> int:
    return max(1, torch.cuda.device_count())


@dataclass
class Plan:
    """What is said of a training."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    total: int = 0
    """Bytes of one device."""
    room: int | None = None
    """Bytes that one device has; None where it is not here."""
    steps: int = 0
    """Optimizer steps of the whole training."""

    def say(self, what: str, found: str) -> None:
        """Add a line."""
        self.lines.append((what, found))

    def count(self, what: str, size: float, why: str = "") -> None:
        """Add a part of a device's memory."""
        self.total += int(size)
        self.say(what, f"{_gb(size)}{f', {why}' if why else ''}")

    @property
    def fits(self) -> bool:
        """Whether there is room, as far as is known."""
        return self.room is None or self.total <= self.room


class PlanCLI(SeekerCLI):
    """`fit`'s command line, whose run is a plan."""

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:  # noqa: ANN401
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            parser.add_argument("--measure", type=bool, default=False, help=f"run {MEASURED} steps for their time and memory")
            parser.add_argument("--room_gb", type=float, default=None, help="memory of one device, where it is not here")
        return parser

    def before_instantiate_classes(self) -> None:
        """Leave out what a plan has no use for: the run's folder and record, callbacks, plugins."""
        self.given = self.config.fit.clone()
        trainer = self.config.fit.trainer
        trainer.logger, trainer.callbacks, trainer.plugins, trainer.strategy = False, None, None, "auto"

    def after_instantiate_classes(self) -> None:
        """Begin nothing."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return what stands in for the trainer."""
        del kwargs
        return Setting.of(self.model, self.given.trainer)

    def _run_subcommand(self, subcommand: str) -> None:
        """Work out the plan."""
        del subcommand
        self.plan = planned(self.model, self.datamodule, self.trainer, self.given.room_gb)
        if self.given.measure:
            measure(self.plan, self.words, self.trainer)


class CheckCLI(PlanCLI):
    """`fit`'s command line, whose run only reads the data and asks whether the rest goes together."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Prepare the data, plan its steps, and check what `fit` would once it has begun."""
        del subcommand
        if not isinstance(self.model, SFT):
            raise InputError(f"model: {type(self.model).__name__} hands on no weights; take SFT")
        refuse_float16(str(self.given.trainer.precision).startswith("16"))
        setting: Any = self.trainer
        if setting.strategy == "fsdp2":
            FSDP2.check(self.model)
        if self.model.start_from is not None:
            check_weights(self.model, self.model.start_from)
        self.datamodule.trainer = setting
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        self.datamodule.train_dataloader()


# --- what it takes -------------------------------------------------------------------------------------------------------


def planned(module: LightningModule, data: Any, setting: Any, room_gb: float | None) -> Plan:  # noqa: ANN401
    """Return the plan of a training.

    Raises:
        InputError: it is none.
    """
    plan = Plan(room=_room(setting, room_gb))
    if isinstance(module, SFT) and isinstance(data, ConversationDataModule):
        lengths = _plan_epochs(plan, data, setting)
    elif isinstance(module, PPO) and isinstance(data, QuestionDataModule):
        lengths = _plan_updates(plan, module, data, setting)
    else:
        raise InputError(f"seeker plan knows trainings by SFT and PPO, not {type(module).__name__} on {type(data).__name__}")
    accumulates = isinstance(module, PPO) or setting.accumulate_grad_batches > 1
    checkpointing = getattr(module, "gradient_checkpointing", False)
    step = Step(lengths, module.precision_name, setting.autocast, checkpointing, accumulates)
    found = _footprint(module, module.lora, step, setting)
    _plan_memory(plan, module, data, found, setting)
    own = _of_device(module, found, setting)
    if not plan.fits:
        for name, lora, other in alternatives(module.lora, step):
            instead = _of_device(module, _footprint(module, lora, other, setting), setting)
            total = plan.total - _taken(own, setting) + _taken(instead, setting)
            plan.say(f"with {name}", f"{_gb(total)}{'' if plan.room is None or total > plan.room else ': fits'}")
    return plan


def _plan_epochs(plan: Plan, data: ConversationDataModule, setting: Setting) -> list[int]:
    """Say how many steps there are; return the samples' tokens of the largest micro-batch."""
    data.trainer = setting  # type: ignore[assignment]
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()
    batches = [batch["lengths"] for batch in loader]
    used = setting.taken(len(batches))
    steps = used // setting.accumulate_grad_batches
    plan.steps = setting.steps(steps)
    tokens = sum(map(sum, batches[:used])) * setting.world_size
    plan.say(
        "an epoch",
        f"{tokens:,} tokens in {steps:,} steps of {setting.accumulate_grad_batches * setting.world_size} micro-batches",
    )
    plan.say("the training", f"{plan.steps:,} steps, {plan.steps / max(steps, 1):.3g} epochs")
    for name, dropped in data.dropped.items():
        if dropped:
            plan.say("dropped", f"{dropped:,} {name} samples over data.micro_tokens={data.micro_tokens:,}")
    return max(batches, key=lambda lengths: (sum(lengths), max(lengths)))


def _plan_updates(plan: Plan, module: PPO, data: QuestionDataModule, setting: Setting) -> list[int]:
    """Say how many updates there are; return the tokens of the contexts of the largest micro-batch."""
    data.trainer = setting  # type: ignore[assignment]
    data.setup("fit")
    plan.steps = updates = setting.steps(setting.taken(len(data.train_dataloader())))
    episodes = data.batch_questions * module.ppo.episodes_per_question
    context = module.limits.context_tokens or _config(module.model_path).max_position_embeddings
    plan.say("the training", f"{updates:,} updates of {episodes} episodes of at most {context:,} tokens")
    return [context] * min(module.ppo.micro_episodes, episodes)


def _plan_memory(plan: Plan, module: Any, data: Any, found: Footprint, setting: Setting) -> None:  # noqa: ANN401
    share = found.trainable / found.parameters
    plan.say(
        "parameters", f"{found.parameters / 1e6:,.1f} M, of which {found.trainable / 1e6:,.1f} M are trained ({share:.1%})"
    )
    own = _of_device(module, found, setting)
    plan.count("weights", own.weights)
    plan.count("gradients", own.gradients)
    plan.count("optimizer", own.optimizer)
    plan.count("activations", own.activations, "at the peak of a micro-batch")
    if setting.world_size > 1 and setting.strategy != "fsdp2":
        plan.count("DDP's buckets", found.gradients)
    if isinstance(module, PPO):
        _plan_engine(plan, module, data, found, setting)
    if not setting.on_gpu:
        plan.count("between blocks", _taken(own, setting) - own.total, "which tcmalloc leaves")
        plan.count("libraries", _resident(), "this process's own")
    room = "" if plan.room is None else f" of {_gb(plan.room)}: {'fits' if plan.fits else 'does not fit'}"
    plan.say("a device" if setting.world_size > 1 else "in all", f"{_gb(plan.total)}{room}")


def _plan_engine(plan: Plan, module: PPO, data: QuestionDataModule, found: Footprint, setting: Setting) -> None:
    """Count the critic and what the engine holds in the same device."""
    if module.estimator.critic and module.ppo.critic_in == "model":
        step = Step([1024], "float32", setting.autocast)
        critic = _of_device(module, _footprint(module, None, step, setting), setting)
        plan.count("critic", critic.weights + critic.gradients + critic.optimizer, "a model of its own")
    if module.engine_name == "vllm":
        from project.rollouts.engines.vllm import cache_bytes

        if setting.on_gpu and plan.room:
            plan.count(
                "vLLM", 0 if module._engine_sleeps else plan.room * (module.engine_memory or VLLM_SHARE), "model.engine_memory"
            )
            return
        base = found.parameters - (found.trainable if module.lora is not None else 0)
        plan.count("vLLM's weights", base * getattr(torch, module.precision_name).itemsize)
        episodes = data.batch_questions * module.ppo.episodes_per_question
        cache = cache_bytes(module.model_path, module.limits.context_tokens, -(-episodes // setting.world_size))
        plan.count("vLLM's KV cache", cache)


def alternatives(lora: LoRA | None, step: Step) -> Iterator[tuple[str, LoRA | None, Step]]:
    """Yield what takes less memory: its name, adapter and step."""
    if not step.gradient_checkpointing:
        yield "model.gradient_checkpointing true", lora, replace(step, gradient_checkpointing=True)
    tokens = sum(step.lengths)
    half = [min(length, tokens // 2) for length in step.lengths]
    while sum(half) > tokens // 2 and len(half) > 1:
        half.pop()
    yield f"data.micro_tokens {tokens // 2}", lora, replace(step, lengths=half)
    if lora is None:
        yield "model.lora {} and model.precision bfloat16", LoRA(), replace(step, precision="bfloat16")
    if lora is None or not lora.nf4:
        nf4 = replace(lora or LoRA(), nf4=True)
        yield (
            "model.lora.nf4 true and gradient_checkpointing",
            nf4,
            replace(step, precision="bfloat16", gradient_checkpointing=True),
        )


def _taken(own: Footprint, setting: Setting) -> int:
    """Return the bytes that a step takes of a device, those between the allocator's blocks too."""
    return own.total + (0 if setting.on_gpu else int(own.activations * GAPS))


def _footprint(module: Any, lora: LoRA | None, step: Step, setting: Setting) -> Footprint:  # noqa: ANN401
    with _long_attention(setting.on_gpu):
        return footprint(module.model_path, module.tokenizer, module._new_ids, lora, step)


@contextmanager
def _long_attention(on_gpu: bool) -> Iterator[None]:
    """Have no scores kept, as by the flash kernel of GPUs."""
    before = attention.LONG
    attention.LONG = 0 if on_gpu else before
    try:
        yield
    finally:
        attention.LONG = before


def _of_device(module: Any, found: Footprint, setting: Setting) -> Footprint:  # noqa: ANN401
    """Return what one device holds: with FSDP2 its shards, and two layers and the embedding whole."""
    if setting.strategy != "fsdp2" or setting.world_size == 1:
        return found
    config = _config(module.model_path)
    size = found.weights / found.parameters
    embedding = int(config.vocab_size * config.hidden_size * size)
    layers = int(2 * (found.weights - embedding) / config.num_hidden_layers)
    return found.sharded(setting.world_size, embedding + layers)


def _config(model_path: str) -> Any:  # noqa: ANN401
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model_path).get_text_config()


def _room(setting: Setting, room_gb: float | None) -> int | None:
    if room_gb is not None:
        return int(room_gb * 1e9)
    if not setting.on_gpu:
        return (free_memory() + _resident()) // setting.world_size  # ranks on CPUs share the machine's
    return int(torch.cuda.mem_get_info()[1]) if torch.cuda.is_available() else None


def _resident() -> int:
    """Return this process's own memory, without what is mapped from files."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


# --- what it took --------------------------------------------------------------------------------------------------------


class Timed(Callback):
    """Notes when optimizer steps end and the most memory of the process, and ends it after some."""

    def __init__(self, file: str, steps: int = MEASURED) -> None:
        super().__init__()
        self.file, self.steps, self.times, self.peak = Path(file), steps, [time.perf_counter()], 0
        self._running = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch."""
        threading.Thread(target=self._watch, daemon=True).start()
        self.times = [time.perf_counter()]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:  # noqa: ANN401
        """Note the end of a step, and end after the last."""
        done = int(pl_module.updates) if hasattr(pl_module, "updates") else trainer.global_step
        if done < len(self.times):
            return
        self.times.append(time.perf_counter())
        if done >= self.steps:
            self._end()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End, too, after a training of fewer steps."""
        self._end()

    def _end(self) -> None:
        self._running = False
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else max(self.peak, _resident())
        seconds = [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]
        self.file.write_text(json.dumps({"seconds": seconds, "peak": peak}))
        raise SystemExit(0)

    def _watch(self) -> None:
        while self._running:
            self.peak = max(self.peak, _resident())
            time.sleep(0.02)


def measure(plan: Plan, words: Sequence[str], setting: Any) -> None:  # noqa: ANN401
    """Run some steps in a process of its own, and say what they took.

    Raises:
        TrainingError: they failed.
    """
    with tempfile.TemporaryDirectory(prefix="seeker-plan-") as folder:
        file = Path(folder) / "measured.json"
        own = [
            "--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.limit_val_batches=0",
            "--trainer.num_sanity_val_steps=0", f"--trainer.default_root_dir={folder}", "--trainer.callbacks=null",
            "--trainer.callbacks+=project.apps.plan.Timed", f"--trainer.callbacks.file={file}",
            f"--model.export_dir={folder}/merged",
        ]  # fmt: skip
        command = [sys.executable, "-m", "project", *_without_own(words), *own]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not file.is_file():
            said = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise TrainingError(f"the steps that were to be measured failed: {said.removeprefix('seeker: ')}")
        found = json.loads(file.read_text())
    steady = found["seconds"][1:] or found["seconds"]
    each = sum(steady) / len(steady)
    plan.say(
        "measured", f"{each:.2f} s a step, so {_duration(each * plan.steps)} for all, and {_gb(found['peak'])} at the peak"
    )


def _without_own(words: Sequence[str]) -> list[str]:
    """Return the words without the options that only a plan has."""
    kept, left = [], iter(words)
    for word in left:
        name, is_whole, _ = word.partition("=")
        if name not in ("--measure", "--room_gb"):
            kept.append(word)
        elif not is_whole:
            next(left, None)
    return kept


def show(plan: Plan) -> None:
    """Print a plan."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", box=None, show_header=False)
    for line in plan.lines:
        table.add_row(*line)
    Console().print(table)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
