"""Time and memory of the trace programs, against the same functions in a plain loop over JSON lines.

    python scripts/benchmarks/traces.py --traces 100000 --folder /tmp/traces

Made-up traces of about 5 KB with three results each go through traces, steps, summaries, phases and split, and through prepare,
which makes the same sets at once. Each program runs as a user runs it and, right after, as a plain loop: the same function of a
row, `json` on one core, files of JSON lines. Memory is the most anonymous memory of all processes of a program at one time.
Prints one JSON line a program, and one for the chain.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

from measured import folder_bytes, show, timed

WORDS = [
    "river", "capital", "treaty", "engine", "copper", "winter", "museum", "signal",
    "harbour", "theory", "garden", "planet", "border", "ballad", "archive", "bridge",
]  # fmt: skip
CHAIN = ("traces", "steps", "summaries", "phases", "split")
PHASES = ("multiturn", "summary_only", "summary_prefix", "previous_turn")


def write_raw(path: Path, count: int) -> None:
    """Write made-up traces in the normalised format."""
    with path.open("w") as out:
        for number in range(count):
            dice = random.Random(number)
            out.write(json.dumps(_raw(number, dice)) + "\n")


def _raw(number: int, dice: random.Random) -> dict[str, Any]:
    def text(words: int) -> str:
        return " ".join(dice.choices(WORDS, k=words)).capitalize() + "."

    steps: list[dict[str, Any]] = []
    for _turn in range(3):
        steps.append({"type": "thought", "text": f"{text(12)} {text(8)}"})
        steps.append({"type": "action", "name": "search", "argument": text(5)})
        found = "\n\n".join(f"Doc {n} (Title: {text(2)})\n" + " ".join(text(9) for _ in range(6)) for n in range(1, 4))
        steps.append({"type": "observation", "text": found})
    steps += [{"type": "thought", "text": text(10)}, {"type": "action", "name": "finish", "argument": text(2)}]
    return {"id": f"t{number}", "question": f"{text(9)} {number}?", "gold_answers": [text(2)], "correct": True, "steps": steps}


def seeker(verb: str, folder: Path, suffix: str) -> list[str]:
    """Return the command of a program."""
    made_from = {"steps": "traces", "summaries": "steps", "phases": "summaries"}
    sources = {
        "split": [folder / "phases" / f"{phase}.{suffix}" for phase in PHASES],
        "traces": [folder / "raw.jsonl"],
        "prepare": [folder / "raw.jsonl"],
    }.get(verb) or [folder / f"{made_from[verb]}.{suffix}"]
    outputs = {
        "phases": ["--output_dir", str(folder / "phases"), "--file_format", suffix],
        "split": ["--output_dir", str(folder / "sets"), "--file_format", suffix],
        "prepare": ["--output_dir", str(folder / "prepared")],
    }.get(verb, ["--output_file", str(folder / f"{verb}.{suffix}")])
    listed = f"[{','.join(map(str, sources))}]"
    return [sys.executable, "-m", "project", "data", verb, "--input_file", listed, *outputs, "--force", "true"]


def plain(verb: str, folder: Path) -> None:
    """Do a program's work in a loop."""
    from functools import partial

    from project.streams import each
    from project.traces import ingest, phases, split, steps, summaries
    from project.traces.filters import Filters

    shares = {"validation": 0.1, "test": 0.0}
    programs: dict[str, tuple[list[str], Any]] = {
        "traces": (["raw"], partial(ingest.ingest, "auto", Filters())),
        "steps": (["traces"], partial(each, partial(steps._split_row, True))),
        "summaries": (["steps"], partial(each, partial(summaries._summarise_row, summaries.MAX_WORDS))),
        "phases": (["summaries"], partial(each, partial(phases.of_row, phases.Settings()))),
        "split": ([f"phases/{phase}" for phase in PHASES], partial(each, partial(split._place, "question", 0, shares, {}))),
    }
    names, program = programs[verb]
    (folder / "plain").mkdir(exist_ok=True)
    for name in names:
        _loop(folder / f"{name}.jsonl", program, folder / "plain" / f"{verb}-{Path(name).name}")


def _loop(source: Path, program: Any, output: Path) -> None:  # noqa: ANN401 - a Program
    from project.streams import Made, Placed

    files: dict[str, Any] = {}
    with source.open() as lines:
        for number, line in enumerate(lines, 1):
            made = Made()
            assert not list(program([Placed(source, number, json.loads(line))], made))
            for name, rows in made.rows.items():
                if name not in files:
                    files[name] = Path(f"{output}-{name}.jsonl").open("w")  # noqa: SIM115 - closed below
                files[name].writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for file in files.values():
        file.close()


def main() -> None:
    """Run the chain, or with --plain one program as a loop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--plain", choices=CHAIN)
    parser.add_argument("--parquet", action="store_true", help="write Parquet, and run no plain loop")
    arguments = parser.parse_args()
    if arguments.plain:
        plain(arguments.plain, arguments.folder)
        return
    folder, suffix = arguments.folder, "parquet" if arguments.parquet else "jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    write_raw(folder / "raw.jsonl", arguments.traces)
    total = {"seeker_s": 0.0, "plain_s": 0.0}
    for verb in (*CHAIN, "prepare"):
        seconds, memory = timed(seeker(verb, folder, suffix))
        found = {"program": verb, "seeker_s": seconds, "traces_per_s": arguments.traces / seconds, "peak_gb": memory}
        if verb in CHAIN:
            total["seeker_s"] += seconds
            if not arguments.parquet:
                found["plain_s"], _ = timed([sys.executable, __file__, "--plain", verb, "--folder", str(folder)])
                total["plain_s"] += found["plain_s"]
        show(found | {"folder_gb": folder_bytes(folder) / 1e9})
    show({"program": "the chain"} | total)


if __name__ == "__main__":
    main()
