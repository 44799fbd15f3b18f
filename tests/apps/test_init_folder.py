"""`seeker init`: a folder whose README.md says what really runs, from documents to a tested agent."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from teacher.openai_stub import Stub, completion

from project.apps import init_folder
from project.cli import VERBS, function_of, main
from project.dialects import get_dialect
from project.files import read_rows
from project.verb_parser import make_parser
from project.writing import write_rows

TOWNS = ("Dor", "Elm", "Fro", "Gex", "Hay", "Ilz", "Jos", "Kew", "Lod", "Mur", "Nas", "Oka", "Pau", "Rye", "Sax", "Ulm")
TEACHER = "http://127.0.0.1:8000/v1"
"""As the README has it."""
TINY = ["--model.model_path=tiny-random", "--model.lora={rank: 2, alpha: 4}", "--model.precision=float32"]
CPU = ["--trainer.accelerator=cpu", "--trainer.precision=32"]
SMALL = ["--model.engine=transformers", "--model.limits={max_turns: 2, turn_tokens: 8, context_tokens: 4096}"]
PPO = ["--model.ppo={episodes_per_question: 2}", "--data.batch_questions=2", "--trainer.limit_train_batches=2"]
PPO += ["--trainer.limit_val_batches=0", *TINY[1:]]
MORE = {
    "plan --config configs/sft.yaml": TINY + CPU,
    "fit --config configs/sft.yaml": [*TINY, *CPU, "--data.micro_tokens=8192"],
    "fit --config configs/ppo.yaml": PPO + SMALL + CPU,
    "test": [*SMALL, *CPU[:1], "--data.limit=2"],
}
"""What makes a command one of seconds."""
LEFT_OUT = ("doctor", "data questions", "demo")
"""It is about the machine; our questions are our own; it serves until it is interrupted."""
LONG = {"show", "plan", "configs/ppo.yaml", "runs/lab-ppo/merged", "report", "compare"}


def commands(readme: Path) -> list[list[str]]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", readme.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("seeker ")]


def verb_of(words: list[str]) -> str:
    return next((verb for verb in (" ".join(words[:2]), words[0]) if verb in VERBS), words[0])


def teach(asked, _):
    """Search for the town, then say who was found."""
    results = [message["content"] for message in asked["messages"] if message["role"] == "tool"]
    town = asked["messages"][1]["content"].rstrip("?").rsplit(" ", 1)[1]
    if not results:
        function = {"name": "search", "arguments": json.dumps({"query": f"mayor of {town}"})}
        return completion(
            "<think>\nWho?\n</think>", "tool_calls", tool_calls=[{"id": "x", "type": "function", "function": function}]
        )
    found = re.search(rf"mayor of {town} is (\w+ \w+)", results[-1])
    return completion(f"<think>\nDoc 1.\n</think>\n<answer> {found[1] if found else 'unknown'} </answer>")


@pytest.fixture
def laid_out(tmp_path, monkeypatch):
    folder = tmp_path / "my own lab"
    assert main(["init", str(folder), "--name", "lab"]) == 0
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("model", ["sft", pytest.param("ppo", marks=pytest.mark.slow)])
def test_from_documents_to_a_tested_agent_by_the_commands_of_the_readme(model, laid_out, capsys):
    """All commands; in the default tier those that take longest are left out, PPO above all."""
    readme = laid_out / "README.md"
    for town in TOWNS:
        (laid_out / "documents" / f"{town}.md").write_text(f"# {town}\n\nThe mayor of {town} is Ana {town}son.\n")
    example = json.loads(re.search(r"^```json\n(.*?)^```", readme.read_text(), re.MULTILINE | re.DOTALL)[1])
    own = {"question": "Who is the mayor of {}?", "answers": ["Ana {}son"], "group": "{}"}
    assert example.keys() == {"id", *own}
    filled = json.dumps(own)
    write_rows("data/questions.jsonl", ({"id": town} | json.loads(filled.replace("{}", town)) for town in TOWNS))
    ran = []
    with Stub(teach) as stub:
        for words in commands(readme):
            if verb_of(words) in LEFT_OUT or (model == "sft" and not LONG.isdisjoint(words)):
                continue
            more = next((more for begin, more in MORE.items() if " ".join(words).startswith(begin)), [])
            assert main([word.replace(TEACHER, stub.url) for word in words] + more) == 0, words
            ran.append(verb_of(words))
    assert set(ran) == {
        *("data corpus", "index build", "index search", "data split", "data distill", "fit", "test"),
        *(("data show", "plan", "report", "compare") if model == "ppo" else ()),
    }
    sides = [[row["id"] for _, row in read_rows(f"data/questions_{side}.jsonl")] for side in ("train", "validation", "test")]
    assert sorted(name for side in sides for name in side) == sorted(TOWNS)
    learnt = [row for _, row in read_rows("data/conversations_train.jsonl")]
    assert [row["id"] for row in learnt] == sides[0]
    assert learnt[0]["messages"][0]["content"] == get_dialect("tools").opening("")[0].content  # as the agent is asked later
    assert (laid_out / f"runs/lab-{model}/merged/config.json").is_file()
    assert json.loads((laid_out / f"runs/lab-{model}/merged/seeker.json").read_text())["dialect"] == "tools"
    assert json.loads((laid_out / f"runs/lab-test-{model}/summary.json").read_text())["n"] == 2
    said = capsys.readouterr().out
    assert model == "sft" or ("lab-test-sft" in said and "lab-test-ppo" in said)


def test_every_option_of_the_readme_is_one(laid_out):
    named = [words for words in commands(laid_out / "README.md") if verb_of(words) in VERBS]
    assert {"data questions", "data distill"} <= {verb_of(words) for words in named}
    for words in named:
        verb = verb_of(words)
        known = make_parser(verb, function_of(verb))._option_string_actions
        assert {word for word in words if word.startswith("--")} <= set(known), verb
    text = (laid_out / "README.md").read_text()
    asked = make_parser("data questions", function_of("data questions"))._option_string_actions
    assert set(re.findall(r"--teacher\.\w+|--dry_run", text)) <= set(asked)


def test_what_is_laid_out(laid_out):
    made = {path.relative_to(laid_out).as_posix() for path in laid_out.rglob("*")}
    configs = {f"configs/{name}.yaml" for name in ("sft", "ppo", "test")}
    assert made == {
        ".gitignore",
        "README.md",
        "configs",
        *configs,
        "data",
        "documents",
        "documents/lamp.md",
    }
    for name in configs:
        lines = (laid_out / name).read_text().splitlines()
        assert len(lines) <= 25
        assert yaml.safe_load("\n".join(lines))["trainer"]["default_root_dir"].startswith("runs/lab-")


def test_the_name_is_made_of_the_folders(tmp_path, monkeypatch, capsys):
    (tmp_path / "Übung 2 (new)").mkdir()  # an empty one will do, also the current one, which stays
    monkeypatch.chdir(tmp_path / "Übung 2 (new)")
    assert main(["init", "."]) == 0
    assert "runs/Übung-2-new-sft" in Path("configs/sft.yaml").read_text(encoding="utf-8")
    assert "the configs of Übung-2-new" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["full"], "full is there and not empty; name a new folder"),
        (["file"], "file is there and a file; name a new folder"),
        (["new", "--name=-x"], "--name is '-x'; give letters"),
        (["new", "--name", "a/b"], "--name is 'a/b'; give letters"),
        ([], "--dir must be given"),
    ],
)
def test_what_is_refused_leaves_nothing(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(["init", *words]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failure_leaves_nothing(tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(init_folder.Path, "write_text", fail)
    assert main(["init", str(tmp_path / "new")]) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert not list(tmp_path.glob("*new*")) and not list(tmp_path.glob(".seeker-init*"))
