"""What `seeker` says of its verbs: where to start, all of them by stage of the data flow, those of a group, and the nearest.

The verbs themselves are `cli.py`'s; a verb's own options are `verb_parser.py`'s, or LightningCLI's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from project.nearest import did_you_mean

Verbs = Mapping[str, str]
"""What each verb does, by its name of one or two words."""

START = """\
Seeker trains language models that know when to search, what to search for, and when to answer.

Where to start:
  bash scripts/quickstart.sh   train, measure and compare an agent on the embedded default, under 20 minutes on 2 cores
  seeker doctor                what this machine has for Seeker, and what is wrong with it
  seeker init DIR              a folder for an agent on your own documents, with the commands in order
  seeker demo                  ask an agent in the browser

Help:
  seeker --help                all verbs
  seeker VERB --help           a verb's options, with units and defaults
  seeker completion --help     verbs and options at the Tab key of bash, zsh and fish

README.md has the data flow and results, experiments/ a config for each training.
"""

STAGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("data, from sets and documents", ("data facts", "data squad", "data hotpotqa", "data corpus")),
    ("data, written by a teacher (a larger model)", ("data questions", "data distill", "data qas", "data paraphrase")),
    (
        "data, from agents' traces",
        ("data prepare", "data traces", "data multiturn", "data steps", "data summaries", "data phases"),
    ),
    ("data, split, looked at, handed on", ("data split", "data show", "data")),
    ("search", ("index", "serve")),
    ("train", ("plan", "fit", "validate", "progressive")),
    ("measure", ("test", "predict", "report")),
    ("track", ("runs", "compare", "lineage", "reproduce", "sync", "ui")),
    ("use", ()),
)
"""Titles, and the verbs or first words under each, in order. What is under no other is under the last."""


def start_screen(verbs: Verbs) -> str:
    """Return what `seeker` alone shows; a line of a verb that is not there is left out."""
    known = {verb.split()[0] for verb in verbs}
    lines = (line.split() for line in START.splitlines())
    kept = (not words or words[0] != "seeker" or words[1].startswith(("-", "VERB")) or words[1] in known for words in lines)
    return "".join(line for line, keep in zip(START.splitlines(keepends=True), kept, strict=True) if keep)


def usage(verbs: Verbs) -> str:
    """Return the text of `seeker --help`: the verbs by stage of the data flow."""
    lines = ["usage: seeker VERB [options]   (seeker VERB --help shows a verb's options; seeker alone, where to start)"]
    for title, names in by_stage(verbs):
        lines += ["", f"{title}:", *_rows({name: verbs[name] for name in names})]
    return "\n".join(lines) + "\n"


def by_stage(verbs: Verbs) -> list[tuple[str, list[str]]]:
    """Return the titles with their verbs, each verb once."""
    left = dict.fromkeys(verbs)
    found: dict[str, list[str]] = {title: [] for title, _ in STAGES}
    for title, names in STAGES:
        for name in names:
            of = [verb for verb in left if verb == name or verb.startswith(f"{name} ")]
            found[title] += of
            for verb in of:
                del left[verb]
    found[STAGES[-1][0]] += left
    return [(title, of) for title, of in found.items() if of]


def group_usage(group: str, verbs: Verbs) -> str:
    """Return the text of `seeker GROUP --help`: the verbs that begin with this word."""
    rows = _rows({verb: text for verb, text in verbs.items() if verb.split()[0] == group})
    heads = [f"usage: seeker {group} VERB [options]   (seeker {group} VERB --help shows a verb's options)", ""]
    return "\n".join([*heads, *rows]) + "\n"


def groups(verbs: Verbs) -> set[str]:
    """Return the first words of verbs of two."""
    return {verb.split()[0] for verb in verbs if " " in verb}


def no_verb(words: Sequence[str], verbs: Verbs) -> str:
    """Return the sentence that there is no such verb, with the nearest that there is."""
    first, second = words[0], next((word for word in words[1:2] if not word.startswith("-")), "")
    if first in groups(verbs):
        seconds = [verb.partition(" ")[2] for verb in verbs if verb.startswith(f"{first} ")]
        meant = did_you_mean(second, seconds, before=f"{first} ") or f"; seeker {first} --help lists them"
        return f"there is no verb '{first} {second}'{meant}"
    if second and (meant := did_you_mean(f"{first} {second}", (verb for verb in verbs if " " in verb))):
        return f"there is no verb '{first} {second}'{meant}"
    ones = {verb for verb in verbs if " " not in verb} | groups(verbs)
    return f"there is no verb '{first}'{did_you_mean(first, sorted(ones)) or '; seeker --help lists them'}"


def _rows(verbs: Verbs) -> list[str]:
    return [f"  {verb:<18} {text}" for verb, text in verbs.items()]
