"""The ways to cut a document, by what a search in its passages brings back: recall of the text that answers a question.

    python scripts/benchmarks/chunking.py --document mission_report.md --questions questions.jsonl

Each question row holds `question` and `supporting_paragraphs`, texts of the document (compared by letters and digits, tags
left out). A question's passages are read best first until a budget of characters is used up, the last one cut: so no way
gains by longer passages. Recall is the share of the supporting characters among those read, averaged over questions. BM25;
one JSON line a way, with a 95 % interval that resamples questions.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np

from project.corpus.documents.cut import Cutting, pieces
from project.corpus.documents.read import Source, read_document
from project.corpus.index import Index
from project.files import read_rows
from project.records import Passage

WAYS = [("fixed", n) for n in (500, 1000, 2000)] + [("tokens", n) for n in (128, 256, 512)]
WAYS += [(name, n) for name in ("sentences", "paragraphs", "sections") for n in (500, 1000, 2000)]
BUDGETS = (1500, 3000, 6000)


def places(text: str) -> tuple[str, np.ndarray]:
    """Return the letters and digits of a text, tags left out, and the offset of each."""
    hidden = np.zeros(len(text), bool)
    for tag in re.finditer(r"<[^<>]*>", text):
        hidden[slice(*tag.span())] = True
    offsets = np.array([i for i, char in enumerate(text) if char.isalnum() and not hidden[i]])
    return "".join(text[i].lower()[0] for i in offsets), offsets


def supports(document: Source, questions: list[dict]) -> list[np.ndarray]:
    """Return for each question the offsets of the characters that support its answer."""
    plain, offsets = places(document.text)
    found = []
    for row in questions:
        mask = np.zeros(len(offsets), bool)
        for paragraph in row["supporting_paragraphs"]:
            wanted = places(paragraph)[0]
            start = plain.find(wanted)
            if start < 0:
                raise SystemExit(f"a supporting paragraph of question {row['id']} is not in the document: {paragraph[:60]!r}")
            mask[start : start + len(wanted)] = True
        found.append(offsets[mask])
    return found


def recalls(passages: list[Passage], questions: list[dict], supported: list[np.ndarray], length: int) -> dict[int, list[float]]:
    """Return each question's recall by the budget of characters."""
    index = Index.from_passages(passages)
    found: dict[int, list[float]] = {budget: [] for budget in BUDGETS}
    for row, wanted in zip(questions, supported, strict=True):
        hits = index.find([row["question"]], len(passages))[0]
        for budget in BUDGETS:
            read, left = np.zeros(length, bool), budget
            for hit in hits:
                taken = min(left, hit.passage.end - hit.passage.start)
                read[hit.passage.start : hit.passage.start + taken] = True
                left -= taken
            found[budget].append(float(read[wanted].mean()))
    return found


def main() -> None:
    """Compare the ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--document", type=Path, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    options = parser.parse_args()
    document = read_document(options.document, options.document.name)
    questions = [row for _, row in read_rows(options.questions)]
    supported = supports(document, questions)
    draws = np.random.default_rng(0).integers(len(questions), size=(2000, len(questions)))
    for name, size in WAYS:
        for overlap in (0, size // 4):
            passages = list(pieces(document, Cutting(name, size, overlap)))
            row = {"strategy": name, "size": size, "overlap": overlap, "passages": len(passages), "n": len(questions)}
            row["mean_characters"] = round(float(np.mean([len(p.text) for p in passages])))
            for budget, values in recalls(passages, questions, supported, len(document.text)).items():
                low, high = np.quantile(np.array(values)[draws].mean(1), (0.025, 0.975))
                row[f"recall_{budget}"] = [round(float(x), 3) for x in (np.mean(values), low, high)]
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
