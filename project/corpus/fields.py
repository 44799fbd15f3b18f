"""Checked access to the fields of other people's JSON: a wrong one is a `ValueError` that names it by its path."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


def need(row: Any, name: str, kind: type[T], where: str = "") -> T:  # noqa: ANN401 - whatever JSON held
    """Return `row[name]`, which must be a `kind`; `where` is the path of `row`, such as `data[3].`."""
    if not isinstance(row, dict):
        msg = f"field '{where.rstrip('.')}' is {type(row).__name__}, expected an object"
        raise ValueError(msg)
    value = row.get(name)
    if value is None:
        msg = f"field '{where}{name}' is missing"
        raise ValueError(msg)
    if not isinstance(value, kind):
        msg = f"field '{where}{name}' is {type(value).__name__}, expected {kind.__name__}"
        raise ValueError(msg)
    return value


def need_text(row: Any, name: str, where: str = "") -> str:  # noqa: ANN401 - whatever JSON held
    """Return `row[name]`, which must be a string with something in it."""
    text = need(row, name, str, where).strip()
    if not text:
        msg = f"field '{where}{name}' is empty"
        raise ValueError(msg)
    return text


def need_texts(row: Any, name: str, where: str = "") -> list[str]:  # noqa: ANN401 - whatever JSON held
    """Return `row[name]`, which must be a list of strings (it may be empty)."""
    values = need(row, name, list, where)
    for number, value in enumerate(values):
        if not isinstance(value, str):
            msg = f"field '{where}{name}[{number}]' is {type(value).__name__}, expected str"
            raise ValueError(msg)
    return values
