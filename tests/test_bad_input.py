"""Bad input, whatever the verb: one sentence that names the file, line, field or value, exit status 2, nothing half-written."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from project import lightning_cli  # noqa: F401 - its loggers take stderr as it is before a test captures it
from project.cli import main
from project.tiny_model import tiny_model

DEBUG = Path(__file__).resolve().parents[1] / "experiments" / "debug"
SFT = ["fit", "--config", f"{DEBUG}/sft.yaml"]
TEST = ["test", "--config", f"{DEBUG}/test.yaml"]
BUILD = ["index", "build", "--output_dir", "out", "--passages"]
TRACES = ["data", "traces", "--output_file", "out.jsonl", "--input_file"]

PASSAGE = {"id": "p1", "title": "Oslo", "text": "Oslo is the capital of Norway."}
QUESTION = {"id": "q1", "question": "What is the capital of Norway?", "answers": ["Oslo"]}
CONVERSATION = {"id": "c1", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
FILES = {
    "empty.jsonl": "",
    "blank.jsonl": "\n\n",
    "broken.jsonl": json.dumps(QUESTION) + "\n{broken\n",
    "list.jsonl": "[1]\n",
    "damaged.jsonl.gz": "no gzip",
    "table.csv": "id,text\n",
    "passages.jsonl": json.dumps(PASSAGE),
    "no_text.jsonl": json.dumps(PASSAGE) + '\n{"id": "p2", "title": "Rome"}',
    "twice.jsonl": json.dumps(PASSAGE) + "\n" + json.dumps(PASSAGE),
    "wordless.jsonl": '{"id": "p1", "title": "?", "text": "!"}',
    "no_question.jsonl": '{"id": "q1", "answers": ["Oslo"]}',
    "questions.jsonl": json.dumps(QUESTION),
    "c1.jsonl": json.dumps(CONVERSATION),
    "c2.jsonl": json.dumps({"id": "c2", "messages": [{"role": "user", "content": "Bye"}, *CONVERSATION["messages"][1:]]}),
    "no_content.jsonl": json.dumps(CONVERSATION | {"messages": [{"role": "user"}]}),
    "bad_role.jsonl": json.dumps(CONVERSATION | {"messages": [{"role": "robot", "content": ""}]}),
    "key.yaml": "model: {class_path: SFT, init_args: {learning_rat: 1.0}}\n",
    "section.yaml": "trainers: {max_epochs: 1}\n",
    "broken.yaml": "model: [\n",
    "empty.yaml": "",
}


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files above, an index, and model folders that lack something."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    assert main(["index", "build", "--passages", f"{folder}/passages.jsonl", "--output_dir", f"{folder}/index"]) == 0
    for name in ("no_tokenizer", "no_config"):
        (folder / name).mkdir()
    (folder / "no_tokenizer" / "config.json").write_text((tiny_model() / "config.json").read_text())
    return folder


@pytest.fixture
def refused(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable:
    """Run words that must be refused; return the sentence."""
    monkeypatch.chdir(inputs)

    def run(*words: str) -> str:
        before = {path for folder in (inputs, tmp_path) for path in folder.rglob("*")}
        assert main(list(words)) == 2
        out, error = capfd.readouterr()
        assert "Traceback" not in out + error
        *others, last = error.splitlines()
        assert re.match(r"seeker: .{20,}", last)
        assert all(line.startswith("seeker: tracking run") for line in others)
        after = {path for folder in (inputs, tmp_path) for path in folder.rglob("*") if path.is_file()}
        assert not {path for path in after - before if not re.search("mlflow|/artifacts/|/engine_model/", str(path))}
        return last

    return run


def files(**named: str) -> list[str]:
    return [word for name, path in named.items() for word in (f"--data.{name}_file", path)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*TRACES, "gone.jsonl"], "gone.jsonl does not exist"),
        ([*TRACES, "empty.jsonl"], "empty.jsonl holds no rows"),
        ([*TRACES, "table.csv"], "table.csv has the suffix '.csv'; expected .jsonl"),
        ([*TRACES, "broken.jsonl"], "broken.jsonl, line"),
        (["data", "squad", "--output_dir", "out", "--input_file", "gone.json"], "gone.json"),
        (["data", "hotpotqa", "--output_dir", "out", "--input_file", "empty.jsonl"], "empty.jsonl"),
        (["data", "facts", "--output_dir", "c1.jsonl"], "--output_dir c1.jsonl is a file"),
        ([*BUILD, "gone.jsonl"], "gone.jsonl does not exist"),
        ([*BUILD, "empty.jsonl"], "empty.jsonl holds no rows"),
        ([*BUILD, "blank.jsonl"], "blank.jsonl holds no rows"),
        ([*BUILD, "wordless.jsonl"], "none of the 1 passages holds a word"),
        ([*BUILD, "no_text.jsonl"], "no_text.jsonl, line 2: field 'text' is missing"),
        ([*BUILD, "twice.jsonl"], "twice.jsonl, line 2: field 'id' is 'p1'"),
        ([*BUILD, "damaged.jsonl.gz"], "damaged.jsonl.gz is damaged"),
        (["index", "search", "--index", "out", "--query", "Oslo"], "out is not an index"),
        (["serve", "retrieval", "--index", "no_config", "--port", free_port()], "no_config is not an index"),
    ],
)
def test_data_and_index(words: list[str], message: str, refused: Callable[..., str]) -> None:
    assert message in refused(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (files(train="gone.jsonl", validation="c1.jsonl"), "gone.jsonl does not exist"),
        (files(train="c1.jsonl", validation="empty.jsonl"), "empty.jsonl holds no rows"),
        (files(train="questions.jsonl", validation="c1.jsonl"), "questions.jsonl, line 1: field 'messages' is missing"),
        (files(train="no_content.jsonl", validation="c1.jsonl"), "line 1: messages[0]: field 'content' of the user message"),
        (files(train="bad_role.jsonl", validation="c1.jsonl"), "line 1: messages[0]: field 'role' is 'robot', expected"),
        (files(train="list.jsonl", validation="c1.jsonl"), "list.jsonl, line 1: a JSON list, expected an object"),
        (files(train="c1.jsonl", validation="c1.jsonl"), "training and validation are the same file"),
        ([*files(train="c1.jsonl", validation="c2.jsonl"), "--data.micro_tokens", "16"], "longer than micro_tokens=16"),
        (["--model.model_path", "no_tokenizer"], "the model folder no_tokenizer has no tokenizer"),
        (["--model.model_path", "no_config"], "the model folder no_config has no config.json"),
        (["--model.model_path", "./gone"], "the model folder ./gone does not exist"),
        (["--config", "key.yaml"], "SFT has no option 'learning_rat'"),
        (["--config", "section.yaml"], "trainers"),
        (["--config", "broken.yaml"], "broken.yaml, line 2: not YAML"),
        (["--config", "empty.yaml"], "empty.yaml holds no settings"),
        (["--model.lora.rank", "many"], "model.lora.rank: 'many' is not accepted, expected int"),
        (["--data.weights", "{thoughts: 2.0}", *files(train="c1.jsonl", validation="c2.jsonl")], "'thoughts'"),
        (["--ckpt_path", "last"], "there is no last.ckpt"),
    ],
)
def test_training(words: list[str], message: str, refused: Callable[..., str]) -> None:
    assert message in refused(*SFT, *words)


QUESTIONS = files(test="questions.jsonl", validation="questions.jsonl", predict="questions.jsonl")
QUESTIONS += ["--data.check_split", "false"]  # one file stands for all three


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (files(test="gone.jsonl"), "gone.jsonl does not exist"),
        (files(test="no_question.jsonl"), "line 1: field 'question' is missing"),
        (["--model.index", "no_config"], "no_config is not an index"),
        (["--model.limits", "{max_turn: 3}"], "model.limits has no option 'max_turn'"),
        (["--model.retrieval_url", "http://127.0.0.1:1"], "give one of model.index"),
        (["--model.engine", "gpt"], "'gpt' is not accepted"),
    ],
)
def test_measuring(words: list[str], message: str, refused: Callable[..., str]) -> None:
    assert message in refused(*TEST, *QUESTIONS, "--model.index", "index", *words)


@pytest.mark.parametrize("tokens", [16, 100])
def test_a_context_too_small_for_the_prompt(tokens: int, refused: Callable[..., str]) -> None:
    said = refused(*TEST, *QUESTIONS, "--model.index", "index", "--model.limits.context_tokens", str(tokens))
    assert re.search(rf"the prompt of question 'q1' has \d+ tokens; raise context_tokens above {tokens}", said)
    assert not _children()


def _children() -> list[str]:
    """Retrieval servers that this process started and that still run after two seconds."""
    for _ in range(20):
        found = subprocess.run(["ps", "-o", "args=", "--ppid", str(os.getpid())], capture_output=True, text=True)
        left = [line for line in found.stdout.splitlines() if "serve retrieval" in line]
        if not left:
            break
        time.sleep(0.1)
    return left


@pytest.fixture
def busy_port() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield str(listener.getsockname()[1])


@pytest.mark.parametrize("words", [["serve", "retrieval", "--index", "index"], ["ui"]])
def test_a_port_in_use(words: list[str], busy_port: str, refused: Callable[..., str]) -> None:
    said = refused(*words, "--port", busy_port)
    assert f"port {busy_port}" in said
    assert "is in use" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "facts"], "--output_dir must be given; `seeker data facts --help` lists the options"),
        (["index", "build"], "--passages and --output_dir must be given"),
        (["data", "facts", "--output_dir", "out", "--seed", "one"], "seed: 'one' is not accepted, expected int"),
        (
            ["data", "facts", "--output_dir", "out", "--dialect", "xml"],
            "dialect 'xml' is none of tags, tools; give one",
        ),
        (["data", "facts", "--output_dir", "out", "--sed", "1"], "--sed 1"),
        (["data", "facts", "--config", "gone.yaml"], "gone.yaml"),
        (["data", "facts", "--config", "section.yaml"], "trainers"),
        (["compare"], "--run must be given"),
        (["data", "fact"], "there is no verb 'data fact'"),
        (["fly"], "there is no verb 'fly'"),
    ],
)
def test_options(words: list[str], message: str, refused: Callable[..., str]) -> None:
    assert message in refused(*words)


def test_as_a_process(inputs: Path) -> None:
    words = [sys.executable, "-m", "project", "index", "build", "--passages", "empty.jsonl", "--output_dir", "out"]
    done = subprocess.run(words, cwd=inputs, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "seeker: empty.jsonl holds no rows; check the command that made it\n"


def test_help_is_quick() -> None:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "project", "--help"], capture_output=True, text=True, check=True)
    assert "seeker VERB" in done.stdout
    assert time.perf_counter() - started < 2  # 0.05 s on an idle machine; a heavy import takes 5 s
