"""The model that writes data: what it is asked, what it says, and an OpenAI-compatible endpoint that serves it.

vLLM, OpenAI, and the compatible endpoints of Anthropic and Gemini are all reached through the `openai` client, which repeats a
request that failed for now (408, 409, 429, 5xx, a lost connection) after a growing, jittered pause, or the one that is asked
for. What is left to tell is whether the row is at fault, the endpoint is down, or nothing asked of it will ever go well.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from project.errors import InputError, SeekerError
from project.records import Row
from project.teacher.journal import key_of

RETRIES = 8
"""Of a request that fails for now: over half a minute."""
LONGEST_PAUSE = 120.0
"""Seconds that the client waits where it is asked to; for more it gives up at once, and we wait."""
ANSWERS = 3
"""Times that a teacher is asked which says nothing at all, or nothing that can be read."""


class TeacherError(SeekerError):
    """The teacher is down, or refuses whatever it is asked."""


class Failed(Exception):
    """A request went wrong for a reason that may pass; its row can be asked again later."""


class Refused(ValueError):
    """The teacher does not take this request, and would not take it again."""


@dataclass(frozen=True)
class Sampling:
    """How a teacher samples. `top_p`, `repetition_penalty` and `stop` are sent where they are not the default."""

    temperature: float = 0.7
    """0 = greedy."""
    max_tokens: int = 2048
    """Of a reply."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together have this probability; 1 = all."""
    repetition_penalty: float = 1.0
    """Above 1 against loops; vLLM's, which not every endpoint knows."""
    stop: tuple[str, ...] = ()
    """Texts that end a reply."""

    def told(self) -> Row:
        """Return what a manifest and a request's key hold."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class Request:
    """One request about a row."""

    row: str
    """The row's id."""
    messages: tuple[Row, ...]
    sampling: Sampling
    attempt: int = 0
    """Number of the try at the row, from 0."""
    turn: int = 0
    """Number of the request within the try, from 0."""
    tools: tuple[Row, ...] = ()
    schema: Row | None = None
    """JSON schema that the reply must follow, where the endpoint can make it."""
    student: bool = False
    """Whether the job's student is asked, and not the teacher."""

    def key(self, model: str, seed: int, version: int) -> str:
        """Return what names the reply: all that decides it."""
        asked = [self.row, self.attempt, self.turn, list(self.messages), list(self.tools), self.schema]
        return key_of("reply", model, seed, version, asked, self.sampling.told())


@dataclass(frozen=True, slots=True)
class Reply:
    """What the teacher said."""

    text: str
    """Without its thoughts."""
    finish: str
    """`stop`, `length` or `tool_calls`, as the endpoint says."""
    thoughts: str = ""
    tool_calls: tuple[Row, ...] = ()
    """As OpenAI writes them: `id, type, function {name, arguments}`, the arguments a JSON text."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def to_row(self) -> Row:
        """Return the reply as a JSON object."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Read what `to_row` wrote."""
        return cls(**{**row, "tool_calls": tuple(row["tool_calls"])})


@dataclass(frozen=True)
class Teacher:
    """Whom to ask, and how fast."""

    model: str = ""
    """As the endpoint names it, by default the only one that it lists; for an engine in this process, a folder or a hub id."""
    engine: Literal["endpoint", "vllm", "transformers"] = "endpoint"
    """`endpoint` is a server; the others run the model in this process."""
    base_url: str = "http://127.0.0.1:8000/v1"
    """Of an OpenAI-compatible endpoint."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key, where the endpoint wants one."""
    max_concurrent: int = 16
    """Requests in flight."""
    tokens_per_minute: int | None = None
    """Most tokens of prompts and replies to ask for in a minute."""
    request_seconds: float = 600.0
    """Deadline of a request, with its repetitions."""
    row_seconds: float = 3600.0
    """Deadline of a row, with all of its requests and their repetitions."""
    input_price: float = 0.0
    """Of a million tokens of prompts."""
    output_price: float = 0.0
    """Of a million tokens of replies."""
    most_price: float | None = None
    """A job that may cost more is not begun without `--yes true`."""

    def __post_init__(self) -> None:
        """Refuse what could never be asked."""
        for name in ("max_concurrent", "request_seconds", "row_seconds", "tokens_per_minute"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise InputError(f"teacher.{name}={value} must be above 0")
        try:
            address = urlsplit(self.base_url)
        except ValueError as error:
            raise InputError(f"teacher.base_url is no address ({error}); give one such as {Teacher.base_url}") from error
        if address.scheme not in ("http", "https") or not address.hostname:
            raise InputError(f"teacher.base_url={self.base_url} is no address; give one such as {Teacher.base_url}")
        if address.username is not None:
            raise InputError("teacher.base_url holds a name or a key, which manifests would show; give teacher.key_variable")

    def price(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return what so many tokens cost."""
        return (prompt_tokens * self.input_price + completion_tokens * self.output_price) / 1e6


@dataclass
class Endpoint:
    """A teacher behind an OpenAI-compatible endpoint, while it is open."""

    teacher: Teacher
    model: str = ""
    _client: Any = field(default=None, repr=False)

    async def __aenter__(self) -> Self:
        """Connect, and find the model's name where none was given.

        Raises:
            TeacherError: the endpoint is down, or lists no model or several.
        """
        import openai

        self._secret = os.environ.get(self.teacher.key_variable)
        self._client = openai.AsyncOpenAI(
            base_url=self.teacher.base_url,
            api_key=self._secret or "none",
            max_retries=RETRIES,
            timeout=self.teacher.request_seconds,
            http_client=openai.DefaultAioHttpClient(timeout=self.teacher.request_seconds),
        )
        try:
            self.model = self.teacher.model or await self._only_model()
        except BaseException:
            await self._client.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        await self._client.close()

    async def check(self) -> None:
        """Ask something of no consequence.

        Raises:
            TeacherError: there is no answer: the endpoint is down, or has no room for more.
        """
        import openai

        asked = [{"role": "user", "content": "Say yes."}]
        try:
            async with asyncio.timeout(self.teacher.request_seconds):
                client = self._client.with_options(max_retries=2)
                await client.chat.completions.create(model=self.model, messages=asked, max_tokens=1)
        except (openai.OpenAIError, TimeoutError) as error:
            status = getattr(error, "status_code", 500)
            if status >= 500 or status == 429:  # whoever refuses this is up
                raise TeacherError(
                    f"the teacher {self.model} at {self.teacher.base_url} is down ({self._shown(error)})"
                ) from error

    async def _only_model(self) -> str:
        import openai

        try:
            listed = [model.id async for model in self._client.with_options(max_retries=2).models.list()]
        except openai.OpenAIError as error:
            raise TeacherError(
                f"the teacher at {self.teacher.base_url} does not list its models ({self._shown(error)}); start it, or give "
                "teacher.model"
            ) from error
        if len(listed) != 1:
            raise InputError(
                f"{self.teacher.base_url} serves {len(listed)} models ({', '.join(listed[:5])}); choose one by teacher.model"
            )
        return str(listed[0])

    async def ask(self, request: Request, seed: int) -> Reply:
        """Return what the teacher says.

        Raises:
            Refused: it does not take this request; others it may.
            ValueError: it says nothing.
            Failed: it has failed for now, all repetitions included.
            TeacherError: no request will go well: the key, the model or the address is wrong.
        """
        for number in range(ANSWERS):
            reply = await self._asked(request, seed + number)
            if reply is not None and (reply.text.strip() or reply.tool_calls or reply.thoughts.strip()):
                return reply
        raise ValueError("the teacher says nothing")

    async def _asked(self, request: Request, seed: int) -> Reply | None:
        """Return a reply; None where what came is none."""
        import openai

        try:
            # The client's typed method walks through every field of what is asked and answered, a third of all time here.
            answer = await self._client.post("/chat/completions", cast_to=object, body=self._body(request, seed))
            choice = answer["choices"][0]
            return _read(choice["message"], str(choice.get("finish_reason") or "stop"), answer.get("usage") or {})
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise Refused(f"the teacher refuses the request: {self._shown(error)}") from error
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise TeacherError(
                f"the teacher {self.model} at {self.teacher.base_url} refuses all requests ({self._shown(error)}); see "
                f"teacher.model, teacher.base_url, and the key in {self.teacher.key_variable}"
            ) from error
        except (openai.APIConnectionError, openai.APIStatusError) as error:
            if getattr(error, "code", None) == "insufficient_quota":
                raise TeacherError(f"the teacher's quota is used up ({self._shown(error)}); raise it, and go on") from error
            if isinstance(error, openai.APIStatusError) and error.status_code == 413:
                raise Refused(f"the teacher refuses the request: {self._shown(error)}") from error
            if pause := _long_pause(error):
                await asyncio.sleep(pause)
                return await self._asked(request, seed)
            raise Failed(f"the teacher {self.model} at {self.teacher.base_url}: {self._shown(error)}") from error
        except (openai.APIResponseValidationError, ValueError, LookupError, TypeError, AttributeError):
            return None  # cut JSON, or none of OpenAI's

    def _body(self, request: Request, seed: int) -> Row:
        sampling = request.sampling
        body: Row = {"model": self.model, "messages": list(request.messages), "seed": seed}
        body |= {"temperature": sampling.temperature, "max_tokens": sampling.max_tokens}
        body |= {"top_p": sampling.top_p} if sampling.top_p != 1.0 else {}
        body |= {"repetition_penalty": sampling.repetition_penalty} if sampling.repetition_penalty != 1.0 else {}
        body |= {"stop": list(sampling.stop)} if sampling.stop else {}
        body |= {"tools": list(request.tools)} if request.tools else {}
        if request.schema is not None:
            schema = {"name": "reply", "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _shown(self, error: Exception) -> str:
        """Return an error in one line, without the key."""
        return " ".join(f"{type(error).__name__}: {error}".split()).replace(self._secret or "\0", "…")[:500]


def _long_pause(error: Any) -> float:  # noqa: ANN401 - openai's
    """Return the seconds after which an endpoint that is asked too much may be asked again, where the client did not wait."""
    response = getattr(error, "response", None)
    try:
        seconds = float(response.headers.get("retry-after", 0)) if response is not None and error.status_code == 429 else 0.0
    except ValueError:
        return 0.0
    return seconds if seconds > LONGEST_PAUSE else 0.0


def parted(text: str) -> tuple[str, str]:
    r"""Return the thoughts of a text and the rest of it; the first tag may be in the prompt, as DeepSeek-R1's is.

    >>> parted("<think>\nWell.\n</think>\n\nYes.")
    ('Well.', 'Yes.')
    """
    thoughts, tag, rest = text.partition("</think>")
    return (thoughts.strip().removeprefix("<think>").strip(), rest.lstrip("\n")) if tag else ("", text)


def _read(message: Row, finish: str, usage: Row) -> Reply:
    thoughts, text = parted(message.get("content") or "")
    calls = ((call["id"], call["function"]) for call in message.get("tool_calls") or ())
    return Reply(
        text=text,
        finish=finish,
        thoughts=str(message.get("reasoning") or message.get("reasoning_content") or thoughts),
        tool_calls=tuple(
            {"id": ident, "type": "function", "function": {"name": function["name"], "arguments": function["arguments"]}}
            for ident, function in calls
        ),
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
    )
