"""Time conversations to planned samples: the first time, and from the cache.

    seeker data squad --input_file ../shared/data/squad/squad2-dev.json.gz --output_dir data/squad
    python scripts/benchmarks/tokenise.py --conversations data/squad/conversations_train.jsonl --copies 8

`--copies` writes the conversations several times over, each under an id and with a question of its own, so that a few thousand
of them make a file long enough to time. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from project.runtime import prepare_process

prepare_process()

from project.datamodules.plan import PlannedLoader  # noqa: E402
from project.datamodules.samples import tokenised  # noqa: E402
from project.modules.policy import AgentSettings, load_tokenizer, resolve_model_path  # noqa: E402
from project.rendering import Renderer  # noqa: E402


def copies(path: Path, times: int, target: Path) -> int:
    """Write the conversations `times` times over and return how many there are."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    with target.open("w") as stream:
        for number in range(times):
            for row in rows:
                messages = [m | {"content": f"{number} {m['content']}"} if m["role"] == "user" else m for m in row["messages"]]
                stream.write(json.dumps(row | {"id": f"{row['id']}-{number}", "messages": messages}) + "\n")
    return times * len(rows)


def main() -> None:
    """Print what each part took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=Path, required=True)
    parser.add_argument("--copies", type=int, default=1)
    given = parser.parse_args()
    dialect = AgentSettings().make_dialect()
    tokenizer, _ = load_tokenizer(resolve_model_path(None), dialect)
    renderer = Renderer(tokenizer, dialect)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch
        path = Path(scratch) / "rows.jsonl"
        count = copies(given.conversations, given.copies, path)
        seconds = {}
        for name in ("first", "cached"):
            started = time.perf_counter()
            samples = tokenised(path, renderer)
            read = time.perf_counter()
            loader = PlannedLoader(samples, 0, 4096, 4)
            next(iter(loader))
            seconds[name], seconds[f"{name}_plan"] = read - started, time.perf_counter() - read
    tokens = sum(samples.column("tokens"))
    found = {f"{name}_s": round(value, 2) for name, value in seconds.items()}
    rate = 60 * count / (seconds["first"] + seconds["first_plan"])
    print(json.dumps({"conversations": count, "tokens": tokens, **found, "first_per_minute": round(rate)}))


if __name__ == "__main__":
    main()
