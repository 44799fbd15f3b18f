"""The one entry point: `seeker VERB …`.

`fit|validate|test|predict`, and `plan` of a `fit`, are LightningCLI (`lightning_cli.py`); every other verb is a typed function
whose signature and docstring are its command line, through jsonargparse. Nothing heavy is imported before the verb is known.

Exit status: 0 done, 1 failed, 2 the arguments or the input are wrong.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import Parameter, signature

from project.errors import InputError, SeekerError
from project.runtime import prepare_process, start_with_tcmalloc

TRAINER_VERBS = {
    "fit": "train a model from --config files",
    "validate": "run the validation loop",
    "test": "measure an agent on held-out questions",
    "predict": "write conversations and scores for a question file",
    "plan": "what a fit of these --config files would take: memory, steps, time",
}

VERBS: dict[str, tuple[str, str]] = {
    "data facts": ("project.corpus.facts:facts", "passages, questions and expert conversations from real facts"),
    "data squad": ("project.corpus.squad:squad", "SQuAD 2.0 to Question-Answer-Search rows"),
    "data hotpotqa": ("project.corpus.hotpotqa:hotpotqa", "HotpotQA contexts to passages and questions"),
    "data corpus": ("project.corpus.documents:corpus", "documents and rows of any kind to passages"),
    "data qas": ("project.teacher.qas:qas", "questions to Question-Answer-Search rows, by a teacher"),
    "data distill": ("project.teacher.distill:distill", "multi-turn search conversations of a teacher, by rejection sampling"),
    "data questions": ("project.teacher.questions:questions", "passages to questions that they answer, by a teacher"),
    "data paraphrase": ("project.teacher.paraphrases:paraphrase", "passages in other words by a teacher, as search noise"),
    "data traces": ("project.traces.ingest:traces", "raw agent traces to the trace table"),
    "data multiturn": ("project.traces.multiturn:multiturn", "traces to conversations, one a trace"),
    "data steps": ("project.traces.steps:steps", "traces to one sample per search result"),
    "data summaries": ("project.teacher.summaries:summaries", "summaries for step samples, extractive or by a teacher"),
    "data phases": ("project.traces.phases:phases", "the training sets of the phases, from traces or samples"),
    "data split": ("project.traces.split:split", "conversations to train, validation and test, by group"),
    "data prepare": ("project.traces.prepare:prepare", "traces, phases and split in one command"),
    "data export": ("project.traces.for_verl:export", "conversations as another trainer reads them: verl"),
    "data push": ("project.traces.push:push", "files with their manifests and a card to the Hugging Face Hub"),
    "data show": ("project.apps.show:show", "a training sample in the terminal, or a file's statistics"),
    "index build": ("project.corpus.build:build", "index passages for search"),
    "index search": ("project.corpus.search:search", "ask an index one query"),
    "index bench": ("project.evaluation.retrieval:bench", "what an index finds for judged queries, and how fast"),
    "serve retrieval": ("project.corpus.serving.command:retrieval", "serve POST /retrieve from an index"),
    "serve mcp": ("project.corpus.serving.mcp:mcp", "serve search as an MCP tool"),
    "progressive": ("project.progressive.command:progressive", "train phase after phase, each from the one before"),
    "report": ("project.evaluation.report:report", "test results as a page: tables, plots, the worst questions"),
    "compare": ("project.tracking.compare:compare", "runs side by side from MLflow"),
    "runs": ("project.tracking.select:runs", "list the tracked runs"),
    "lineage": ("project.tracking.lineage:lineage", "what a run was made from and what from it; what a file was used for"),
    "reproduce": ("project.tracking.reproduce:reproduce", "make a run again: its data, the trainings before it, and itself"),
    "sync": ("project.tracking.sending:sync", "send MLflow what a run could not while its server was away"),
    "doctor": ("project.apps.doctor:doctor", "what this machine has for Seeker, and what is wrong with it"),
    "ui": ("project.tracking.store:ui", "open MLflow's page on the project's store"),
}

WORD_OPTIONS = {
    "compare": "--run+=",
    "report": "--results+=",
    "lineage": "--run=",
    "reproduce": "--run=",
    "sync": "--folder=",
    "data show": "--input_file=",
}
"""Verbs whose first words need no option: `seeker compare A B` is `seeker compare --run+=A --run+=B`."""


def usage() -> str:
    """Return the text of `seeker --help`."""
    lines = ["usage: seeker VERB [options]   (seeker VERB --help shows a verb's options)", ""]
    rows = TRAINER_VERBS | {verb: text for verb, (_, text) in VERBS.items()}
    return "\n".join(lines + [f"  {verb:<18} {text}" for verb, text in rows.items()])


def main(args: list[str] | None = None) -> int:
    """Run one verb with `args` (the process's own by default) and return the exit status."""
    if args is None:
        args = sys.argv[1:]
        if args and args[0] in TRAINER_VERBS:
            start_with_tcmalloc()
    debug = os.environ.get("SEEKER_DEBUG") == "1"
    try:
        return _dispatch(args)
    except SeekerError as error:
        if debug:
            raise
        sys.stderr.write(f"seeker: {error}\n")
        return error.exit_status
    except KeyboardInterrupt:
        sys.stderr.write("seeker: interrupted; run the same command again to continue\n")
        return 1


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage() + "\n")
        return 0 if args else 2
    if args[0] == "--version":
        sys.stdout.write(import_module("project").__version__ + "\n")
        return 0
    if args[0] in TRAINER_VERBS:
        prepare_process()
        if args[0] == "plan":
            import_module("project.apps.plan").run(args[1:])
        else:
            import_module("project.lightning_cli").run(args)
        return 0
    for words in (2, 1):
        verb = " ".join(args[:words])
        if verb in VERBS:
            return _run_verb(verb, args[words:])
    sys.stderr.write(f"seeker: there is no verb '{' '.join(args[:2])}'; seeker --help lists them\n")
    return 2


def _run_verb(verb: str, args: list[str]) -> int:
    from argparse import ArgumentError

    from jsonargparse import ArgumentParser, set_parsing_settings

    from project.parser_errors import one_sentence

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    module, _, name = VERBS[verb][0].partition(":")
    function: Callable[..., None] = getattr(import_module(module), name)
    parameters = signature(function).parameters
    has_config = "config" in parameters  # its own settings file, not a file of options
    summary = (function.__doc__ or "").partition("\n")[0]
    parser = ArgumentParser(prog=f"seeker {verb}", description=summary, exit_on_error=False)
    if not has_config:
        parser.add_argument("--config", action="config", help="a YAML file of these options")
    parser.add_function_arguments(function, as_group=False, as_positional=False, sub_configs=True, skip={"overrides"})
    args = _with_flags(_appended(_name_words(verb, args), parameters), parameters)
    args, overrides = _split_overrides(args, parameters) if "overrides" in parameters else (args, [])
    try:
        options = parser.instantiate(parser.parse_args(args))
    except ArgumentError as error:
        raise InputError(f"{one_sentence(str(error))}; `seeker {verb} --help` lists the options") from error
    given = {key: value for key, value in options.items() if key != "config" or has_config}
    function(**given, **({"overrides": overrides} if "overrides" in parameters else {}))
    return 0


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
            arg = f"--from_{arg.removeprefix('--from')}" if name == "from" else arg
            arg = f"--config+{arg.removeprefix('--config')}" if arg.startswith("--config=") else arg
            arg = "--config+" if arg == "--config" else arg
        words.append(arg)
    return own, others


def _name_words(verb: str, args: list[str]) -> list[str]:
    """Return `args` with the leading words of a verb in `WORD_OPTIONS` as options."""
    option = WORD_OPTIONS.get(verb)
    words = next((index for index, arg in enumerate(args) if arg.startswith("-")), len(args)) if option else 0
    if option and not option.endswith("+=") and words > 1:
        raise InputError(f"`seeker {verb}` takes one {option.strip('-=')}, got {words}: {', '.join(args[:words])}")
    return [f"{option}{word}" for word in args[:words]] + args[words:]
