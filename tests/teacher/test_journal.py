"""What a job has finished, on the disk (DESIGN §8.3): killed at any byte, it holds all entries that were whole."""

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from project.errors import InputError
from project.teacher.journal import Journal, key_of

A, B = key_of("a"), key_of("b")


def test_what_was_added_is_there_when_it_is_opened_again(tmp_path):
    path = tmp_path / "deep" / "j.jsonl"
    with Journal(path) as journal:
        journal.add(A, {"reply": "a"})
        journal.add(B, {"reply": "\ud800 half a pair"})
        assert journal.get(A) == {"key": A, "reply": "a"}
    with Journal(path) as journal:
        assert A in journal
        assert journal.get(B) == {"key": B, "reply": "\ud800 half a pair"}
        assert journal.get(key_of("c")) is None


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(max_size=20), min_size=1, max_size=5), cut=st.integers(0, 400))
def test_a_line_that_a_kill_has_cut_is_cut_away(tmp_path_factory, texts, cut):
    path = tmp_path_factory.mktemp("j") / "j.jsonl"
    with Journal(path) as journal:
        ends = []
        for number, text in enumerate(texts):
            journal.add(key_of(number), {"text": text})
            ends.append(path.stat().st_size)
    os.truncate(path, min(cut, ends[-1]))
    with Journal(path) as journal:
        for number, (text, end) in enumerate(zip(texts, ends, strict=True)):
            assert journal.get(key_of(number)) == ({"key": key_of(number), "text": text} if end <= cut else None)
        journal.add(B, {"text": "after"})
        assert journal.get(B) == {"key": B, "text": "after"}
    with Journal(path) as journal:
        assert journal.get(B) == {"key": B, "text": "after"}


def test_two_jobs_on_one_output_the_second_is_refused_and_a_killed_ones_lock_is_gone(tmp_path):
    path = tmp_path / "j.jsonl"
    code = f"""
from pathlib import Path
from project.teacher.journal import Journal
with Journal(Path({str(path)!r})):
    print("open", flush=True)
    input()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "open\n"
    with (
        pytest.raises(InputError, match=r"^another job writes .*j\.jsonl; wait for it to end, or give another output$"),
        Journal(path),
    ):
        pass
    holder.kill()
    holder.wait()
    with Journal(path) as journal:
        assert A not in journal


def test_a_line_that_is_no_entry_is_named(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.add(A, {})
    with path.open("a") as file:
        file.write("nonsense\n")
    with pytest.raises(InputError, match=r"j\.jsonl, line 2: no entry of a journal"), Journal(path):
        pass


def test_a_full_disk_leaves_whole_lines_only(tmp_path):
    """As `ulimit -f` fills it: the last entry is cut or refused by the system, and what stays is what was added before."""
    path = tmp_path / "j.jsonl"
    code = f"""
import resource, signal
from pathlib import Path
from project.errors import InputError
from project.teacher.journal import Journal, key_of
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
added = 0
with Journal(Path({str(path)!r})) as journal:
    try:
        for number in range(100):
            journal.add(key_of(number), {{"text": "x" * 50}})
            added += 1
    except InputError as error:
        print(added, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added, _, said = done.stdout.partition(" ")
    assert 5 < int(added) < 20
    assert "cannot be written" in said
    assert "run the same command again" in said
    with Journal(path) as journal:
        assert [key_of(number) in journal for number in range(int(added) + 1)] == [True] * int(added) + [False]
