"""A search agent that rolls out for its own training: the engine follows the policy, update by update.

After each update the policy's weights go into the engine, and a canary compares the two. With `ppo.overlap` a batch is rolled
out on a thread while the one before it is trained: its episodes, written by weights one update old, are due with the next.
Nothing else happens to the engine meanwhile, and no rank tells another anything from the thread.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from project.datamodules.question import QuestionDataModule
from project.errors import EngineError, InputError, TrainingError
from project.losses import chunked_logprobs
from project.modules.adapter_checkpoint import AdapterCheckpoint
from project.modules.agent import SearchAgent
from project.modules.policy import LoRA, Policy
from project.modules.ppo_health import episode_health, is_kept
from project.modules.ppo_settings import PPOSettings
from project.ranks import gathered, gathered_or_raised, world
from project.records import Episode, Question
from project.rewards.reward import breakdown
from project.rollouts.engines.weights import shared_folder
from project.tracking.episodes import trace_of
from project.tracking.logger import SeekerLogger

Scores = dict[str, float]

DUE = "seeker_due_episodes"
SAME_REWARD = 1e-6
"""Difference from the rest of its group below which an episode earned the same."""


class RolloutAgent(AdapterCheckpoint, SearchAgent):
    """Rolls out an update's questions, and puts its policy's weights into the engine."""

    updates: Tensor
    """Updates done, int64; a buffer, so that a checkpoint holds it."""

    def __init__(
        self,
        *,
        ppo: PPOSettings,
        lora: LoRA | None,
        sync: Literal["merge", "adapter"] = "merge",
        traced_episodes: int = 2,
        seed: int = 0,
        engine_sleeps: bool = False,
        **agent: Any,  # noqa: ANN401 - SearchAgent's arguments; the command line resolves them
    ) -> None:
        """Take what `SearchAgent` takes, and how to roll out and to sync.

        Args:
            ppo: the numbers of the algorithm.
            lora: the adapter that is trained.
            sync: how the engine gets new weights: merged whole, which on a CPU generates four times as fast, or as an adapter
                that it serves beside the base, which is less to send.
            traced_episodes: episodes of each update that MLflow keeps as traces.
            seed: of the rollouts' sampling noise.
            engine_sleeps: vLLM in process leaves the GPU to the training between rollouts, weights and KV cache alike, so that
                `engine_memory` may be most of it.
            agent: what `SearchAgent` takes.
        """
        super().__init__(**agent)
        self.policy: Policy | None = None
        self.ppo, self.sync, self.traced_episodes, self.seed, self.overlap = ppo, sync, traced_episodes, seed, ppo.overlap
        if engine_sleeps and (self.engine_name != "vllm" or ppo.overlap):
            raise InputError(
                f"model.engine_sleeps is for engine: vllm without ppo.overlap, not {self.engine_name} with ppo.overlap="
                f"{ppo.overlap}; leave it out"
            )
        self._engine_sleeps = engine_sleeps
        if sync == "adapter":
            if lora is None or self._new_ids or self.engine_name == "transformers":
                raise InputError(
                    "model.sync=adapter is for vLLM, lora, and a model folder that holds the dialect's tokens, as SFT's does; "
                    "give merge"
                )
            self._adapter_rank = lora.rank
        self._adapter = dict[str, Tensor]()
        self._adapter_folder: tempfile.TemporaryDirectory[str] | None = None
        self._moved = False
        """Whether the trainer's weights have moved since the last sync."""
        self._due = list[Episode]()
        """With `ppo.overlap`, the episodes that the next update trains."""
        self.logged_now = dict[str, float]()
        """What the update at hand has logged so far."""
        self.seconds = dict[str, float]()
        """Where the update at hand has spent its time so far."""
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    # --- lifetimes ---------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Give the engine the weights of a resumed run; its version goes on counting updates. Earlier hooks may not log."""
        super().on_train_start()
        if int(self.updates):
            assert self._engine is not None
            self._engine.version = int(self.updates) - 1
            self._sync(log=False)  # what this hook logs would be written as the last step's

    def on_test_start(self) -> None:
        """Start the engine with the weights of a loaded checkpoint, not with those of `model_path`."""
        super().on_test_start()
        assert self._engine is not None
        assert self.policy is not None
        if self._engine.version < int(self.updates):
            self._engine.version = int(self.updates) - 1
            self._send()

    on_validation_start = on_predict_start = on_test_start

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the episodes that the next update trains: the weights that wrote them are gone."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[DUE] = json.dumps([episode.to_row() for episode in self._due])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the episodes that are due."""
        super().on_load_checkpoint(checkpoint)
        self._due = [Episode.from_row(row) for row in json.loads(checkpoint.get(DUE, "[]"))]

    def log(self, name: str, value: Any, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - Lightning's own
        """Log, and keep for callbacks what this update has logged: Lightning shows them earlier updates' numbers too."""
        self.logged_now[name] = float(value)
        super().log(name, value, *arguments, **options)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the block's seconds to those of this update."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    # --- an update's episodes ----------------------------------------------------------------------------------------

    def _episodes_of(self, batch: list[Question]) -> tuple[list[Episode], list[Scores]]:
        """Roll out a batch, and other questions in place of those whose episodes earn the same (DAPO, Yu et al. 2025).

        What is logged is of the batch itself: others are there because something differs.
        """
        episodes, scores = self._scored(self._rollout(batch, 0))
        asked, left = list(batch), flat_questions(episodes, scores)
        for _ in range(self.ppo.resample_rounds):
            loader: Any = self.trainer.train_dataloader
            others = loader.others({q.id for q in asked}, left, int(self.updates))
            if not others:
                break
            more, their_scores = self._scored(self._rollout(others, len(asked) * self.ppo.episodes_per_question), log=False)
            asked, left = asked + others, flat_questions(more, their_scores)
            episodes, scores = episodes + more, scores + their_scores
        return episodes, scores

    def _episodes_at_once(self) -> int | None:
        """Return an update's, where there is training: validation, whose batches are larger, may wait for room."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if not self.trainer.training or not isinstance(data, QuestionDataModule):
            return super()._episodes_at_once()
        return -(-data.batch_questions * self.ppo.episodes_per_question // world()[1])

    def _rollout(self, batch: list[Question], first: int) -> list[Episode]:
        """Return the batch's episodes; `first` numbers them in the update."""
        return self.run_episodes(*self._asked(batch, first), self.ppo.temperature)

    @contextmanager
    def _rolling_out(self, batch: list[Question]) -> Iterator[None]:
        """Roll out a batch beside the block, which must leave the engine alone; the episodes are due with the next update."""
        (questions, seeds), given_up = self._asked(batch, 0), threading.Event()

        def run() -> list[Episode]:
            with self.timed("rollout"), self.trainer.precision_plugin.forward_context():  # autocast is a thread's own
                return self.own_episodes(questions, seeds, self.ppo.temperature, given_up)

        with ThreadPoolExecutor(1, thread_name_prefix="seeker-rollout") as pool:
            coming = pool.submit(run)
            try:
                yield
            except BaseException:
                given_up.set()
                raise
            self._due = self.gather_episodes(coming.result)

    def _asked(self, batch: list[Question], first: int) -> tuple[list[Question], list[int]]:
        """Return a question for each episode, and its seed."""
        questions = [question for question in batch for _ in range(self.ppo.episodes_per_question)]
        first += (self.seed * 1_000_003 + int(self.updates)) * 100_003
        return questions, [first + i for i in range(len(questions))]

    def _scored(self, episodes: list[Episode], *, log: bool = True) -> tuple[list[Episode], list[Scores]]:
        """Return the episodes that kept their tool, and their scores. Without `log` they may be none."""
        assert self._engine is not None
        kept = [e for e in episodes if is_kept(e)]
        if not kept and log:
            raise TrainingError("no episode of this update could be trained; check the search tool")
        if drifted := sum(turn.drifted for e in kept for turn in e.turns):
            raise EngineError(
                f"in {drifted} turns the engine read other tokens than the rows hold; nothing was trained on them"
            )
        scores = [breakdown(self.reward, e) for e in kept]
        if log:
            found = episode_health(episodes, scores, self._engine.version)
            self.log("train/reward", found.pop("train/reward"), prog_bar=True)
            self.log_dict(found)
            self.log("train/flat_groups", flat_questions(kept, scores) / len({e.question.id for e in kept}))
            self._trace(kept, scores)
        return kept, scores

    def _trace(self, episodes: Sequence[Episode], scores: Sequence[Scores]) -> None:
        """Write a sample of the episodes as traces of the run."""
        logger: Any = self.logger
        if not isinstance(logger, SeekerLogger) or not self.trainer.is_global_zero:
            return
        rolled = int(self.updates) - self.overlap
        drawn = torch.randperm(len(episodes), generator=self._generator(-2))[: self.traced_episodes].tolist()
        for i in sorted(drawn):
            logger.keep_trace(trace_of(*logger.ids, episodes[i], scores[i], rolled))

    def _generator(self, key: int) -> torch.Generator:
        return torch.Generator().manual_seed(hash((self.seed, int(self.updates), key)) % (1 << 31))

    # --- sync --------------------------------------------------------------------------------------------------------

    def _sync(self, *, log: bool = True) -> None:
        """Put the merged weights into the engine and check it against the unmerged trainer with a canary."""
        assert self._engine is not None
        assert self.policy is not None
        changed = self._send()
        prompt = self.renderer.encode(self.renderer.prompt(self.dialect.opening("Which metal is liquid?")).text)
        canary = self.renderer.encode("<think>\nI search for the liquid metal.\n</think>")
        engine_ = self._engine
        engine = torch.tensor(gathered_or_raised(lambda: engine_.score(prompt, canary))[world()[0]])
        gap = max(gathered(float((engine - self._score(prompt, canary)).abs().mean())))
        if log:
            self.log_dict({"sync/changed_share": changed, "sync/canary_gap": gap, "sync/version": float(self._engine.version)})
        if self._moved and changed == 0:
            raise EngineError(
                "the update moved the trainer and no weight of the engine: its deltas are rounded away; raise the learning "
                "rate, or set precision float32"
            )
        self._moved = False
        if gap > self.ppo.canary_tolerance:
            raise EngineError(
                f"after sync {self._engine.version} engine and trainer differ by {gap:.3f} nats a token on the canary, over "
                f"{self.ppo.canary_tolerance}; the weights did not arrive whole"
            )

    def _send(self) -> float:
        """Put the policy's weights into the engine; return the share of values that changed."""
        assert self._engine is not None
        assert self.policy is not None
        if self.sync == "merge":
            return self._engine.sync(self.policy.merged_weights())
        folder = tempfile.TemporaryDirectory(dir=shared_folder(), prefix="seeker-adapter-")
        self._adapter, changed = self.policy.save_adapter(Path(folder.name), self._adapter)
        self._engine.sync_adapter(Path(folder.name))
        self._adapter_folder = folder  # servers may read it until they get the next; the one before goes now
        return changed

    @torch.no_grad()
    def _score(self, prompt: list[int], ids: list[int]) -> Tensor:
        assert self.policy is not None
        whole = torch.tensor(prompt + ids, device=self.device)
        before = slice(len(prompt) - 1, -1)
        labels, head = whole[len(prompt) :], self.policy.head
        return self.policy(whole, [len(whole)], lambda hidden: chunked_logprobs(head, hidden[before], labels)).cpu()  # type: ignore[no-any-return]


def flat_questions(episodes: Sequence[Episode], scores: Sequence[dict[str, float]]) -> int:
    """Return the number of questions whose episodes all earned the same."""
    earned = dict[str, list[float]]()
    for episode, score in zip(episodes, scores, strict=True):
        earned.setdefault(episode.question.id, []).append(score["total"])
    return sum(max(totals) - min(totals) <= SAME_REWARD for totals in earned.values())
