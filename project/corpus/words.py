"""Text to the terms that BM25 counts: folded words, without stop words, stemmed.

Words are lower case and without accents; single characters stay, so that "vitamin C" is found.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from functools import cache

from project.errors import InputError

_STOP_WORDS = """
a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to was
will with what which who whom whose when where why how do does did were been has have had its from
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""English stop words and question words."""
NONE = "none"
_WORD = re.compile(r"\w+")


def words(text: str, stop_words: Collection[str] = STOP_WORDS) -> list[str]:
    """Return the folded words of a text without stop words, not yet stemmed.

    >>> words("Which currency is the Tögrög?")
    ['currency', 'togrog']
    """
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        text = "".join(c for c in decomposed if not unicodedata.combining(c))
    return [word for word in _WORD.findall(text.lower()) if word not in stop_words]


def stems(terms: list[str], stemmer: str = "english") -> list[str]:
    """Return the words' stems by a Snowball stemmer; `none` leaves them as they are."""
    if stemmer == NONE:
        return terms
    import Stemmer

    stemmed: list[str] = Stemmer.Stemmer(stemmer).stemWords(terms)  # a stemmer is not thread-safe: one a call
    return stemmed


def check_stemmer(stemmer: str) -> None:
    """Refuse a stemmer that Snowball does not have."""
    import Stemmer

    if stemmer not in (known := [NONE, *Stemmer.algorithms()]):
        raise InputError(f"there is no stemmer '{stemmer}'; give one of {', '.join(known)}")


@cache
def stop_words_of(language: str) -> frozenset[str]:
    """Return the stop words of a language, folded as words are; `english` are `STOP_WORDS`, `none` none.

    Raises:
        InputError: bm25s has no list of the language.
    """
    from bm25s import stopwords

    if language in ("english", NONE):
        return STOP_WORDS if language == "english" else frozenset()
    lists = {name.removeprefix("STOPWORDS_").lower(): held for name, held in vars(stopwords).items() if name.isupper()}
    if language not in lists:
        raise InputError(f"there are no stop words of '{language}'; give one of english, {', '.join(lists)}, none")
    return frozenset(word for one in lists[language] for word in words(one, ()))
