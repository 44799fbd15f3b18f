"""The table of all models on all tasks, from what `scripts/results.sh` measured, into README.md and experiments/README.md.

    python scripts/results.py lightning_logs/results README.md experiments/README.md

Each `FOLDER/MODEL/TASK/summary.json` gives cells; the table stands between `<!-- results -->` and `<!-- /results -->`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from project.writing import write_text

COLUMNS = {
    "decision": {"decision_macro_f1": "decides: macro-F1", "decision_auroc": "AUROC", "decision_ece": "ECE"},
    "summary": {
        "summarised": "writes a summary",
        "quoted": "sentences from the source",
        "own_f1": "F1 from its own",
        "given_f1": "F1 from a given one",
        "full_f1": "F1 from all it read",
    },
    "agent": {"em": "agent: EM", "f1": "F1", "evidence_recall": "evidence found", "searches": "searches"},
    "folding": {"em": "folding agent: EM", "f1": "F1", "peak_context": "longest context"},
}
"""Metrics by task: `summary` holds two, summary and reasoning from it; `folding` is the agent that must fold."""
BEGIN, END = "<!-- results -->", "<!-- /results -->"


def cell(summary: dict[str, Any], metric: str) -> str:
    """Return `0.43 [0.36, 0.50]`, or a dash where the metric applied to nothing."""
    one = summary.get("metrics", {}).get(metric)
    if one is None:
        return ""
    digits = 0 if abs(one["mean"]) >= 100 else 2
    return f"{one['mean']:.{digits}f} [{one['low']:.{digits}f}, {one['high']:.{digits}f}]"


def table(folder: Path) -> str:
    """Return the table in Markdown, a row a model; the header names each task's n and file."""
    found = {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/*/summary.json"))}
    models = sorted({path.parent for path in found}, key=lambda path: (path.name != "base", path.name))
    tasks = [task for task in COLUMNS if any(path.name == task for path in found)]
    heads = ["model", *(title for task in tasks for title in COLUMNS[task].values())]
    rows = [
        [model.name, *(cell(found.get(model / task, {}), metric) for task in tasks for metric in COLUMNS[task])]
        for model in models
    ]
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    sizes = {task: sorted({int(of["n"]) for path, of in found.items() if path.name == task}) for task in tasks}
    files = {task: next(of["test_file"] for path, of in found.items() if path.name == task) for task in tasks}
    said = "; ".join(f"{task} n = {' or '.join(map(str, sizes[task]))} of `{files[task]}`" for task in tasks)
    return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), "", f"Means with 95 % intervals; {said}."])


def main() -> None:
    """Write the table into the files named."""
    folder, *files = map(Path, sys.argv[1:])
    text = table(folder)
    for path in files:
        before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            sys.exit(f"{path} has no place for the results; put {BEGIN} and {END} on lines of their own")
        write_text(path, f"{before}{BEGIN}\n{text}\n{END}{after}")
    print(text)


if __name__ == "__main__":
    main()
