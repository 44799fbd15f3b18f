"""A class of the user's own, named by its path: `my_rewards.Median` in the current folder, or in any package installed."""

from __future__ import annotations

import inspect
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from project.errors import InputError
from project.files import file_digest

Kind = TypeVar("Kind")


def is_path(name: str) -> bool:
    """Return whether a name is a class's path: `module.Class`."""
    return "." in name and all(part.isidentifier() for part in name.split("."))


def class_named(path: str, kind: type[Kind], option: str) -> type[Kind]:
    """Return the class that a path names.

    Args:
        path: `module.Class`.
        kind: what it must be: a base class, or a protocol with methods.
        option: what named it, for the error.

    Raises:
        InputError: there is no such module or class, or it is none of the kind.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{option} names the class {path}, which cannot be imported ({error}); check the spelling") from error
    if not isinstance(found, type) or not issubclass(found, kind):
        wanted = f"{kind.__module__}.{kind.__name__}"
        raise InputError(f"{option} names {path}, which is no {wanted}; derive it from that, or give it the same methods")
    return found


def identity(kind: type) -> str:
    """Return what tells a class from another, and a class of the user's own from itself before its file was changed.

    >>> identity(InputError)
    'project.errors.InputError'
    """
    path = f"{kind.__module__}.{kind.__qualname__}"
    source = None
    if not path.startswith("project."):
        with suppress(TypeError, OSError):  # one that was typed into a Python prompt has no file
            source = inspect.getsourcefile(kind)
    return f"{path}@{file_digest(Path(source))}" if source else path


def named_identity(name: str, kind: type) -> str:
    """Return a name as it stands, or the `identity` of the class whose path it is."""
    return identity(class_named(name, kind, "the config")) if is_path(name) else name
