"""Seconds and memory of a command, for the other benchmarks; by itself: of the command that it is given.

    python scripts/benchmarks/measured.py COMMAND ARGUMENT…

Memory is the most anonymous memory (what is not mapped from files) of the command and all its children at one time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Peak(threading.Thread):
    """Samples the anonymous memory of a process and its children."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.kilobytes = pid, 0

    def run(self) -> None:
        """Look 10 times a second until the process is gone."""
        while Path(f"/proc/{self.pid}/status").exists():
            self.kilobytes = max(self.kilobytes, sum(memory(pid).get("RssAnon", 0) for pid in _family(self.pid)))
            time.sleep(0.1)


def _family(pid: int) -> list[int]:
    try:
        children = [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]
    except OSError:
        return []
    return [pid, *(one for child in children for one in _family(child))]


def memory(pid: int | str = "self") -> dict[str, int]:
    """Return a process's memory in kilobytes: `RssAnon` is its own, `RssFile` is mapped from files."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if name.startswith("Rss")}


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Run a command; return its seconds and its peak memory in GB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = Peak(process.pid)
    peak.start()
    if process.wait():
        sys.exit(f"{' '.join(command)} failed")
    return time.perf_counter() - started, peak.kilobytes / 1e6


def folder_bytes(folder: Path) -> int:
    """Return what a folder's files hold."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def show(found: dict[str, Any]) -> None:
    """Print a line of JSON."""
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}), flush=True)


def main() -> None:
    """Measure a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    command = parser.parse_args().command
    seconds, peak = timed(command)
    show({"command": " ".join(command), "seconds": seconds, "peak_gb": peak})


if __name__ == "__main__":
    main()
