"""A judge: a fixed model behind an OpenAI-compatible endpoint, asked whether an answer means what a gold answer means.

Verdicts are part of an episode, so that a reward stays a function of it. They are kept in a SQLite file, by all that decides
them: a run that goes on, another seed or a test asks nothing twice. What needs no judge is not sent: an exact match is right;
no answer, or one of more than `max_words` words, which a list of guesses is, is wrong. A reply that is no verdict counts as no
and is not kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from project.answers import exact_match
from project.dialects import clean
from project.errors import InputError, JudgeError
from project.records import Episode

PROMPT = Path(__file__).with_name("judge.txt")
ATTEMPTS = 8
"""Of a request that the endpoint refuses for now, with growing pauses: over half a minute."""
LETTERS_A_WORD = 20
"""Characters that an answer may have for each of its `max_words`."""
_ESCAPED = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>[]\uff5c"})
"""What control tokens of any model are written with, as JSON may write it too: none can stand in what the judge reads."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judge:
    """Whom to ask, and how."""

    model: str
    """As the endpoint names it."""
    base_url: str
    """Of the endpoint, such as http://127.0.0.1:8000/v1."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key, where the endpoint wants one."""
    prompt_file: Path = PROMPT
    """The instructions; the judge must answer yes or no."""
    cache_file: Path | None = None
    """SQLite file of the verdicts; `judge.db` beside the runs by default."""
    max_words: int = 30
    """Longer answers are wrong."""
    max_tokens: int = 8
    """Tokens of a reply: a model that thinks aloud wants more, and must end with yes or no."""
    concurrency: int = 16
    """Requests in flight at once."""
    timeout_s: float = 60.0
    """Seconds of one attempt."""

    def __post_init__(self) -> None:
        """Refuse what could never be asked."""
        for name in ("max_words", "max_tokens", "concurrency", "timeout_s"):
            if getattr(self, name) <= 0:
                raise InputError(f"judge.{name}={getattr(self, name)} must be above 0")
        if not Path(self.prompt_file).is_file():
            raise InputError(f"judge.prompt_file={self.prompt_file} does not exist")

    def judged(self, episodes: Sequence[Episode]) -> list[Episode]:
        """Return the episodes with their verdicts: 1 right, 0 wrong.

        Raises:
            JudgeError: the endpoint went on failing, mostly said neither yes nor no, or the verdicts' file cannot be used.
        """
        known = [self._known(episode) for episode in episodes]
        asked = {self._key(e): e for e, verdict in zip(episodes, known, strict=True) if verdict is None}
        found = self._held(asked)
        if missing := {key: episode for key, episode in asked.items() if key not in found}:
            found |= asyncio.run(self._ask(missing))
        verdicts = (found[self._key(e)] if verdict is None else verdict for e, verdict in zip(episodes, known, strict=True))
        return [replace(episode, verdict=verdict) for episode, verdict in zip(episodes, verdicts, strict=True)]

    def _known(self, episode: Episode) -> float | None:
        """Return the verdict on an answer that needs no judge; None for any other."""
        answers, answer = episode.question.answers, clean(episode.answer or "")
        if exact_match(episode.answer, answers):
            return 1.0
        words = len(re.findall(r"\w+", answer))
        short = 0 < words <= self.max_words and len(answer) <= LETTERS_A_WORD * self.max_words
        return None if answers and short else 0.0

    def _messages(self, episode: Episode) -> list[Any]:
        question, golds = _quoted(episode.question.question), ", ".join(map(_quoted, episode.question.answers))
        answer = _quoted(clean(episode.answer or ""))
        told = f'{{"question": {question}, "known answers": [{golds}], "answer": {answer}}}'
        return [{"role": "system", "content": _read(Path(self.prompt_file))}, {"role": "user", "content": told}]

    def _key(self, episode: Episode) -> str:
        decided_by = [self.base_url, self.model, self.max_tokens, self._messages(episode)]
        return hashlib.sha256(json.dumps(decided_by).encode()).hexdigest()

    async def _ask(self, episodes: dict[str, Episode]) -> dict[str, float]:
        """Return a verdict by each key; what was answered is kept, though another request may fail."""
        import openai

        slots, said, secret = asyncio.Semaphore(self.concurrency), dict[str, str](), os.environ.get(self.key_variable)

        def shown(error: Exception) -> str:
            return " ".join(f"{type(error).__name__}: {error}".split()).replace(secret or "\0", "…")

        async def ask(key: str, episode: Episode) -> None:
            async with slots:
                try:
                    answer = await client.chat.completions.create(
                        model=self.model, messages=self._messages(episode), temperature=0.0, seed=0, max_tokens=self.max_tokens
                    )
                    said[key] = answer.choices[0].message.content or ""
                except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                    said[key] = shown(error)  # this answer alone: too long for it, or against its rules

        try:
            async with openai.AsyncOpenAI(
                base_url=self.base_url, api_key=secret or "none", max_retries=ATTEMPTS - 1, timeout=self.timeout_s
            ) as client:
                await asyncio.gather(*(ask(key, episode) for key, episode in episodes.items()))
        except Exception as error:
            raise JudgeError(
                f"the judge {self.model} at {self.base_url} failed ({shown(error)}); see that it is up and answers chat "
                f"completions, and that {self.key_variable} holds its key"
            ) from error
        finally:
            read = {key: verdict for key, words in said.items() if (verdict := read_verdict(words)) is not None}
            self._keep(read)
        if unread := [words for key, words in said.items() if key not in read]:
            told = (
                f"the judge {self.model} said neither yes nor no of {len(unread)} of {len(said)} answers, but {unread[0]!r:.90}"
            )
            if len(unread) > max(1, len(said) / 2):
                raise JudgeError(
                    f"{told}; give a judge.prompt_file that it follows, or more judge.max_tokens to one that thinks"
                )
            logger.warning("%s: that counts as no", told)
        return dict.fromkeys(episodes, 0.0) | self._held(episodes)  # as kept: another process may have been first

    # --- cache -------------------------------------------------------------------------------------------------------

    def _held(self, keys: Iterable[str]) -> dict[str, float]:
        with self._cache() as cache:
            rows = [row for key in keys for row in cache.execute("SELECT key, verdict FROM verdicts WHERE key = ?", (key,))]
        return {str(key): float(verdict) for key, verdict in rows}

    def _keep(self, verdicts: dict[str, float]) -> None:
        with self._cache() as cache, cache:
            cache.executemany("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", verdicts.items())

    @contextmanager
    def _cache(self) -> Iterator[sqlite3.Connection]:
        from project.tracking.store import runs_folder

        path = Path(self.cache_file) if self.cache_file else runs_folder().parent / "judge.db"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(path, timeout=60)) as cache:
                cache.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict REAL NOT NULL)")
                yield cache
        except (sqlite3.Error, OSError) as error:
            raise JudgeError(f"the verdicts' file {path} cannot be used ({error}); give another judge.cache_file") from error


@lru_cache(maxsize=8)
def _read(path: Path) -> str:
    return path.read_text()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).translate(_ESCAPED)


def read_verdict(said: str) -> float | None:
    r"""Return 1 for yes and 0 for no, said alone or at the end of thoughts; None for anything else.

    >>> read_verdict("Yes."), read_verdict("<think>\nNo, wait.\n</think>\nno"), read_verdict("Yes and no")
    (1.0, 0.0, None)
    """
    _, _, last = said.rpartition("</think>")
    return {"yes": 1.0, "no": 0.0}.get(last.strip().strip("\"'*`.").lower())
