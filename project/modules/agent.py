"""A search agent under Lightning: episodes on questions, measured.

`seeker test|validate|predict` use it as it is; PPO adds training.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

import torch
from jsonargparse import lazy_instance

from project.corpus.engines.http import HttpRetriever
from project.corpus.index import MANIFEST
from project.corpus.serving.handle import ServerHandle
from project.datamodules.question import QuestionDataModule
from project.environment.search import EpisodeLimits, RetrieverTool, Tool
from project.errors import InputError, RetrievalError
from project.evaluation.decisions import search_probability
from project.evaluation.metrics import SCORES, score_episode
from project.evaluation.results import RowsFile, episode_row
from project.modules.adapter_checkpoint import base_digest
from project.modules.measuring import MeasuringModule, over_samples, sample_metrics
from project.modules.model_folder import engine_folder
from project.modules.policy import AgentSettings, load_tokenizer, resolve_model_path
from project.named import identity
from project.ranks import first_here, gathered, gathered_or_raised, part_of, world
from project.records import Episode, FinishReason, Question, Row
from project.rendering import Renderer
from project.rewards.answer import AnswerReward
from project.rewards.judge import Judge
from project.rewards.reward import Reward, breakdown
from project.rollouts.engines import Engine, EngineName, make_engine
from project.rollouts.runner import EpisodeRunner
from project.tracking.episodes import trace_of
from project.tracking.logger import SeekerLogger

PREDICTIONS = "predictions.parquet"
TRACED = 20
"""Episodes of a test that MLflow shows turn by turn; all of them are in the results."""


class SearchAgent(MeasuringModule):
    """Runs a model folder as a search agent and measures it."""

    task = "agent"
    """What is measured, as the results say it."""

    def __init__(
        self,
        model_path: str | None = None,
        settings: AgentSettings | None = None,
        index: Path | None = None,
        retrieval_url: str | None = None,
        tool: Tool | None = None,
        topk: int = 3,
        engine: EngineName = "vllm",
        limits: EpisodeLimits = EpisodeLimits(),  # noqa: B008 - frozen
        reward: Reward = lazy_instance(AnswerReward),  # noqa: B008 - its fields can be given without its class
        eval_temperature: float = 0.0,
        eval_samples: int = 1,
        servers: list[str] | None = None,
        weights_dir: Path | None = None,
        engine_memory: float | None = None,
        deterministic: bool = False,
        judge: Judge | None = None,
    ) -> None:
        """Take what to run and how.

        Args:
            model_path: folder or hub id; the embedded SmolLM2-135M-Instruct by default.
            settings: dialect and history; those stored in the model folder by default.
            index: folder of `seeker index build`; the run starts a server on it and stops it.
            retrieval_url: address of a running server, instead of `index`; neither is needed where `limits.max_turns` is 1.
            tool: a class of your own that searches, by its class_path, instead of both.
            topk: documents a search returns, at most; a tool of your own decides for itself.
            engine: `vllm` in process, `servers` of vLLM that run already, or `transformers`.
            limits: what an episode may use, in turns, tokens and characters.
            reward: how episodes are scored; a class of your own by its class_path.
            eval_temperature: of sampling in validation, test and prediction; 0 = greedy.
            eval_samples: episodes a question there, for avg@k and pass@k (the mean of EM, and whether one is right).
            servers: addresses of vLLM servers for `engine: servers`, such as http://127.0.0.1:8000, each started by
                `VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --max-model-len TOKENS --logprobs-mode processed_logprobs`, with
                `limits.context_tokens` for TOKENS (on a CPU with `--no-enable-chunked-prefill`).
            weights_dir: folder that this process writes and all servers read, where they are on other machines; by default
                weights go through shared memory.
            engine_memory: share of a GPU's memory that vLLM in process takes, beside the training; by default vLLM's own, 0.9.
            deterministic: with `engine: transformers` decode each turn by itself, so that a run that was killed ends in the
                same bits; slower.
            judge: a model that says which answers are right, for `reward.judge_share` and the metric `verdict`, and which ones
                what was shown states.
        """
        super().__init__()
        self.model_path = resolve_model_path(model_path)
        self.settings = settings or AgentSettings.load(Path(self.model_path)) or AgentSettings()
        sources = sum(one is not None for one in (index, retrieval_url, tool))
        if sources > 1 or (not sources and limits.max_turns > 1):
            raise InputError("give one of model.index (a folder of seeker index build), model.retrieval_url and model.tool")
        self.tool = tool
        self.index, self.retrieval_url, self.topk = index, retrieval_url, topk
        self.data_files = {"index": Path(index) / MANIFEST} if index is not None else {}  # the run's record names its digest
        if (engine == "servers") != bool(servers):
            given = f"are {servers}" if servers else "are missing"
            raise InputError(
                f"model.servers {given} and model.engine is {engine}; addresses go with engine: servers, and only there"
            )
        if engine_memory is not None and not 0 < engine_memory < 1:
            raise InputError(f"model.engine_memory={engine_memory} must be between 0 and 1")
        if judge is None and (share := getattr(reward, "judge_share", 0)):
            raise InputError(f"reward.judge_share={share} is of a judge's verdict; give model.judge")
        if (bonus := getattr(reward, "facts_bonus", 0)) and not (judge and judge.facts):
            raise InputError(f"reward.facts_bonus={bonus} is of a judge's word; give model.judge and judge.facts: true")
        self.engine_memory, self.judge = engine_memory, judge
        if judge is not None:
            self.data_files["judge_prompt"] = Path(judge.prompt_file)
            self.data_files |= {"facts_prompt": Path(judge.facts_prompt_file)} if judge.facts else {}
        if deterministic and engine != "transformers":
            raise InputError(f"model.deterministic={deterministic} is for engine: transformers, not {engine}; leave it out")
        self.servers, self.weights_dir, self.deterministic = tuple(servers or ()), weights_dir, deterministic
        self.engine_name, self.limits, self.reward, self.eval_temperature = engine, limits, reward, eval_temperature
        if eval_samples < 1 or (eval_samples > 1 and not eval_temperature):
            raise InputError(
                f"model.eval_samples={eval_samples} at model.eval_temperature={eval_temperature}: give at least 1, and above 1 "
                "a temperature above 0, or all samples are the same"
            )
        self.eval_samples = eval_samples
        if self.settings.history == "template" and limits.max_turns > 1:
            raise InputError(
                f"the model {self.model_path} was trained with history: template, and rollouts keep history as it was sampled; "
                "train it with history: append"
            )
        self.dialect = self.settings.make_dialect()
        self.tokenizer, self._new_ids = load_tokenizer(self.model_path, self.dialect)
        self.renderer = Renderer(self.tokenizer, self.dialect, self.settings.history)
        self._engine: Engine | None = None
        self._adapter_rank: int | None = None
        self._engine_sleeps = False
        self._server: ServerHandle | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self.measure((*SCORES, *sample_metrics(eval_samples)))
        self._predictions: RowsFile | None = None
        self._failed: list[str] = []
        self._run_so_far = 0

    # --- lifetimes ---------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Start a retrieval server, one in each process of a run that was given an index."""
        del stage
        if self.index is not None and self._server is None:
            self._server = ServerHandle(self.index)
            self._server.start()
            self.retrieval_url = self._server.url

    def teardown(self, stage: str) -> None:
        """Stop the server that this run started, and remove the engine's copy of the model and what was not completed."""
        super().teardown(stage)
        if self._predictions is not None:
            self._predictions.close()
            self._predictions = None
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def _start_engine(self) -> None:
        if self._engine is None:
            folder = self._engine_folder()
            self._engine = make_engine(
                self.engine_name,
                folder,
                self.limits.context_tokens,
                servers=self.servers,
                weights_dir=self.weights_dir,
                alone=self.deterministic,
                lora_rank=self._adapter_rank,
                memory=self.engine_memory,
                sleeps=self._engine_sleeps,
                requests=self._episodes_at_once(),
            )

    def _episodes_at_once(self) -> int | None:
        """Return how many episodes this rank has running at once, at most, or None where the data do not say."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        return -(-data.eval_batch_questions // world()[1]) if isinstance(data, QuestionDataModule) else None

    def _engine_folder(self) -> str:
        """Return a folder whose vocabulary holds the dialect's tokens; a model without them is written out, once a machine."""
        if not self._new_ids:
            return self.model_path
        writer = first_here()

        def write() -> str:
            if writer != world()[0]:
                return ""
            self._scratch = tempfile.TemporaryDirectory(prefix="seeker-model-")
            into = Path(self._scratch.name) / "model"
            return engine_folder(self.model_path, self.tokenizer, self._new_ids, self.settings, into)

        return gathered_or_raised(write)[writer]

    def on_test_start(self) -> None:
        """Start the engine once Lightning has set up its process group."""
        self._start_engine()

    on_validation_start = on_predict_start = on_test_start

    # --- episodes ----------------------------------------------------------------------------------------------------

    def run_episodes(self, questions: list[Question], seeds: list[int], temperature: float) -> list[Episode]:
        """Run one episode per question, each rank its part of them, and return all of them on every rank, in order."""
        return self.gather_episodes(lambda: self.own_episodes(questions, seeds, temperature))

    def own_episodes(
        self, questions: list[Question], seeds: list[int], temperature: float, given_up: Event | None = None
    ) -> list[Episode]:
        """Run this rank's part of the episodes; `given_up` ends them all, with an error."""
        mine = part_of(len(questions))
        return self._run(questions[mine], seeds[mine], temperature, given_up)

    def _run(
        self, questions: list[Question], seeds: list[int], temperature: float, given_up: Event | None = None
    ) -> list[Episode]:
        assert self._engine is not None
        tool = RetrieverTool(HttpRetriever(self.retrieval_url), self.topk) if self.retrieval_url else self.tool
        stop, at_once = given_up or Event(), self._episodes_at_once()
        runner = EpisodeRunner(self._engine, self.renderer, tool, self.limits, temperature, stop, at_once)
        episodes = runner.run(questions, seeds)
        return self.judge.judged(episodes) if self.judge else episodes

    def gather_episodes(self, run: Callable[[], list[Episode]]) -> list[Episode]:
        """Return all ranks' episodes, in order, on every rank; `run` gives this rank's.

        Raises:
            RetrievalError: over 10 % of the episodes, and more than one, lost their search tool or took too long.
        """
        episodes = [episode for of_rank in gathered_or_raised(run) for episode in of_rank]
        failed = [e.error for e in episodes if e.finish.is_environment_failure]
        _refuse_failures(failed, len(episodes))
        if len(failed) == len(episodes) > 0:
            raise RetrievalError(f"all {len(failed)} episodes failed: {failed[0]}")
        return episodes

    # --- evaluation --------------------------------------------------------------------------------------------------

    def _evaluate(self, questions: list[Question]) -> list[Episode]:
        """Run `eval_samples` episodes of each of this rank's questions and return them in order.

        Raises:
            RetrievalError: over 10 % of all so far, and more than one, lost their search tool or took too long.
        """
        mine, times = part_of(len(questions)), self.eval_samples
        asked = [(question, i * times + j) for i, question in enumerate(questions) for j in range(times)]
        asked = asked[mine.start * times : mine.stop * times]
        episodes: list[Episode] = []

        def run() -> tuple[list[str], int]:
            if asked:
                episodes.extend(self._run([q for q, _ in asked], [seed for _, seed in asked], self.eval_temperature))
            return [e.error for e in episodes if e.finish.is_environment_failure], len(episodes)

        for failed, count in gathered_or_raised(run):
            self._failed += failed
            self._run_so_far += count
        _refuse_failures(self._failed, self._run_so_far)
        return episodes

    def _rows(self, episodes: list[Episode]) -> list[Row]:
        """Return the rows of this rank's episodes, which count from now on."""
        times, scores = self.eval_samples, [self._scores(episode) for episode in episodes]
        scores = [one | more for one, more in zip(scores, over_samples(scores, times), strict=True)]
        rows = [episode_row(episode, i % times, of) for i, (episode, of) in enumerate(zip(episodes, scores, strict=True))]
        for row, episode in zip(rows, episodes, strict=True):
            self.take(row, counts=not episode.finish.is_environment_failure)
        return rows

    def _scores(self, episode: Episode) -> dict[str, float]:
        if episode.finish.is_environment_failure:
            ended = {f"finish_{reason}": float(reason is episode.finish) for reason in FinishReason}
            return dict.fromkeys(SCORES, math.nan) | ended
        return score_episode(episode, self.reward, search_probability(episode.turns, self.renderer))

    def validation_step(self, batch: list[Question], batch_idx: int) -> None:
        """Run the batch's episodes."""
        del batch_idx
        self._rows(self._evaluate(batch))

    def test_step(self, batch: list[Question], batch_idx: int) -> None:
        """Run the batch's episodes and write them down, the first of them as traces, too."""
        episodes = self._evaluate(batch)
        self.write(self._rows(episodes))
        if batch_idx == 0:
            self._trace_tested([episode for episode in episodes if episode.turns][:TRACED])

    def _trace_tested(self, episodes: Sequence[Episode]) -> None:
        logger = self.logger
        if isinstance(logger, SeekerLogger) and self.trainer.is_global_zero:
            for episode in episodes:
                logger.keep_trace(trace_of(*logger.ids, episode, breakdown(self.reward, episode)))

    def predict_step(self, batch: list[Question], batch_idx: int) -> list[Row]:
        """Return conversations with their scores, and write them down."""
        del batch_idx
        rows = [self._prediction(episode) for of_rank in gathered(self._evaluate(batch)) for episode in of_rank]
        if self.trainer.is_global_zero:
            self._predictions = self._predictions or RowsFile(Path(self.trainer.default_root_dir) / PREDICTIONS)
            self._predictions.extend(rows)
        return rows

    def _prediction(self, episode: Episode) -> Row:
        row = episode.to_conversation(self.dialect.tools).to_row()
        return row | {"prediction": episode.answer, "finish_reason": str(episode.finish), **self._scores(episode)}

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics with their intervals, and keep every score and conversation."""
        self._report("test")

    def _report(self, stage: str) -> None:
        failed, self._failed, self._run_so_far = self._failed, [], 0
        if not self.report(stage, "environment_failures") and failed:
            raise RetrievalError(f"all {len(failed)} episodes failed: {failed[0]}")

    def on_predict_epoch_end(self) -> None:
        """Complete `predictions.parquet` in the run's folder."""
        if self._predictions is not None:
            self.keep(self._predictions.keep())
            self._predictions = None

    def about(self) -> Row:
        """Return what decided the figures."""
        settings = {
            "agent": asdict(self.settings),
            "engine": self.engine_name,
            "temperature": self.eval_temperature,
            "samples": self.eval_samples,
            "topk": self.topk,
            "index": str(self.index or self.retrieval_url or ""),
            "tool": identity(type(self.tool)) if self.tool is not None else None,
            "reward": identity(type(self.reward)),
            "limits": asdict(self.limits),
        }
        return {"model_path": self.model_path, "model_digest": base_digest(self.model_path), "settings": settings}

    def configure_optimizers(self) -> None:
        """Nothing is trained here."""

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ANN401
        """Leave questions where they are."""
        del device, dataloader_idx
        return batch


def _refuse_failures(failed: list[str], count: int) -> None:
    if len(failed) > max(1, 0.1 * count):
        raise RetrievalError(f"{len(failed)} of {count} episodes lost their search tool, or took too long: {failed[0]}")
