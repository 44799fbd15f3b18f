"""Whatever the terminal, the pipe or the disk: no escape codes where none are wanted, no stack trace, one sentence."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from project import boundary
from project.cli import main
from project.writing import write_rows

SEEKER = [sys.executable, "-m", "project"]
DEBUG = Path(__file__).resolve().parents[1] / "experiments" / "debug"
UNWRITABLE = Path("/sys/seeker")
"""Where not even root can make a folder."""
CONVERSATION = {
    "id": "c1",
    "messages": [{"role": "user", "content": "Währung der Mongolei? 東京"}, {"role": "assistant", "content": "Tögrög – ₮"}],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder, whose name has a space, with a few non-ASCII files and an index."""
    here = tmp_path / "my data"
    here.mkdir()
    monkeypatch.chdir(here)
    write_rows(
        "passages.jsonl",
        [
            {
                "id": "p1",
                "title": "Ulaanbaatar",
                "text": "Die Währung ist der Tögrög (₮) – 東京 nicht. Hundert Möngö, die niemand prägt.",
            }
        ],
    )
    write_rows("conversations.jsonl", [CONVERSATION])
    assert main(["index", "build", "--passages", "passages.jsonl", "--output_dir", "an index"]) == 0
    return here


SEARCH = ["index", "search", "--index", "an index", "--query", "Tögrög"]
SHOW = ["data", "show", "conversations.jsonl", "--model_path", "tiny-random"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (SHOW, 0),
        (SEARCH, 0),
        (["runs"], 0),
        (["compare", "Größe–東"], 1),
        (["index", "search", "--index", "東京", "--query", "x"], 2),
    ],
)
def test_a_terminal_that_lacks_characters(words, status, encoding, folder, monkeypatch):
    outputs = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in outputs.items():
        monkeypatch.setattr(sys, name, stream)
    assert main(words) == status
    said = b"".join(stream.flush() or stream.buffer.getvalue() for stream in outputs.values()).decode(encoding)
    assert said.strip()
    if words in (SHOW, SEARCH):
        assert ("Währung" if encoding == "latin-1" else "W?hrung") in said
    if status:
        assert said.startswith("seeker: ") and "Traceback" not in said


@pytest.mark.parametrize(
    "variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_a_process_in_a_locale_without_utf_8(variables, folder):
    words = [*SEEKER, "index", "search", "--index", "東京 ö", "--query", "ö"]
    done = subprocess.run(words, env=os.environ | variables, capture_output=True, check=False)
    assert done.returncode == 2
    assert "is not an index (no manifest.json); make one with" in done.stderr.decode("ascii")


def on_a_terminal(words, **variables):
    """Return what a process writes to a terminal."""
    reading, writing = pty.openpty()
    process = subprocess.Popen(words, env=os.environ | variables, stdout=writing, stderr=writing, stdin=subprocess.DEVNULL)
    os.close(writing)
    said = b""
    while True:
        try:
            data = os.read(reading, 65536)
        except OSError:  # its other end is closed
            break
        said += data
    os.close(reading)
    assert process.wait() == 0, said.decode()
    return said.decode()


def test_no_color_means_no_escape_codes(folder):
    assert "\x1b[" in on_a_terminal([*SEEKER, *SEARCH], TERM="xterm", NO_COLOR="", COLUMNS="100")
    plain = on_a_terminal([*SEEKER, *SEARCH], TERM="xterm", NO_COLOR="1", COLUMNS="100")
    assert "\x1b" not in plain
    assert "Ulaanbaatar" in plain
    assert len(plain.splitlines()[1].rstrip()) > 80  # as wide as the terminal


@pytest.mark.slow
def test_no_color_and_the_bar_of_a_training(folder):
    write_rows(
        "others.jsonl",
        [CONVERSATION | {"id": "c2", "messages": [{"role": "user", "content": "Oslo?"}, CONVERSATION["messages"][1]]}],
    )
    files = ["--data.train_file", "conversations.jsonl", "--data.validation_file", "others.jsonl"]
    fit = [*SEEKER, "fit", "--config", str(DEBUG / "sft.yaml"), *files, "--trainer.enable_progress_bar", "true"]
    said = on_a_terminal([*fit, "--trainer.default_root_dir", "run"], TERM="xterm", NO_COLOR="1")
    assert "\x1b" not in said and "1/1" in said
    done = subprocess.run([*fit, "--trainer.default_root_dir", "again"], capture_output=True, text=True, check=True)
    assert "\r" not in done.stdout + done.stderr  # a log is read line by line
    assert len((done.stdout + done.stderr).splitlines()) < 10


@pytest.mark.parametrize("words", [["--help"], SEARCH, ["data", "--help"]], ids=" ".join)
def test_a_reader_that_has_seen_enough(words, folder):
    process = subprocess.Popen([*SEEKER, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()  # as `| head` does, only sooner
    assert process.stderr.read() == b""
    assert process.wait() == 1


def test_a_broken_connection_is_no_reader_that_left(monkeypatch):
    def fail(_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("project.cli._dispatch", fail)
    with pytest.raises(BrokenPipeError):
        main(["runs"])


def test_standard_output_on_a_full_disk_or_closed(folder):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*SEEKER, *SEARCH], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "seeker: the disk is full; free some of it, and run the same command again\n")
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m project --help >&-"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def mounted(tmp_path):
    """Mount a small file system, or skip where that is not allowed."""
    places = []

    def mount(options):
        place = tmp_path / "small disk"
        place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("mounting is not allowed")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


WRITERS = {
    "corpus": ["data", "corpus", "--input_file", "long.md", "--output_file", "{}/p.jsonl"],
    "index": ["index", "build", "--passages", "long.jsonl", "--output_dir", "{}/index"],
    "init": ["init", "{}/lab"],
}


def write_long():
    sentences = [f"Sentence {number} of a long text says nothing of use.\n\n" for number in range(3000)]
    Path("long.md").write_text("".join(sentences))
    write_rows("long.jsonl", [{"id": str(number), "title": "", "text": text} for number, text in enumerate(sentences)])


def one_sentence(capsys, words):
    assert main(words) in (1, 2)
    out, error = capsys.readouterr()
    assert "Traceback" not in out + error
    *_, last = error.splitlines()
    assert last.startswith("seeker: ")
    return last


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_sentence_and_leaves_no_half_of_a_file(writer, folder, mounted, capsys):
    write_long()
    place = mounted("size=16k")
    said = one_sentence(capsys, [word.format(place) for word in WRITERS[writer]])
    assert "disk is full" in said or "No space left on device" in said
    assert not [path for path in place.rglob("*") if path.is_file()]


@pytest.mark.parametrize("where", ["mounted", "system"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_place_that_cannot_be_written_is_one_sentence(writer, where, folder, request, capsys):
    if where == "mounted":
        place, reasons = request.getfixturevalue("mounted")("ro"), ("Read-only file system",)
    else:
        place, reasons = UNWRITABLE, ("Operation not permitted", "Permission denied")
    write_long()
    said = one_sentence(capsys, [word.format(place) for word in WRITERS[writer]])
    assert any(reason in said for reason in reasons)
    assert str(place) in said


def test_a_training_into_a_place_that_cannot_be_written(folder, capsys):
    files = ["--data.train_file", "conversations.jsonl", "--data.validation_file", "conversations.jsonl"]
    words = ["fit", "--config", str(DEBUG / "sft.yaml"), *files, "--data.check_split", "false"]
    said = one_sentence(capsys, [*words, "--trainer.default_root_dir", str(UNWRITABLE / "run")])
    assert str(UNWRITABLE) in said


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device", "a file"), RuntimeError("x: No space left on device (os error 28)")]
)
def test_a_full_disk_is_known_whatever_the_library_says(error):
    assert boundary.machine_sentence(error).startswith("the disk is full")
    wrapped = ValueError("could not save")
    wrapped.__cause__ = error
    assert boundary.machine_sentence(wrapped).startswith("the disk is full")


@pytest.mark.parametrize("below", ["out.jsonl", "deep/out.jsonl"])
def test_a_file_where_a_folder_is_needed(below, folder, capsys):
    words = ["data", "traces", "--input_file", "conversations.jsonl", "--output_file", f"passages.jsonl/{below}"]
    assert "passages.jsonl is a file where a folder is needed" in one_sentence(capsys, words)


def test_a_defect_keeps_its_stack_trace(monkeypatch):
    def fail(_):
        raise ValueError("a defect")

    monkeypatch.setattr("project.cli._dispatch", fail)
    with pytest.raises(ValueError, match="a defect"):
        main(["runs"])
