"""`seeker data export --for_verl TEMPLATE`: conversations as verl's `MultiTurnSFTDataset` reads them (0.9.1).

That class renders each message alone, puts the pieces together, and refuses a conversation whose whole is rendered otherwise.
Its Parquet columns are nested; Arrow gives each object in them the keys of all, as nulls that a template would show. So
each turn gets one call, each file one tool schema, and arguments the form that the template needs. Every conversation is then
rendered in verl's way from the row as Arrow holds it: one that verl would refuse, or train wrongly, is listed as rejected.

Where it cannot work: templates that write a turn otherwise when it is the last (Qwen3's and its successors' thoughts).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from project.errors import InputError
from project.records import Conversation, Message, Row, ToolCall
from project.rendering import not_shown
from project.streams import ROW_ERRORS, Made, as_paths, chunked, each, print_counts, run
from project.traces.calls import split_calls
from project.writing import Columns

if TYPE_CHECKING:
    import pyarrow as pa


def export(input_file: list[Path] | Path, output_file: Path, for_verl: str, strict: bool = False, force: bool = False) -> None:
    """Write conversations as verl's MultiTurnSFTDataset reads them.

    Args:
        input_file: one or several files of conversations.
        output_file: the file to write (.parquet).
        for_verl: the model whose chat template verl will use: a folder, or a name on the Hugging Face Hub.
        strict: stop at the first row that cannot be written so, instead of listing it in OUTPUT.rejected.jsonl.
        force: replace an output that was made otherwise.
    """
    if output_file.suffix != ".parquet":
        raise InputError(f"--output_file is {output_file}, and verl reads Parquet; give a name that ends with .parquet")
    paths, template = as_paths(input_file), Template.of(for_verl)
    layout = Layout.of(paths, template)
    program = partial(each, partial(_export, for_verl, layout))
    parameters = {"for_verl": for_verl, "template": template.digest}
    outputs, encoder = {"conversations": output_file}, partial(_nested, layout)
    counts = run("seeker data export", program, paths, outputs, parameters, strict=strict, force=force, encoder=encoder)
    print_counts("export", counts)


# --- a chat template, as verl uses it ------------------------------------------------------------------------------------


PROBE = '{"query": "probequery"}'
REFUSALS = (TemplateError, ValueError, TypeError, LookupError)
"""What a template may raise for messages that it does not take."""
ARROW_REFUSES = (ValueError, TypeError, OverflowError, NotImplementedError)
"""What Arrow raises for values without one type: its own errors are of these."""
_ASKED: Row = {"role": "user", "content": ""}
_NOBODY: Row = {"role": "user", "content": [{"type": "text", "text": ""}]}


@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template."""

    tokenizer: Any

    @classmethod
    @cache
    def of(cls, model: str) -> Template:
        """Load a model's tokenizer; once in a process.

        Raises:
            InputError: it cannot be loaded, or has no template.
        """
        from transformers import AutoTokenizer

        from project.runtime import quiet_transformers

        quiet_transformers()
        try:
            tokenizer = AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            msg = f"--for_verl is {model}, whose tokenizer cannot be loaded ({reason}); give a model's folder"
            raise InputError(msg) from error
        if not tokenizer.chat_template:
            raise InputError(f"--for_verl is {model}, which has no chat template; give a model that was trained to chat")
        return cls(tokenizer)

    @property
    def digest(self) -> str:
        """What tells the template from another."""
        return hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()[:16]

    def ids(self, messages: Sequence[Row], tools: Sequence[Row] | None = None, *, generate: bool = False) -> list[int]:
        """Return messages as the template writes them, as token ids; `tools` may be [] or None, as verl passes either."""
        options = {"tools": tools, "add_generation_prompt": generate, "tokenize": True, "return_dict": True}
        return list(self.tokenizer.apply_chat_template(list(messages), **options)["input_ids"])

    def text(self, messages: Sequence[Row]) -> str:
        """Return messages as the template writes them."""
        return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False))

    @cached_property
    def takes_text(self) -> bool:
        """Whether a call's arguments are shown as they are where they are JSON text; Qwen2.5's would quote them once more.

        Raises:
            InputError: it shows no arguments in any form.
        """
        if PROBE in self._shown_call(PROBE):
            return True
        if not_shown(self._shown_call(json.loads(PROBE)), json.loads(PROBE)):
            raise InputError("the template of --for_verl shows no tool calls; name another model, or write the dialect tags")
        return False

    def _shown_call(self, arguments: str | Row) -> str:
        call = {"type": "function", "function": {"name": "probetool", "arguments": arguments}}
        try:
            return self.text([_ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}])
        except REFUSALS:
            return ""

    @cached_property
    def defaults(self) -> tuple[int, list[int]]:
        """How many tokens the system prompt has that the template adds where there is none, and the assistant's header.

        Raises:
            InputError: the template refuses what verl tries it with.
        """
        try:
            one, two, asked = self.ids([_ASKED]), self.ids([_ASKED] * 2), self.ids([_ASKED], generate=True)
        except REFUSALS as error:
            msg = f"the template of --for_verl refuses two messages of a user ({error}); name another model"
            raise InputError(msg) from error
        return 2 * len(one) - len(two), asked[len(one) :]

    def alone(self, number: int, message: Row, tools: Sequence[Row] | None) -> list[int]:
        """Return what verl makes of a conversation's message: rendered by itself, without a system prompt that is added."""
        tools = tools if number == 0 else None
        try:
            ids = self.ids([message], tools)
        except REFUSALS:  # Qwen3.5's takes nothing without a user's message
            ids = self.ids([_NOBODY, message], tools)[len(self.ids([_NOBODY], tools)) :]
        return ids if number == 0 or message["role"] == "system" else ids[self.defaults[0] :]

    def check(self, row: Row) -> None:
        """Refuse a conversation that verl would refuse or train wrongly.

        Raises:
            ValueError: says why.
        """
        tools = row.get("tools")
        try:
            parts = [self.alone(number, message, tools) for number, message in enumerate(row["messages"])]
            whole = self.ids(row["messages"], tools)
        except REFUSALS as error:
            msg = f"the template refuses it, or one of its messages alone: {error}"
            raise ValueError(msg) from error
        if [token for part in parts for token in part] != whole:
            msg = "the template writes the whole otherwise than its messages one by one, which verl refuses"
            raise ValueError(msg)
        texts = [str(self.tokenizer.decode(part)) for part in parts]
        missing = not_shown(texts[0], [_names(tool) for tool in tools or ()])
        for message, part, text in zip(row["messages"], parts, texts, strict=True):
            missing += self._not_shown(message, text)
            if message["role"] == "assistant":
                self._check_header(part)
        if missing:
            msg = f"the template drops {missing[0]!r:.60}"
            raise ValueError(msg)

    def _check_header(self, part: list[int]) -> None:
        header = self.defaults[1]
        if part[: len(header)] != header:  # verl leaves out as many tokens as the header has, whatever they are
            found, wanted = self.tokenizer.decode(part[: len(header)]), self.tokenizer.decode(header)
            msg = f"the template begins a turn with {found!r}, and asks for one with {wanted!r}"
            raise ValueError(msg)

    def _not_shown(self, message: Row, text: str) -> list[str]:
        """Return what of a message its text does not show; a control token in it, which would end the turn, is refused."""
        calls = [call["function"] for call in message["tool_calls"] or []]
        given = [json.loads(call["arguments"]) if self.takes_text else call["arguments"] for call in calls]
        held = f"{message['content']}{json.dumps(given, ensure_ascii=False)}"
        if control := next((token for token in self.tokenizer.all_special_tokens if token in held), None):
            msg = f"a message holds the control token {control}"
            raise ValueError(msg)
        missing = [] if _joined(message["content"]) in _joined(text) else [message["content"]]
        return missing + not_shown(text, [[call["name"] for call in calls], given])


def _names(tool: Row) -> list[str]:
    """Return a tool's name and those of its parameters."""
    function = tool["function"]
    return [function["name"], *((function.get("parameters") or {}).get("properties") or {})]


def _joined(text: str) -> str:
    """Return a text without its white space, of which templates add and take off some."""
    return "".join(text.split())


# --- rows ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """A file's one tool schema and the Arrow types of its nested columns."""

    tools: tuple[Row, ...]
    schema: pa.Schema
    takes_text: bool

    @classmethod
    def of(cls, paths: Sequence[Path], template: Template) -> Layout:
        """Take the layout of the first conversation with a tool and the first with a call, of those that can be written.

        Raises:
            InputError: Parquet has no columns for them.
        """
        import pyarrow as pa

        tools, call = _first_of_each(paths)
        takes_text = call is None or template.takes_text
        given = call.arguments if call else {"query": ""}
        try:
            arguments = pa.string() if takes_text else pa.array([given]).type
            function = pa.struct([("name", pa.string()), ("arguments", arguments)])
            calls = pa.list_(pa.struct([("id", pa.string()), ("type", pa.string()), ("function", function)]))
            texts = [(name, pa.string()) for name in ("role", "content", "tool_call_id")]
            columns = [("id", pa.string()), ("messages", pa.list_(pa.struct([*texts, ("tool_calls", calls)])))]
            columns += [("tools", pa.array([list(tools)]).type)] if tools else []
        except ARROW_REFUSES as error:
            raise InputError(
                f"the tools or first call hold what Parquet has no column for ({error}); mend their schema"
            ) from error
        schema = pa.schema(columns)
        if any(_has_empty(column.type) for column in schema):
            raise InputError(
                "a tool's schema holds an empty object, which Parquet cannot; leave it out, or give it a parameter"
            )
        return cls(tools, schema, takes_text)

    def row(self, conversation: Conversation) -> Row:
        """Return a conversation as a row of the file.

        Raises:
            ValueError: the file cannot hold it, as it is.
        """
        messages = [self._message(message) for message in one_call_a_turn(conversation)]
        if conversation.tools and json.dumps(conversation.tools) != json.dumps(self.tools):
            msg = "its tools are others than the file's first; verl wants one schema a file: export it by itself"
            raise ValueError(msg)
        return {"id": conversation.id, "messages": messages} | ({"tools": list(conversation.tools)} if self.tools else {})

    def _message(self, message: Message) -> Row:
        row = message.to_row()
        for written, call in zip(row.get("tool_calls", ()), message.tool_calls, strict=False):
            written["function"]["arguments"] = written["function"]["arguments"] if self.takes_text else call.arguments
        return {name: row.get(name) for name in ("role", "content", "tool_call_id", "tool_calls")}

    def table(self, rows: Sequence[Row]) -> pa.Table:
        """Return rows as Arrow holds them."""
        import pyarrow as pa

        return pa.Table.from_pylist(list(rows), schema=self.schema)

    def held(self, row: Row) -> Row:
        """Return a row as it is read back.

        Raises:
            ValueError: it is not what was written.
        """
        try:
            [held] = self.table([row]).to_pylist()
        except ARROW_REFUSES as error:
            msg = f"the columns of the file's first calls do not hold it: {error}"
            raise ValueError(msg) from error
        if json.dumps(held) != json.dumps(row):  # in Python 1 is 1.0 and true, and the order of keys is nothing
            msg = "verl would see its tools or its calls' arguments changed by the file's columns: export it by itself"
            raise ValueError(msg)
        return dict(held)


def _has_empty(kind: pa.DataType) -> bool:
    """Return whether a type holds an object without keys, at any depth."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_empty(kind.field(i).type) for i in range(kind.num_fields))
    return pa.types.is_list(kind) and _has_empty(kind.value_type)


def _first_of_each(paths: Sequence[Path]) -> tuple[tuple[Row, ...], ToolCall | None]:
    """Return the first tools and the first call, with an argument, of conversations that can be written."""
    tools: tuple[Row, ...] = ()
    call: ToolCall | None = None
    for chunk in chunked(paths):
        for _, row, _ in chunk.rows():
            try:
                one = Conversation.from_row(row)  # type: ignore[arg-type]
                messages = one_call_a_turn(one)
            except ROW_ERRORS:
                continue
            tools = tools or one.tools
            call = call or next((call for message in messages for call in message.tool_calls if call.arguments), None)
            if tools and call:
                return tools, call
    return tools, call


def one_call_a_turn(conversation: Conversation) -> list[Message]:
    """Return a conversation's messages, one call a turn.

    Raises:
        ValueError: verl would train it otherwise than it says, or nothing of it.
    """
    if any(message.role == "assistant" and message.weight != 1.0 for message in conversation.messages):
        msg = "a turn of the assistant has a weight other than 1, and verl trains all alike"
        raise ValueError(msg)
    if not conversation.assistant_turns:
        msg = "it has no turn of the assistant to train"
        raise ValueError(msg)
    if len(conversation.messages[-1].tool_calls) > 1:
        msg = "its last turn has several calls and no results, which cannot be put one after the other"
        raise ValueError(msg)
    return split_calls(conversation.messages)


def _export(model: str, layout: Layout, row: Row, made: Made) -> None:
    conversation = Conversation.from_row(row)
    held = layout.held(layout.row(conversation))
    Template.of(model).check(held)
    made.counts["conversations with turns of several calls, split"] += len(held["messages"]) > len(conversation.messages)
    made.put("conversations", held)


def _nested(layout: Layout, rows: Sequence[Row], name: str) -> Columns:
    del name
    return Columns(layout.table(rows), set())
