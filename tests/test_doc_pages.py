"""The commands of the pages in docs/ run, page by page, in the order and with the files in which they stand there.

`how-to/extend.md` is run by `experiments/test_extend_page.py`. Blocks that need minutes or what `doc_needs.py` gives are slow.
"""

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from doc_blocks import DOCS, ROOT, blocks, script
from doc_needs import NEEDS
from stores import BINARIES, free_port

RUN_ELSEWHERE = {"how-to/extend.md"}
PAGES = [page for page in sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")) if page not in RUN_ELSEWHERE]
QUICK = ["from/squad.md", "from/deepsearch.md", "from/distillation.md", "from/summary.md", "how-to/shared-index.md"]
"""Pages that also run without their slow blocks, in well under a minute each."""
SLOW = [
    page
    for page in PAGES
    if any(block.is_run(slow=True) and (page not in QUICK or not block.is_run()) for block in blocks(page))
]
SECONDS, SLOW_SECONDS = 300, 3000


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("page", QUICK)
def test_the_quick_commands_of_a_page_run(page, tmp_path):
    run(script(blocks(page), slow=False), tmp_path, SECONDS)


@pytest.mark.slow
@pytest.mark.timeout(SLOW_SECONDS + 60)
@pytest.mark.parametrize("page", SLOW)
def test_the_commands_of_a_page_run(page, tmp_path, missing):
    found = blocks(page)
    if not BINARIES and any(block.title == "needs PostgreSQL" for block in found):
        missing("PostgreSQL: apt-get install postgresql")
    text = _with_free_ports(script(found, slow=True))
    with ExitStack() as stack:
        for title in sorted({block.title for block in found} & set(NEEDS)):
            for said, given in stack.enter_context(NEEDS[title]()).items():
                assert said in text, f"{page} says nothing of {said}"
                text = text.replace(said, given)
        run(text, tmp_path, SLOW_SECONDS)


def run(text: str, folder: Path, seconds: float) -> None:
    for name in ("experiments", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    status, said = _bash(text, folder, seconds)
    assert status == 0, said[-4000:]
    assert "Traceback" not in said, said[-4000:]


def _with_free_ports(text: str) -> str:
    """Return the script with a free port in place of each that it opens by `--port`, on this machine alone."""
    for port in sorted(set(re.findall(r"--port[ =](\d+)", text))):
        text = re.sub(rf"(--port[ =]|:|answers ){port}\b", rf"\g<1>{free_port()}", text)
    return text.replace("--host 0.0.0.0", "--host 127.0.0.1")


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
