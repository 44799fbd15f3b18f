"""Time and memory of scoring episodes, and of `seeker report` over two results: figures, plots and page, the whole command.

    python scripts/benchmarks/report.py --questions 2000 10000 --folder /tmp/report

The episodes are made up: one result is of the tags dialect, the other of tools, with searches, three documents each and an
answer. Scoring is what `seeker test` does with an episode that has ended, up to both files; making it up is not counted. One
JSON line a number of questions; `MB of results` is what both files hold, memory that of the scoring and of the report.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from measured import show, timed

from project.dialects import Action, get_dialect
from project.evaluation.metrics import SCORES, score_episode
from project.evaluation.results import RESULTS, ResultsFile, episode_row
from project.records import DialectName, Document, Episode, FinishReason, Message, Question, Turn
from project.rewards.answer import AnswerReward

WORDS = [f"{a}{b}{c}" for a in ("ka", "mer", "to", "li", "san") for b in ("ro", "ven", "du", "pal") for c in ("n", "sk", "ta")]
KINDS = ("one_hop", "two_hop", "compare", "unanswerable")


def text(draw: random.Random, words: int) -> str:
    """Return made-up prose."""
    return " ".join(draw.choices(WORDS, k=words)).capitalize() + "."


def messages(draw: random.Random, name: DialectName, question: str, answer: str, searches: int) -> list[Message]:
    """Return a conversation with that many searches."""
    dialect = get_dialect(name)
    said = dialect.opening(question)
    for _ in range(searches):
        action = Action(text(draw, 25), (text(draw, 5),))
        found = [Document(text(draw, 90), text(draw, 2), str(place)) for place in range(3)]
        said += [dialect.write(action), *dialect.results([found], action)]
    return [*said, dialect.write(Action(text(draw, 30), answer=answer))]


def episodes(n: int, name: DialectName, skill: float) -> Iterator[Episode]:
    """Yield an episode a question; `skill` is the share of right answers."""
    for number in range(n):
        of_question, draw = random.Random(number), random.Random(f"{number} {name}")
        asked, answer, kind = text(of_question, 12), text(of_question, 2), of_question.choice(KINDS)
        searches, is_right = min(int(draw.expovariate(0.6)), 8), draw.random() < skill
        given = answer if is_right else draw.choice([text(draw, 2), "unknown"])
        gold = () if kind == "unanswerable" else (f"p{number}", f"r{number}")[: 1 + (kind != "one_hop")]
        question = Question(f"q{number:06}", asked, (answer,) if gold else (), gold, of_question.random() < 0.7, kind)
        said = messages(draw, name, asked, given, searches)
        turns = tuple(_turn(draw, message) for message in said if message.role == "assistant")
        found = tuple((place, "x", "y") for place in (*gold, *"z" * 8)[:searches])
        yield Episode(question, turns, tuple(said), FinishReason.ANSWER, given, ("a query",) * searches, found)


def _turn(draw: random.Random, message: Message) -> Turn:
    written = tuple(range(len(message.content) // 4 + 1))
    return Turn((1,) * draw.randrange(200, 400), written, (-0.1,) * len(written), 0, True)


def score(folder: Path, n: int, name: DialectName, skill: float) -> float:
    """Write the results of n episodes into a folder and return the seconds that scoring them took."""
    from project.evaluation.grouped import ResultMetrics

    file, metrics, made = ResultsFile(folder), ResultMetrics(SCORES), episodes(n, name, skill)
    metrics.kinds, seconds, reward = tuple(sorted(KINDS)), 0.0, AnswerReward()
    while chunk := list(islice(made, 1000)):
        started = time.perf_counter()
        rows = [episode_row(episode, 0, score_episode(episode, reward, 0.5)) for episode in chunk]
        for row in rows:
            metrics.take(row)
        file.extend(rows)
        seconds += time.perf_counter() - started
    started = time.perf_counter()
    figures, count = metrics.compute()
    about = {"task": "agent", "run": folder.name, "run_id": None, "model_path": f"models/{name}", "n": count}
    settings = {"dialect": name, "temperature": 0.0, "top_k": 3}
    file.finish(figures, about | {"test_file": "test.jsonl", "test_digest": "0123456789abcdef", "settings": settings})
    return seconds + time.perf_counter() - started


def main() -> None:
    """Make results of each size and report them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, nargs="+", default=[2000, 10_000])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--score", nargs=2, metavar=("DIALECT", "SKILL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.score:
        seconds = score(options.folder, options.questions[0], options.score[0], float(options.score[1]))
        (options.folder / "seconds").write_text(str(seconds))
        return
    for n in options.questions:
        folder, scored, memory = options.folder / str(n), 0.0, 0.0
        first, other = folder / "sft", folder / "ppo"
        for of, dialect, skill in ((first, "tags", "0.45"), (other, "tools", "0.55")):
            words = ["--folder", str(of), "--questions", str(n), "--score", dialect, skill]
            memory = max(memory, timed([sys.executable, __file__, *words])[1])
            scored += float((of / "seconds").read_text())
        size = sum((one / RESULTS).stat().st_size for one in (first, other)) / 1e6
        output = folder / "report.html"
        command = [sys.executable, "-m", "project", "report", str(first), str(other), "--output", str(output)]
        seconds, peak = timed([*command, "--markdown", str(folder / "report.md")])
        page = output.stat().st_size / 1e6
        show({"questions": n, "MB of results": size, "scoring_s": scored, "scoring_peak_gb": memory, "report_s": seconds,
              "report_peak_gb": peak, "MB of page": page})  # fmt: skip


if __name__ == "__main__":
    main()
