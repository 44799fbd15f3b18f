"""Time and memory of `seeker data corpus` over rows.

    python scripts/benchmarks/corpus.py --folder DIR [--gigabytes 1]

Makes a file of JSON lines, each with an id, a title and some 1,600 characters of made-up sentences, and turns it into passages:
rows whole, rows cut into sentences, and cut without duplicates. Prints one JSON line a way.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from measured import show, timed
from retrieval import draw

SENTENCE, SENTENCES = 14, 24
"""Words, and sentences of a row."""
WAYS = {
    "whole": [],
    "sentences": ["--strategy", "sentences"],
    "sentences, no duplicates": ["--strategy", "sentences", "--drop_duplicates", "true"],
}


def write_rows(path: Path, size: int) -> int:
    """Write rows until the file is that long; return how many."""
    pool, dice, count = draw(20_000, SENTENCE, 0), random.Random(0), 0
    with path.open("w") as out:
        while out.tell() < size:
            text = " ".join(f"{sentence.capitalize()}." for sentence in dice.choices(pool, k=SENTENCES))
            out.write(json.dumps({"id": str(count), "title": f"Document {count}", "text": text}) + "\n")
            count += 1
    return count


def main() -> None:
    """Run the ways one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = options.folder / "rows.jsonl"
    count = write_rows(rows, int(options.gigabytes * 1e9))
    command = [sys.executable, "-m", "project", "data", "corpus", "--input_file", str(rows), "--force", "true"]
    for way, arguments in WAYS.items():
        output = options.folder / "passages.parquet"
        seconds, peak = timed([*command, "--output_file", str(output), *arguments])
        show({"way": way, "rows": count, "seconds": seconds, "rows_per_s": count / seconds, "peak_gb": peak})


if __name__ == "__main__":
    main()
