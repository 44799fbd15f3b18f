"""Options of parsers and keys of classes as Markdown tables: name, type, default, and what its docstring says.

A verb's options are those of the parser that its `--help` prints; a class's keys are what jsonargparse reads of its signature
and docstrings, which is what a config may hold. Nothing is instantiated.
"""

from __future__ import annotations

import dataclasses
import json
import re
from argparse import SUPPRESS, Action
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from inspect import Parameter
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from jsonargparse._parameter_resolvers import get_signature_parameters

ROOT = Path(__file__).resolve().parents[1]
PLAIN = {int: "integer", float: "number", str: "text", Path: "path", NoneType: "`null`"}
REQUIRED, ITS_OWN = "required", "its defaults"
LAZY = "LazyInstance_"
"""What jsonargparse puts before the name of a class that a default makes late."""


class Row(NamedTuple):
    """A line of a table."""

    name: str
    hint: object
    """The type."""
    default: str
    text: str


def option_rows(actions: Iterable[Action]) -> list[Row]:
    """Return the rows of a parser's options, less those that jsonargparse adds to every parser or group."""
    rows = []
    for action in actions:
        names = [name for name in action.option_strings if not name.endswith("+")]
        own = getattr(action, "_typehint", None)
        if not names or action.help is SUPPRESS or (own is None and action.type is None) or names[-1].endswith(".help"):
            continue
        default = REQUIRED if action.required else default_text(action.default)
        rows.append(Row(", ".join(names), own or action.type, default, (action.help or "").partition("(type:")[0]))
    return rows


def class_rows(of: type) -> list[Row]:
    """Return the rows of a class's keys."""
    found = get_signature_parameters(of)
    return [
        Row(p.name, p.annotation, REQUIRED if p.default is Parameter.empty else default_text(p.default), p.doc or "")
        for p in found
        if p.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
    ]


def table(rows: Sequence[Row], head: str, page: str = "") -> str:
    """Return a table; a class of Seeker's is a link to its section on `page` (this one by default)."""
    lines = [f"| {head} | type | default | |", "|---|---|---|---|"]
    for row in rows:
        default = row.default if row.default in ("", REQUIRED, ITS_OWN) else f"`{row.default}`"
        lines.append(f"| `{row.name}` | {type_text(row.hint, page)} | {default} | {escaped(row.text)} |")
    return "\n".join(lines) + "\n"


def classes_in(hint: object) -> Iterator[type]:
    """Yield Seeker's classes that a type names, and behind one those derived from it that need nothing."""
    if isinstance(hint, type) and hint.__module__.startswith("project.") and not issubclass(hint, Enum):
        yield hint
        yield from derived(hint)
    for one in get_args(hint):
        yield from classes_in(one)


def derived(of: type) -> list[type]:
    """Return the classes in place of `of` that a config may name without giving any key."""
    named = [one for one in of.__subclasses__() if not one.__name__.startswith(LAZY) and one.__module__.startswith("project.")]
    return [one for one in named if all(row.default != REQUIRED for row in class_rows(one))]


def with_nested(first: Iterable[type]) -> list[type]:
    """Return classes and those that their keys take, each once, in the order in which they are met."""
    found: dict[type, None] = {}
    waiting = list(first)
    while waiting:
        one = waiting.pop(0)
        if one not in found:
            found[one] = None
            waiting += [below for row in class_rows(one) for below in classes_in(row.hint)]
    return list(found)


def type_text(hint: object, page: str = "") -> str:
    """Return a type in words; literal values and `null` as code.

    >>> type_text(Literal["a", "b"] | None)
    '`a`, `b` or `null`'
    """
    return _joined(list(dict.fromkeys(_alternatives(hint, page))))


def _alternatives(hint: object, page: str) -> Iterator[str]:
    origin, args = get_origin(hint), get_args(hint)
    if hint is bool:
        yield from ("`true`", "`false`")
    elif hint in PLAIN:
        yield PLAIN[hint]
    elif origin is Literal:
        yield from (f"`{value}`" for value in args)
    elif origin in (Union, UnionType):
        yield from (text for one in args for text in _alternatives(one, page))
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        yield f"mapping of {_joined(list(_alternatives(args[0], page)))} to {_joined(list(_alternatives(args[1], page)))}"
    elif isinstance(origin, type) and issubclass(origin, Iterable) and args:
        yield f"list of {type_text(args[0], page)}"
    elif isinstance(hint, type) and hint.__module__.startswith("project."):
        yield f"[{hint.__name__}]({page}#{hint.__name__.lower()})"
    elif isinstance(hint, type):
        yield hint.__name__
    elif hint is not Any and hint is not Parameter.empty:
        yield escaped(str(hint).rpartition(".")[2])


def _joined(texts: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


def default_text(value: object) -> str:
    """Return a default as a config would hold it; of a dataclass what differs from its own defaults."""
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Path):
        return str(value.relative_to(ROOT) if value.is_relative_to(ROOT) else value)
    if type(value).__name__.startswith(LAZY):
        return type(value).__name__.removeprefix(LAZY)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if getattr(value, f.name) != own_default(f)}
        inside = ", ".join(f"{name}: {default_text(one)}" for name, one in given.items())
        return f"{{{inside}}}" if given else ITS_OWN
    if hasattr(value, "class_path"):
        return str(value.class_path).rpartition(".")[2]
    if isinstance(value, tuple | list | dict):
        return json.dumps(list(value) if isinstance(value, tuple) else value)
    return "" if value == SUPPRESS else str(value) or '""'


def own_default(field: dataclasses.Field[object]) -> object:
    """Return the default of a field of a dataclass."""
    made = field.default_factory
    return field.default if isinstance(made, type(dataclasses.MISSING)) else made()


def escaped(text: str) -> str:
    """Return a docstring's text for a cell of a table: one line, and nothing of it markup but its code spans."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", re.sub(r"\s+", " ", text).strip())
    text = re.sub(r"``(.+?)``", r"`\1`", text)
    parts = re.split(r"(`[^`]*`)", text)
    for index in range(0, len(parts), 2):
        parts[index] = re.sub(r"([|*_\[\]])", r"\\\1", parts[index]).replace("<", "&lt;")
    return "".join(parts)
