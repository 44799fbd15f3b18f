"""A live model whose words a script says: real tokenizer, template, environment, search and thread; only the engine is not."""

import asyncio
from pathlib import Path

from tiny import tiny_model_folder

from project.apps.demo.live import LiveModel
from project.corpus.index import Index
from project.dialects import get_dialect
from project.records import Passage
from project.rollouts.engines.protocol import Generation

PASSAGES = [
    Passage("hg", "Mercury", "Mercury is the only metal that is liquid at room temperature."),
    Passage("ga", "Gallium", "Gallium melts in the hand: its melting point is near that of a liquid."),
    Passage(
        "xss", "<script>alert(1)</script>", "A liquid passage that says ${1+1} and {{7*7}} and <img src=x onerror=alert(2)>."
    ),
]
SEARCH = "<think>\nI look for the metal.\n</think>\n<search>\nliquid metals\n</search>"
ANSWER = "<think>\nFound.\n</think>\n<answer>\nMercury\n</answer>"
SUMMARY = (
    "<summary>\nQuestion: Which?\n<think_summary>t</think_summary>\n"
    "<information_summary>Mercury is liquid.</information_summary>\n</summary>"
)


class Script:
    """An engine that says its turns in order, a byte at a time; after the last it says that again."""

    version = 0

    def __init__(self, turns, end, pause_s=0.0):
        self.turns, self.end, self.pause_s, self.said = turns, end, pause_s, 0

    async def generate(self, prompt_ids, sampling, seen=None):
        turn = self.turns[min(self.said, len(self.turns) - 1)]
        self.said += 1
        ids = [*turn.encode()[: sampling.max_tokens - 1], self.end]
        for token in ids:
            if seen is not None:
                seen(token)
            if self.pause_s:
                await asyncio.sleep(self.pause_s)
        return Generation(tuple(ids), (-0.1,) * len(ids), "stop", 0, tuple(prompt_ids))


def tags_folder(path: Path) -> Path:
    """Return the tiny model's folder, whose agent writes tags without decision tokens."""
    folder = tiny_model_folder(path)
    (folder / "seeker.json").write_text('{"dialect": "tags", "decision_tokens": false, "history": "append"}')
    assert get_dialect("tags", decision_tokens=False).name == "tags"
    return folder


def scripted(folder: Path, turns, pause_s=0.0) -> LiveModel:
    """Return a live model that says these turns."""
    live = LiveModel(str(folder), context_tokens=4096)
    live._engine = Script(turns, live._renderer.end_id, pause_s)
    return live


def small_index() -> Index:
    return Index.from_passages(PASSAGES)
