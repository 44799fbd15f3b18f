"""A teacher in this process, for jobs without a server: a model folder under vLLM, or under transformers one request at a time.

The prompt is the model's own chat template; where it has none, or one that shows no tools to a request with tools, Seeker's.
Sampling is seeded by the request, so that a job that goes on asks the same.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from project.errors import InputError
from project.files import file_digest
from project.records import Row
from project.teacher.client import Failed, Reply, Request, Sampling, Teacher, TeacherError, parted
from project.teacher.journal import key_of


def model_name(model: str) -> str:
    """Return what a model is called in keys and manifests: a folder by its name and its weights' digest, wherever it lies."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin") or path.name == "config.json")
    return f"{folder.name}@{key_of([file_digest(path) for path in files])[:8]}"


class LocalTeacher(ABC):
    """What both have in common: from messages to token ids and back."""

    def __init__(self, teacher: Teacher) -> None:
        """Take whom to ask; `model` is a folder, or a hub id.

        Raises:
            InputError: it names no model.
        """
        if not teacher.model:
            raise InputError(f"teacher.engine={teacher.engine} needs teacher.model: the folder of a model")
        self.teacher, self.model = teacher, model_name(teacher.model)

    def _load_tokenizer(self) -> None:
        from transformers import AutoTokenizer

        from project.rendering import TEMPLATE, carries_tools
        from project.runtime import quiet_transformers

        quiet_transformers()
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(self.teacher.model)
        except (OSError, ValueError) as error:
            raise InputError(
                f"teacher.model={self.teacher.model} cannot be loaded ({_line(error)}); give a model's folder"
            ) from error
        self._tool_template = None if carries_tools(self._tokenizer) else TEMPLATE.read_text(encoding="utf-8")

    def prompt(self, request: Request) -> list[int]:
        """Return the ids of what the teacher reads."""
        rows = [_with_objects(message) for message in request.messages]
        has_tools = bool(request.tools) or any("tool_calls" in row or row["role"] == "tool" for row in rows)
        is_ours = self._tool_template and (has_tools or not self._tokenizer.chat_template)
        text = self._tokenizer.apply_chat_template(
            rows,
            tools=list(request.tools) or None,
            add_generation_prompt=True,
            tokenize=False,
            **({"chat_template": self._tool_template} if is_ours else {}),
        )
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def reply(self, ids: list[int], prompt: list[int], *, ended: bool) -> Reply:
        """Return what ids say."""
        thoughts, text = parted(self._tokenizer.decode(ids, skip_special_tokens=True))
        return Reply(text, "stop" if ended else "length", thoughts, (), len(prompt), len(ids))

    async def check(self) -> None:
        """Say one word.

        Raises:
            TeacherError: the engine has died.
        """
        asked = Request("check", ({"role": "user", "content": "Say yes."},), Sampling(temperature=0.0, max_tokens=1))
        try:
            await self._generate(asked, self.prompt(asked), 0)
        except Exception as error:
            raise TeacherError(f"the teacher {self.model} in this process has failed ({_line(error)})") from error

    async def ask(self, request: Request, seed: int) -> Reply:
        """Return what the teacher says.

        Raises:
            ValueError: the request is too long for it, or it says nothing.
        """
        reply = await self._generate(request, self.prompt(request), seed)
        if not (reply.text.strip() or reply.thoughts.strip()):
            msg = "the teacher says nothing"
            raise ValueError(msg)
        return reply

    @abstractmethod
    async def _generate(self, request: Request, prompt: list[int], seed: int) -> Reply:
        """Return what the model says after a prompt."""


class VLLMTeacher(LocalTeacher):
    """vLLM in a process that it starts itself; all requests in flight are generated together."""

    async def __aenter__(self) -> Self:
        """Start vLLM.

        Raises:
            TeacherError: it is not installed, or does not start.
        """
        from project.runtime import prepare_process

        prepare_process()
        import torch

        self._load_tokenizer()
        try:
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            from project.rollouts.engines.vllm import cache_bytes
        except ImportError as error:
            raise TeacherError(
                "vLLM is not installed in this environment; run scripts/setup.sh, or give --teacher.engine transformers"
            ) from error
        try:
            options: dict[str, Any] = {"model": self.teacher.model, "disable_log_stats": True}
            if not torch.cuda.is_available():
                options |= {"enforce_eager": True, "enable_chunked_prefill": False}
                options |= {"kv_cache_memory_bytes": cache_bytes(self.teacher.model, None, self.teacher.max_concurrent)}
            with _without_interrupt():
                self._llm: Any = AsyncLLM.from_engine_args(AsyncEngineArgs(**options))
        except (ValueError, RuntimeError, AssertionError) as error:
            raise TeacherError(f"vLLM does not start on {self.teacher.model} ({_line(error)})") from error
        self._ids = itertools.count()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop vLLM."""
        self._llm.shutdown()
        del self._llm  # which would stop it once more as the interpreter ends, and fail

    async def _generate(self, request: Request, prompt: list[int], seed: int) -> Reply:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        sampling = request.sampling
        parameters = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            max_tokens=sampling.max_tokens,
            stop=list(sampling.stop) or None,
            seed=seed,
            structured_outputs=StructuredOutputsParams(json=request.schema) if request.schema else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        told = TokensPrompt(prompt_token_ids=prompt)
        [whole] = [found async for found in self._llm.generate(told, parameters, str(next(self._ids)))]
        [output] = whole.outputs
        if output.finish_reason not in ("stop", "length"):  # Ctrl-C ends vLLM's own process, too
            raise Failed(f"vLLM gave the request up ({output.finish_reason})")
        reply = self.reply(list(output.token_ids), prompt, ended=output.finish_reason == "stop")
        thoughts, text = parted(output.text)  # which ends before a stop text
        return Reply(text, reply.finish, thoughts, (), reply.prompt_tokens, reply.completion_tokens)


class TransformersTeacher(LocalTeacher):
    """transformers, one request after the other: slow, and everywhere."""

    async def __aenter__(self) -> Self:
        """Load the model."""
        import torch
        from transformers import AutoModelForCausalLM

        self._load_tokenizer()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype: Any = "auto" if device == "cuda" else torch.float32
        self._lm: Any = AutoModelForCausalLM.from_pretrained(self.teacher.model, dtype=dtype).eval().to(device)
        self._one = asyncio.Lock()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the model."""
        del self._lm

    async def _generate(self, request: Request, prompt: list[int], seed: int) -> Reply:
        if request.schema:
            msg = "transformers holds no reply to a schema; give --structured false"
            raise ValueError(msg)
        async with self._one:
            running = asyncio.ensure_future(asyncio.to_thread(self._generated, request, prompt, seed))
            try:
                ids = await asyncio.shield(running)
            except asyncio.CancelledError:
                await asyncio.wait([running])  # a thread cannot be ended, and the next must not draw beside it
                raise
        end = self._tokenizer.eos_token_id
        ended = bool(ids) and (ids[-1] == end or len(ids) < request.sampling.max_tokens)
        return self.reply(ids, prompt, ended=ended)

    def _generated(self, request: Request, prompt: list[int], seed: int) -> list[int]:
        import torch
        from transformers import GenerationConfig

        sampling = request.sampling
        config = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=sampling.temperature > 0,
            repetition_penalty=sampling.repetition_penalty,
            stop_strings=list(sampling.stop) or None,
            eos_token_id=self._tokenizer.eos_token_id,
            pad_token_id=self._tokenizer.pad_token_id,
            **({"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if sampling.temperature > 0 else {}),
        )
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            inputs = torch.tensor([prompt], device=self._lm.device)
            ids = self._lm.generate(inputs, generation_config=config, tokenizer=self._tokenizer)
        return ids[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


@contextmanager
def _without_interrupt() -> Iterator[None]:
    """Start processes that a Ctrl-C in the terminal does not reach: what is in flight there is to end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _with_objects(message: Row) -> Row:
    """Return a message whose calls have their arguments as objects, as templates want them (DESIGN §3)."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    read = [call | {"function": call["function"] | {"arguments": json.loads(call["function"]["arguments"])}} for call in calls]
    return message | {"tool_calls": read}


def _line(error: Exception) -> str:
    return f"{' '.join(str(error).split()):.300}"
