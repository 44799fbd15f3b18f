"""vLLM in process: one pump owns the engine and steps it while any request is unfinished (DESIGN §4.13, §7).

The engine shares `torch.distributed` with the trainer: build it on all ranks in `on_fit_start`, never before, and keep it
until the process ends. Weights come as a folder in shared memory, which vLLM reloads in place.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from project.errors import EngineError
from project.ranks import first_here, gathered_or_raised, world
from project.rollouts.engines.protocol import Generation, Sampling, Seen, preserved_rng
from project.rollouts.engines.weights import WeightFolders

CACHE = 1 << 30
"""Most bytes of KV cache on a CPU, unless one context needs more."""
BLOCK = 128
"""Tokens in a block of it, by vLLM's default on a CPU."""


class VLLMEngine:
    """Continuous batching in this process: a finished request resolves at once while the others go on."""

    def __init__(
        self,
        model_path: str,
        context_tokens: int,
        seed: int = 0,
        lora_rank: int | None = None,
        memory: float | None = None,
        *,
        sleeps: bool = False,
        requests: int | None = None,
    ) -> None:
        """Start vLLM on a model folder.

        Args:
            model_path: folder of a causal LM with its tokenizer.
            context_tokens: prompt and generation together, at most.
            seed: of vLLM's own sampling.
            lora_rank: largest rank of the adapters that `sync_adapter` gives; None for an engine that takes full weights.
            memory: share of a GPU's memory, weights and KV cache together; None leaves it to vLLM.
            sleeps: give that memory back while the engine sleeps.
            requests: how many run at once, at most; None where that is not known. On a CPU the KV cache is made for them.

        Raises:
            EngineError: vLLM is not installed, does not start on the model in this memory, or is to sleep without a GPU.
        """
        if sleeps and not torch.cuda.is_available():
            raise EngineError("vLLM sleeps on a GPU only: leave model.engine_sleeps out, for there is none here")
        from project.runtime import prepare_process

        prepare_process()
        threads = torch.get_num_threads()
        try:
            from vllm import LLM
        except ImportError as error:
            raise EngineError(
                "vLLM is not installed in this environment; run scripts/setup.sh, or choose engine: transformers"
            ) from error
        more: dict[str, Any] = {} if lora_rank is None else {"enable_lora": True, "max_lora_rank": _rank_limit(lora_rank)}
        more |= {} if memory is None else {"gpu_memory_utilization": memory}
        more |= {"enable_sleep_mode": True} if sleeps else {}
        self._sleeps, self._asleep, self._sleep_level = sleeps, False, 2 if lora_rank is None else 1
        try:
            if not torch.cuda.is_available():
                more |= {"kv_cache_memory_bytes": cache_bytes(model_path, context_tokens, requests)}
            with preserved_rng(), _among_ranks() as ranks:
                self._llm: Any = LLM(
                    model=model_path,
                    max_model_len=context_tokens,
                    enforce_eager=not torch.cuda.is_available(),
                    logprobs_mode="processed_logprobs",
                    enable_prefix_caching=True,
                    # A seeded request whose prompt is cut in two crashes on CPU, whose generators cannot be set back.
                    enable_chunked_prefill=torch.cuda.is_available(),
                    seed=seed,
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                    **more,
                    **ranks,
                )
        except (ValueError, RuntimeError, AssertionError) as error:  # of memory, which it raises as any, or of the model
            raise EngineError(
                f"vLLM does not start on {model_path} ({_line(error)}); its memory is model.engine_memory, its length "
                "limits.context_tokens"
            ) from error
        # At each sync it warns of layers without weights of their own, and of a tied head; a canary checks what was loaded.
        # An engine that is made sets the levels of all of vLLM's loggers anew.
        logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
        torch.set_num_threads(threads)
        dtype: Any = self._llm.llm_engine.vllm_config.model_config.dtype
        self._weights = WeightFolders(model_path, dtype)
        self.version = 0
        self._adapter: Any = None
        self._adapter_ids = itertools.count(1)
        self._ids = itertools.count()
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._watched: dict[str, tuple[Seen, int]] = {}  # and how many tokens each was given
        self._pump: asyncio.Task[None] | None = None

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, seen: Seen | None = None) -> Generation:
        """Queue one request and wait for it; see `Engine`."""
        from vllm import SamplingParams, TokensPrompt

        name = str(next(self._ids))
        future = self._waiting[name] = asyncio.get_running_loop().create_future()
        if seen is not None:
            self._watched[name] = seen, 0
        parameters = SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            stop_token_ids=list(sampling.stop_ids),
            seed=sampling.seed,
            logprobs=0,
            detokenize=False,
        )
        prompt = TokensPrompt(prompt_token_ids=list(prompt_ids))
        self._llm.llm_engine.add_request(name, prompt, parameters, lora_request=self._adapter)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run())
        try:
            whole = await future
        except asyncio.CancelledError:  # its episode has run out of time
            self._forget(name)
            raise
        finally:
            self._watched.pop(name, None)
        output, read = whole.outputs[0], tuple(whole.prompt_token_ids)
        ids = tuple(output.token_ids)
        logprobs = tuple(step[token].logprob for step, token in zip(output.logprobs, ids, strict=True))
        return Generation(ids, logprobs, "stop" if output.finish_reason == "stop" else "length", self.version, read)

    async def _run(self) -> None:
        try:
            while self._llm.llm_engine.has_unfinished_requests():
                with preserved_rng():
                    outputs = self._llm.llm_engine.step()
                self._tell(outputs)
                for output in outputs:
                    future = self._waiting.pop(output.request_id, None) if output.finished else None
                    if future is not None and not future.done():
                        future.set_result(output)
                await asyncio.sleep(0)
        except Exception as error:  # noqa: BLE001 - every caller that waits gets it
            for future in (future for future in self._waiting.values() if not future.done()):
                failed = EngineError(f"vLLM failed while generating: {_line(error)}")
                failed.__cause__ = error
                future.set_exception(failed)
            self._waiting.clear()

    def _tell(self, outputs: Sequence[Any]) -> None:
        """Give watchers their requests' new tokens; what one raises ends its request."""
        for name, output in ((one.request_id, one.outputs[0]) for one in outputs if one.request_id in self._watched):
            seen, told = self._watched[name]
            self._watched[name] = seen, len(output.token_ids)
            try:
                for token in output.token_ids[told:]:
                    seen(token)
            except Exception as error:  # noqa: BLE001 - the request's caller gets it
                future = self._waiting[name]
                self._forget(name)
                if not future.done():  # its caller was cancelled
                    future.set_exception(error)

    def _forget(self, name: str) -> None:
        """Take a request from vLLM that nobody waits for any longer."""
        self._waiting.pop(name, None)
        self._watched.pop(name, None)
        self._llm.llm_engine.abort_request([name])

    def score(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> list[float]:
        """Return log p of each of `ids` after `prompt_ids`, from vLLM's prompt log-probabilities."""
        from vllm import SamplingParams, TokensPrompt

        whole = [*prompt_ids, *ids]
        parameters = SamplingParams(temperature=1.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        with preserved_rng():
            prompt = TokensPrompt(prompt_token_ids=whole)
            [output] = self._llm.generate([prompt], parameters, use_tqdm=False, lora_request=self._adapter)
        steps = output.prompt_logprobs[len(prompt_ids) :]
        return [step[token].logprob for step, token in zip(steps, ids, strict=True)]

    def sleep(self) -> None:
        """Empty the GPU of weights and KV cache until the next sync; nothing may be generating.

        Full weights are forgotten, for that sync brings others; under adapters they wait in the processor's memory.
        """
        if self._sleeps:
            with preserved_rng():
                self._llm.sleep(level=self._sleep_level)
            self._asleep = True

    def _wake(self, *tags: str) -> None:
        """Take memory again for `weights`, `kv_cache` or both; what the trainer's allocator holds unused goes first."""
        if not self._asleep:
            return
        torch.cuda.empty_cache()
        try:
            self._asleep = not self._llm.wake_up(tags=list(tags))
        except RuntimeError as error:
            raise EngineError(
                f"vLLM does not wake beside the training ({_line(error)}); lower model.engine_memory, and go on with "
                "--ckpt_path last"
            ) from error

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> float:
        """Reload full weights, reset the prefix cache, raise the version; return the share of values that changed.

        What changes is counted in the engine's dtype: a delta that its rounding takes away has not arrived.
        """
        with self._written(weights) as (folder, changed):
            gathered_or_raised(lambda: self._reload(folder))
        self.version += 1
        return changed

    @contextmanager
    def _written(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[Path, float]]:
        """Yield the folder that this machine's first rank writes, and the share of values that changed."""
        writer = first_here()
        with ExitStack() as stack:

            def write() -> tuple[Path, float] | None:
                if world()[0] == writer:
                    return stack.enter_context(self._weights.written(weights))
                for _ in weights:  # whose shards all ranks gather together
                    pass
                return None

            written = gathered_or_raised(write)[writer]
            assert written is not None
            yield written

    def _reload(self, folder: Path) -> None:
        with preserved_rng():
            self._wake("weights")
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
            self._llm.collective_rpc(_renew_tied_head)
            self._wake("kv_cache")
        self._llm.reset_prefix_cache()

    def sync_adapter(self, folder: Path) -> None:
        """Generate with the LoRA adapter of a folder from now on, as PEFT saves it; the one before is let go of.

        Raises:
            EngineError: vLLM has no layer for one of the adapter's, which it would leave out in silence.
        """
        from vllm.lora.request import LoRARequest

        old, number = self._adapter, next(self._adapter_ids)  # never one that vLLM has loaded: it would keep that
        adapter = LoRARequest(f"update-{number}", number, str(folder))
        gathered_or_raised(lambda: self._swap(adapter, old))
        self._adapter = adapter
        self.version += 1

    def _swap(self, adapter: Any, old: Any) -> None:  # noqa: ANN401 - vLLM's LoRARequest
        with preserved_rng():
            self._wake("weights", "kv_cache")
            self._llm.llm_engine.add_lora(adapter)
            if old is not None:
                self._llm.llm_engine.remove_lora(old.lora_int_id)
            [(bound, left_out), *_] = self._llm.collective_rpc(_bound_layers, args=(adapter.lora_int_id,))
        if left_out or not bound:
            named = ", ".join(left_out) or "any"
            raise EngineError(
                f"vLLM bound {bound} of the adapter's {bound + len(left_out)} layers, not {named:.90}; give model.sync: merge"
            )
        self._llm.reset_prefix_cache()


@contextmanager
def _among_ranks() -> Iterator[dict[str, Any]]:
    """Yield what has vLLM build an engine of its own on each rank and its GPU, inside the process group that there is."""
    rank, size = world()
    device = torch.cuda.current_device() if torch.cuda.is_available() else rank
    if size == 1:
        if device:
            raise EngineError(
                f"vLLM in process starts on the first GPU, and the trainer is on {device}; hide the others from both "
                f"by CUDA_VISIBLE_DEVICES={device} and trainer.devices: 1"
            )
        yield {}
        return
    held = {name: os.environ.get(name) for name in ("RANK", "LOCAL_RANK")}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(device)}
    try:
        yield {"distributed_executor_backend": "external_launcher"}
    finally:
        for name, value in held.items():
            os.environ.pop(name)
            os.environ |= {} if value is None else {name: value}


def _line(error: Exception) -> str:
    """Return what vLLM says, in one line that may be read."""
    return f"{' '.join(str(error).split()) or type(error).__name__:.300}"


def cache_bytes(model_path: str, context_tokens: int | None, requests: int | None) -> int:
    """Return the bytes of KV cache that whole contexts of all `requests` fill, if that is less than `CACHE`.

    A context is as long as the model takes where `context_tokens` is None.

    What vLLM has no room for it begins anew later, with other tokens than its seed gives undisturbed.
    """
    from vllm.config import ParallelConfig
    from vllm.engine.arg_utils import EngineArgs

    length: Any = context_tokens
    model, alone = EngineArgs(model=model_path, max_model_len=length).create_model_config(), ParallelConfig()
    dtype: Any = model.dtype
    values = 2 * model.get_num_layers(alone) * model.get_num_kv_heads(alone) * model.get_head_size()
    block: int = BLOCK * values * dtype.itemsize
    one = -(-(context_tokens or model.max_model_len) // BLOCK) * block
    held = max(one, CACHE if requests is None else min(CACHE, one * requests))
    return held + block  # which vLLM keeps for itself


def _rank_limit(rank: int) -> int:
    """Return the least of vLLM's sizes that holds a rank."""
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)


def _bound_layers(worker: Any, adapter: int) -> tuple[int, list[str]]:  # noqa: ANN401 - vLLM's worker
    """Return how many layers an adapter changes, and the names of those of its own that the model has none for (trap 14)."""
    manager = worker.model_runner.lora_manager._adapter_manager
    held, known = manager.list_adapters()[adapter].loras.keys(), manager.modules.keys()
    return len(held & known), sorted(held - known)


def _renew_tied_head(worker: Any) -> None:  # noqa: ANN401 - vLLM's worker
    """Make a head that is the embedding anew: on a CPU it is a packed copy, which vLLM 0.32 leaves as it was at the start."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    tables = [module for module in worker.get_model().modules() if isinstance(module, VocabParallelEmbedding)]
    heads = [module for module in tables if isinstance(module, ParallelLMHead)]
    if worker.model_config.hf_text_config.tie_word_embeddings and heads and not torch.cuda.is_available():
        [embedding] = [module for module in tables if module not in heads]
        heads[0].weight = embedding.weight
        heads[0].quant_method.process_weights_after_loading(heads[0])
