"""`seeker completion bash|zsh|fish`: a script that completes verbs, options and files at the shell's Tab key.

It is made once by shtab, of the verbs' parsers, so that the shell asks no Python at each Tab. Of the trainer's verbs it knows
the options that every model and data set share; those of a class (`--model.learning_rate`) `seeker fit --model.help=SFT` lists.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from project import cli
from project.usage import groups
from project.verb_parser import make_parser

Shell = Literal["bash", "zsh", "fish"]
TRAINER_OPTIONS = {
    "--config": "a YAML file of settings; several are layers",
    "--model": "the class of the model, such as SFT",
    "--model.model_path": "a model's folder or hub id",
    "--data": "the class of the data",
    "--trainer.max_epochs": "passes over the training data",
    "--trainer.devices": "GPUs, or processes on a CPU",
    "--trainer.default_root_dir": "the run's folder",
    "--trainer.logger.run_name": "the run's name",
    "--ckpt_path": "a checkpoint to go on from; last = the run's newest",
    "--seed_everything": "of all random numbers",
    "--print_config": "print the settings and exit",
}

TAKEN = {"--config": "file", "--ckpt_path": "file", "--model.model_path": "folder", "--trainer.default_root_dir": "folder"}


def completion(shell: Shell) -> None:
    """Print the script that completes verbs and options at the Tab key. It takes seconds to make: write it to a file once.

    Args:
        shell: bash (for ~/.local/share/bash-completion/completions/seeker), zsh (for a file `_seeker` in a folder of `$fpath`)
            or fish (for ~/.config/fish/completions/seeker.fish).
    """
    sys.stdout.write(script(shell) + "\n")


def script(shell: Shell) -> str:
    """Return the script."""
    import shtab

    return str(shtab.complete(_all_verbs(), shell=shell))


def _all_verbs() -> argparse.ArgumentParser:
    """Return one parser with a subparser for each verb, those of two words nested."""
    verbs = cli.descriptions()
    parser = argparse.ArgumentParser(prog="seeker")
    parser.add_argument("--version", action="store_true", help="print the version")
    firsts = parser.add_subparsers()
    seconds = {group: firsts.add_parser(group, help=f"verbs of {group}").add_subparsers() for group in sorted(groups(verbs))}
    for verb, text in verbs.items():
        group, _, name = verb.partition(" ")
        one = seconds[group].add_parser(name, help=text) if name else firsts.add_parser(verb, help=text)
        if verb in cli.TRAINER_VERBS:
            _add_trainer_options(one)
        else:
            _add_options(one, make_parser(verb, cli.function_of(verb))._actions, cli.WORD_OPTIONS.get(verb, ""))
    return parser


def _add_trainer_options(parser: argparse.ArgumentParser) -> None:
    for option, text in TRAINER_OPTIONS.items():
        _completed(parser.add_argument(option, help=text), TAKEN.get(option))


def _add_options(parser: argparse.ArgumentParser, actions: Iterable[argparse.Action], word_option: str) -> None:
    """Add the options of a verb, and its words without one, which stand for `word_option`."""
    for action in actions:
        options = [option for option in action.option_strings if not option.endswith("+") and option not in ("-h", "--help")]
        if not options or action.help is argparse.SUPPRESS:
            continue
        kind = getattr(action, "_typehint", None)
        choices = _choices(kind) or None
        taken = "file" if "Path" in str(kind) or "--config" in options else None
        text = (action.help or "").partition("(type:")[0].replace("%", "%%")
        _completed(parser.add_argument(*options, choices=choices, help=text, dest=action.dest), taken)
        if word_option.rstrip("+=") in options:
            _completed(parser.add_argument(f"of_{action.dest}", nargs="*", choices=choices, help=text), taken)


def _completed(action: argparse.Action, taken: str | None) -> None:
    from shtab import DIRECTORY, FILE

    if taken and not action.choices:
        action.complete = {"file": FILE, "folder": DIRECTORY}[taken]  # type: ignore[attr-defined]


def _choices(kind: Any) -> list[str]:  # noqa: ANN401 - a type
    """Return the words that an option of a type takes, where they can be listed."""
    if kind is bool:
        return ["true", "false"]
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    return [word for one in get_args(kind) for word in _choices(one)] if get_origin(kind) in (Union, UnionType) else []
