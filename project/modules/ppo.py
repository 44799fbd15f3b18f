"""PPO (Schulman et al. 2017) on whole search episodes, as a LightningModule with manual optimisation.

One `training_step` is one update: roll out a group of episodes per question with the current weights in the engine, pay each
by the estimator's baseline, take values, old and reference log-probabilities, compute advantages on the trained tokens, run
the inner epochs, and put the merged weights back into the engine. The estimators are in `advantages.py`, the losses in
`losses.py`, the numbers in `ppo_settings.py`.

With `gae` how hard a question is is taken out before the critic, which starts at 0 and learns what happens within an episode.
It is a small head on the policy's detached hidden states: it can never pull on the policy. The reference of KL is the policy's
base with its adapter off: at update 0 KL is 0 and every ratio 1.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from project.advantages import estimator_named, leave_one_out
from project.errors import EngineError, InputError, TrainingError
from project.losses import (
    chunked_logprobs,
    chunked_logprobs_and_entropy,
    explained_variance,
    k1_kl,
    k3_kl,
    ppo_policy_loss,
)
from project.modules.critic import Critic, DeepCritic, Loss, share_frozen
from project.modules.hands_on import HandsOn
from project.modules.optimization import check_rates, make_optimizer
from project.modules.policy import LoRA, Policy, Precision
from project.modules.ppo_batches import FILLER, Batch, Notes, Step, Update, deal, pay, plan, together
from project.modules.ppo_health import generating_seconds, memory_health
from project.modules.ppo_settings import PPOSettings
from project.modules.rollout_agent import SAME_REWARD, RolloutAgent, Scores
from project.modules.sft import check_finite
from project.modules.sharding import shard
from project.ranks import clip_gradients, gathered, same_on_all, sum_gradients, summed, world
from project.records import Episode, Question
from project.rollouts.rows import TrainingRow, collate_rows, training_rows
from project.runtime import return_freed_memory

logger = logging.getLogger(__name__)

OF_TOKENS = ("clip_fraction", "approx_kl", "ratio")
"""What a step finds as a mean over its trained tokens."""
NOTES = ("old_values", "penalty", "kl", "engine_gap", "importance", "entropy", "token_weights")
"""What all ranks learn of each row's trained tokens."""
KL_GAIN, KL_ERROR = 0.1, 0.2
"""How fast an update steers the KL's coefficient, and the largest relative error that it heeds."""


class PPO(HandsOn, RolloutAgent):
    """Trains a search agent by PPO with rollouts from the engine."""

    kl_scale: Tensor
    """What steering has made of `kl_coef`, as a factor."""
    critic_fits: Tensor
    """Updates that trained the critic, int64."""
    flat: Tensor
    """Updates in a row that trained nothing, int64."""

    def __init__(
        self,
        *,
        ppo: PPOSettings = PPOSettings(),  # noqa: B008 - frozen
        lora: LoRA | None = LoRA(),  # noqa: B008 - frozen
        precision: Precision = "bfloat16",
        learning_rate: float = 1e-4,
        critic_learning_rate: float = 3e-4,
        export_dir: Path | None = None,
        **agent: Any,  # noqa: ANN401 - RolloutAgent's arguments; the command line resolves them
    ) -> None:
        """Take what `RolloutAgent` takes (`model_path` is the merged folder that SFT hands on), and how to train.

        Args:
            ppo: the numbers of the algorithm.
            lora: the fresh adapter that is trained.
            precision: dtype of the base weights.
            learning_rate: AdamW's, for the policy, constant.
            critic_learning_rate: AdamW's, for the critic.
            export_dir: where the merged model goes when training ends; `merged` in the run's folder by default.
            agent: what `RolloutAgent` takes.
        """
        check_rates(learning_rate=learning_rate, critic_learning_rate=critic_learning_rate)
        super().__init__(ppo=ppo, lora=lora, **agent)
        self.automatic_optimization = False
        self.estimator, self.estimator_name = estimator_named(ppo.estimator), ppo.estimator
        self.kl_in, self.length_norm = ppo.kl_in or self.estimator.kl_in, ppo.length_norm or self.estimator.length_norm
        self.lora, self.precision_name = lora, precision
        self.learning_rate, self.critic_learning_rate = learning_rate, critic_learning_rate
        self.export_dir = export_dir
        if lora is None and ppo.kl_coef:
            raise InputError(
                f"ppo.kl_coef={ppo.kl_coef} needs a reference, which is the model without its adapter; give lora, or kl_coef: 0"
            )
        if ppo.critic_in == "adapter" and (lora is None or lora.nf4):
            raise InputError(f"ppo.critic_in=adapter shares the policy's frozen weights, and model.lora is {lora}; give model")
        if lora is not None and lora.dropout:
            raise InputError(f"lora.dropout={lora.dropout} would make ratios differ from 1 before any step; PPO needs 0")
        self.critic: Critic | DeepCritic | None = None
        self.register_buffer("kl_scale", torch.ones(()))
        self.register_buffer("critic_fits", torch.zeros((), dtype=torch.long))
        self.register_buffer("flat", torch.zeros((), dtype=torch.long))

    # --- lifetimes ---------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load the policy with a fresh adapter, and the critic where the estimator has one."""
        if self.policy is None:
            self.pin_base()
            mesh, empty = self.device_mesh, self.device_mesh is not None and self.device_mesh.get_rank() > 0
            self.policy = Policy(self.model_path, self.tokenizer, self._new_ids, self.lora, self.precision_name, empty=empty)
            if mesh is not None:
                shard(self.policy, mesh["data_parallel"])
            self.critic = self._make_critic(self.policy) if self.estimator.critic else None

    def _make_critic(self, policy: Policy) -> Critic | DeepCritic:
        kind, mesh = self.ppo.critic_in, self.device_mesh
        if kind == "head":
            return Critic(policy.hidden_size)
        shared = kind == "adapter"
        empty = shared or (mesh is not None and mesh.get_rank() > 0)
        lora = self.lora if shared else None
        precision = self.precision_name if shared else "float32"  # in bf16 a small step of all weights is rounded away
        body = Policy(self.model_path, self.tokenizer, self._new_ids, lora, precision, empty=empty)
        if shared:
            share_frozen(body, policy)
        elif mesh is not None:
            shard(body, mesh["data_parallel"])
        return DeepCritic(body)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:  # type: ignore[override]
        """AdamW for the policy, and one for a critic."""
        assert self.policy is not None
        made = [make_optimizer(self.policy, self.learning_rate)]
        if self.critic is None:
            return made
        groups = [{"params": part} for part in self.critic.groups()]
        return [*made, torch.optim.AdamW(groups, self.critic_learning_rate, weight_decay=0.0, fused=True)]

    def on_fit_start(self) -> None:
        """Start the engine inside Lightning's process group."""
        _, ranks = world()
        if ranks != self.trainer.world_size:
            raise EngineError(f"the process group has {ranks} ranks and the trainer {self.trainer.world_size}; restart the run")
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise InputError("trainer.precision: 16-mixed scales gradients, which this training does not undo; take bf16-mixed")
        if self.critic is not None:
            if self.device_mesh is not None and self.ppo.critic_in == "adapter":
                raise InputError(
                    "ppo.critic_in=adapter shares weights, which fsdp2 cuts in shards; give head or model, or take ddp"
                )
            same_on_all(self.critic.head if isinstance(self.critic, DeepCritic) else self.critic)
        self._start_engine()

    def roll_back(self, checkpoint: dict[str, Any], slow_down: float) -> int:
        """Take weights, optimizers and statistics of a checkpoint of this run, and go on with the questions at hand.

        Args:
            checkpoint: as the strategy read it.
            slow_down: factor of the learning rates that the run has now.

        Returns:
            the update after which it was saved.
        """
        now, rates = int(self.updates), [group["lr"] for o in self._optimizers() for group in o.param_groups]
        held = {name: value for name, value in checkpoint.items() if name != "loops"}  # those go on
        self.on_load_checkpoint(held)
        self._random = None  # and so does the noise
        self.trainer.strategy.load_model_state_dict(held)
        self.trainer.strategy.load_optimizer_state_dict(held)
        groups = [group for optimizer in self._optimizers() for group in optimizer.param_groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * slow_down
        self.updates.fill_(now)
        assert self._engine is not None
        self._moved, self._due, self._engine.version = False, [], now - 1
        self._sync(log=False)
        return int(checkpoint["global_step"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take a checkpoint of another estimator too, for all but going on: the critic is for training only."""
        super().on_load_checkpoint(checkpoint)
        trainer = self._own_trainer()
        if trainer is None or trainer.state.fn != "fit":
            own = {name: value for name, value in self.state_dict().items() if name.startswith("critic.")}
            held = {name: value for name, value in checkpoint["state_dict"].items() if not name.startswith("critic.")}
            checkpoint["state_dict"] = held | own

    # --- one update --------------------------------------------------------------------------------------------------

    def training_step(self, batch: list[Question], batch_idx: int) -> None:
        """Roll out, score, train, sync; with `ppo.overlap` train the batch before, while this one is rolled out."""
        del batch_idx
        self.trainer.fit_loop.epoch_loop._results.clear()  # else it logs what an earlier update logged, and this does not
        self.logged_now.clear()
        self.seconds.clear()
        return_freed_memory()
        with self.timed("update"):
            rolled, rows = self._learn_beside(batch) if self.ppo.overlap else self._learn_after(batch)
            with self.timed("sync"):
                return_freed_memory()  # what the training held, before the weights are there twice
                self._sync()
        self._count_update()
        self._log_times(rolled, rows)

    def _learn_after(self, batch: list[Question]) -> tuple[list[Episode], list[TrainingRow]]:
        """Roll out and train a batch; return its episodes and the rows that were trained."""
        with self.timed("rollout"):
            episodes, scores = self._episodes_of(batch)
        with self.timed("sync"):
            assert self._engine is not None
            self._engine.sleep()
        return episodes, self._learn(episodes, scores)

    def _learn_beside(self, batch: list[Question]) -> tuple[list[Episode], list[TrainingRow]]:
        """Roll out a batch and meanwhile train the episodes that are due, of which the first update has none."""
        due = self._scored(self._due) if self._due else None  # before the engine's thread touches the random numbers of all
        with self._rolling_out(batch):
            rows = self._learn(*due) if due else []
        return self._due, rows

    def _learn(self, episodes: list[Episode], scores: list[Scores]) -> list[TrainingRow]:
        """Train what the episodes teach, and return those rows."""
        with self.timed("train"):
            rows = self._telling_rows(episodes, [score["total"] for score in scores])
            self.log("train/questions", len({episode.question.id for episode in episodes}))
            self.log("train/trained_share", len({row.episode for row in rows}) / len(episodes))
            if rows:
                self._train(rows)
        return rows

    def _log_times(self, rolled: list[Episode], rows: list[TrainingRow]) -> None:
        tokens = {"rollout": sum(e.generated_tokens for e in rolled), "train": sum(len(row.ids) for row in rows)}
        speeds = {f"speed/{name}_tokens_s": count / self.seconds[name] for name, count in tokens.items() if count}
        self.seconds["idle"] = self.seconds["rollout"] - generating_seconds(rolled)
        self.log_dict(speeds | memory_health() | {f"time/{name}_s": seconds for name, seconds in self.seconds.items()})

    def _count_update(self) -> None:
        """Have `global_step`, by which Lightning saves, logs and stops, count updates and not steps inside them (trap 15)."""
        self.updates.add_(1)
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()

    def _telling_rows(self, episodes: Sequence[Episode], rewards: Sequence[float]) -> list[TrainingRow]:
        """Return the episodes that teach something, each with what the estimator's baseline leaves of its reward.

        By group these are the questions whose episodes differ in reward: where all earned the same nothing is left. What the
        critic and the KL would have said of them is lost, so that the gradient is unbiased only where the critic's values are
        0. An update in which nothing differs trains nothing: Adam would take whole steps on the KL's noise.

        Raises:
            TrainingError: it was so for `flat_updates` in a row, from the start on.
        """
        names = [episode.question.id for episode in episodes]
        rewards_E = torch.tensor(rewards)
        groups_E = torch.tensor([names.index(name) for name in names]) if self.estimator.by_group else torch.zeros(len(names))
        paid_E = self.estimator.baseline(rewards_E, groups_E)
        differ = leave_one_out(rewards_E, groups_E).abs() > SAME_REWARD
        if self.estimator.by_group:
            differ = differ & (paid_E.abs() > SAME_REWARD)  # an episode alone may differ from the others, and be paid nothing
        telling = {int(group) for group in groups_E[differ]} if len(episodes) > 1 else set()
        self.flat.add_(1).mul_(not telling)
        if int(self.flat) == self.ppo.flat_updates:
            self._stop(sum(rewards) / len(rewards))
        paid = paid_E.tolist()
        spans = self.ppo.span_weights
        weigh = partial(self.renderer.turn_weights, weights=spans) if spans else None
        numbered = enumerate(zip(episodes, paid, groups_E.tolist(), strict=True))
        chosen = [(i, episode, reward) for i, (episode, reward, group) in numbered if int(group) in telling]
        return [row for i, episode, reward in chosen for row in training_rows(episode, reward, i, weigh)]

    def _stop(self, reward: float) -> None:
        """End the run, which learns nothing any more: well if it ever did, its model exported, else with an error."""
        said = f"for {int(self.flat)} updates the episodes of each question have earned the same, {reward:.3g} on average now"
        if int(self.flat) + self.overlap > int(self.updates):  # with overlap the first update has nothing to train
            raise TrainingError(f"{said}; start from a model that is sometimes right, or raise ppo.episodes_per_question")
        logger.warning("%s: the run ends", said)
        self.trainer.should_stop = True

    def _train(self, rows: list[TrainingRow]) -> None:
        """Take the update's steps with policy and critic; what is logged is the mean over the policy's."""
        with self.timed("logprobs"):
            update = self._prepare(rows)
        if self.critic is None or int(self.critic_fits) >= self.ppo.critic_warmup:
            steps = self._train_policy(update)
            self.log_dict({f"ppo/{name}": sum(step[name] for step in steps) / len(steps) for name in steps[0]})
            self.log("ppo/steps", len(steps))
            if self.ppo.kl_target is not None:
                self._steer_kl(mean_kl(update.notes), self.ppo.kl_target)
        if self.critic is not None:
            found = [self._critic_step(losses) for losses in self.critic.steps(update, self.ppo, self._generator(-1))]
            self.log_dict({f"ppo/{name}": value for name, value in found[-1].items()})
            self.critic_fits.add_(1)

    def _train_policy(self, update: Update) -> list[dict[str, Tensor]]:
        """Return what each of the policy's steps has found."""
        found = []
        for epoch in range(self.ppo.inner_epochs):
            for step in deal(update, self.ppo.minibatch_episodes, self.length_norm, self._generator(epoch)):
                found.append(self._optimizer_step([update.micro[i] for i in step.micro], step))
                if self._is_far(found[-1]):
                    return found
        return found

    def _is_far(self, step: dict[str, Tensor]) -> bool:
        return self.ppo.kl_stop is not None and float(step["approx_kl"]) > self.ppo.kl_stop

    def _steer_kl(self, kl: float, target: float) -> None:
        """Raise the KL's coefficient where the policy is further from the reference than wanted (Ziegler et al. 2019)."""
        self.kl_scale.mul_(1 + KL_GAIN * min(KL_ERROR, max(-KL_ERROR, kl / target - 1)))
        self.log("ppo/kl_coef", self.kl_coef)

    @property
    def kl_coef(self) -> float:
        """The KL's coefficient as it is now."""
        return self.ppo.kl_coef * float(self.kl_scale)

    def _prepare(self, rows: list[TrainingRow]) -> Update:
        """Return this rank's micro-batches, and every row's notes, with advantages and returns."""
        rank, size = world()
        planned = plan(rows, self.ppo.micro_episodes, size)
        micro = [self._annotate([rows[i] for i in ranks[rank]], ranks[rank]) for ranks in planned]
        mine = [(i, {name: note.cpu() for name, note in of_row.items()}) for batch in micro for i, of_row in _split(batch)]
        notes = [note for _, note in sorted((pair for part in gathered(mine) for pair in part), key=lambda pair: pair[0])]
        pay(rows, notes, self.estimator, self.ppo, self.length_norm)
        for batch in micro:
            for name in ("advantages", "returns", "token_weights"):
                parts = [notes[i][name] for i in batch["numbers"]]
                batch[name] = torch.cat([*parts, torch.zeros(0)]).to(self.device)
        self._log_annotations(notes)
        return Update(rows, planned, micro, notes)

    @torch.no_grad()
    def _annotate(self, rows: list[TrainingRow], numbers: list[int]) -> Batch:
        """Return a micro-batch of these rows, with the log-probabilities and values before the update."""
        assert self.policy is not None
        found = collate_rows(rows or [FILLER])
        batch: Batch = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in found.items()}
        logprobs, hidden, entropy = self._forward(batch, entropy=True)
        values = torch.zeros_like(logprobs) if self.critic is None else self.critic.values(batch, hidden)
        with self.policy.reference():
            reference, _, _ = self._forward(batch)
        kl = k1_kl(logprobs, reference)
        penalty = self.kl_coef * kl if self.kl_in == "reward" else torch.zeros_like(kl)
        behaviour = batch["logprobs"][batch["trained"]]
        return batch | {
            "rows": rows,
            "numbers": numbers,
            "counts": [sum(row.trained) for row in rows],
            "hidden": hidden if isinstance(self.critic, Critic) else None,
            "old_logprobs": logprobs,
            "old_values": values,
            "reference": reference,
            "entropy": entropy,
            "kl": kl,
            "penalty": penalty,
            "engine_gap": (logprobs - behaviour).abs(),
            "importance": (logprobs - behaviour).exp().clamp(max=self.ppo.importance_cap),
            "token_weights": batch["weights"][batch["trained"]],
        }

    def _forward(self, batch: Batch, *, entropy: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return (log-probabilities (N,), hidden states (N, H) before them, entropy (N,)) of the trained tokens, rows in order.

        The entropy is 0 where it is not asked for.
        """
        policy = self.policy
        assert policy is not None
        trained = batch["trained"][1:]  # a row begins with its prompt
        labels = batch["input_ids"][1:][trained]

        def scored(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            hidden = hidden[:-1][trained]
            if entropy:
                logprobs, spread = chunked_logprobs_and_entropy(policy.head, hidden, labels, self.ppo.temperature)
                return logprobs, hidden, spread
            logprobs = chunked_logprobs(policy.head, hidden, labels, self.ppo.temperature)
            return logprobs, hidden, torch.zeros_like(logprobs)

        return policy(batch["input_ids"], batch["lengths"], scored)  # type: ignore[no-any-return]

    def _optimizer_step(self, micro: list[Batch], step: Step) -> dict[str, Tensor]:
        """Take a step on this rank's micro-batches, together with all ranks."""
        optimizer, policy = self._optimizers()[0].optimizer, self.policy
        assert policy is not None
        metrics: dict[str, Tensor] = {}
        for batch in micro:
            loss, found = self._loss(batch, batch["token_weights"] * step.scale, step.divisor)
            self._backward(loss)
            metrics = {name: metrics.get(name, 0) + value.detach() for name, value in found.items()}
        trained = [p for p in policy.parameters() if p.requires_grad]
        sum_gradients(trained)
        metrics = summed(metrics)
        check_finite(self)
        if all(p.grad is None for p in trained):
            raise TrainingError(f"no gradient reached any of the policy's {len(trained)} trained tensors; check its adapter")
        found = {name: metrics[name] * step.divisor / step.tokens for name in OF_TOKENS}  # its own, not its share of the update
        metrics |= found | {"grad_norm": clip_gradients(trained, self.ppo.max_grad_norm)}
        # Lightning's own optimizer would count each of an update's steps in `global_step`
        self.trainer.strategy.optimizer_step(optimizer, closure=_nothing)
        optimizer.zero_grad()  # before the engine takes the memory
        self._moved = self._moved or bool(metrics["grad_norm"] > 0)
        return metrics

    def _backward(self, loss: Tensor) -> None:
        """Add to this rank's gradients: they are summed once a step, for DDP would reduce its own after each micro-batch."""
        with getattr(self.trainer.strategy, "block_backward_sync", nullcontext)():
            self.manual_backward(loss)

    def _loss(self, batch: Batch, weights_N: Tensor, total: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a micro-batch's share of the step's loss, and what is logged of it."""
        ppo = self.ppo
        logprobs, _, entropy = self._forward(batch, entropy=ppo.entropy_coef > 0)
        old, weighed = batch["old_logprobs"], weights_N * batch["importance"]
        loss, found = ppo_policy_loss(
            logprobs, old, batch["advantages"], total, ppo.clip, weighed, ppo.clip_high, ppo.dual_clip
        )
        found["policy_loss"] = loss
        if self.kl_in == "loss" and ppo.kl_coef:
            loss = loss + self.kl_coef * (weighed * k3_kl(logprobs, batch["reference"])).sum() / total
        if ppo.entropy_coef:
            loss = loss - ppo.entropy_coef * (weighed * entropy).sum() / total
        return loss, found

    def _optimizers(self) -> list[Any]:
        """Return the policy's optimizer, and the critic's where there is one."""
        found = self.optimizers()
        return found if isinstance(found, list) else [found]

    def _critic_step(self, losses: Sequence[Loss]) -> dict[str, Tensor]:
        """Take a step of the critic on this rank's losses, together with all ranks."""
        assert self.critic is not None
        optimizer, sums = self._optimizers()[1].optimizer, dict[str, Tensor]()
        for make in losses:
            loss, found = make()
            self._backward(loss)
            sums = {name: sums.get(name, 0) + value.detach() for name, value in {"value_loss": loss, **found}.items()}
        sum_gradients(self.critic.parameters())
        check_finite(self)
        clip_gradients(self.critic.parameters(), self.ppo.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return summed(sums)

    # --- logs -----------------------------------------------------------------------------------------------

    def _log_annotations(self, notes: list[Notes]) -> None:
        if self.critic is not None:
            self.log("ppo/explained_variance", explained_variance(together(notes, "old_values"), together(notes, "returns")))
        self.log("ppo/kl", mean_kl(notes))
        for name in ("engine_gap", "importance", "entropy"):
            self.log(f"ppo/{name}", together(notes, name).mean())


def mean_kl(notes: Sequence[Notes]) -> float:
    """Return the mean KL to the reference in nats a token, on tokens that count as the policy would sample them now."""
    importance = together(notes, "importance")
    return float((importance * together(notes, "kl")).sum() / importance.sum())


def _split(batch: Batch) -> list[tuple[int, Notes]]:
    """Return the number and the notes of each row of a micro-batch."""
    parts = {name: batch[name].split(batch["counts"]) for name in NOTES}
    return [(number, {name: parts[name][i] for name in NOTES}) for i, number in enumerate(batch["numbers"])]


def _nothing() -> None:
    """Stand for the closure of a step whose gradients are there."""
