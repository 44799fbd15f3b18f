"""The table of all models on all tasks, from what `scripts/results.sh` measured, into README.md and experiments/README.md.

    python scripts/results.py lightning_logs/results README.md experiments/README.md

Each `FOLDER/MODEL/TASK/summary.json` gives cells; the table stands between `<!-- results -->` and `<!-- /results -->`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from project.evaluation.kept import read_kept
from project.evaluation.results import RESULTS
from project.tracking.paired import PairedResult
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
BASE = "base"
BEGIN, END = "<!-- results -->", "<!-- /results -->"


def cell(summary: dict[str, Any], metric: str, change: PairedResult | None) -> str:
    """Return `0.43 [0.36, 0.50] n=200`, bold where it differs from the base's on the same questions; a dash for none."""
    one = summary.get("metrics", {}).get(metric)
    if one is None or one["low"] is None:
        return "-"
    digits = 0 if abs(one["mean"]) >= 100 else 2
    mark = "**" if change is not None and change.p < 0.05 else ""
    few = f" in {one['groups']} groups" if one["groups"] < one["n"] else ""
    return f"{mark}{one['mean']:.{digits}f}{mark} [{one['low']:.{digits}f}, {one['high']:.{digits}f}] n={one['n']}{few}"


def changes(folder: Path, model: str, task: str) -> dict[str, PairedResult]:
    """Return a model's paired differences from the base by metric; none where either was not measured."""
    files = [folder / name / task / RESULTS for name in (BASE, model)]
    if model == BASE or not all(file.is_file() for file in files):
        return {}
    base, other = map(read_kept, files)
    return {one.metric: one for one in base.against(other)}


def table(folder: Path) -> str:
    """Return the table in Markdown, a row a model; below it the files that the tasks are of."""
    found = {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/*/summary.json"))}
    models = sorted({path.parent.name for path in found}, key=lambda name: (name != BASE, name))
    tasks = [task for task in COLUMNS if any(path.name == task for path in found)]
    heads = ["model", *(title for task in tasks for title in COLUMNS[task].values())]
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)]]
    for model in models:
        line = [model]
        for task in tasks:
            paired = changes(folder, model, task)
            line += [cell(found.get(folder / model / task, {}), metric, paired.get(metric)) for metric in COLUMNS[task]]
        lines.append(line)
    files = {task: sorted({of["test_file"] for path, of in found.items() if path.name == task}) for task in tasks}
    said = "; ".join(f"{task}: {', '.join(f'`{file}`' for file in files[task])}" for task in tasks)
    note = f"Means with 95 % intervals; bold: another than {BASE}'s on the same questions, paired p below 0.05. {said}."
    return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), "", note])


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
