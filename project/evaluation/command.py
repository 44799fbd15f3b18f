"""`seeker test` in the words that users of other projects' evaluation scripts know, and without a config file.

`seeker test --model_path MODEL --test_file FILE [--num_samples N] [--max_new_tokens N] [--output DIR]`. Without `--config` the
file says what is measured: summaries for `summary_prefix` conversations, the decision to search for questions with a passage,
else the agent, which searches `--model.index`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from project.errors import InputError
from project.files import local_file, read_rows
from project.records import Question
from project.tracking.store import project_root

FLAGS = {
    "--model_path": "--model.model_path",
    "--test_file": "--data.test_file",
    "--num_samples": "--data.limit",
    "--max_new_tokens": "--model.limits.turn_tokens",
    "--output": "--trainer.default_root_dir",
}
CONFIGS = {"summary": "experiments/summary/test.yaml", "decision": "experiments/squad/test.yaml"}
AGENT = ("--model=SearchAgent", "--data=QuestionDataModule")


def test_words(args: Sequence[str]) -> list[str]:
    """Return the words of `seeker test` as LightningCLI takes them.

    Raises:
        InputError: there is no `--config`, and the test file cannot be read.
    """
    words = [FLAGS.get(name, name) + equals + value for name, equals, value in (arg.partition("=") for arg in args)]
    if words[:1] != ["test"] or any(
        word.partition("=")[0] in ("--config", "-c", "--model", "--print_config") for word in words
    ):
        return words
    file = _value(words, FLAGS["--test_file"])
    return ["test", *(_config_of(Path(file)) if file else ()), *words[1:]]


def _value(words: Sequence[str], option: str) -> str:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == option:
            return value if equals else following
    return ""


def _config_of(file: Path) -> tuple[str, ...]:
    """Return the options that say what a file is for."""
    _, row = next(read_rows(local_file(file)))
    if "messages" in row:
        return ("--config", str(project_root() / CONFIGS["summary"]))
    try:
        has_passage = bool(Question.from_row(row).extra_info.get("passage"))
    except ValueError as error:
        raise InputError(f"{file}, line 1: {error}") from error
    return ("--config", str(project_root() / CONFIGS["decision"])) if has_passage else AGENT
