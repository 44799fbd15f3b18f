"""transformers as an engine: small and exact. Requests that wait together are decoded together.

Sampling noise is keyed by each request's own seed (Gumbel-max), so a request's tokens do not depend on the noise of others. In
a batch they may still differ in their last bits; with `alone` each is decoded by itself, and a rollout that was killed is the
same to the bit when it is made again, whichever searches come back first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from project.errors import InputError
from project.rollouts.engines.protocol import Generation, Sampling, Seen

Request = tuple[Sequence[int], Sampling, Seen | None, "asyncio.Future[Generation]"]


class TransformersEngine:
    """Decodes with a causal LM of transformers, KV cache and left padding."""

    def __init__(self, model: Any, seed: int = 0, *, alone: bool = False) -> None:  # noqa: ANN401 - a folder or a loaded causal LM
        """Take a loaded causal LM, or load one from a folder in its own dtype; with `alone` no request shares a batch."""
        if isinstance(model, str) or hasattr(model, "joinpath"):
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
        self._model, self._seed, self._alone, self.version = model, seed, alone, 0
        self._queue: list[Request] = []
        self._pump: asyncio.Task[None] | None = None

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, seen: Seen | None = None) -> Generation:
        """Queue one request and wait for it; see `Engine`."""
        if not prompt_ids:
            raise InputError("the prompt holds no token; check the question file and the chat template")
        future: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        self._queue.append((prompt_ids, sampling, seen, future))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._queue:
            await asyncio.sleep(0.002)
            batch, self._queue = self._queue, []
            if self._alone and len(batch) > 1:  # one at a time, the searches of those before it running meanwhile
                batch, self._queue = batch[:1], batch[1:] + self._queue
            try:
                results = self._decode(batch)
            except Exception as error:  # noqa: BLE001 - every caller that waits gets it
                results = [error] * len(batch)
            for (*_, future), result in zip(batch, results, strict=True):
                if future.done():  # its caller was cancelled
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    @torch.inference_mode()
    def _decode(self, batch: list[Request]) -> list[Generation | Exception]:
        """Return each request's generation, or what its `seen` raised."""
        width, device = max(len(ids) for ids, *_ in batch), self._model.device
        ids_BT = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids, *_ in batch], device=device)
        mask_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, *_ in batch], device=device)
        noise = [torch.Generator().manual_seed(self._noise_seed(s, i)) for i, (_, s, *_) in enumerate(batch)]
        ended: dict[int, Exception] = {}
        out: list[tuple[list[int], list[float]]] = [([], []) for _ in batch]
        alive, cache, step_ids = set(range(len(batch))), None, ids_BT
        while alive:
            positions = (mask_BT.cumsum(1) - 1).clamp_min(0)[:, -step_ids.shape[1] :]
            result = self._model(
                input_ids=step_ids,
                attention_mask=mask_BT,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache, logits_BV = result.past_key_values, result.logits[:, -1].float().cpu()
            chosen = [self._sample(logits_BV[i], batch[i][1], noise[i], out[i]) if i in alive else 0 for i in range(len(batch))]
            for i in [*alive]:
                if error := _told(batch[i][2], chosen[i]):
                    ended[i] = error
                if error or _is_done(out[i][0], batch[i][1]):
                    alive.discard(i)
            step_ids = torch.tensor(chosen, device=device)[:, None]
            mask_BT = torch.cat([mask_BT, torch.ones_like(step_ids)], dim=1)
        return [ended.get(i) or self._result(ids, logprobs, *batch[i][:2]) for i, (ids, logprobs) in enumerate(out)]

    def _noise_seed(self, sampling: Sampling, index: int) -> int:
        return sampling.seed if sampling.seed is not None else self._seed * 1_000_003 + index

    @staticmethod
    def _sample(logits_V: Tensor, sampling: Sampling, noise: torch.Generator, out: tuple[list[int], list[float]]) -> int:
        logprobs_V = (logits_V / (sampling.temperature or 1.0)).log_softmax(-1)
        if sampling.temperature:
            uniform = torch.rand(logprobs_V.shape, generator=noise).clamp_min(1e-20)
            token = int((logprobs_V - (-uniform.log()).log()).argmax())
        else:
            token = int(logprobs_V.argmax())
        out[0].append(token)
        out[1].append(float(logprobs_V[token]))
        return token

    def _result(self, ids: list[int], logprobs: list[float], prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        stopped = bool(ids) and ids[-1] in sampling.stop_ids
        return Generation(tuple(ids), tuple(logprobs), "stop" if stopped else "length", self.version, tuple(prompt_ids))

    @torch.inference_mode()
    def score(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> list[float]:
        """Return log p of each of `ids` after `prompt_ids`."""
        whole = torch.tensor([[*prompt_ids, *ids]], device=self._model.device)
        logprobs = self._model(input_ids=whole, use_cache=False).logits[0, len(prompt_ids) - 1 : -1].float().log_softmax(-1)
        return [float(x) for x in logprobs.gather(1, whole[0, len(prompt_ids) :, None])[:, 0]]

    def sleep(self) -> None:
        """Do nothing: this engine has no memory but the model's."""

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> float:
        """Copy the weights in; return the share of values that changed."""
        own = self._model.state_dict()
        changed = total = 0
        with torch.no_grad():
            for name, tensor in weights:
                changed += int((own[name] != tensor.to(own[name].dtype)).sum())
                total += tensor.numel()
                own[name].copy_(tensor)
        self.version += 1
        return changed / max(1, total)

    def sync_adapter(self, folder: Path) -> None:
        """Refuse: weights are merged here."""
        raise InputError(f"the engine transformers takes full weights, not the adapter {folder}; set model.sync merge")


def _told(seen: Seen | None, token: int) -> Exception | None:
    """Give a request's watcher its token; return what that raised."""
    try:
        if seen is not None:
            seen(token)
    except Exception as error:  # noqa: BLE001 - the request's caller gets it
        return error
    return None


def _is_done(ids: list[int], sampling: Sampling) -> bool:
    return ids[-1] in sampling.stop_ids or len(ids) >= sampling.max_tokens
