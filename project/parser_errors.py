"""The errors of jsonargparse and Lightning as one sentence each: the key, the value, and what was expected.

jsonargparse reports a nested setting as an indented tree, a level for each key and class on the way; the first leaf is the
reason. Where a key or option is mistyped, the sentence names the nearest that there is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from inspect import signature
from typing import Any, get_args, get_type_hints

from project.nearest import did_you_mean

_KEY = re.compile(r'(?:Parser key|Validation failed:)\s*"([\w.+]+)":?\s*')
_OWNER = re.compile(r"Problem with given class_path '([\w.]+)'")
_LEAF = re.compile(r"Expected an? (.+?)\. Got value: (.*)$")
_OPTION = re.compile(r"(?:Group '([\w.]+)' does not accept option|Option) '([^']+)'")
_TOP = re.compile(r"(?:Subcommand '\w+' does not accept option|^Option) '([^']+)'")
_BASE = re.compile(r"^Subtypes: \[<class '([\w.]+)'>")
_UNNAMED = ("LightningModule", "LightningDataModule")
"""Classes that stand for the one to come, which `--config` or `--model` has not named yet."""
_EXPECTED = re.compile(r"Expected an? (?!path but)(.+?)(?::.*)?$")


def one_sentence(message: str, options: Collection[str] = ()) -> str:
    """Shorten an error of jsonargparse or Lightning to the sentence that names the key, the value and what was expected.

    Args:
        message: the error's.
        options: those that the command line has, such as `--seed`, one of which a mistyped one may be meant to be.
    """
    message = message.removeprefix("error: ").strip()
    missing = re.search(r"^the following arguments are required: (.*)$", message)
    if missing:
        names = (re.sub(r"^(?:fit|validate|test|predict)\.", "", name.strip().lstrip("-")) for name in missing[1].split(","))
        return " and ".join(f"--{name}" for name in names) + " must be given"
    if found := re.match(r"unrecognized arguments: (\S+)", message):
        return f"unrecognized {message.removeprefix('unrecognized ')}{_meant(found[1].partition('=')[0], options)}"
    if found := _TOP.match(message):
        meant = did_you_mean(found[1], [option.lstrip("-") for option in options])
        return f"there is no key '{found[1]}'{meant or _meant(found[1].partition('.')[0], options, '')}"
    text = _first_leaf(message) or re.sub(r'^(?:Parser key|Validation failed:?)\s*"?([\w.+]+)"?:', r"\1:", message)
    return re.sub(r"\s+", " ", text).strip().rstrip(".")


def with_hint(sentence: str, hint: str) -> str:
    """Add where to look, but to a sentence that asks whether something else was meant."""
    return sentence if sentence.endswith("?") else f"{sentence}; {hint}"


def _meant(word: str, options: Collection[str], dashes: str = "--") -> str:
    """Return the question whether another option was meant; of `--bm25.k2` one of the same group, if any."""
    group = word.rpartition(".")[0]
    names = [option for option in options if option.startswith("--") and not option.endswith("+")]
    among = [name for name in names if group and name.startswith(f"{group}.")] or names
    return did_you_mean(word, [dashes + name.lstrip("-") for name in among])


def _first_leaf(message: str) -> str | None:
    """Return the reason at the first leaf of the tree; None where there is no tree."""
    keys: list[tuple[int, str]] = []
    owner, base, wanted = "", "", list[str]()
    for line in message.splitlines():
        depth, rest = len(line) - len(line.lstrip()), line.strip().removeprefix("- ")
        if found := _KEY.match(rest):
            keys = [*((d, k) for d, k in keys if d < depth), (depth, found[1])]
            rest, wanted, base = rest[found.end() :], [], ""
        if found := _OWNER.search(rest):
            owner = found[1]
        if found := _BASE.match(rest):
            base = found[1]
        key = ".".join(k for _, k in keys)
        if found := _OPTION.search(rest):
            return _no_option(key, owner, found[1] or "", found[2])
        if found := _LEAF.search(rest):
            return _not_accepted(key, found[2], [found[1]])
        if found := _EXPECTED.match(rest):
            wanted.append(found[1])
        if keys and rest.startswith("Given value: "):
            value = rest.removeprefix("Given value: ")
            return _not_accepted(key, value, wanted) + _class_meant(value, base)
    return None


def _no_option(key: str, path: str, group: str, option: str) -> str:
    """`model.lora` of class LoRA and option `rnk`: LoRA has none; a group is a dataclass inside the class."""
    owner = path.rpartition(".")[2]
    if owner in _UNNAMED:
        return f"{key}.{option} stands before the class that has it is named; put --config, or --{key} CLASS, before it"
    if group:
        meant = did_you_mean(option, _parameters(path, group))
        return f"{key}.{group} has no option '{option}'{meant}" if key else f"there is no key '{group}.{option}'"
    hint = f" (--{key}.help={owner} lists them)" if key and owner else ""
    meant = did_you_mean(option, _parameters(path))
    return f"{key or 'it'}: {owner or 'it'} has no option '{option}'{meant or hint}"


def _parameters(path: str, group: str = "") -> set[str]:
    """Return the names of the parameters of a class, or of the dataclass that its parameter `group` is."""
    made = _imported(path)
    inits: list[Any] = [one.__init__ for one in getattr(made, "__mro__", ()) if "__init__" in vars(one) and one is not object]
    if group:
        kinds = [get_type_hints(init).get(group.partition(".")[0]) for init in inits]
        made_of: list[Any] = [one for kind in kinds for one in (kind, *get_args(kind))]
        return {field.name for one in filter(is_dataclass, made_of) for field in fields(one)}
    return {name for init in inits for name in signature(init).parameters if name not in ("self", "args", "kwargs")}


def _imported(path: str) -> Any:  # noqa: ANN401 - a class
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name, None) if module else None


def _class_meant(value: str, base: str) -> str:
    """Return the question whether another class was meant: one that is loaded, of the class that is expected."""
    found = re.match(r"(?:\{'class_path': )?'?(?:[\w.]+\.)?(\w+)'?(?:,|\}|$)", value)
    expected = _imported(base)
    return did_you_mean(found[1], sorted(set(_subclasses(expected)))) if found and isinstance(expected, type) else ""


def _subclasses(of: type[object]) -> Iterator[str]:
    for one in of.__subclasses__():
        yield one.__name__
        yield from _subclasses(one)


def _not_accepted(key: str, value: str, types: list[str]) -> str:
    nested = re.match(r"NestedArg\(key='([\w.]+)', val=(.*)\)$", value)
    key, value = (f"{key}.{nested[1]}", nested[2].strip("'")) if nested else (key, value)
    wanted = " or ".join(dict.fromkeys(name for name in map(_type_name, types) if name != "NoneType"))
    return f"{key}: {value[:300]!r} is not accepted" + (f", expected {wanted}" if wanted else "")


def _type_name(text: str) -> str:
    """`<class 'int'>` is int, `typing.Literal['a', 'b']` one of 'a', 'b'."""
    if text.startswith("typing.Literal["):
        return f"one of {text.removeprefix('typing.Literal[').rstrip(']')}"
    if found := re.match(r"<class '(?:[\w.]+\.)?(\w+)'>", text):
        return found[1]
    return text.replace("dot import path string", "the name of a class")
