"""Runs episodes: engine x environment, all at once, each going on as soon as its own search is done.

Token-in, token-out (DESIGN §4.8): sampled ids are kept; only what the environment adds is tokenised.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any, Protocol, TypeVar

from project.environment.search import EpisodeLimits, SearchEnvironment, SearchTool
from project.errors import EngineError, InputError
from project.records import Episode, FinishReason, Message, Question, Turn
from project.rendering import Renderer
from project.rollouts.engines.protocol import Engine, Generation, Sampling
from project.rollouts.search_thread import search_thread

Done = TypeVar("Done")

LEAST_TOKENS = 8
"""Room in the context below which no turn is begun."""


class Watcher(Protocol):
    """Sees an episode while it runs, on the thread that runs it; what it raises ends the episode and reaches its caller."""

    def asked(self, environment: SearchEnvironment, tokens: int) -> None:
        """See that the agent is asked for a turn, in a context of so many tokens; `environment.folding`: for a summary."""

    def wrote(self, token: int) -> None:
        """See a token that was sampled."""

    def turned(self, environment: SearchEnvironment, turn: Turn, following: Sequence[Message]) -> None:
        """See a whole turn, and what the environment says to it: nothing where the episode has ended."""


@dataclass
class EpisodeRunner:
    """What all episodes of a run share."""

    engine: Engine
    renderer: Renderer
    tool: SearchTool | None
    """None where no episode lasts beyond its first turn."""
    limits: EpisodeLimits
    temperature: float = 1.0
    given_up: Event = field(default_factory=Event)
    """Set by another thread, it ends the run with the turns that are being written."""
    at_once: int | None = None
    """Episodes that run at once; the next begins when one has ended. None begins all."""

    def run(self, questions: Sequence[Question], seeds: Sequence[int]) -> list[Episode]:
        """Run one episode per question and return them in order.

        Args:
            questions: a question may stand here several times.
            seeds: one an episode; with the turn's number it keys the sampling noise.

        Raises:
            EngineError: the run was given up.
        """
        with search_thread(self.tool, self.limits.search_seconds) as tool:
            return asyncio.run(replace(self, tool=tool)._all(questions, seeds))

    async def _all(self, questions: Sequence[Question], seeds: Sequence[int]) -> list[Episode]:
        episodes = (self.episode(question, seed) for question, seed in zip(questions, seeds, strict=True))
        return await together(episodes, self.at_once)

    async def episode(self, question: Question, seed: int, watcher: Watcher | None = None) -> Episode:
        """Run one episode to its end."""
        environment = SearchEnvironment(question, self.renderer.dialect, self.tool, self.limits, self._count)
        turns = list[Turn]()
        try:
            async with asyncio.timeout(self.limits.episode_seconds):
                await self._run(environment, seed, turns, watcher)
        except TimeoutError:
            environment.finish = FinishReason.TIMEOUT
            environment.error = f"the episode took over limits.episode_seconds={self.limits.episode_seconds:g}"
        return _episode(environment, turns)

    async def _run(self, environment: SearchEnvironment, seed: int, turns: list[Turn], watcher: Watcher | None = None) -> None:
        """Take an episode's turns until it has ended."""
        prompt = self.renderer.prompt(environment.opening(), self.renderer.dialect.tools)
        context = self.renderer.encode(prompt.text)
        if len(context) + LEAST_TOKENS > self.limits.context_tokens:
            raise InputError(
                f"the prompt of question '{environment.question.id}' has {len(context)} tokens; raise context_tokens above "
                f"{self.limits.context_tokens}"
            )
        new, fresh, largest = context, True, 0
        while True:
            if self.given_up.is_set():
                raise EngineError("the rollout was given up: what ran beside it has failed, or was stopped")
            if len(context) + LEAST_TOKENS > self.limits.context_tokens:
                environment.finish = FinishReason.CONTEXT_FULL
                return
            sampling = self._sampling(len(context), seed * 1009 + len(turns), environment)
            asked = time.time_ns()
            generation = await self._generate(context, sampling, environment, watcher)
            done, ended = time.time_ns(), generation.finish == "stop"
            following = await environment.step(self.renderer.decode(generation.ids), ended=ended)
            clock, ids, version = (asked, done, time.time_ns()), generation.ids, generation.version
            drifted = bool(generation.prompt_ids) and generation.prompt_ids != _row(turns, new, fresh)
            turns.append(Turn(tuple(new), ids, generation.logprobs, version, ended, fresh, clock, drifted))
            if watcher is not None:
                watcher.turned(environment, turns[-1], following)
            if environment.finish is not None:
                return
            if fresh := environment.folded:
                new = context = self.renderer.encode(self.renderer.prompt(following, self.renderer.dialect.tools).text)
                continue
            new = self.renderer.encode(self.renderer.between(following).text)
            largest = max(largest, len(new))
            if environment.wants_fold(len(context) + len(generation.ids) + len(new), largest):
                new = self.renderer.encode(self.renderer.between([*following, *environment.ask_for_summary()]).text)
            context = [*context, *generation.ids, *new]

    async def _generate(
        self, context: Sequence[int], sampling: Sampling, environment: SearchEnvironment, watcher: Watcher | None
    ) -> Generation:
        if watcher is None:
            return await self.engine.generate(context, sampling)
        watcher.asked(environment, len(context))
        return await self.engine.generate(context, sampling, watcher.wrote)

    def _count(self, text: str) -> int:
        return len(self.renderer.encode(text))

    def _sampling(self, used: int, seed: int, environment: SearchEnvironment) -> Sampling:
        room = self.limits.context_tokens - used
        most = self.limits.summary_tokens if environment.folding else self.limits.turn_tokens
        return Sampling(self.temperature, min(most, room), (self.renderer.end_id,), seed % (1 << 62))


async def together(work: Iterable[Coroutine[Any, Any, Done]], at_once: int | None) -> list[Done]:
    """Do all of the work, so many at once, and return what it gives in order: no wave waits for its slowest."""
    room = asyncio.Semaphore(at_once) if at_once else nullcontext()

    async def one(of: Coroutine[Any, Any, Done]) -> Done:
        async with room:
            return await of

    return list(await asyncio.gather(*map(one, work)))


def _row(turns: Sequence[Turn], new: Sequence[int], fresh: bool) -> tuple[int, ...]:
    """Return what a training row holds before a turn: the turns since its context began, and what is new."""
    last = max((i for i, turn in enumerate(turns) if turn.fresh), default=0)
    held = [] if fresh else turns[last:]
    return (*(i for turn in held for i in (*turn.context_ids, *turn.ids)), *new)


def _episode(environment: SearchEnvironment, turns: Sequence[Turn]) -> Episode:
    assert environment.finish is not None
    return Episode(
        question=environment.question,
        turns=tuple(turns),
        messages=tuple(environment.messages),
        finish=environment.finish,
        answer=environment.answer,
        queries=tuple(environment.queries),
        found=tuple(environment.found),
        malformed=environment.malformed,
        error=environment.error,
    )
