"""Conversation -> text -> token ids with a kind and a weight each. The only user of the chat template.

A rendered conversation is a chain of pieces: the prompt, then an assistant's turn, then what comes between it and the
next turn, and so on. SFT, rollouts and evaluation build the same chain from the same three functions (`prompt`, `turn`,
`between`), so what is trained is what inference sees. The whole-conversation rendering is the cross-check: where the
template does not rewrite history both texts must be equal.

Weights follow DESIGN §4.3; a token that straddles two spans takes the larger weight and that span's kind.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jinja2 import TemplateError

from project.dialects import DECISION_TOKENS, Dialect, dialect_of, is_result
from project.errors import InputError, RenderingError
from project.records import Conversation, Message, Row, SpanKind

History = Literal["append", "template"]
"""`append`: earlier turns stay as they were written; `template`: each turn is seen as the template renders its past."""

Span = tuple[int, int, SpanKind]
"""Start and end (characters) and kind; the spans of a text cover it once, in order."""

KINDS = list(SpanKind)
KIND_INDEX = {kind: index for index, kind in enumerate(KINDS)}
DEFAULT_WEIGHTS: Mapping[str, float] = {
    "think": 1.5,
    "decision": 2.0,
    "summary": 1.0,
    "search": 1.0,
    "answer": 1.0,
    "text": 1.0,
    "end": 1.0,
}
TEMPLATE = Path(__file__).with_name("chat_template.jinja")
_PROBE = Message("user", "PROBEUSER")


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of rendered text with its spans and its message's weight."""

    text: str
    spans: list[Span]
    weight: float = 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """A tokenised conversation; the three lists have one entry per token."""

    id: str
    ids: list[int]
    kinds: list[int]
    """Index into `KINDS`."""
    weights: list[float]
    """0 = not trained."""


@dataclass
class Renderer:
    """Renders conversations with one tokenizer, dialect, history mode and set of weights."""

    tokenizer: Any
    dialect: Dialect
    history: History = "append"
    weights: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_WEIGHTS))

    def __post_init__(self) -> None:
        """Probe the template: the assistant's header, its end-of-turn token, and whether it rewrites history."""
        if unknown := set(self.weights) - {str(kind) for kind in KINDS}:
            raise InputError(f"weights name the span kinds {sorted(unknown)}; known are {', '.join(KINDS)}")
        start = self._template([_PROBE])
        prompt = self._template([_PROBE], generate=True)
        if not prompt.startswith(start) or prompt == start:
            raise RenderingError("the chat template adds no generation prompt; set one that honours add_generation_prompt")
        self._header = prompt[len(start) :]
        after = self._template([_PROBE, Message("assistant", "PROBETEXT")]).partition("PROBETEXT")[2]
        specials = [t for t in self.tokenizer.all_special_tokens if t in after]
        if not specials:
            raise RenderingError("the chat template ends an assistant's turn with no special token; set one that does")
        self.end_text = min(specials, key=after.index)
        self.end_id = int(self.tokenizer.convert_tokens_to_ids(self.end_text))
        self.rewrites_history = self._probe_rewriting()
        self._control = [t for t in self.tokenizer.all_special_tokens if t not in DECISION_TOKENS]

    # --- the chain -------------------------------------------------------------------------------------------------

    def prompt(self, messages: Sequence[Message], tools: Sequence[Row] = ()) -> Piece:
        """Render the messages before a turn, generation prompt included."""
        text = self._template(messages, tools, generate=True)
        return Piece(text, self._context_spans(text, messages))

    def turn(self, message: Message) -> Piece:
        """Render an assistant's message as the model generates it: its text and the end-of-turn token."""
        whole = self._template([_PROBE, message])
        _, found, body = whole.partition(self._header)
        cut = body.rfind(self.end_text)
        if not found or cut < 0:
            raise RenderingError(f"the chat template hides the assistant's message {message.content[:60]!r}")
        text = body[:cut]
        for call in message.tool_calls:
            if missing := not_shown(text, [call.name, call.arguments]):
                raise RenderingError(f"the chat template drops {missing[0]!r} from a tool call; set Seeker's template")
        spans = self.dialect.spans(text)
        end = cut + len(self.end_text)
        return Piece(body[:end], [*spans, (cut, end, SpanKind.END)], message.weight)

    def between(self, messages: Sequence[Message]) -> Piece:
        """Render what stands between an assistant's end-of-turn token and the next turn: results, header."""
        whole = self._template([_PROBE, Message("assistant", "PROBETEXT"), *messages], generate=True)
        text = whole.partition("PROBETEXT")[2].partition(self.end_text)[2]
        return Piece(text, self._context_spans(text, messages))

    def chain(self, conversation: Conversation) -> list[Piece]:
        """Return the pieces of a whole conversation in `append` history, ending with its last assistant turn."""
        pieces: list[Piece] = []
        waiting: list[Message] = []
        for message in conversation.messages:
            if message.role != "assistant":
                waiting.append(message)
                continue
            pieces.append(self.between(waiting) if pieces else self.prompt(waiting, conversation.tools))
            pieces.append(self.turn(message))
            waiting = []
        return pieces

    # --- samples ---------------------------------------------------------------------------------------------------

    def samples(self, conversation: Conversation) -> list[Sample]:
        """Tokenise a conversation: one sample in `append` history, one a trained turn in `template` history.

        Raises:
            RenderingError: it has no assistant turn, holds a control token, searches in another dialect, the template drops
                part of it, or the share of trained tokens would be 0 or 1.
        """
        self._check_content(conversation)
        if self.history == "append":
            pieces = self.chain(conversation)
            self._check_carried(conversation, pieces)
            return [self._tokenise(conversation.id, pieces)]
        samples = []
        for index, message in enumerate(conversation.messages):
            if message.role == "assistant" and message.weight > 0:
                pieces = [self.prompt(conversation.messages[:index], conversation.tools), self.turn(message)]
                self._check_tools(conversation, pieces[0].text)
                samples.append(self._tokenise(f"{conversation.id}#{index}", pieces))
        if not samples:
            raise RenderingError(f"conversation '{conversation.id}' has no assistant message of weight above 0 to train")
        return samples

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a piece of text, nothing added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of sampled ids without the end-of-turn token."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False)).removesuffix(self.end_text)

    def turn_weights(self, ids: Sequence[int], weights: Mapping[str, float]) -> list[float]:
        """Return what each sampled token of a turn counts by its kind; kinds that are not named count 1.

        A token that touches two kinds counts as the weightier. Where the text of the turn would be tokenised otherwise than it
        was sampled, its tokens' places in it are found one by one.
        """
        text = str(self.tokenizer.decode(ids, skip_special_tokens=False))
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in encoded["offset_mapping"]]
        if list(encoded["input_ids"]) != list(ids):
            ends = [len(self.tokenizer.decode(ids[: n + 1], skip_special_tokens=False)) for n in range(len(ids))]
        body = text.removesuffix(self.end_text)
        spans = [*self.dialect.spans(body), (len(body), len(text), SpanKind.END)]
        starts, values = [start for start, _, _ in spans], [weights.get(kind, 1.0) for _, _, kind in spans]
        return [values[_owner(starts, values, start, end)] for start, end in zip([0, *ends], ends, strict=False)]

    # --- inside ----------------------------------------------------------------------------------------------------

    def _template(self, messages: Sequence[Message], tools: Sequence[Row] = (), *, generate: bool = False) -> str:
        rows = []
        for message in messages:
            row: Row = {"role": message.role, "content": message.content}
            if message.tool_calls:
                calls = [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]
                row["tool_calls"] = [{"type": "function", "function": call} for call in calls]
            rows.append(row)
        options = {"tools": list(tools) or None, "tokenize": False, "add_generation_prompt": generate}
        try:
            return str(self.tokenizer.apply_chat_template(rows, **options))
        except (TemplateError, ValueError, IndexError) as error:
            roles = ", ".join(message.role for message in messages)
            raise RenderingError(f"the chat template refuses messages of the roles [{roles}]: {error}") from error

    def _probe_rewriting(self) -> bool:
        probe = Conversation(
            "probe",
            (_PROBE, Message("assistant", "<think>\na\n</think>\nb"), _PROBE, Message("assistant", "<think>\nc\n</think>\nd")),
        )
        assembled = "".join(piece.text for piece in self.chain(probe))
        return not self._template(probe.messages).startswith(assembled)

    def _context_spans(self, text: str, messages: Sequence[Message]) -> list[Span]:
        """Find each message's content in the text, in order; what lies between is the template's own header."""
        spans: list[Span] = []
        position = 0
        for message in messages:
            if message.role == "assistant":
                spans += self._past_turn(text, position)
                position = spans[-1][1]
                continue
            content = message.content.strip()
            start = text.find(content, position)
            if start < 0:
                raise RenderingError(f"the chat template drops the {message.role} message {content[:60]!r}")
            kind = SpanKind.RESULT if is_result(message) else SpanKind(message.role if message.role != "tool" else "result")
            spans += [(position, start, SpanKind.HEADER), (start, start + len(content), kind)]
            position = start + len(content)
        spans.append((position, len(text), SpanKind.HEADER))
        return [span for span in spans if span[0] < span[1]]

    def _past_turn(self, text: str, position: int) -> list[Span]:
        """Return the header, blocks and end of an assistant's turn that the template wrote, perhaps without its thought."""
        header = text.find(self._header, position)
        start = header + len(self._header)
        end = text.find(self.end_text, start)
        if header < 0 or end < 0:
            raise RenderingError("the chat template drops an assistant message; set Seeker's template")
        blocks = [(start + a, start + b, kind) for a, b, kind in self.dialect.spans(text[start:end])]
        return [(position, start, SpanKind.HEADER), *blocks, (end, end + len(self.end_text), SpanKind.END)]

    def _check_content(self, conversation: Conversation) -> None:
        if not conversation.assistant_turns:
            raise RenderingError(f"conversation '{conversation.id}' has no assistant message to train")
        for message in conversation.messages:
            held = "\n".join([message.content, *(s for call in message.tool_calls for s in _leaves(call.arguments))])
            for token in self._control:
                if token in held:
                    raise RenderingError(f"conversation '{conversation.id}' holds the control token {token} in a message")
        trained = [message for message in conversation.messages if message.role == "assistant" and message.weight > 0]
        used = {dialect_of(message) for message in trained} - {None}
        if used and self.dialect.name not in used:
            raise RenderingError(
                f"conversation '{conversation.id}' searches in the dialect {used.pop()}, and model.settings.dialect is "
                f"{self.dialect.name}; set that, or make the set anew in one dialect"
            )

    def _check_tools(self, conversation: Conversation, prompt: str) -> None:
        """Refuse a prompt that lacks a tool's name or one of its parameters."""
        for function in (tool["function"] for tool in conversation.tools):
            names = (function["name"], *(function.get("parameters") or {}).get("properties", {}))
            if missing := not_shown(prompt, names):
                raise RenderingError(
                    f"the chat template drops {missing[0]!r} from the tools of '{conversation.id}'; set Seeker's template"
                )

    def _check_carried(self, conversation: Conversation, pieces: Sequence[Piece]) -> None:
        """Refuse a rendering that lacks a tool schema, or differs from the template's own."""
        self._check_tools(conversation, pieces[0].text)
        text = "".join(piece.text for piece in pieces)
        if not self.rewrites_history and not self._template(conversation.messages, conversation.tools).startswith(text):
            raise RenderingError(f"conversation '{conversation.id}' renders differently turn by turn and as a whole")

    def _tokenise(self, name: str, pieces: Sequence[Piece]) -> Sample:
        text = "".join(piece.text for piece in pieces)
        starts: list[int] = []
        kinds: list[int] = []
        weights: list[float] = []
        offset = 0
        for piece in pieces:
            for start, _, kind in piece.spans:
                starts.append(offset + start)
                kinds.append(KIND_INDEX[kind])
                weights.append(self.weights.get(kind, 0.0) * piece.weight)
            offset += len(piece.text)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        owners = []
        covered = 0
        for start, end in encoded["offset_mapping"]:  # byte-level offsets may leave out a token's leading space
            owners.append(_owner(starts, weights, min(start, covered), end))
            covered = max(covered, end)
        sample = Sample(name, list(encoded["input_ids"]), [kinds[o] for o in owners], [weights[o] for o in owners])
        trained = sum(w > 0 for w in sample.weights)
        if trained in (0, len(sample.ids)):
            raise RenderingError(f"conversation '{name}' trains {trained} of {len(sample.ids)} tokens; check its weights")
        return sample


def _owner(starts: list[int], weights: list[float], start: int, end: int) -> int:
    """Return the span that a token belongs to: of those it touches, the one with the largest weight."""
    first = bisect_right(starts, start) - 1
    last = bisect_right(starts, max(start, end - 1)) - 1
    return max(range(first, last + 1), key=lambda span: weights[span])


def not_shown(text: str, value: Any) -> list[str]:  # noqa: ANN401 - any JSON
    """Return those of the strings that JSON holds which a rendered text does not, as they are or as JSON writes them."""
    return [leaf for leaf in _leaves(value) if not _carries(text, leaf)]


def _leaves(value: Any) -> list[str]:  # noqa: ANN401 - any JSON
    """Return the strings that JSON holds, at any depth."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [leaf for part in inner for leaf in _leaves(part)]


def _carries(text: str, value: str) -> bool:
    return value in text or json.dumps(value)[1:-1] in text or json.dumps(value, ensure_ascii=False)[1:-1] in text


def carries_tools(tokenizer: Any) -> bool:  # noqa: ANN401 - any tokenizer of transformers
    """Return whether the tokenizer's own template shows schemas, calls and results, and injects no system prompt."""
    if not tokenizer.chat_template:
        return False
    call = {"type": "function", "function": {"name": "probetool", "arguments": {"query": "PROBEQUERY"}}}
    rows = [
        {"role": "user", "content": "PROBEUSER"},
        {"role": "assistant", "content": "PROBETHOUGHT", "tool_calls": [call]},
        {"role": "tool", "content": "PROBERESULT"},
    ]
    schema = {"name": "probetool", "description": "PROBESCHEMA", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": schema}]
    try:
        text = str(tokenizer.apply_chat_template(rows, tools=tools, tokenize=False))
    except TemplateError:  # some templates refuse the role `tool`
        return False
    return all(word in text for word in ("PROBEQUERY", "PROBETHOUGHT", "PROBERESULT", "PROBESCHEMA"))


def prepare_tokenizer(tokenizer: Any, dialect: Dialect) -> list[int]:  # noqa: ANN401 - any tokenizer of transformers
    """Give the tokenizer what a dialect needs, and return the ids of the tokens it lacked.

    A template that renders no tools is replaced by Seeker's own (Hermes style on ChatML), decision tokens are added as
    special tokens, and a pad token is chosen.
    """
    if not carries_tools(tokenizer):
        tokenizer.chat_template = TEMPLATE.read_text(encoding="utf-8")
    tokens = list(DECISION_TOKENS) if dialect.decision_tokens else []
    known = tokenizer.get_vocab()
    for token in ("<|im_start|>", "<|im_end|>"):
        if token in tokenizer.chat_template and token not in known:
            tokens.append(token)
    new = [t for t in tokens if t not in known]
    if new:
        tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return [int(tokenizer.convert_tokens_to_ids(t)) for t in new]
