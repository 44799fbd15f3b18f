"""How far a job is: on a terminal a line that changes, elsewhere one a minute."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread

from project.teacher.client import Reply, Teacher

EVERY_S = 60.0
"""Between lines where there is no terminal."""


@dataclass
class Progress:
    """Counts of one run of a job."""

    name: str
    teacher: Teacher
    accepted: int = 0
    held: int = 0
    """Rows that an earlier run has finished."""
    rejected: Counter[str] = field(default_factory=Counter)
    """By reason."""
    share: float = 0.0
    """Of the input that is read."""
    requests: int = 0
    flying: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    def count(self, reply: Reply) -> None:
        """Count a reply."""
        self.requests += 1
        self.prompt_tokens += reply.prompt_tokens
        self.reply_tokens += reply.completion_tokens

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a request while the block lasts."""
        self.flying += 1
        try:
            yield
        finally:
            self.flying -= 1

    @property
    def seconds(self) -> float:
        """Since the job began."""
        return max(time.monotonic() - self.started, 1e-9)

    @property
    def cost(self) -> float:
        """Of what this run has asked."""
        return self.teacher.price(self.prompt_tokens, self.reply_tokens)

    def line(self) -> str:
        """Return the counts in one line."""
        seconds = self.seconds
        rejected = self.rejected.total()
        rows = self.accepted + rejected
        why = ", ".join(f"{count} {reason:.60}" for reason, count in self.rejected.most_common(2))
        parts = [
            f"{rows / seconds:,.1f} rows/s",
            f"{(self.prompt_tokens + self.reply_tokens) / seconds:,.0f} tokens/s",
            f"{self.flying} in flight",
            f"{self.accepted:,} accepted",
            *([f"{self.held:,} there already"] if self.held else []),
            *([f"{rejected:,} rejected ({why})"] if rejected else []),
            *([f"cost {self.cost:,.2f}"] if self.cost else []),
        ]
        return ", ".join(parts)

    def say(self, text: str) -> None:
        """Say something beside the counts."""
        sys.stderr.write(f"{self.name}: {text}\n")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the counts while the block lasts."""
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        ended = Event()
        columns = (TextColumn(self.name), BarColumn(), TextColumn("{task.fields[line]}"), TimeRemainingColumn())
        is_terminal = os.isatty(2)
        with Bar(*columns, console=Console(stderr=True), transient=True, disable=not is_terminal) as bar:
            task = bar.add_task(self.name, total=1.0, line="")

            def show() -> None:
                while not ended.wait(0.5 if is_terminal else EVERY_S):
                    if is_terminal:
                        bar.update(task, completed=self.share, line=self.line())
                    else:
                        left = self.seconds * (1 - self.share) / max(self.share, 1e-9)
                        self.say(f"{100 * self.share:.0f} % done, about {left:,.0f} s left: {self.line()}")

            thread = Thread(target=show, daemon=True)
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()
