"""Weighted-loss supervised fine-tuning: LoRA or full, the loss exact over each optimizer step (DESIGN §4.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from project.datamodules.plan import MicroBatch
from project.errors import InputError, TrainingError
from project.losses import weighted_cross_entropy
from project.modules.adapter_checkpoint import AdapterCheckpoint, load_weights
from project.modules.hands_on import HandsOn
from project.modules.optimization import OptimizerName, check_rates, make_optimizer, warmup_cosine
from project.modules.policy import (
    AgentSettings,
    LoRA,
    Policy,
    Precision,
    load_tokenizer,
    resolve_model_path,
)
from project.modules.sharding import local, shard
from project.rendering import KINDS, Renderer

SHOWN = 8
"""Samples that an error names."""


class StepPart(NamedTuple):
    """What a micro-batch adds to its optimizer step."""

    loss: Tensor
    """Its share of the step's loss, detached."""
    tokens: int
    names: list[str]
    """Its samples."""


class SFT(HandsOn, AdapterCheckpoint, LightningModule):
    """Fine-tunes a causal LM on weighted spans of conversations; at the end writes a merged model folder."""

    def __init__(
        self,
        model_path: str | None = None,
        settings: AgentSettings = AgentSettings(),  # noqa: B008 - frozen
        lora: LoRA | None = LoRA(),  # noqa: B008 - frozen
        precision: Precision = "bfloat16",
        gradient_checkpointing: bool = False,
        learning_rate: float = 1e-3,
        warmup_share: float = 0.05,
        weight_decay: float = 0.0,
        optimizer: OptimizerName = "adamw",
        export_dir: Path | None = None,
        start_from: Path | None = None,
    ) -> None:
        """Take what to train and how.

        Args:
            model_path: folder or hub id; the embedded SmolLM2-135M-Instruct by default.
            settings: dialect and history, stored beside the exported weights.
            lora: the adapter; null trains all weights.
            precision: dtype of the base weights; adapters are float32.
            gradient_checkpointing: compute each layer a second time in backward and keep only what goes into it.
            learning_rate: peak of AdamW, after warm-up; then cosine to 0.
            warmup_share: share of all steps spent warming up.
            weight_decay: of AdamW, for matrices; norms and biases do not decay.
            optimizer: `adamw`, or `adamw_8bit` on a GPU.
            export_dir: where the merged model goes when training ends; `merged` in the run's folder by default.
            start_from: a checkpoint of a training of the same base and adapter, whose weights this one goes on with; optimizer,
                schedule and data begin anew (`--ckpt_path` goes on with those too).
        """
        super().__init__()
        check_rates(learning_rate=learning_rate, warmup_share=warmup_share, weight_decay=weight_decay)
        self.model_path = resolve_model_path(model_path)
        self.settings, self.lora, self.precision_name = settings, lora, precision
        self.learning_rate, self.warmup_share, self.weight_decay = learning_rate, warmup_share, weight_decay
        self.gradient_checkpointing = gradient_checkpointing
        self.export_dir, self.optimizer_name, self.start_from = export_dir, optimizer, start_from
        if start_from is not None and not start_from.is_file():
            raise InputError(f"model.start_from={start_from} does not exist; give a checkpoint of seeker fit")
        self.dialect = settings.make_dialect()
        self.tokenizer, self._new_ids = load_tokenizer(self.model_path, self.dialect)
        self.policy: Policy | None = None
        # Lightning keeps what the last micro-batch of a step logs: it is the sum over the step so far.
        self._step: list[StepPart] = []
        names = ["loss", *(f"{metric}_{kind}" for kind in KINDS for metric in ("loss", "accuracy"))]
        # By default torchmetrics leaves NaN out of a mean, and with "disable" 1.9 leaves the weights out: NaN counts as inf.
        self.validation: Any = nn.ModuleDict({name: MeanMetric(nan_strategy=float("inf")) for name in names})
        self.also: Any = nn.ModuleList()
        """The losses of the further files that the datamodule validates on, in their order."""
        self._also_names: tuple[str, ...] = ()

    def setup(self, stage: str) -> None:
        """Make room for what is validated beside."""
        del stage
        self._also_names = tuple(getattr(getattr(self.trainer, "datamodule", None), "also_validate", ()))
        self.also = nn.ModuleList([MeanMetric(nan_strategy=float("inf")) for _ in self._also_names])

    def configure_model(self) -> None:
        """Load the weights once the strategy is set up."""
        if self.policy is None:
            self.pin_base()
            mesh, empty = self.device_mesh, self.device_mesh is not None and self.device_mesh.get_rank() > 0
            checkpointing = self.gradient_checkpointing
            self.policy = Policy(
                self.model_path, self.tokenizer, self._new_ids, self.lora, self.precision_name, checkpointing, empty
            )
            if mesh is not None:
                shard(self.policy, mesh["data_parallel"])
            if self.start_from is not None:
                load_weights(self, self.start_from)

    def make_renderer(self, weights: Mapping[str, float]) -> Renderer:
        """Return the renderer that the datamodule tokenises with."""
        return Renderer(self.tokenizer, self.dialect, self.settings.history, weights)

    def on_fit_start(self) -> None:
        """Refuse float16, whose scaled gradients neither the clipping nor the check for finite ones here are for."""
        refuse_float16(getattr(self.trainer.precision_plugin, "scaler", None) is not None)

    def training_step(self, batch: MicroBatch, batch_idx: int) -> Tensor:
        """Return the micro-batch's share of the step's loss, scaled so that Lightning's averages cancel."""
        del batch_idx
        loss, *_ = self._loss(batch)
        self._step.append(StepPart(loss.detach() / batch["step_weight"], batch["tokens"], batch["names"]))
        sums = {"train/loss": sum(p.loss for p in self._step), "train/tokens": float(sum(p.tokens for p in self._step))}
        for name, total in sums.items():
            self.log(name, total, on_step=True, reduce_fx="sum", sync_dist=self.trainer.world_size > 1)
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        scale: float = parts / batch["step_weight"]
        return loss * scale

    def validation_step(self, batch: MicroBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Take in the weighted loss and, for each kind, the plain loss and the share of tokens predicted right.

        Of the files beside the first, the weighted loss alone.
        """
        del batch_idx
        _, logprobs, right = self._loss(batch)
        weights, kinds = batch["weights"][1:], batch["kinds"][1:]
        trained = weights > 0
        if dataloader_idx:
            self.also[dataloader_idx - 1].update(-logprobs, weights[trained])
            return
        self.validation["loss"].update(-logprobs, weights[trained])
        for index, kind in enumerate(KINDS):
            chosen = kinds[trained] == index
            self.validation[f"loss_{kind}"].update(-logprobs[chosen])
            self.validation[f"accuracy_{kind}"].update(right[chosen].float())

    def on_validation_epoch_end(self) -> None:
        """Log the means over all ranks, of the kinds that there were: each rank reduces each of them, in the same order."""
        named = {f"val/{name}": metric for name, metric in self.validation.items()}
        also = {f"val_{name}/loss": metric for name, metric in zip(self._also_names, self.also, strict=True)}
        for name, metric in (named | also).items():
            with metric.sync_context():
                if metric.weight > 0:
                    self.log(name, metric.mean_value / metric.weight)
            metric.reset()

    def _loss(self, batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sum of w * CE, and log-probabilities (N,) and hits (N,) of the trained labels."""
        policy = self.policy
        assert policy is not None
        labels, weights = batch["input_ids"][1:], batch["weights"][1:]
        trained = weights > 0  # never a sample's first token, which the one before would have to predict

        def cross_entropy(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return weighted_cross_entropy(hidden[:-1][trained], policy.head_weight(), labels[trained], weights[trained])

        return policy(batch["input_ids"], batch["lengths"], cross_entropy)  # type: ignore[no-any-return]

    def on_before_optimizer_step(self, optimizer: Any) -> None:  # noqa: ANN401 - Lightning's hook
        """Stop before a step with a non-finite gradient, on all ranks together, and name the samples."""
        del optimizer
        check_finite(self, suspects(self._step))
        self._step.clear()

    def configure_gradient_clipping(
        self,
        optimizer: Any,  # noqa: ANN401 - Lightning's hook
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer asks: under bf16 no gradient is scaled, and Lightning's own would refuse a fused optimizer."""
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(trained, gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grad_norm_(trained, gradient_clip_val)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with warm-up and cosine decay over the run's optimizer steps."""
        optimizer = make_optimizer(self, self.learning_rate, self.weight_decay, self.optimizer_name)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(steps, self.warmup_share))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def refuse_float16(is_scaled: bool) -> None:
    """Raise `InputError` where the trainer scales gradients."""
    if is_scaled:
        raise InputError("trainer.precision: 16-mixed scales gradients, which this training does not undo; take bf16-mixed")


def suspects(step: Sequence[StepPart]) -> list[str]:
    """Return the samples of the micro-batches whose loss is not finite, or of all where each of them is."""
    odd = [part for part in step if not part.loss.isfinite()]
    return [name for part in odd or step for name in part.names]


def check_finite(module: LightningModule, samples: Sequence[str] = ()) -> None:
    """Raise `TrainingError` on every rank where any rank holds a non-finite gradient; each names its own samples."""
    gradients = [local(p.grad) for p in module.parameters() if p.grad is not None]
    finite = torch.stack([g.isfinite().all() for g in gradients]).all() if gradients else torch.tensor(True)
    flag = module.trainer.strategy.reduce((~finite).float().to(module.device), reduce_op="sum")
    if float(flag) > 0:
        rest = f" and {len(samples) - SHOWN} more" if len(samples) > SHOWN else ""
        which = f" (samples {', '.join(samples[:SHOWN])}{rest})" if samples else ""
        raise TrainingError(
            f"the gradient is not finite at step {module.global_step}{which}; lower the learning rate or clip it"
        )
