"""The errors of jsonargparse and Lightning as one sentence each: the key, the value, and what was expected.

jsonargparse reports a nested setting as an indented tree, a level for each key and class on the way; the first leaf is the
reason.
"""

from __future__ import annotations

import re

_KEY = re.compile(r'(?:Parser key|Validation failed:)\s*"([\w.+]+)":?\s*')
_OWNER = re.compile(r"Problem with given class_path '([\w.]+)'")
_LEAF = re.compile(r"Expected an? (.+?)\. Got value: (.*)$")
_OPTION = re.compile(r"(?:Group '([\w.]+)' does not accept option|Option) '([^']+)'")
_EXPECTED = re.compile(r"Expected an? (?!path but)(.+?)(?::.*)?$")


def one_sentence(message: str) -> str:
    """Shorten an error of jsonargparse or Lightning to the sentence that names the key, the value and what was expected."""
    message = message.removeprefix("error: ").strip()
    missing = re.search(r"^the following arguments are required: (.*)$", message)
    if missing:
        return " and ".join(f"--{name.strip().lstrip('-')}" for name in missing[1].split(",")) + " must be given"
    text = _first_leaf(message) or re.sub(r'^(?:Parser key|Validation failed:?)\s*"?([\w.+]+)"?:', r"\1:", message)
    return re.sub(r"\s+", " ", text).strip().rstrip(".")


def _first_leaf(message: str) -> str | None:
    """Return the reason at the first leaf of the tree; None where there is no tree."""
    keys: list[tuple[int, str]] = []
    owner, wanted = "", list[str]()
    for line in message.splitlines():
        depth, rest = len(line) - len(line.lstrip()), line.strip().removeprefix("- ")
        if found := _KEY.match(rest):
            keys = [*((d, k) for d, k in keys if d < depth), (depth, found[1])]
            rest, wanted = rest[found.end() :], []
        if found := _OWNER.search(rest):
            owner = found[1].rpartition(".")[2]
        key = ".".join(k for _, k in keys)
        if found := _OPTION.search(rest):
            return _no_option(key, owner, found[1] or "", found[2])
        if found := _LEAF.search(rest):
            return _not_accepted(key, found[2], [found[1]])
        if found := _EXPECTED.match(rest):
            wanted.append(found[1])
        if keys and rest.startswith("Given value: "):
            return _not_accepted(key, rest.removeprefix("Given value: "), wanted)
    return None


def _no_option(key: str, owner: str, group: str, option: str) -> str:
    """`model.lora` of class LoRA and option `rnk`: LoRA has none; a group is a dataclass inside the class."""
    if group:
        return f"{key}.{group} has no option '{option}'" if key else f"there is no key '{group}.{option}'"
    hint = f" (--{key}.help={owner} lists them)" if key and owner else ""
    return f"{key}: {owner or 'it'} has no option '{option}'{hint}"


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
