"""Time and memory of `seeker report` over two results of the same questions, the whole command: figures, plots and page.

    python scripts/benchmarks/report.py --questions 2000 10000 --folder /tmp/report

The results are made up: one is of the tags dialect, the other of tools, with searches, three documents each, an answer and
all metrics of an agent. One JSON line a number of questions; `MB of results` is what both files hold.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from measured import show, timed

from project.dialects import Action, get_dialect
from project.evaluation.results import RESULTS, SUMMARY
from project.records import DialectName, Document, Message, Row
from project.writing import write_rows

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


def rows(n: int, name: DialectName, skill: float) -> Iterator[Row]:
    """Yield an episode a question; `skill` is the share of right answers."""
    for number in range(n):
        of_question, draw = random.Random(number), random.Random(f"{number} {name}")
        question, answer, kind = text(of_question, 12), text(of_question, 2), of_question.choice(KINDS)
        searches, is_right = min(int(draw.expovariate(0.6)), 8), draw.random() < skill
        said = messages(draw, name, question, answer if is_right else text(draw, 2), searches)
        length = float(sum(len(message.content) for message in said) // 4)
        gold = [] if kind == "unanswerable" else [f"p{number}"] + [f"r{number}"] * (kind != "one_hop")
        found = gold[: min(searches, 2)]
        needs = of_question.random() < 0.7
        yield {
            "question_id": f"q{number:06}", "group": f"q{number:06}", "kind": kind, "sample": 0, "question": question,
            "answers": [answer], "needs_search": needs, "prediction": answer if is_right else "unknown", "finish": "answer",
            "error": "", "evidence": gold, "retrieved": found, "messages": [message.to_row() for message in said],
            **{metric: float(is_right) for metric in ("em", "cover_em", "finish_answer")},
            "f1": 1.0 if is_right else round(draw.random() * 0.6, 2), "reward": is_right * 0.9 + 0.1 * draw.random(),
            "decision_accuracy": float((searches > 0) == needs), "searches": float(searches), "contexts": 1.0,
            "search_probability": min(1.0, max(0.0, draw.gauss(0.7 if needs else 0.4, 0.2))), "turns": searches + 1.0,
            "repeated_queries": float(draw.random() < 0.1), "evidence_recall": len(found) / len(gold) if gold else float("nan"),
            "evidence_precision": len(found) / (3 * searches) if gold and searches else float("nan"),
            "answered_without_evidence": float(not found), "read_tokens": length, "refused_wrongly": float(draw.random() < 0.1),
            "generated_tokens": 60.0 * searches + draw.randrange(80), "peak_context": length, "history_tokens": length,
        }  # fmt: skip


def write(folder: Path, n: int, name: DialectName, skill: float) -> Path:
    """Write results and return their folder."""
    write_rows(folder / RESULTS, rows(n, name, skill))
    settings = {"dialect": name, "temperature": 0.0, "top_k": 3}
    about = {"task": "agent", "run": folder.name, "run_id": None, "model_path": f"models/{name}", "n": n, "metrics": {}}
    about |= {"test_file": "test.jsonl", "test_digest": "0123456789abcdef", "settings": settings}
    (folder / SUMMARY).write_text(json.dumps(about), encoding="utf-8")
    return folder


def main() -> None:
    """Make results of each size and report them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, nargs="+", default=[2000, 10_000])
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    for n in options.questions:
        folder = options.folder / str(n)
        first, other = write(folder / "sft", n, "tags", 0.45), write(folder / "ppo", n, "tools", 0.55)
        size = sum((one / RESULTS).stat().st_size for one in (first, other)) / 1e6
        output = folder / "report.html"
        command = [sys.executable, "-m", "project", "report", str(first), str(other), "--output", str(output)]
        seconds, peak = timed([*command, "--markdown", str(folder / "report.md")])
        page = output.stat().st_size / 1e6
        show({"questions": n, "MB of results": size, "seconds": seconds, "peak_gb": peak, "MB of page": page})


if __name__ == "__main__":
    main()
