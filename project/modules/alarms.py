"""Watches an RL training's health and acts before a policy that collapses is trained on: warns, stops, or rolls back.

What it looks for was seen in systems whose policies collapsed: the likelihood of correct episodes falls long before their
reward does, the entropy vanishes, the KL jumps, the training reward rises while held-out questions get worse (a reward that is
cheated), the search tool fails. Each rule has its threshold; None leaves it out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from project.errors import InputError, TrainingError

logger = logging.getLogger(__name__)

HELD_OUT = "held_out"
BESTS = ("best_likelihood", "best_em", "reward_then")
"""What a roll-back leaves: each would else allow as much of a loss again."""
STATE = ("counts", "seen", "roll_backs", "snapshot", "healthy", "due")
MEMORY = 0.9
"""How much of a running mean an update leaves."""


class Alarms(Callback):
    """Looks at what PPO logs after each update and validation; all ranks log the same, and so act alike."""

    def __init__(
        self,
        action: Literal["warn", "stop", "roll_back"] = "stop",
        patience: int = 3,
        likelihood_drop: float | None = 1.0,
        least_entropy: float | None = 0.1,
        most_kl: float | None = 1.0,
        most_tool_errors: float | None = 0.05,
        em_drop: float | None = 0.2,
        snapshot_every: int = 10,
        slow_down: float = 0.5,
        most_roll_backs: int = 3,
    ) -> None:
        """Take the thresholds, and what follows when one of them is passed `patience` updates in a row.

        Args:
            action: `warn` says so; `stop` ends the run with an error; `roll_back` puts weights, optimizers and statistics back
                to the last healthy snapshot and goes on with the next questions at a lower learning rate.
            patience: updates in a row (for `em_drop` validations); the first of them warns.
            likelihood_drop: nats a token by which correct episodes may get less likely than their best running mean.
            least_entropy: share of the first update's entropy.
            most_kl: nats a token from the reference.
            most_tool_errors: share of an update's episodes.
            em_drop: of the held-out EM from its best, while the running mean of the training reward is above what it was then;
                over 48 questions two of one policy differ by up to 0.2.
            snapshot_every: updates between snapshots (`healthy.ckpt` in the run's folder), for `roll_back`.
            slow_down: what each roll-back multiplies the learning rates with.
            most_roll_backs: after which the next alarm stops the run.
        """
        super().__init__()
        if patience < 1 or snapshot_every < 1:
            raise InputError(f"Alarms: patience={patience} and snapshot_every={snapshot_every} must be at least 1")
        if not 0 < slow_down <= 1:
            raise InputError(f"Alarms: slow_down={slow_down} must be above 0 and at most 1")
        self.action, self.patience = action, patience
        self.likelihood_drop, self.least_entropy, self.most_kl = likelihood_drop, least_entropy, most_kl
        self.most_tool_errors, self.em_drop = most_tool_errors, em_drop
        self.snapshot_every, self.slow_down, self.most_roll_backs = snapshot_every, slow_down, most_roll_backs
        self.counts = dict[str, int]()
        """Updates in a row that each rule was broken."""
        self.seen = dict[str, float]()
        """Running means and bests, by name."""
        self.roll_backs = 0
        self.snapshot: int | None = None
        """The update after which this training saved `healthy.ckpt`."""
        self.healthy = dict[str, float]()
        """`seen`, as it was then."""
        self.due = ""
        """What a validation has found, to act on before the next update."""

    # --- rules -------------------------------------------------------------------------------------------------------

    def look(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Take in an update's numbers and return what is wrong, by rule: a clause of a sentence."""
        wrong = {}
        if "train/reward" in metrics:  # with overlap an update may have no episodes
            self._mean("reward", metrics["train/reward"])
        likelihood, entropy = metrics.get("train/correct_logprob"), metrics.get("ppo/entropy")
        if likelihood is not None:
            mean = self._mean("likelihood", likelihood)
            best = self.seen["best_likelihood"] = max(mean, self.seen.get("best_likelihood", mean))
            if self.likelihood_drop is not None and mean < best - self.likelihood_drop:
                wrong["likelihood"] = f"correct episodes have {mean:.3g} nats a token, {best:.3g} at their best"
        if entropy is not None:
            first = self.seen.setdefault("first_entropy", entropy)
            if self.least_entropy is not None and entropy < self.least_entropy * first:
                wrong["entropy"] = f"the entropy is {entropy:.3g} nats, {first:.3g} at first"
        if self.most_kl is not None and metrics.get("ppo/kl", 0.0) > self.most_kl:
            wrong["kl"] = f"the KL to the reference is {metrics['ppo/kl']:.3g} nats a token, over {self.most_kl:g}"
        if self.most_tool_errors is not None and metrics.get("train/tool_errors", 0.0) > self.most_tool_errors:
            wrong["tool_errors"] = f"{metrics['train/tool_errors']:.0%} of the episodes lost their search tool"
        return wrong

    def look_held_out(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Take in a validation's numbers and return what is wrong, as `look`."""
        em, reward = metrics.get("val/em"), self.seen.get("reward", 0.0)
        if em is None:
            return {}
        if em >= self.seen.get("best_em", em):
            self.seen |= {"best_em": em, "reward_then": reward}
        best, then = self.seen["best_em"], self.seen["reward_then"]
        if self.em_drop is None or em >= best - self.em_drop or reward <= then:
            return {}
        return {HELD_OUT: f"the held-out EM fell from {best:.3g} to {em:.3g} while the training reward rose"}

    def _mean(self, name: str, value: float) -> float:
        self.seen[name] = MEMORY * self.seen.get(name, value) + (1 - MEMORY) * value
        return self.seen[name]

    # --- hooks -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that does not say what it logs, and cannot go back."""
        if stage == "fit" and not hasattr(pl_module, "roll_back"):
            raise InputError(f"Alarms are for PPO, not for {type(pl_module).__name__}; leave the callback out")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the snapshot of another training in this folder."""
        if trainer.ckpt_path is None and trainer.is_global_zero:
            self._path(trainer).unlink(missing_ok=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:  # noqa: ANN401 - a module like PPO
        """Act on what a validation has found, now that its checkpoints are saved."""
        if self.due:
            said, self.due = self.due, ""
            self._act(trainer, pl_module, said)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:  # noqa: ANN401
        """Look, and act once a rule was broken often enough.

        Raises:
            TrainingError: it was, and `action` is `stop`, or there were too many roll-backs.
        """
        wrong = self.look(pl_module.logged_now)  # Lightning's own go on showing what earlier updates logged
        pl_module.log("alarm/broken_rules", float(len(wrong)))
        if due := self._judge(trainer, wrong, {rule for rule in self.counts if rule != HELD_OUT} | {*wrong}):
            self._act(trainer, pl_module, due)
        elif self.action == "roll_back" and not any(self.counts.values()) and trainer.global_step % self.snapshot_every == 0:
            self.snapshot, self.healthy = trainer.global_step, dict(self.seen)
            trainer.save_checkpoint(self._path(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise after a validation inside a training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            wrong = self.look_held_out({name: float(value) for name, value in trainer.callback_metrics.items()})
            self.due = self._judge(trainer, wrong, {HELD_OUT})

    def _judge(self, trainer: Trainer, wrong: Mapping[str, str], rules: Iterable[str]) -> str:
        """Count the rules that were looked at and warn of new alarms; return what is to be acted on."""
        for rule in rules:
            self.counts[rule] = self.counts.get(rule, 0) + 1 if rule in wrong else 0
            if self.counts[rule] == 1:
                logger.warning("alarm after update %d: %s", trainer.global_step, wrong[rule])
        due = [wrong[rule] for rule in wrong if self.counts[rule] >= self.patience]
        return "" if self.action == "warn" else "; ".join(due)

    def _act(self, trainer: Trainer, pl_module: Any, said: str) -> None:  # noqa: ANN401 - a module with `roll_back`
        if self.action == "stop" or self.roll_backs >= self.most_roll_backs or self.snapshot is None:
            before = f" after {self.roll_backs} roll-backs" if self.roll_backs else ""
            raise TrainingError(
                f"an alarm stops the run at update {trainer.global_step}{before}: {said}; go on from a checkpoint before it "
                "with a lower learning rate or a larger kl_coef, or set the threshold of Alarms otherwise"
            )
        held = trainer.strategy.load_checkpoint(self._path(trainer))
        if held["global_step"] != self.snapshot:
            other = f"{self._path(trainer)} is of update {held['global_step']}, not of {self.snapshot}, the healthy one"
            raise TrainingError(f"{said}; and {other}: go on from a checkpoint of your own")
        pl_module.roll_back(held, self.slow_down)
        self.roll_backs, self.counts = self.roll_backs + 1, {}
        bests = {name: value for name, value in self.seen.items() if name in BESTS}
        self.seen = self.healthy | bests
        logger.warning("rolled back to update %d, learning rates times %g: %s", self.snapshot, self.slow_down, said)

    def _path(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints" / "healthy.ckpt"

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on with."""
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        for name in STATE:
            setattr(self, name, state_dict[name])
