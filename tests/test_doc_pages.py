"""The commands of the pages in docs/ run, page by page, in the order and with the files in which they stand there.

`how-to/extend.md` is run by `experiments/test_extend_page.py`. Blocks that need minutes are run with the slow pages.
"""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from doc_blocks import DOCS, ROOT, blocks, script

QUICK = {"from/squad.md", "from/deepsearch.md", "from/distillation.md", "from/summary.md", "how-to/shared-index.md"}
RUN_ELSEWHERE = {"how-to/extend.md"}
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
RUN = [page for page in PAGES if page not in RUN_ELSEWHERE and any(block.is_run(minutes=True) for block in blocks(page))]
SECONDS = {True: 300, False: 3000}
"""For a page: a quick one, and any other."""


@pytest.mark.timeout(SECONDS[False] + 60)
@pytest.mark.parametrize(
    "page", [page if page in QUICK else pytest.param(page, marks=pytest.mark.slow, id=page) for page in RUN]
)
def test_the_commands_of_a_page_run(page, tmp_path):
    found = blocks(page)
    text = _with_free_ports(script(found, minutes=page not in QUICK))
    for name in ("experiments", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    status, said = _bash(text, tmp_path, SECONDS[page in QUICK])
    assert status == 0, said[-4000:]
    assert "Traceback" not in said, said[-4000:]


def test_quick_pages_are_pages_without_blocks_that_need_minutes():
    for page in QUICK:
        assert page in RUN
        assert not [b.title for b in blocks(page) if b.is_run(minutes=True) and not b.is_run()]


def _with_free_ports(text: str) -> str:
    """Return the script with a free port in place of each that it opens by `--port`."""
    for port in sorted(set(re.findall(r"--port[ =](\d+)", text))):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            text = re.sub(rf"(--port[ =]|(?:localhost|127\.0\.0\.1):){port}\b", rf"\g<1>{found.getsockname()[1]}", text)
    return text


def _bash(text: str, folder: Path, seconds: float) -> tuple[int, str]:
    """Run a script and give back what it left running; return its status and what it said."""
    log = folder / "page.log"
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}
    with log.open("w") as output:
        running = subprocess.Popen(
            ["bash", "-x", "-c", text],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = running.wait(seconds)
        except subprocess.TimeoutExpired:
            status = -1
        finally:
            _end_group(running.pid)
    return status, log.read_text("utf-8", errors="replace")


def _end_group(group: int) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(group, how)
        except ProcessLookupError:
            return
        if how == signal.SIGTERM:
            subprocess.run(["sleep", "1"], check=True)
