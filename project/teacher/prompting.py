"""Prompts that can be read and changed: text files that begin with their version."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from string import Template
from typing import Self

from project.errors import InputError
from project.records import Row

PROMPTS = Path(__file__).with_name("prompts")
_JSON = json.JSONDecoder(strict=False)  # line breaks within strings are taken, as models write them
_VERSION = re.compile(r"version: (\S+)\n")


@dataclass(frozen=True)
class Prompt:
    """A text with `$names` to fill in."""

    path: Path
    version: str
    text: str

    @classmethod
    def read(cls, path: Path, *names: str) -> Self:
        """Read a prompt.

        Args:
            path: its file: `version: …` on the first line, then the text.
            names: what its text has places for.

        Raises:
            InputError: it is missing, has no version, or lacks a place.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the prompt {path} cannot be read ({error}); give another file") from error
        version = _VERSION.match(text)
        if version is None:
            raise InputError(f"the prompt {path} must begin with a line such as 'version: 1'")
        held = Template(text[version.end() :])
        if not held.is_valid() or set(held.get_identifiers()) != set(names):
            wanted = ", ".join(f"${name}" for name in names) or "none"
            found = ", ".join(f"${name}" for name in held.get_identifiers()) if held.is_valid() else "others"
            raise InputError(f"the prompt {path} must hold the places {wanted}, and holds {found}; a plain $ is written $$")
        return cls(Path(path), version[1], held.template.strip())

    def fill(self, **values: str) -> str:
        """Return the text with its places filled in."""
        return Template(self.text).substitute(values)

    def told(self) -> Row:
        """Return what a manifest holds of the prompt."""
        return {"file": self.path.name, "version": self.version, "digest": _digest(self.text)}


def read_object(text: str) -> Row | None:
    """Return the JSON object that a reply holds, with or without words around it; None where there is none, or several."""
    found: list[Row] = []
    place = text.find("{")
    while place >= 0:
        try:
            held, end = _JSON.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            found.append(held)
        place = text.find("{", end)
    return found[0] if len(found) == 1 else None


@lru_cache(maxsize=64)
def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
