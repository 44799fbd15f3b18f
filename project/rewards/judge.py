"""A judge: a fixed model behind an OpenAI-compatible endpoint, asked whether an answer means what a gold answer means.

Verdicts are part of an episode, so that a reward stays a function of it. They are kept in a SQLite file, by all that decides
them: a run that goes on, another seed or a test asks nothing twice. What needs no judge is not sent: an exact match is right;
no answer, or one of more than `max_words` words, which a list of guesses is, is wrong.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
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
ATTEMPTS = 5
"""Of a request that the endpoint refuses for now, with growing pauses."""

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
    concurrency: int = 16
    """Requests in flight at once."""
    timeout_s: float = 60.0
    """Seconds of one attempt."""

    def __post_init__(self) -> None:
        """Refuse what could never be asked."""
        for name in ("max_words", "concurrency", "timeout_s"):
            if getattr(self, name) <= 0:
                raise InputError(f"judge.{name}={getattr(self, name)} must be above 0")
        if not Path(self.prompt_file).is_file():
            raise InputError(f"judge.prompt_file={self.prompt_file} does not exist")

    def judged(self, episodes: Sequence[Episode]) -> list[Episode]:
        """Return the episodes with their verdicts: 1 right, 0 wrong.

        Raises:
            JudgeError: the endpoint failed, and went on failing.
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
        answers = episode.question.answers
        if exact_match(episode.answer, answers):
            return 1.0
        if not answers or episode.answer is None or not 0 < len(episode.answer.split()) <= self.max_words:
            return 0.0
        return None

    def _messages(self, episode: Episode) -> list[Any]:
        question = episode.question
        told = {"question": question.question, "known answers": question.answers, "answer": clean(episode.answer or "")}
        instructions = _read(Path(self.prompt_file))
        return [
            {"role": "system", "content": instructions},
            {"role": "user", "content": json.dumps(told, ensure_ascii=False)},
        ]

    def _key(self, episode: Episode) -> str:
        return hashlib.sha256(json.dumps([self.model, self._messages(episode)]).encode()).hexdigest()

    async def _ask(self, episodes: dict[str, Episode]) -> dict[str, float]:
        import openai

        slots, found = asyncio.Semaphore(self.concurrency), dict[str, float]()
        key = os.environ.get(self.key_variable) or "none"
        async with openai.AsyncOpenAI(
            base_url=self.base_url, api_key=key, max_retries=ATTEMPTS - 1, timeout=self.timeout_s
        ) as client:

            async def ask(name: str, episode: Episode) -> None:
                async with slots:
                    answer = await client.chat.completions.create(
                        model=self.model, messages=self._messages(episode), temperature=0.0, seed=0, max_tokens=8
                    )
                if not getattr(answer, "choices", None):  # some page, which the client hands on as text
                    raise openai.OpenAIError("it did not answer with a chat completion")
                found[name] = _read_verdict(answer.choices[0].message.content or "")

            try:
                async with asyncio.TaskGroup() as group:
                    for name, episode in episodes.items():
                        group.create_task(ask(name, episode))
            except* openai.OpenAIError as errors:
                said = f"{type(errors.exceptions[0]).__name__}: {errors.exceptions[0]}"
                raise JudgeError(
                    f"the judge {self.model} at {self.base_url} failed ({said}); see that it is up, and that "
                    f"{self.key_variable} holds its key"
                ) from None
            finally:
                self._keep(found)  # what was answered is not asked again
        return found

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
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=60)) as cache:
            cache.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict REAL NOT NULL)")
            yield cache


@lru_cache(maxsize=8)
def _read(path: Path) -> str:
    return path.read_text()


def _read_verdict(said: str) -> float:
    """Return 1 for yes and 0 for no; what is neither is no verdict for the answer, and is told of.

    >>> _read_verdict("Yes.")
    1.0
    """
    words = said.strip().strip("\"'*`").lower()
    if words.startswith("yes"):
        return 1.0
    if not words.startswith("no"):
        logger.warning("the judge said neither yes nor no but %r, which counts as no", said[:80])
    return 0.0
