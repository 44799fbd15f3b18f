"""Names as MLflow takes them; two that would become one are refused, for their values would be mixed.

MLflow takes letters, digits, `_`, `-`, `.`, `:`, `/` and spaces, and no name that is not its own normal form as a path.
"""

from __future__ import annotations

import re

from project.errors import InputError

LONGEST = 235
"""Characters of a name: MLflow's 250 less the longest prefix that a tag puts before a parameter's name."""


def sanitised(name: str) -> str:
    """Return a name as MLflow takes it.

    >>> sanitised("val//recall@3"), sanitised("/../x"), sanitised("")
    ('val/recall_3', '__/x', '_')
    """
    parts = re.sub(r"[^/\w.\- :]", "_", name[:LONGEST]).split("/")
    plain = ["_" * len(part) if part in (".", "..") else part for part in parts]
    return "/".join(part for part in plain if part) or "_"


class Names:
    """The names of one kind that a run has used, each with what it is in MLflow.

    Args:
        kind: what they name, in the plural, for messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._stored: dict[str, str] = {}
        self._given: dict[str, str] = {}

    def stored(self, name: str) -> str:
        """Return what MLflow is to call it.

        Raises:
            InputError: another name is called so already.
        """
        if name not in self._stored:
            stored = sanitised(name)
            other = self._given.setdefault(stored, name)
            if other != name:
                raise InputError(
                    f"the {self.kind} '{other}' and '{name}' would both be '{stored}' in MLflow; rename one of them"
                )
            self._stored[name] = stored
        return self._stored[name]
