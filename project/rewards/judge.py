"""A judge: a fixed model behind an OpenAI-compatible endpoint, asked whether an answer means what a gold answer means.

It may also be asked whether what the agent was shown states the answer. Verdicts are part of an episode, so that a reward stays
a function of it. They are kept in a SQLite file, by all that decides them: a run that goes on, another seed or a test asks
nothing twice. What needs no judge is not sent: an exact match is right; no answer, or one of more than `max_words` words, which
a list of guesses is, is wrong. A reply that is no verdict counts as no and is not kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from project.errors import InputError, JudgeError
from project.records import Episode
from project.rewards.inquiries import about_answer, about_facts

PROMPT, FACTS_PROMPT = (Path(__file__).with_name(name) for name in ("judge.txt", "facts.txt"))
ATTEMPTS = 8
"""Of a request that the endpoint refuses for now, with growing pauses: over half a minute."""

PromptName = Literal["prompt_file", "facts_prompt_file"]
Messages = list[Any]
"""Of one request, as OpenAI writes them."""

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
    facts: bool = False
    """Ask also whether what the agent was shown states its answer, for `reward.facts_bonus` and the metric `supported`."""
    facts_prompt_file: Path = FACTS_PROMPT
    """The instructions for that."""
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
        for name in ("prompt_file", "facts_prompt_file"):
            if not Path(path := getattr(self, name)).is_file():
                raise InputError(f"judge.{name}={path} does not exist")
        try:
            holds_key = urlsplit(self.base_url).username is not None
        except ValueError as error:
            raise InputError(f"judge.base_url is no address ({error}); give one such as http://127.0.0.1:8000/v1") from error
        if holds_key:
            raise InputError("judge.base_url holds a name or a key, which the run's record would show; give judge.key_variable")

    def judged(self, episodes: Sequence[Episode]) -> list[Episode]:
        """Return the episodes with their verdicts, 1 yes and 0 no; `supported` where `facts` is on.

        Raises:
            JudgeError: the endpoint went on failing, mostly said neither yes nor no, or the verdicts' file cannot be used.
        """
        verdicts = self._verdicts("prompt_file", [about_answer(episode, self.max_words) for episode in episodes])
        judged = [replace(episode, verdict=verdict) for episode, verdict in zip(episodes, verdicts, strict=True)]
        if not self.facts:
            return judged
        supported = self._verdicts("facts_prompt_file", [about_facts(episode, self.max_words) for episode in episodes])
        return [replace(episode, supported=verdict) for episode, verdict in zip(judged, supported, strict=True)]

    def _verdicts(self, prompt: PromptName, inquiries: Sequence[str | float]) -> list[float]:
        """Return a verdict for each, those of them that are one as they are."""
        told = [inquiry if isinstance(inquiry, float) else self._messages(prompt, inquiry) for inquiry in inquiries]
        asked = {self._key(messages): messages for messages in told if not isinstance(messages, float)}
        found = self._held(asked)
        if missing := {key: messages for key, messages in asked.items() if key not in found}:
            found |= asyncio.run(self._ask(prompt, missing))
        return [messages if isinstance(messages, float) else found[self._key(messages)] for messages in told]

    def _messages(self, prompt: PromptName, told: str) -> Messages:
        return [{"role": "system", "content": _read(Path(getattr(self, prompt)))}, {"role": "user", "content": told}]

    def _key(self, messages: Messages) -> str:
        return hashlib.sha256(json.dumps([self.base_url, self.model, self.max_tokens, messages]).encode()).hexdigest()

    async def _ask(self, prompt: PromptName, inquiries: Mapping[str, Messages]) -> dict[str, float]:
        """Return a verdict by each key; what was answered is kept, though another request may fail."""
        import openai

        slots, said, secret = asyncio.Semaphore(self.concurrency), dict[str, str](), os.environ.get(self.key_variable)

        def shown(error: Exception) -> str:
            return " ".join(f"{type(error).__name__}: {error}".split()).replace(secret or "\0", "…")

        async def ask(key: str, messages: Messages) -> None:
            async with slots:
                try:
                    answer = await client.chat.completions.create(
                        model=self.model, messages=messages, temperature=0.0, seed=0, max_tokens=self.max_tokens
                    )
                    said[key] = answer.choices[0].message.content or ""
                except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                    said[key] = shown(error)  # this answer alone: too long for it, or against its rules

        try:
            async with openai.AsyncOpenAI(
                base_url=self.base_url, api_key=secret or "none", max_retries=ATTEMPTS - 1, timeout=self.timeout_s
            ) as client:
                await asyncio.gather(*(ask(key, messages) for key, messages in inquiries.items()))
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
                    f"{told}; give a judge.{prompt} that it follows, more judge.max_tokens to one that thinks, or a judge with "
                    "room for what it is told"
                )
            logger.warning("%s: that counts as no", told)
        return dict.fromkeys(inquiries, 0.0) | self._held(inquiries)  # as kept: another process may have been first

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
    return path.read_text(encoding="utf-8")


def read_verdict(said: str) -> float | None:
    r"""Return 1 for yes and 0 for no, said alone or at the end of thoughts; None for anything else.

    >>> read_verdict("Yes."), read_verdict("<think>\nNo, wait.\n</think>\nno"), read_verdict("Yes and no")
    (1.0, 0.0, None)
    """
    _, _, last = said.rpartition("</think>")
    return {"yes": 1.0, "no": 0.0}.get(last.strip().strip("\"'*`.").lower())
