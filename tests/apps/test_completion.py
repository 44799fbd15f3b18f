"""`seeker completion`: bash, driven as its Tab key drives it, and what the other shells are given."""

import subprocess

import pytest

from project.apps.completion import script
from project.cli import descriptions, main

PRESS = """
source "$1"; shift
[[ $(complete -p seeker) == *"-F _shtab_seeker"* ]] || exit 3
COMP_WORDS=(seeker "$@"); COMP_CWORD=$#
_shtab_seeker
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def press(tmp_path_factory):
    """Return what bash offers after these words, the last of them begun."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "seeker.bash").write_text(script("bash"))
    (folder / "my config.yaml").touch()

    def run(*words):
        command = ["bash", "--norc", "-c", PRESS, "bash", "seeker.bash", *words]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]

    return run


def test_bash_offers_verbs_options_values_and_files(press):
    assert {"fit", "data", "index", "compare", "init"} <= set(press(""))
    assert press("com") == ["compare", "completion"]
    assert press("data", "s") == ["squad", "steps", "summaries", "split", "show"]
    assert press("index", "build", "--pass") == ["--passages"]
    assert press("index", "build", "--passages", "x", "--bm25.") == [
        "--bm25.k1",
        "--bm25.b",
        "--bm25.stemmer",
        "--bm25.stop_words",
    ]
    assert press("data", "split", "--file_format", "") == ["jsonl", "jsonl.gz", "parquet"]
    assert press("data", "corpus", "--strict", "f") == ["false"]
    assert press("fit", "--config", "my") == ["my config.yaml"]
    assert press("fit", "--trainer.max") == ["--trainer.max_epochs"]
    assert press("data", "show", "my") == ["my config.yaml"]
    assert press("completion", "z") == ["zsh"]
    assert "--from" in press("progressive", "--")


def test_every_verb_is_offered(press):
    for verb in descriptions():
        *group, name = verb.split()
        assert name in press(*group, name[:1]), verb
        assert "--config" in press(*group, name, "--"), verb


@pytest.mark.parametrize(("shell", "begins"), [("zsh", "#compdef seeker"), ("fish", "complete -c seeker")])
def test_the_other_shells(shell, begins, capsys):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert begins in text
    for word in ("retrieval", "drop_near_empty", "ckpt_path"):
        assert word in text


def test_no_other_shell(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "'tcsh' is not accepted, expected one of 'bash', 'zsh', 'fish'" in capsys.readouterr().err
