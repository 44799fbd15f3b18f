"""The records that cross stages. Read this first.

Data flow: `Passage` (corpus) and `Question` -> `Conversation` (expert or distilled) -> training samples; `Question` ->
`Episode` (rollout) -> `Conversation`, scores and training rows; `Trace` (another agent's log) -> `Conversation`.

Every record has `from_row(row)` (a parsed JSON object, checked: `ValueError` names the field) and `to_row()`.
Reading files, and saying which file and line was wrong, is `files.py`. Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

Row = dict[str, Any]
"""A parsed JSON object."""

DialectName = Literal["tags", "tools"] | str
"""A dialect of `dialects.py`, or the path of a class of your own: `module.Class`."""


class SpanKind(StrEnum):
    """What a run of characters of a rendered conversation is. The order is fixed: its index is stored with each token."""

    SYSTEM = "system"
    USER = "user"
    HEADER = "header"
    """Role headers and separators that the chat template writes."""
    THINK = "think"
    SEARCH = "search"
    """A search query or tool call that the agent writes."""
    DECISION = "decision"
    """`<|SEARCH|>` or `<|ANSWER|>`."""
    SUMMARY = "summary"
    ANSWER = "answer"
    TEXT = "text"
    """An assistant's prose outside tags."""
    RESULT = "result"
    """What the search tool returned: never trained."""
    END = "end"
    """The end-of-turn token of an assistant's turn: trained, or the model never stops."""


class FinishReason(StrEnum):
    """Why an episode ended."""

    ANSWER = "answer"
    MAX_TURNS = "max_turns"
    LENGTH = "length"
    """A turn used up its token limit without an end-of-turn token."""
    CONTEXT_FULL = "context_full"
    MALFORMED = "malformed"
    """Neither a search nor an answer could be read from the last turn allowed to be so."""
    TOOL_ERROR = "tool_error"
    TIMEOUT = "timeout"

    @property
    def is_environment_failure(self) -> bool:
        """True where the environment failed and the policy did not: such an episode is masked out, not scored 0."""
        return self in (FinishReason.TOOL_ERROR, FinishReason.TIMEOUT)


def _require(row: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:  # noqa: ANN401 - the caller names the type
    if not isinstance(row, Mapping):
        msg = f"{row!r:.60} is {type(row).__name__}, expected an object with the field '{name}'"
        raise ValueError(msg)
    if name not in row or row[name] is None:
        msg = f"field '{name}' is missing"
        raise ValueError(msg)
    if not isinstance(row[name], kind):
        wanted = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
        msg = f"field '{name}' is {type(row[name]).__name__}, expected {wanted}"
        raise ValueError(msg)
    return row[name]


def strings(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return a field that is a list of strings, empty where it is absent; else a `ValueError` names it."""
    values = row.get(name) or []
    if not isinstance(values, Sequence) or isinstance(values, str) or not all(isinstance(v, str) for v in values):
        msg = f"field '{name}' is not a list of strings"
        raise ValueError(msg)
    return tuple(values)


def _parsed(text: str, name: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    try:
        return json.loads(text)
    except ValueError as error:
        msg = f"field '{name}' is a string that is not JSON ({error}): {text!r:.60}"
        raise ValueError(msg) from error


def maybe_bool(row: Mapping[str, Any], name: str) -> bool | None:
    """Return a field that is true, false or absent; else a `ValueError` names it."""
    value = row.get(name)
    if value is not None and not isinstance(value, bool):
        msg = f"field '{name}' is {value!r}, expected true, false or null"
        raise ValueError(msg)
    return value


def _list(row: Mapping[str, Any], name: str) -> list[Any]:
    value = row.get(name)
    if value is not None and not isinstance(value, list):
        msg = f"field '{name}' is {type(value).__name__}, expected a list"
        raise ValueError(msg)
    return value or []


def _object(row: Mapping[str, Any], name: str) -> Row:
    """Read an object that Parquet holds as a JSON string."""
    value = row.get(name)
    if isinstance(value, str):
        value = _parsed(value, name) if value else {}
    if value is not None and not isinstance(value, dict):
        msg = f"field '{name}' is {type(value).__name__}, expected an object"
        raise ValueError(msg)
    return value or {}


@dataclass(frozen=True, slots=True)
class Passage:
    """One searchable piece of text."""

    id: str
    title: str
    text: str
    source: str = ""
    start: int = 0
    end: int = 0
    """Offsets in characters into the source document."""
    section: str = ""
    """The heading under which it begins, below those above it."""

    @property
    def document(self) -> str:
        """Id of the document that it is a piece of; its own where it is whole."""
        return self.source if self.source and self.id.startswith(f"{self.source}#") else self.id

    @property
    def contents(self) -> str:
        r"""The text of Search-R1's wire format: `"Title"\ntext`."""
        return f'"{self.title}"\n{self.text}'

    @classmethod
    def from_row(cls, row: Row) -> Passage:
        """Read `{"id", "title", "text"}` or Search-R1's `{"id", "contents"}`."""
        ident = str(_require(row, "id", (str, int)))
        if "text" not in row and isinstance(row.get("contents"), str):
            head, _, text = row["contents"].partition("\n")
            head = head.strip()
            quoted = len(head) > 1 and head[0] == head[-1] == '"'
            return cls(ident, head[1:-1] if quoted else head, text)
        title, text = str(row.get("title") or ""), _require(row, "text", str)
        source, section = str(row.get("source") or ""), str(row.get("section") or "")
        return cls(ident, title, text, source, int(row.get("start") or 0), int(row.get("end") or 0), section)

    def to_row(self) -> Row:
        """Return the passage as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Question:
    """What a user asks."""

    id: str
    question: str
    answers: tuple[str, ...]
    """Gold answers, each right by itself; empty where the corpus cannot answer."""
    evidence: tuple[str, ...] = ()
    """Ids of the passages that hold the answer, all of which are needed."""
    needs_search: bool | None = None
    """None where it is not known."""
    kind: str = ""
    """For example `one_hop`, `two_hop`, `comparison`, `no_search`, `unanswerable`."""
    group: str = ""
    """What train and test must not share (entity group, article, trace)."""
    extra_info: Row = field(default_factory=dict)

    @classmethod
    def from_row(cls, row: Row) -> Question:
        """Read a question row; only `id`, `question` and `answers` (or `golden_answers`) are required."""
        names = ("answers", "golden_answers")
        name = next((n for n in names if row.get(n) is not None), "answers")
        _require(row, name, (list, tuple))  # a row without it would be scored as one that the corpus cannot answer
        answers = strings(row, name)
        return cls(
            id=str(_require(row, "id", (str, int))),
            question=_require(row, "question", str),
            answers=answers,
            evidence=strings(row, "evidence"),
            needs_search=maybe_bool(row, "needs_search"),
            kind=str(row.get("kind") or ""),
            group=str(row.get("group") or ""),
            extra_info=_object(row, "extra_info"),
        )

    def to_row(self) -> Row:
        """Return the question as a JSON object."""
        return asdict(self) | {"answers": list(self.answers), "evidence": list(self.evidence)}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool. `arguments` is an object here and a JSON string in files."""

    name: str
    arguments: Row
    id: str = ""

    @classmethod
    def from_row(cls, row: Row) -> ToolCall:
        """Read OpenAI's `{"id", "type", "function": {"name", "arguments"}}`."""
        function = _require(row, "function", dict)
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = _parsed(arguments, "function.arguments")
        if not isinstance(arguments, dict):
            msg = f"field 'function.arguments' is {type(arguments).__name__}, expected an object or its JSON"
            raise ValueError(msg)
        return cls(_require(function, "name", str), arguments, str(row.get("id") or ""))

    def to_row(self) -> Row:
        """Return OpenAI's form, arguments as a JSON string."""
        function = {"name": self.name, "arguments": json.dumps(self.arguments, ensure_ascii=False)}
        return {"id": self.id, "type": "function", "function": function}


Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    weight: float = 1.0
    """Multiplies the weights of this message's tokens; 0 = not trained."""

    @classmethod
    def from_row(cls, row: Row) -> Message:
        """Read an OpenAI message; `content` may be null beside tool calls."""
        role = _require(row, "role", str)
        if role not in ("system", "user", "assistant", "tool"):
            msg = f"field 'role' is '{role}', expected system, user, assistant or tool"
            raise ValueError(msg)
        calls = tuple(ToolCall.from_row(call) for call in _list(row, "tool_calls"))
        content = row.get("content")
        if content is not None and not isinstance(content, str):
            msg = f"field 'content' of the {role} message is {type(content).__name__}, expected a string"
            raise ValueError(msg)
        if content is None and not calls:
            msg = f"field 'content' of the {role} message is missing"
            raise ValueError(msg)
        weight = row.get("weight")
        weight = 1.0 if weight is None else weight
        if not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            msg = f"field 'weight' of the {role} message is {weight!r}, expected a finite number from 0"
            raise ValueError(msg)
        return cls(role, content or "", calls, str(row.get("tool_call_id") or ""), float(weight))

    def to_row(self) -> Row:
        """Return the message without the keys that hold nothing."""
        row: Row = {"role": self.role, "content": self.content}
        if self.tool_calls:
            row["tool_calls"] = [call.to_row() for call in self.tool_calls]
        if self.tool_call_id:
            row["tool_call_id"] = self.tool_call_id
        if self.weight != 1.0:
            row["weight"] = self.weight
        return row


@dataclass(frozen=True, slots=True)
class Conversation:
    """OpenAI-style messages: the one record shared by distillation, SFT, RL and evaluation."""

    id: str
    messages: tuple[Message, ...]
    tools: tuple[Row, ...] = ()
    """JSON schemas, in OpenAI's form."""
    question: str = ""
    answers: tuple[str, ...] = ()
    group: str = ""
    """What train and validation must not share."""
    extra_info: Row = field(default_factory=dict)

    @property
    def assistant_turns(self) -> int:
        """How many messages the agent wrote."""
        return sum(m.role == "assistant" for m in self.messages)

    @classmethod
    def from_row(cls, row: Row) -> Conversation:
        """Read a conversation; `ValueError` names the message and field that is wrong."""
        messages = []
        for number, message in enumerate(_require(row, "messages", list)):
            try:
                messages.append(Message.from_row(message))
            except ValueError as error:
                text = f"messages[{number}]: {error}"
                raise ValueError(text) from error
        tools = _parsed(row["tools"] or "[]", "tools") if isinstance(row.get("tools"), str) else row.get("tools")
        tools = _list({"tools": tools}, "tools")
        for number, tool in enumerate(tools):
            if not isinstance(tool, dict) or not isinstance(tool.get("function"), dict) or not tool["function"].get("name"):
                text = f"tools[{number}]: {tool!r:.60} is not {{'type': 'function', 'function': {{'name': …}}}}"
                raise ValueError(text)
        return cls(
            id=str(_require(row, "id", (str, int))),
            messages=tuple(messages),
            tools=tuple(tools),
            question=str(row.get("question") or ""),
            answers=strings(row, "answers"),
            group=str(row.get("group") or ""),
            extra_info=_object(row, "extra_info"),
        )

    def to_row(self) -> Row:
        """Return the conversation as a JSON object."""
        return {
            "id": self.id,
            "messages": [m.to_row() for m in self.messages],
            "tools": list(self.tools),
            "question": self.question,
            "answers": list(self.answers),
            "group": self.group,
            "extra_info": self.extra_info,
            "assistant_turns": self.assistant_turns,
        }


@dataclass(frozen=True, slots=True)
class Document:
    """One search result as an agent reads it."""

    content: str
    title: str = ""
    id: str = ""

    def to_row(self) -> Row:
        """Return the document without the keys that hold nothing."""
        return {"content": self.content} | ({"title": self.title} if self.title else {}) | ({"id": self.id} if self.id else {})


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that a retriever found, with the retriever's score (higher is better)."""

    passage: Passage
    score: float


StepType = Literal["reasoning", "search", "search_result", "answer", "other"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an agent's trace. Only the fields of its type are set."""

    type: StepType
    content: str = ""
    tool: str = ""
    """`search`, `lookup` or `visit`."""
    queries: tuple[str, ...] = ()
    documents: tuple[Document, ...] = ()
    error: str = ""

    @classmethod
    def from_row(cls, row: Row) -> Step:
        """Read one step of DESIGN's trace format."""
        kind = _require(row, "type", str)
        if kind not in ("reasoning", "search", "search_result", "answer", "other"):
            msg = f"field 'type' is '{kind}', expected reasoning, search, search_result, answer or other"
            raise ValueError(msg)
        documents = tuple(
            Document(d.get("content") or "", d.get("title") or "", str(d.get("id") or "")) for d in row.get("documents") or []
        )
        content, tool = str(row.get("content") or ""), str(row.get("tool") or "")
        return cls(kind, content, tool, strings(row, "queries"), documents, str(row.get("error") or ""))

    def to_row(self) -> Row:
        """Return the step with the keys of its type only."""
        row: Row = {"type": self.type}
        if self.type == "search":
            return row | {"tool": self.tool or "search", "queries": list(self.queries)}
        if self.type == "search_result":
            return row | {"documents": [d.to_row() for d in self.documents]} | ({"error": self.error} if self.error else {})
        return row | {"content": self.content}


@dataclass(frozen=True, slots=True)
class Trace:
    """An agent's steps on one question."""

    id: str
    question: str
    answers: tuple[str, ...]
    steps: tuple[Step, ...]
    correct: bool | None = None
    source: str = ""

    @classmethod
    def from_row(cls, row: Row) -> Trace:
        """Read DESIGN's trace row."""
        return cls(
            id=str(_require(row, "id", (str, int))),
            question=_require(row, "question", str),
            answers=strings(row, "answers"),
            steps=tuple(Step.from_row(step) for step in _require(row, "steps", list)),
            correct=maybe_bool(row, "correct"),
            source=str(row.get("source") or ""),
        )

    def to_row(self) -> Row:
        """Return the trace as a JSON object."""
        return {
            "id": self.id,
            "question": self.question,
            "answers": list(self.answers),
            "steps": [s.to_row() for s in self.steps],
            "correct": self.correct,
            "source": self.source,
        }


@dataclass(frozen=True, slots=True)
class Turn:
    """One generation of the policy inside an episode. Nothing sampled is ever tokenised again."""

    context_ids: tuple[int, ...]
    """Tokens given to the engine that it had not seen in this episode: the prompt, or what came after the last turn."""
    ids: tuple[int, ...]
    """Sampled tokens, the end-of-turn token included."""
    logprobs: tuple[float, ...]
    """Natural log of the probability each sampled token had under the sampling distribution (temperature applied)."""
    version: int
    """Policy version: the number of weight syncs the engine had seen."""
    ended: bool
    """False where the turn was cut by its token limit."""
    fresh: bool = False
    """True where a context begins: `context_ids` is a whole prompt. The first turn's, and the one's after a fold."""
    clock_ns: tuple[int, int, int] = (0, 0, 0)
    """Since 1970: when the engine was asked, when it was done, and when the environment was done with what it said."""
    drifted: bool = False
    """True where the engine read other tokens than the turn's row holds: nothing could be trained on that."""

    @classmethod
    def from_row(cls, row: Row) -> Turn:
        """Read what `to_row` returned."""
        ids = {name: tuple(map(int, _require(row, name, (list, tuple)))) for name in ("context_ids", "ids", "clock_ns")}
        logprobs = tuple(map(float, _require(row, "logprobs", (list, tuple))))
        flags = {name: _require(row, name, bool) for name in ("ended", "fresh", "drifted")}
        return cls(**ids, logprobs=logprobs, version=_require(row, "version", int), **flags)  # type: ignore[arg-type]

    def to_row(self) -> Row:
        """Return the turn as a JSON object."""
        values = ((name, getattr(self, name)) for name in self.__slots__)  # asdict would copy each token
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values}


@dataclass(frozen=True, slots=True)
class Episode:
    """One run of the agent on one question."""

    question: Question
    turns: tuple[Turn, ...]
    messages: tuple[Message, ...]
    finish: FinishReason
    answer: str | None = None
    queries: tuple[str, ...] = ()
    found: tuple[tuple[str, ...], ...] = ()
    """Ids of the passages that each turn's search showed, '' for one without; an episode may end before its last search."""
    malformed: int = 0
    """Turns from which neither a search nor an answer could be read."""
    error: str = ""
    """What the environment said where it failed."""
    verdict: float | None = None
    """What a judge said of the answer, from 0 wrong to 1 right; None where none was asked."""
    supported: float | None = None
    """Whether, as a judge said, what the agent was shown states its answer; None where none was asked."""

    @property
    def retrieved(self) -> tuple[str, ...]:
        """Ids of all passages that the agent was shown, in order, without repeats."""
        return tuple(dict.fromkeys(ident for shown in self.found for ident in shown if ident))

    @property
    def generated_tokens(self) -> int:
        """How many tokens the agent wrote."""
        return sum(len(turn.ids) for turn in self.turns)

    @property
    def contexts(self) -> int:
        """How many contexts it took: one more than folds."""
        return max(1, sum(turn.fresh for turn in self.turns))

    @classmethod
    def from_row(cls, row: Row) -> Episode:
        """Read what `to_row` returned."""
        return cls(
            question=Question.from_row(_require(row, "question", dict)),
            turns=tuple(Turn.from_row(turn) for turn in _require(row, "turns", list)),
            messages=tuple(Message.from_row(message) for message in _require(row, "messages", list)),
            finish=FinishReason(_require(row, "finish", str)),
            answer=row.get("answer"),
            queries=strings(row, "queries"),
            found=tuple(strings({"found": shown}, "found") for shown in _list(row, "found")),
            malformed=_require(row, "malformed", int),
            error=str(row.get("error") or ""),
            verdict=row.get("verdict"),
            supported=row.get("supported"),
        )

    def to_row(self) -> Row:
        """Return the episode as a JSON object."""
        return {
            "question": self.question.to_row(),
            "turns": [turn.to_row() for turn in self.turns],
            "messages": [message.to_row() for message in self.messages],
            "finish": str(self.finish),
            "answer": self.answer,
            "queries": list(self.queries),
            "found": [list(shown) for shown in self.found],
            "malformed": self.malformed,
            "error": self.error,
            "verdict": self.verdict,
            "supported": self.supported,
        }

    def to_conversation(self, tools: Sequence[Row] = ()) -> Conversation:
        """Return the episode as a conversation, for people and for training."""
        info: Row = {"finish_reason": str(self.finish), "prediction": self.answer}
        if self.error:
            info["error"] = self.error
        q = self.question
        return Conversation(q.id, self.messages, tuple(tools), q.question, q.answers, q.group, info)


def with_weight(message: Message, weight: float) -> Message:
    """Return the message with another weight."""
    return replace(message, weight=weight)
