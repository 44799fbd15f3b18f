"""The one entry point: `seeker VERB …`.

`fit|validate|test|predict`, and `plan` of a `fit`, are LightningCLI (`lightning_cli.py`); every other verb is a typed function
whose signature and docstring are its command line, through jsonargparse (`verb_parser.py`). Nothing heavy is imported before
the verb is known. What `seeker` says of the verbs is `usage.py`'s; how failures and odd terminals end, `boundary.py`'s.

Exit status: 0 done, 1 failed, 2 the arguments or the input are wrong.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import cast

from project.boundary import guarded
from project.errors import InputError
from project.runtime import own_event_loops, prepare_process, start_with_tcmalloc
from project.usage import group_usage, groups, no_verb, start_screen, usage
from project.verb_parser import run

HELP = ("-h", "--help", "help")

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
    "export": ("project.apps.export:export", "a trained model as a Hugging Face folder with its card"),
    "report": ("project.evaluation.report:report", "test results as a page: tables, plots, the worst questions"),
    "compare": ("project.tracking.compare:compare", "runs side by side from MLflow"),
    "runs": ("project.tracking.select:runs", "list the tracked runs"),
    "lineage": ("project.tracking.lineage:lineage", "what a run was made from and what from it; what a file was used for"),
    "reproduce": ("project.tracking.reproduce:reproduce", "make a run again: its data, the trainings before it, and itself"),
    "sync": ("project.tracking.sending:sync", "send MLflow what a run could not while its server was away"),
    "init": ("project.apps.init_folder:init", "a folder for an agent on your own documents, with the commands in order"),
    "completion": ("project.apps.completion:completion", "complete verbs and options at the shell's Tab key"),
    "demo": ("project.apps.demo.command:demo", "a page on which to ask an agent and watch it search"),
    "doctor": ("project.apps.doctor:doctor", "what this machine has for Seeker, and what is wrong with it"),
    "ui": ("project.tracking.ui:ui", "open MLflow's page on the project's store"),
}

WORD_OPTIONS = {
    "compare": "--run+=",
    "report": "--results+=",
    "lineage": "--run=",
    "reproduce": "--run=",
    "export": "--run=",
    "sync": "--folder=",
    "data show": "--input_file=",
    "init": "--dir=",
    "completion": "--shell=",
}
"""Verbs whose first words need no option: `seeker compare A B` is `seeker compare --run+=A --run+=B`."""


def main(args: list[str] | None = None) -> int:
    """Run one verb with `args` (the process's own by default) and return the exit status."""
    if args is None:
        args = sys.argv[1:]
        if args and args[0] in TRAINER_VERBS:
            start_with_tcmalloc()
    if os.getcwd() not in sys.path:  # classes of the user's own are found there, behind all that is installed
        sys.path.append(os.getcwd())
    with own_event_loops():
        return guarded(lambda: _dispatch(args))


def descriptions() -> dict[str, str]:
    """Return what each verb does, by its name."""
    return TRAINER_VERBS | {verb: text for verb, (_, text) in VERBS.items()}


def function_of(verb: str) -> Callable[..., None]:
    """Return the function of a verb in `VERBS`."""
    module, _, name = VERBS[verb][0].partition(":")
    return cast(Callable[..., None], getattr(import_module(module), name))


def _dispatch(args: list[str]) -> int:
    verbs = descriptions()
    if not args or args[0] in HELP:
        sys.stdout.write(usage(verbs) if args else start_screen(verbs))
    elif args[0] == "--version":
        sys.stdout.write(import_module("project").__version__ + "\n")
    elif args[0] in groups(verbs) and (len(args) == 1 or args[1] in HELP):
        sys.stdout.write(group_usage(args[0], verbs))
    elif args[0] in TRAINER_VERBS:
        prepare_process()
        if args[0] == "plan":
            import_module("project.apps.plan").run(args[1:])
        else:
            import_module("project.lightning_cli").run(args)
    else:
        verb = next((verb for verb in (" ".join(args[:2]), args[0]) if verb in VERBS), None)
        if verb is None:
            raise InputError(no_verb(args, verbs))
        run(verb, function_of(verb), args[len(verb.split()) :], WORD_OPTIONS.get(verb))
    return 0
