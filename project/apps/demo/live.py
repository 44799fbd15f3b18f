"""A checkpoint that answers people: its engine on a thread of its own, and episodes that can be watched and stopped.

What runs is what was trained and measured: `EpisodeRunner` with the model's own dialect and template. Several people may ask at
once; each has an `Asking`, whose moments come as they happen.
"""

from __future__ import annotations

import asyncio
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from project.corpus.engines.noisy import Noise, Noisy
from project.corpus.retrievers import Retriever
from project.environment.search import EpisodeLimits, SearchEnvironment
from project.errors import InputError, SeekerError, TrackingError
from project.modules.model_folder import engine_folder, is_adapter, merge_adapter
from project.modules.policy import AgentSettings, load_tokenizer, resolve_model_path
from project.records import Document, Episode, Hit, Message, Question, Turn
from project.rendering import Renderer
from project.rollouts.engines import Engine, make_engine
from project.rollouts.runner import EpisodeRunner
from project.rollouts.search_thread import search_thread
from project.tiny_model import TINY_NAME

EngineName = Literal["transformers", "vllm"]
AT_ONCE = 4
"""Episodes of a model that vLLM makes room for at once."""


@dataclass(frozen=True)
class Controls:
    """What a person may set on the page; the rest of an episode's limits are `EpisodeLimits`' own."""

    temperature: float = 0.0
    """Of sampling; 0 = greedy."""
    seed: int = 0
    """Of sampling and of the noise."""
    max_turns: int = 4
    """Turns of the agent, the answer included."""
    turn_tokens: int = 128
    """Tokens the agent may write in a turn."""
    topk: int = 3
    """Documents a search returns, at most."""
    fold_turns: int = 0
    """Searches after which the agent is asked for a summary, from which it goes on; 0 never asks."""
    drop_best: float = 0.0
    """Share of searches whose best document is left out."""
    swap: float = 0.0
    """Share of documents in whose place stands the one that is likest to it."""
    fail: float = 0.0
    """Share of searches that fail."""

    def noise(self) -> Noise:
        """Return how much worse searches become."""
        return Noise(self.seed, drop_best=self.drop_best, swap=self.swap, fail=self.fail)

    def limits(self, context_tokens: int) -> EpisodeLimits:
        """Return what an episode may use."""
        fold = self.fold_turns or None
        return EpisodeLimits(
            max_turns=self.max_turns, turn_tokens=self.turn_tokens, context_tokens=context_tokens, fold_turns=fold
        )


@dataclass(frozen=True)
class Asked:
    """The agent is asked for a turn."""

    tokens: int
    """Of the context."""
    folding: bool
    """Whether for a summary."""


@dataclass(frozen=True)
class Wrote:
    """The agent has written a token."""

    token: int


@dataclass(frozen=True)
class Searched:
    """The search tool has answered."""

    queries: tuple[str, ...]
    hits: tuple[tuple[Hit, ...], ...]
    """Of each query, best first."""
    seconds: float


@dataclass(frozen=True)
class Turned:
    """A turn is whole, and the environment has said what it says to it."""

    text: str
    tokens: int
    seconds: float
    """Of the turn's generation."""
    following: tuple[Message, ...]
    folded: bool
    """Whether `following` begins a new context."""


@dataclass(frozen=True)
class Ended:
    """The episode is over."""

    episode: Episode


@dataclass(frozen=True)
class Stopped:
    """The person has stopped it."""


@dataclass(frozen=True)
class Failed:
    """It could not go on; `reason` is one sentence."""

    reason: str


Moment = Asked | Wrote | Searched | Turned | Ended | Stopped | Failed


class _StoppedError(Exception):
    """Ends an episode whose person has stopped it."""


class Asking:
    """An episode that runs, told moment by moment; the `Watcher` of its run."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._moments: queue.SimpleQueue[Moment] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._run: Future[Episode] | None = None

    def news(self, wait_s: float) -> list[Moment]:
        """Return what has happened since the last time, in order; the last moment of all is Ended, Stopped or Failed.

        Args:
            wait_s: seconds to wait for the first, at most.
        """
        some = list[Moment]()
        try:
            some.append(self._moments.get(timeout=wait_s))
            while True:
                some.append(self._moments.get_nowait())
        except queue.Empty:
            return some

    def stop(self) -> None:
        """End the episode now, in the middle of a turn or of a search."""
        self._stop.set()
        if self._run is not None:
            self._run.cancel()

    def follow(self, run: Future[Episode]) -> None:
        """Tell how the run ends."""
        self._run = run
        run.add_done_callback(self._done)

    def _done(self, run: Future[Episode]) -> None:
        if self._stop.is_set() or run.cancelled():
            self._moments.put(Stopped())
        elif (error := run.exception()) is None:
            self._moments.put(Ended(run.result()))
        else:
            is_ours = isinstance(error, SeekerError)
            self._moments.put(Failed(str(error) if is_ours else f"{type(error).__name__}: {error}"))

    def asked(self, environment: SearchEnvironment, tokens: int) -> None:
        """See `Watcher`."""
        self._check()
        self._moments.put(Asked(tokens, environment.folding))

    def wrote(self, token: int) -> None:
        """See `Watcher`."""
        self._check()
        self._moments.put(Wrote(token))

    def searched(self, queries: Sequence[str], hits: Sequence[Sequence[Hit]], seconds: float) -> None:
        """See what the search tool has found."""
        self._moments.put(Searched(tuple(queries), tuple(map(tuple, hits)), seconds))

    def turned(self, environment: SearchEnvironment, turn: Turn, following: Sequence[Message]) -> None:
        """See `Watcher`."""
        self._check()
        sent, done, _ = turn.clock_ns
        text, folded = self._decode(turn.ids), environment.folded
        self._moments.put(Turned(text, len(turn.ids), (done - sent) / 1e9, tuple(following), folded))

    def _check(self) -> None:
        if self._stop.is_set():
            raise _StoppedError


@dataclass(frozen=True)
class WatchedTool:
    """A search engine as the agent's tool that tells what it finds, with scores."""

    retriever: Noisy
    topk: int
    asking: Asking

    async def search(self, queries: Sequence[str], seed: str) -> list[list[Document]]:
        """Search; see `SearchTool`."""
        began = time.monotonic()
        found = await self.retriever.search(queries, self.topk, seed)
        self.asking.searched(queries, found, time.monotonic() - began)
        return [[Document(hit.passage.text, hit.passage.title, hit.passage.id) for hit in hits] for hits in found]


class LiveModel:
    """A model that is loaded, and answers until it is closed."""

    def __init__(self, model: str | None, engine: EngineName = "transformers", context_tokens: int = 2048) -> None:
        """Load a model, the embedded default for None.

        Args:
            model: a model folder, an adapter's, a training's, a checkpoint, a run, or a hub id; see `model_of`.
            engine: vLLM in process, or transformers, on a GPU where there is one.
            context_tokens: of an episode, at most.

        Raises:
            InputError: there is no such model.
            EngineError: the engine does not start.
        """
        self._scratch = tempfile.TemporaryDirectory(prefix="seeker-demo-")
        self._path = resolve_model_path(model_of(model, Path(self._scratch.name) / "given"))
        self.settings = AgentSettings.load(Path(self._path)) or AgentSettings()
        self._tokenizer, self._new_ids = load_tokenizer(self._path, self.settings.make_dialect())
        self._renderer = Renderer(self._tokenizer, self.settings.make_dialect(), self.settings.history)
        self._context_tokens = context_tokens
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="demo-model", daemon=True).start()
        try:
            self._engine = self._on_thread(self._load(engine)).result()
        except BaseException:
            self.close()
            raise

    def ask(self, question: Question, controls: Controls, retriever: Retriever) -> Asking:
        """Begin an episode and return it while it runs; the model must stay open until that is over."""
        asking = Asking(self._renderer.decode)
        tool = WatchedTool(Noisy([retriever], controls.noise()), controls.topk, asking)
        asking.follow(self._on_thread(self._episode(question, controls, tool)))
        return asking

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of what was written so far, without a character that is not whole yet."""
        return self._renderer.decode(ids).removesuffix("\ufffd")

    def close(self) -> None:
        """End the episodes that run, and give up the thread and the model."""
        self._on_thread(_end_others()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._scratch.cleanup()

    def _on_thread(self, work: Any) -> Future[Any]:  # noqa: ANN401 - a coroutine
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _episode(self, question: Question, controls: Controls, tool: WatchedTool) -> Episode:
        limits = controls.limits(self._context_tokens)
        with search_thread(tool, limits.search_seconds) as searching:
            runner = EpisodeRunner(self._engine, self._renderer, searching, limits, controls.temperature)
            return await runner.episode(question, controls.seed, tool.asking)

    async def _load(self, engine: EngineName) -> Engine:
        into = Path(self._scratch.name) / "model"
        folder = engine_folder(self._path, self._tokenizer, self._new_ids, self.settings, into)
        if engine == "vllm":
            return make_engine("vllm", folder, self._context_tokens, requests=AT_ONCE)
        return make_engine("transformers", _on_device(folder), self._context_tokens)


async def _end_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def model_of(word: str | None, into: Path) -> str | None:
    """Return the model folder or hub id that a word means; adapters and checkpoints are merged into a new folder.

    Args:
        word: a model folder, an adapter's, a training's, a `.ckpt`, a tracked run's name or id, a hub id; None stays None.
        into: the folder to write, if one is needed.

    Raises:
        InputError: it is none of these, or an adapter's base is gone.
    """
    if word is None or word == TINY_NAME or (Path(word) / "config.json").is_file():
        return word
    if is_adapter(Path(word)):
        return str(merge_adapter(Path(word), into))
    from project.apps.export import write_model
    from project.apps.export_source import find_source

    try:
        source = find_source(word, None)
    except TrackingError as error:
        if word.count("/") == 1 and not Path(word).exists():  # a hub id
            return word
        raise InputError(f"{word} is no model folder, no training, and no run ({error}); give one of these") from error
    if source.model is not None:
        return str(source.model)
    into.mkdir()
    write_model(source, into, merge=True)
    return str(into)


def _on_device(folder: str) -> Any:  # noqa: ANN401 - a causal LM of transformers
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    return model.to("cuda") if torch.cuda.is_available() else model
