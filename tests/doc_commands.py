"""Whether `seeker` would take the words of a command that a page shows: the verb's own parser reads them, and nothing is run.

Where a page leaves open which config is meant (`…`, or one that an earlier command makes) the words must be right for one of
the models and one of the data sets.
"""

import re
from argparse import ArgumentError
from functools import cache
from itertools import product
from pathlib import Path

from jsonargparse import ArgumentParser, capture_parser

from project import cli
from project.apps.plan import PlanCLI
from project.errors import InputError
from project.evaluation.command import FLAGS
from project.lightning_cli import SeekerCLI, run_with
from project.parser_errors import one_sentence
from project.usage import groups, no_verb
from project.verb_parser import parsed

MODELS = ("SFT", "PPO", "SearchAgent", "SummaryAgent")
DATA = ("ConversationDataModule", "QuestionDataModule", "SummaryDataModule")
ASKING = {"--help", "-h", "--print_config"}


def check(words: list[str], *, whole: bool = True) -> None:
    """Raise what `seeker` would say to these words; not `whole`, options that must be given may be left out.

    Raises:
        InputError: there is no such verb or option, or it takes no such value.
    """
    verbs = cli.descriptions()
    if not words or words[0] in (*cli.HELP, "--version") or (words[0] in groups(verbs) and words[1:] in ([], ["--help"])):
        return
    verb = next((verb for verb in (" ".join(words[:2]), words[0]) if verb in verbs), None)
    if verb is None:
        raise InputError(no_verb(words, verbs))
    rest = _filled(words[len(verb.split()) :])
    if not ASKING.isdisjoint(rest):
        return
    try:
        _check_trainer(verb, rest) if verb in cli.TRAINER_VERBS else _check_verb(verb, rest)
    except InputError as error:
        if whole or "must be given" not in str(error):
            raise


def _check_verb(verb: str, words: list[str]) -> None:
    options = parsed(verb, cli.function_of(verb), words, cli.WORD_OPTIONS.get(verb))
    if overrides := options.get("overrides"):
        _check_trainer("fit", [re.sub(r"^--phase\d+\.", "--", word) for word in overrides])


def _check_trainer(verb: str, words: list[str]) -> None:
    words, is_open = _without_absent(words)
    words = [FLAGS.get(name, name) + equals + value for name, equals, value in (word.partition("=") for word in words)]
    classes = [[f"--model={model}", f"--data={data}"] for model, data in product(MODELS, DATA)]
    first: InputError | None = None
    for given in classes if is_open or "--config" not in words else [[], *classes]:
        try:
            _parser(verb).parse_args(["fit" if verb == "plan" else verb, *given, *words])
        except ArgumentError as error:
            first = first or InputError(one_sentence(str(error)))
        else:
            return
    assert first is not None
    raise first


@cache
def _parser(verb: str) -> ArgumentParser:
    return capture_parser(lambda: run_with(PlanCLI if verb == "plan" else SeekerCLI, ["fit"]))


def _without_absent(words: list[str]) -> tuple[list[str], bool]:
    """Return the words without the configs that are made by commands, and whether there were any; ours must be there."""
    kept: list[str] = []
    for word in words:
        if kept and kept[-1] == "--config" and not Path(word).is_file():
            if word.startswith("experiments/"):
                raise InputError(f"--config {word} does not exist")
            kept.pop()
        else:
            kept.append(word)
    return kept, len(kept) < len(words)


def _filled(words: list[str]) -> list[str]:
    """Return words with 1, which stands for any text, path or number, in place of N and of … behind an option."""
    filled: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if re.fullmatch(r"N|ID|…", word) and before.startswith("--") and before != "--config":
            filled.append("1")
        elif word != "…" or before == "--config":
            filled.append(word)
    return filled
