"""The command line of a verb, made of its function's signature and docstring by jsonargparse, and how its words are read.

Words that need no option (`seeker compare A B`), switches without a value (`--dry_run`), options that are given several
times and options of others (`overrides`) are turned into what jsonargparse takes. The trainer's verbs are LightningCLI's.
"""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from project.errors import InputError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def make_parser(verb: str, function: Callable[..., None]) -> ArgumentParser:
    """Return the parser of a verb's options."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    summary = (function.__doc__ or "").partition("\n")[0]
    parser = ArgumentParser(prog=f"seeker {verb}", description=summary, exit_on_error=False, allow_abbrev=False)
    if "config" not in signature(function).parameters:  # else it is the verb's own settings file, not a file of options
        parser.add_argument("--config", action="config", help="a YAML file of these options")
    parser.add_function_arguments(function, as_group=False, as_positional=False, sub_configs=True, skip={"overrides"})
    for action in parser._actions:  # `from` is no name that Python takes
        if "--from_" in action.option_strings:
            action.option_strings, action.metavar = ["--from"], "FROM"
            parser._option_string_actions["--from"] = action
    return parser


def run(verb: str, function: Callable[..., None], words: list[str], word_option: str | None) -> None:
    """Call a verb's function with what its words say; see `parsed`."""
    function(**parsed(verb, function, words, word_option))


def parsed(verb: str, function: Callable[..., None], words: list[str], word_option: str | None) -> dict[str, Any]:
    """Return the arguments of a verb's function that its words say.

    Args:
        verb: as it is typed.
        function: its function.
        words: what stands after the verb.
        word_option: the option that leading words without one are of.

    Raises:
        InputError: an option that there is not, a value that it does not take, or one that is missing.
    """
    from project.parser_errors import one_sentence, with_hint

    parameters = signature(function).parameters
    parser = make_parser(verb, function)
    words = _with_flags(_appended(_name_words(verb, words, word_option), parameters), parameters)
    words, overrides = _split_overrides(words, parameters) if "overrides" in parameters else (words, [])
    try:
        options = parser.instantiate(parser.parse_args(words))
    except ArgumentError as error:
        said = one_sentence(str(error), parser._option_string_actions)
        raise InputError(with_hint(said, f"`seeker {verb} --help` lists the options")) from error
    given = {key: value for key, value in options.items() if key != "config" or "config" in parameters}
    return {**given, **({"overrides": overrides} if "overrides" in parameters else {})}


def _with_flags(args: list[str], parameters: Mapping[str, Parameter]) -> list[str]:
    """Return `args` with `=true` after each switch that stands without a value."""
    switches = {f"--{name}" for name, parameter in parameters.items() if parameter.annotation == "bool"}
    following = [*args[1:], "--"]
    return [
        f"{arg}=true" if arg in switches and after.startswith("-") else arg for arg, after in zip(args, following, strict=False)
    ]


def _appended(args: list[str], parameters: Mapping[str, Parameter]) -> list[str]:
    """Return `args` with `--NAME+` for each option of several strings that is given one of them, so that it may be again."""
    several = {f"--{name}" for name, parameter in parameters.items() if parameter.annotation == "list[str] | None"}
    words: list[str] = []
    for arg, after in zip(args, [*args[1:], ""], strict=False):
        name, equals, value = arg.partition("=")
        is_one = name in several and not (value if equals else after).startswith("[")
        words.append(f"{name}+{equals}{value}" if is_one else arg)
    return words


def _split_overrides(args: list[str], parameters: Mapping[str, Parameter]) -> tuple[list[str], list[str]]:
    """Return the words of a verb's own options, and those of others with their values. `--config` may be given again."""
    own: list[str] = []
    others: list[str] = []
    words = own
    for arg in args:
        if arg.startswith("-"):
            name = arg.lstrip("-").partition("=")[0].removesuffix("+")
            words = own if name in parameters or f"{name}_" in parameters or name in ("h", "help") else others
            arg = f"--config+{arg.removeprefix('--config')}" if arg.startswith("--config=") else arg
            arg = "--config+" if arg == "--config" else arg
        words.append(arg)
    return own, others


def _name_words(verb: str, args: list[str], option: str | None) -> list[str]:
    """Return `args` with the leading words as values of `option`, which ends with `=` (one word) or `+=` (several)."""
    words = next((index for index, arg in enumerate(args) if arg.startswith("-")), len(args)) if option else 0
    if option and not option.endswith("+=") and words > 1:
        raise InputError(f"`seeker {verb}` takes one {option.strip('-=')}, got {words}: {', '.join(args[:words])}")
    return [f"{option}{word}" for word in args[:words]] + args[words:]
