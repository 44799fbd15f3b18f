"""What every search engine offers. Engines are interchangeable: the server and the tests see only this.

A hit shares something with its query (score above 0), so fewer than `k` hits, or none, is a right answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from project.records import Hit


class Retriever(Protocol):
    """A corpus that can be searched. `search` blocks and may be called from several threads at once."""

    @property
    def digest(self) -> str:
        """Fingerprint of the passages: 16 hexadecimal digits."""

    def __len__(self) -> int:
        """Return the number of passages."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return for each query at most `k` hits, best first; any `k` >= 1 is allowed."""
