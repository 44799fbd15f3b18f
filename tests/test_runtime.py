"""The process's allocator: tcmalloc from the start where the system has it, and before that what the user chose."""

import asyncio
import os
import subprocess
import sys

import pytest

from project import runtime

REPORT = (
    "from project.runtime import start_with_tcmalloc\nimport os, sys\nstart_with_tcmalloc()\n"
    "print(os.getpid(), sys.argv[1:], 'libtcmalloc' in open('/proc/self/maps').read())"
)


def started(tmp_path, *args, **environment):
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "LD_PRELOAD"))}
    with subprocess.Popen(
        [sys.executable, str(script), *args], stdout=subprocess.PIPE, text=True, env=clean | environment
    ) as process:
        return process.pid, process.communicate(timeout=60)[0]


@pytest.fixture
def installed():
    from pathlib import Path

    if not any(list(Path("/").glob(folder)) for folder in runtime._LIBRARIES):
        if os.environ.get("CI"):
            pytest.fail("libtcmalloc-minimal4 of scripts/apt-packages.txt is not installed")
        pytest.skip("needs libtcmalloc_minimal.so.4")


@pytest.mark.usefixtures("installed")
def test_a_process_starts_over_with_tcmalloc_under_its_own_id_and_arguments(tmp_path):
    pid, said = started(tmp_path, "fit", "two words")
    assert said == f"{pid} ['fit', 'two words'] True\n"


@pytest.mark.parametrize("chosen", [{"MALLOC_ARENA_MAX": "2"}, {"LD_PRELOAD": ""}])
def test_an_allocator_that_the_user_chose_stays(tmp_path, chosen):
    _, said = started(tmp_path, **chosen)
    assert said.endswith("[] False\n")


def test_without_the_library_the_process_goes_on(monkeypatch):
    monkeypatch.setattr(runtime, "_LIBRARIES", ["usr/lib/nowhere-*/libtcmalloc_minimal.so.4"])
    again = []
    monkeypatch.setattr(os, "execve", lambda *command: again.append(command))
    runtime.start_with_tcmalloc()
    assert again == []


def test_only_a_verb_typed_at_a_terminal_starts_over(monkeypatch):
    """`main([...])` is called from Python, by tests and notebooks, whose process must stay."""
    from project import cli

    monkeypatch.setattr(cli, "start_with_tcmalloc", lambda: pytest.fail("started over"))
    assert cli.main(["no-such-verb"]) == 2
    monkeypatch.setattr(sys, "argv", ["seeker", "--help"])
    assert cli.main() == 0


def test_a_command_may_run_an_event_loop_inside_a_notebooks():
    async def cell() -> int:
        with runtime.own_event_loops():
            found = asyncio.run(asyncio.sleep(0, 3))
        return found + await asyncio.sleep(0, 1)  # the notebook's own goes on

    assert asyncio.run(cell()) == 4
    with runtime.own_event_loops():
        assert asyncio.run(asyncio.sleep(0, 5)) == 5
