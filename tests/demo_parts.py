"""A live model whose words a script says: real tokenizer, template, environment, search and thread; only the engine is not."""

import asyncio
from pathlib import Path

from tiny import tiny_model_folder

from project.apps.demo.live import LiveModel
from project.corpus.index import Index
from project.dialects import get_dialect
from project.evaluation.metrics import Estimate
from project.evaluation.results import ResultsFile, episode_row
from project.records import Episode, FinishReason, Message, Passage, Question, Turn
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


TURN = Turn((1, 2), (3, 4), (-0.1, -0.2), 0, True, fresh=True, clock_ns=(1_000, 2_000, 3_000))


def episode(number: int, answer: str) -> Episode:
    said = (
        Message("system", "Answer."),
        Message("user", "Question: Where?"),
        Message("assistant", "<think>\nI look.\n</think>\n<search>\nwhere\n</search>"),
        Message("user", "<information>\nDoc 1 (Title: Oslo)\nOslo is in Norway, <b>so</b>.\n</information>"),
        Message("assistant", f"<answer>\n{answer}\n</answer>"),
    )
    question = Question(f"q{number}", f"Where is number {number}?", ("Norway",))
    return Episode(question, (TURN, TURN), said, FinishReason.ANSWER, answer, ("where",), (("oslo",),))


def results_folder(folder: Path) -> Path:
    """Write the results of two episodes, as `seeker test` does, one of them right."""
    file = ResultsFile(folder)
    folder.mkdir()
    scored = ((episode(0, "Norway"), {"em": 1.0, "f1": 0.5}), (episode(1, "Peru"), {"em": 0.0, "f1": 0.5}))
    file.extend(episode_row(one, 0, scores) for one, scores in scored)
    file.finish({"em": Estimate(0.5, 0.0, 1.0, 2)}, {"run": "held-out"})
    return folder
