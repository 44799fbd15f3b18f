"""What a mistyped word was meant to be: the likeliest of the words that there are, by difflib."""

from __future__ import annotations

from collections.abc import Iterable

LEAST_LIKE = 0.6
"""How much of two words must be alike, from 0 to 1, for one to be taken for the other."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like `word`, None where none is like it."""
    import difflib

    found = difflib.get_close_matches(word, list(known), n=1, cutoff=LEAST_LIKE)
    return found[0] if found else None


def did_you_mean(word: str, known: Iterable[str], before: str = "") -> str:
    """Return `; did you mean '…'?` with the known word that is most like `word`, and nothing where none is.

    Args:
        word: what was typed.
        known: what could have been.
        before: what stands before the known word where it is shown, such as `--`.
    """
    found = nearest(word, known)
    return "" if found is None else f"; did you mean '{before}{found}'?"
