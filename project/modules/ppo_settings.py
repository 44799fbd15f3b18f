"""The numbers of PPO and its relatives."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Literal

from project.advantages import EstimatorName, estimator_named
from project.errors import InputError
from project.losses import LengthNorm

SAMPLED = ("decision", "think", "search", "answer", "summary", "text", "result", "end")
"""Kinds that a policy can write: a result among them is one that it made up."""
POSITIVE = ("temperature", "clip", "clip_high", "kl_target", "kl_stop", "importance_cap", "max_grad_norm", "value_clip")
COUNTS = (
    "episodes_per_question",
    "inner_epochs",
    "minibatch_episodes",
    "micro_episodes",
    "critic_epochs",
    "critic_steps",
    "critic_rows",
    "flat_updates",
    "length_tokens",
)


@dataclass(frozen=True)
class PPOSettings:
    """The numbers of the algorithm."""

    episodes_per_question: int = 4
    """In an update."""
    temperature: float = 1.0
    """Of the sampling in training; the trainer divides its logits by it too."""
    resample_rounds: int = 0
    """Times that questions whose episodes all earned the same are replaced by as many others, which then are rolled out."""
    overlap: bool = False
    """Roll out an update's questions while the questions before them are trained, by weights one update old: each token counts
    by p_trainer / p_engine up to `importance_cap`. Worth it where the engine has processors of its own. The first update trains
    nothing, and what is rolled out beside the last one is not trained."""
    estimator: EstimatorName = "gae"
    """How rewards become advantages: gae (with a critic), rloo, grpo, reinforce++, or a class of your own, as module.Class."""
    inner_epochs: int = 1
    """Passes of the policy's steps over an update's episodes."""
    minibatch_episodes: int = 16
    """Episodes in one optimizer step, about."""
    micro_episodes: int = 4
    """Contexts (an episode has one, unless it folds) in one forward and backward pass."""
    clip: float = 0.2
    """Of the ratio, below 1 and, without `clip_high`, above."""
    clip_high: float | None = None
    """Of the ratio above 1 (clip-higher)."""
    dual_clip: float | None = None
    """Largest ratio that pushes a bad action down; off by default, 3 in its paper."""
    length_norm: LengthNorm | None = None
    """How long episodes count: token (by their tokens), episode (all alike), constant (tokens over `length_tokens`); by default
    as the estimator's paper has it."""
    length_tokens: int = 512
    """Tokens of an episode that `constant` divides by."""
    span_weights: dict[str, float] = field(default_factory=dict)
    """What sampled tokens count by their kind (decision, think, search, answer, summary, text, end); others count 1."""
    kl_coef: float = 0.02
    """Of the KL to the reference."""
    kl_in: Literal["reward", "loss"] | None = None
    """Whether it is taken from the reward of each token (by Schulman's estimate k1, as k3 hardly pulls there) or added to the
    loss (by k3, as k1 has a gradient of 0 on average there); by default as the estimator's paper has it."""
    kl_target: float | None = None
    """Nats a token that `kl_coef` is steered to (Ziegler et al. 2019, section 2.2); None leaves it as it is."""
    kl_stop: float | None = None
    """Nats a token from the policy at the start of the update; the step that finds it further away is the update's last."""
    entropy_coef: float = 0.0
    """Of the entropy bonus in the loss."""
    gamma: float = 1.0
    """Discount a trained token: 1 pays the last and the first alike."""
    lam: float = 1.0
    """GAE's lambda: 1 pays the episode's reward to every token against the critic's baseline. Estimators without one use 1."""
    importance_cap: float = 2.0
    """Cap of p_trainer / p_engine, which corrects for the engine's rounding, and for its age with `overlap`."""
    max_grad_norm: float = 1.0
    """Of each optimizer step's gradient, which is scaled down to it."""
    flat_updates: int = 10
    """Updates in a row without a difference in reward, which train nothing, that stop the run."""
    critic_in: Literal["head", "adapter", "model"] = "head"
    """What of the critic is trained: a head on the policy's hidden states; a head and a LoRA adapter of its own over the
    policy's frozen weights; a head and a model of its own."""
    critic_epochs: int = 1
    """Passes of an adapter's or a model's steps over the update's episodes."""
    critic_steps: int = 16
    """Steps of a head on an update's hidden states, which are kept: they cost no pass of the model."""
    critic_rows: int = 1024
    """Trained tokens in one of them."""
    critic_warmup: int = 0
    """Updates at the start that train the critic only."""
    value_clip: float | None = None
    """Of the critic around its old values; off, as Andrychowicz et al. 2021 found it to hurt."""
    canary_tolerance: float = 0.15
    """Largest mean |log p| difference, in nats a token, between trainer and engine after a sync."""

    def __post_init__(self) -> None:
        """Refuse numbers that would train nothing, or something else than is meant."""
        estimator = estimator_named(self.estimator)
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise InputError(f"ppo.{name}={getattr(self, name)} must be at least 1")
        for name in POSITIVE:
            if (value := getattr(self, name)) is not None and not 0 < value < inf:
                raise InputError(f"ppo.{name}={value} must be above 0")
        for name in ("kl_coef", "entropy_coef", "critic_warmup", "resample_rounds"):
            if not 0 <= getattr(self, name) < inf:
                raise InputError(f"ppo.{name}={getattr(self, name)} must be 0 or more")
        if not (0 <= self.gamma <= 1 and 0 <= self.lam <= 1):
            raise InputError(f"ppo.gamma={self.gamma}, lam={self.lam} must be from 0 to 1")
        if self.kl_target is not None and not self.kl_coef:
            raise InputError(f"ppo.kl_target={self.kl_target} steers kl_coef, which is 0; give a ppo.kl_coef to start from")
        if self.estimator in ("grpo", "rloo"):
            if self.episodes_per_question < 2:
                raise InputError(
                    f"ppo.estimator={self.estimator} compares episodes of a question; give 2 ppo.episodes_per_question"
                )
            if self.kl_in == "reward":
                raise InputError(
                    f"ppo.kl_in=reward has no baseline in {self.estimator}, which has no critic; give ppo.kl_in loss"
                )
        if self.resample_rounds and not estimator.by_group:
            raise InputError(
                f"ppo.resample_rounds={self.resample_rounds} is for estimators that compare the episodes of a question, and "
                f"{self.estimator} compares all; leave it out"
            )
        if self.overlap and self.resample_rounds:
            raise InputError(
                f"ppo.resample_rounds={self.resample_rounds} asks anew once an update's episodes are there, and ppo.overlap "
                "has asked long before; leave one of them out"
            )
        for name, odd in (("critic_warmup", self.critic_warmup), ("critic_in", self.critic_in != "head")):
            if odd and not estimator.critic:
                raise InputError(f"ppo.{name}={getattr(self, name)}, and {self.estimator} has no critic; leave it out")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise InputError(f"ppo.dual_clip={self.dual_clip} must be above 1")
        wrong = [f"{kind}: {value}" for kind, value in self.span_weights.items() if kind not in SAMPLED or not 0 <= value < inf]
        if wrong:
            raise InputError(f"ppo.span_weights holds {wrong[0]}; give weights from 0 for any of {', '.join(SAMPLED)}")
