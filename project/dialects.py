"""How an agent writes thoughts, searches, results, summaries and answers. The only place that knows the tags.

Two dialects share one record, `Action`: `tags` (Search-R1's `<think> <search> <information> <answer>`, with the explicit
decisions `<|SEARCH|>` and `<|ANSWER|>`) and `tools` (JSON tool calls in the model's own chat template). For both,
`parse(write(action)) == action`, and `spans(message)` names the kind of every character the agent wrote.

Left out: token ids and the chat template, which belong to `rendering.py`.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from project.errors import InputError
from project.named import class_named, identity, is_path
from project.records import DialectName, Document, Message, Row, SpanKind, ToolCall

SEARCH_TOKEN = "<|SEARCH|>"
ANSWER_TOKEN = "<|ANSWER|>"
DECISION_TOKENS = {SEARCH_TOKEN: "search", ANSWER_TOKEN: "answer"}
"""New tokens, and the words whose mean embedding initialises their rows."""

NO_RESULTS = "No results."
FOLD_REQUEST = "<fold/>"
"""What a user message says to have the agent replace everything it has read by its own summary."""
RESERVED = (
    "<think>", "</think>", "<search>", "</search>", "<answer>", "</answer>", "<information>", "</information>", "<summary>",
    "</summary>", "<think_summary>", "</think_summary>", "<information_summary>", "</information_summary>", "<fold/>",
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", SEARCH_TOKEN, ANSWER_TOKEN,
)  # fmt: skip
"""What no query, thought, answer or passage may hold literally."""
_RESERVED = re.compile("|".join(map(re.escape, RESERVED)) + r"|<\|\w+\|>")
"""And what control tokens look like (`<|im_start|>`, `<|endoftext|>`): a passage must not end a turn and open another."""
_RESERVED_IN_SUMMARY = re.compile("|".join(re.escape(tag) for tag in RESERVED if not tag.endswith("_summary>")) + r"|<\|\w+\|>")

_KINDS = {
    "think": SpanKind.THINK,
    "search": SpanKind.SEARCH,
    "tool_call": SpanKind.SEARCH,
    "answer": SpanKind.ANSWER,
    "summary": SpanKind.SUMMARY,
    "information": SpanKind.RESULT,
    "tool_response": SpanKind.RESULT,
}
"""Results inside an agent's own message (a log in one text, or invented by the model) are results: never trained."""
_BLOCK = re.compile(rf"<(?P<tag>{'|'.join(_KINDS)})>.*?(?:</(?P=tag)>|$)|(?P<decision><\|SEARCH\|>|<\|ANSWER\|>)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Action:
    """What one assistant turn does: search (`queries`), answer (`answer`), fold (`summary`), or none of these (malformed)."""

    thought: str = ""
    queries: tuple[str, ...] = ()
    answer: str | None = None
    summary: str | None = None

    @property
    def is_malformed(self) -> bool:
        """True where neither a search, nor an answer, nor a summary could be read."""
        return not self.queries and self.answer is None and self.summary is None


def clean(text: str) -> str:
    """Remove reserved tags from outside text, so that a passage or a question cannot speak as the agent."""
    return _without(_RESERVED, text)


def clean_summary(text: str) -> str:
    """Remove what a summary may not hold, for the agent's own is put into a message of the user's: all but its two parts."""
    return _without(_RESERVED_IN_SUMMARY, text).strip()


def _without(pattern: re.Pattern[str], text: str) -> str:
    while (cleaned := pattern.sub("", text)) != text:
        text = cleaned
    return text


def assistant_spans(text: str) -> list[tuple[int, int, SpanKind]]:
    """Return (start, end, kind) of an assistant's text, covering each character once and in order.

    White space between blocks belongs to the block before it; an unclosed block runs to the end.
    """
    spans: list[tuple[int, int, SpanKind]] = []
    position = 0
    for match in _BLOCK.finditer(text):
        if match.start() > position:
            _gap(spans, text, position, match.start())
        kind = SpanKind.DECISION if match["decision"] else _KINDS[match["tag"]]
        spans.append((match.start(), match.end(), kind))
        position = match.end()
    if position < len(text):
        _gap(spans, text, position, len(text))
    return spans


def _gap(spans: list[tuple[int, int, SpanKind]], text: str, start: int, end: int) -> None:
    if spans and not text[start:end].strip():
        first, _, kind = spans.pop()
        spans.append((first, end, kind))
    else:
        spans.append((start, end, SpanKind.TEXT))


def format_documents(documents: Sequence[Document]) -> str:
    r"""Write results as the agent reads them: `Doc 1 (Title: …)\n…`, blank lines between; `No results.` for none."""
    blocks = (f"Doc {i} (Title: {clean(d.title)})\n{clean(d.content)}" for i, d in enumerate(documents, 1))
    return "\n\n".join(blocks) or NO_RESULTS


def write_summary(question: str, thoughts: str, information: str) -> str:
    """Return the text of a summary, without its `<summary>` tags: the question, what was thought, what was read."""
    return (
        f"Question: {clean(question).strip()}\n<think_summary>{clean(thoughts)}</think_summary>\n"
        f"<information_summary>{clean(information)}</information_summary>"
    )


def _between(tag: str, text: str) -> list[str]:
    return [found.strip() for found in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)]


def _one(tag: str, text: str) -> str | None:
    found = _between(tag, text)
    return found[-1] if found else None


def _is_unicode(text: str) -> bool:
    """Return whether text can be sent anywhere: JSON may escape half a surrogate pair, which UTF-8 cannot hold."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


class Dialect(ABC):
    """One way of writing an agent's turns.

    Derive from it for one of your own, and name that by its path: `settings: {dialect: my_module.Brackets}`.
    """

    name: ClassVar[DialectName]
    """By which it is known; a class's path unless the class says otherwise."""
    tools: ClassVar[tuple[Row, ...]] = ()
    """Schemas that the chat template shows the model."""
    decision_tokens: bool = False
    """Whether each turn states its decision by a token right after the thought."""

    def __init_subclass__(cls) -> None:
        """Name a class that has no name of its own; one that it inherits is another dialect's."""
        super().__init_subclass__()
        if "name" not in vars(cls):
            cls.name = f"{cls.__module__}.{cls.__qualname__}"

    @property
    def identity(self) -> str:
        """What data and caches made with it are known by: its name, and of a class of your own the digest of its file."""
        return self.name if self.name in DIALECTS else identity(type(self))

    @abstractmethod
    def system_prompt(self) -> str:
        """Return the instructions that open every conversation."""

    @abstractmethod
    def write(self, action: Action) -> Message:
        """Return the assistant message of an action."""

    @abstractmethod
    def parse(self, text: str) -> Action:
        """Read a turn as the model wrote it (tool calls still as text), without its end-of-turn token."""

    @abstractmethod
    def results(self, documents: Sequence[Sequence[Document]], action: Action) -> list[Message]:
        """Return the messages that carry the results of an action's queries, one list of documents per query."""

    @abstractmethod
    def correction(self, reason: str, text: str) -> list[Message]:
        """Return the messages that tell the agent its turn could not be read."""

    def spans(self, text: str) -> list[tuple[int, int, SpanKind]]:
        """Return (start, end, kind) of a turn's text, covering each character once and in order; see `assistant_spans`."""
        return assistant_spans(text)

    def opening(self, question: str, summary: str = "") -> list[Message]:
        """Return the first messages: system prompt and question, after a fold with the agent's own summary."""
        content = f"Question: {clean(question).strip()}"
        if summary := clean_summary(summary):
            content += f"\n<summary>\n{summary}\n</summary>"
        return [Message("system", self.system_prompt()), Message("user", content)]

    def message(self, text: str) -> Message:
        """Return the assistant message of a turn as the model wrote it, so that its text is kept to the letter."""
        return Message("assistant", text)

    def _decision(self, action: Action) -> str:
        if not self.decision_tokens or action.is_malformed or action.summary is not None:
            return ""
        return SEARCH_TOKEN if action.queries else ANSWER_TOKEN


@dataclass(frozen=True)
class TagsDialect(Dialect):
    """`<think>`, a decision, then `<search>` or `<answer>`; results come as a user message in `<information>`."""

    name: ClassVar[DialectName] = "tags"
    decision_tokens: bool = True

    def system_prompt(self) -> str:
        """Return the instructions of the tags dialect."""
        decide = f" Then write {SEARCH_TOKEN} or {ANSWER_TOKEN}." if self.decision_tokens else ""
        return (
            f"Answer the question. Think inside <think> and </think>.{decide} To search, write <search> query </search>; "
            "results come inside <information>. To finish, write <answer> a few words </answer>, or unknown if the "
            "search cannot tell."
        )

    def write(self, action: Action) -> Message:
        """Return the assistant message of an action."""
        parts = [f"<think>\n{action.thought}\n</think>"] if action.thought else []
        if decision := self._decision(action):
            parts.append(decision)
        parts += [f"<search>\n{query}\n</search>" for query in action.queries]
        if action.answer is not None:
            parts.append(f"<answer>\n{action.answer}\n</answer>")
        if action.summary is not None:
            parts.append(f"<summary>\n{action.summary}\n</summary>")
        return Message("assistant", "\n".join(parts))

    def parse(self, text: str) -> Action:
        """Read a turn; a block that was never closed does not count, a search wins over an answer in the same turn."""
        outside = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
        queries = tuple(q for q in _between("search", outside) if q)
        answer = None if queries else _one("answer", outside)
        return Action(_one("think", text) or "", queries, answer, _one("summary", outside))

    def results(self, documents: Sequence[Sequence[Document]], action: Action) -> list[Message]:
        """Return one user message with an `<information>` block per query."""
        del action
        blocks = (f"<information>\n{format_documents(found)}\n</information>" for found in documents)
        return [Message("user", "\n".join(blocks))]

    def correction(self, reason: str, text: str) -> list[Message]:
        """Return one user message in an `<information>` block."""
        del text
        return [Message("user", f"<information>\n{reason}\n</information>")]


SEARCH_TOOL: Row = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Search the corpus.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}


@dataclass(frozen=True)
class ToolsDialect(Dialect):
    """`<think>`, then tool calls in the template's own form (Hermes: `<tool_call>` JSON), or an `<answer>`."""

    name: ClassVar[DialectName] = "tools"
    tools: ClassVar[tuple[Row, ...]] = (SEARCH_TOOL,)
    decision_tokens: bool = False

    def system_prompt(self) -> str:
        """Return the instructions of the tools dialect; the template adds the schemas."""
        decide = f" Then write {SEARCH_TOKEN} or {ANSWER_TOKEN}." if self.decision_tokens else ""
        return (
            f"Answer the question. Think inside <think> and </think>.{decide} Call the search tool when you need it. To "
            "finish, write <answer> a few words </answer>, or unknown if the search cannot tell."
        )

    def write(self, action: Action) -> Message:
        """Return the assistant message of an action; queries become tool calls."""
        parts = [f"<think>\n{action.thought}\n</think>"] if action.thought else []
        if decision := self._decision(action):
            parts.append(decision)
        if action.answer is not None:
            parts.append(f"<answer>\n{action.answer}\n</answer>")
        if action.summary is not None:
            parts.append(f"<summary>\n{action.summary}\n</summary>")
        calls = tuple(ToolCall("search", {"query": q}, f"call_{i}") for i, q in enumerate(action.queries))
        return Message("assistant", "\n".join(parts), calls)

    def parse(self, text: str) -> Action:
        """Read a turn with Hermes-style calls; a call that is no JSON or names another tool makes the turn malformed."""
        outside = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
        thought, summary = _one("think", text) or "", _one("summary", outside)
        queries = []
        for call in _between("tool_call", outside):
            try:
                parsed = json.loads(call)
                query = parsed["arguments"]["query"] if parsed["name"] == "search" else None
            except (ValueError, KeyError, TypeError, RecursionError):  # no JSON, too deep, or a number of 5,000 digits
                query = None
            if not isinstance(query, str) or not query.strip() or not _is_unicode(query):
                return Action(thought)
            queries.append(query.strip())
        answer = None if queries else _one("answer", outside)
        return Action(thought, tuple(queries), answer, summary)

    def results(self, documents: Sequence[Sequence[Document]], action: Action) -> list[Message]:
        """Return one tool message per query."""
        del action
        return [Message("tool", format_documents(found), tool_call_id=f"call_{i}") for i, found in enumerate(documents)]

    def correction(self, reason: str, text: str) -> list[Message]:
        """Return a tool message where the turn tried a call, a user message where it did not."""
        content = json.dumps({"error": reason})
        return [Message("tool", content, tool_call_id="call_0")] if "<tool_call>" in text else [Message("user", content)]


DIALECTS: dict[str, type[Dialect]] = {"tags": TagsDialect, "tools": ToolsDialect}


def get_dialect(name: DialectName, *, decision_tokens: bool | None = None) -> Dialect:
    """Return a dialect by name; decision tokens default to on for `tags` and off for `tools`.

    Raises:
        InputError: there is none.
    """
    if is_path(name):
        chosen: type[Any] = class_named(name, Dialect, "dialect")
    elif name not in DIALECTS:
        raise InputError(f"dialect '{name}' is none of {', '.join(DIALECTS)}; give one, or a class of your own as module.Class")
    else:
        chosen = DIALECTS[name]
    if decision_tokens is None:
        return chosen()  # type: ignore[no-any-return]
    try:
        return chosen(decision_tokens)  # type: ignore[no-any-return]
    except TypeError as error:
        raise InputError(f"the dialect {name} takes no decision_tokens ({error}); leave them out") from error


def dialect_of(message: Message) -> DialectName | None:
    """Return the dialect in which an agent's message ends with a search, None where it does not."""
    outside = re.sub(r"(<think>|^(?!.*<think>)).*?</think>", "", message.content, flags=re.DOTALL).rstrip()
    calls = [call.name for call in message.tool_calls]
    if outside.endswith("</tool_call>"):
        calls += [str(found) for found in re.findall(r'"name"\s*:\s*"(\w+)"', _between("tool_call", outside)[-1])[:1]]
    if SEARCH_TOOL["function"]["name"] in calls:
        return "tools"
    return "tags" if outside.endswith("</search>") else None


def is_result(message: Message) -> bool:
    """Return whether a message carries what the search tool returned."""
    return message.role == "tool" or (message.role == "user" and message.content.startswith("<information>"))
