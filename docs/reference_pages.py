"""The text of the generated references: commands, configs, and the modules of the Python API."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib import import_module
from inspect import isabstract
from pathlib import Path

from jsonargparse import ArgumentParser, capture_parser
from option_tables import ROOT, class_rows, classes_in, derived, escaped, option_rows, table, with_nested

from project import cli
from project.apps.plan import PlanCLI
from project.lightning_cli import DEFAULTS, SeekerCLI, run_with
from project.progressive import file as pipelines
from project.usage import by_stage
from project.verb_parser import make_parser

API = {
    "Records": ("project.records", "project.errors"),
    "Agents": ("project.dialects", "project.rendering", "project.environment.search"),
    "Numbers": ("project.answers", "project.losses", "project.advantages", "project.evaluation.metrics"),
    "Rewards": ("project.rewards.reward", "project.rewards.answer", "project.rewards.judge"),
    "Rollouts": ("project.rollouts.runner", "project.rollouts.engines.protocol"),
    "Search": ("project.corpus.retrievers", "project.corpus.index"),
    "Data": ("project.datamodules.conversation", "project.datamodules.question", "project.datamodules.summary"),
    "Training": ("project.modules.sft", "project.modules.agent", "project.modules.ppo", "project.modules.ppo_settings"),
    "Tracking": ("project.tracking.logger",),
    "Commands": ("project.cli",),
}
"""Modules that a user would import."""

SECTIONS = (
    ("model", ("modules.sft:SFT", "modules.ppo:PPO", "modules.agent:SearchAgent", "modules.summary_agent:SummaryAgent")),
    (
        "data",
        (
            "datamodules.conversation:ConversationDataModule",
            "datamodules.question:QuestionDataModule",
            "datamodules.summary:SummaryDataModule",
        ),
    ),
    ("trainer.logger", ("tracking.logger:SeekerLogger",)),
    ("trainer.callbacks", ("modules.alarms:Alarms", "modules.validate_agent:ValidateAgent")),
    ("trainer.strategy", ("modules.sharding:FSDP2",)),
)
"""Keys of a config and the classes that they name."""

CONFIG_KEYS = ("--trainer", "--model", "--data")


def commands_page() -> str:
    """Return the page of all verbs, by stage of the data flow."""
    verbs = cli.descriptions()
    parts = [_ABOUT_COMMANDS]
    for title, names in by_stage(verbs):
        parts.append(f"## {title[0].upper()}{title[1:]}\n")
        parts += [_trainer_verb(name, verbs[name]) if name in cli.TRAINER_VERBS else _verb(name) for name in names]
    return "\n".join(parts)


_ABOUT_COMMANDS = """\
# Commands

Every verb with its options, as `seeker VERB --help` prints them; types that are links have keys of their own. Options may
also stand in a YAML file that `--config` names. Exit status: 0 done, 1 failed, 2 the arguments or the input are wrong.
"""


def _verb(name: str) -> str:
    function = cli.function_of(name)
    said = re.split(r"^ *(?:Args|Raises|Returns):", function.__doc__ or "", flags=re.MULTILINE)[0]
    word = cli.WORD_OPTIONS.get(name, "").rstrip("=+")
    words = f"\nIts first words need no option: they are `{word}`.\n" if word else ""
    rows = option_rows(make_parser(name, function)._actions)
    options = table(rows, "option", "config.md") if rows else "It has no options.\n"
    return f"### seeker {name}\n\n{_text(said)}\n{words}\n{options}"


def _trainer_verb(name: str, said: str) -> str:
    rows = [row for row in option_rows(trainer_parser(name)._actions) if not row.name.startswith(CONFIG_KEYS)]
    return f"### seeker {name}\n\n{said[0].upper()}{said[1:]}. {_MORE}\n\n{table(rows, 'option', 'config.md')}"


_MORE = (
    "`--config FILE` names [configs](config.md), whose keys are options too (`--model…`, `--data…`, `--trainer…`); "
    "`--print_config` shows what they come to."
)


def trainer_parser(verb: str) -> ArgumentParser:
    """Return LightningCLI's parser of a verb."""
    kind, verb = (PlanCLI, "fit") if verb == "plan" else (SeekerCLI, verb)
    return _all_of(kind)._subcommands_action._name_parser_map[verb]


@cache
def _all_of(kind: type[SeekerCLI]) -> ArgumentParser:
    return capture_parser(lambda: run_with(kind, ["fit"]))


def config_page() -> str:
    """Return the page of all keys of configs and pipelines."""
    parts = [_INTRODUCTION.format(defaults=(ROOT / DEFAULTS).read_text(encoding="utf-8"))]
    named = {key: [_imported(name) for name in names] for key, names in SECTIONS}
    for key, classes in named.items():
        parts.append(f"## {key}\n")
        parts += map(_class_section, classes)
    first = [one for classes in named.values() for one in classes]
    verbs = [row.hint for verb in cli.VERBS for row in option_rows(make_parser(verb, cli.function_of(verb))._actions)]
    nested = with_nested([*first, *(one for hint in verbs for one in classes_in(hint))])
    parts.append("## Parts\n\nWhat the keys above, and options of commands, hold in their turn.\n")
    parts += [_class_section(one) for one in nested if one not in first]
    return "\n".join([*parts, _trainer_section(), _pipeline_section()])


_INTRODUCTION = """\
# Configs

`seeker fit`, `validate`, `test`, `predict` and `plan` take one or several `--config FILE.yaml`; what stands in a later one,
and after them on the command line (`--model.learning_rate 1e-4`), goes over what stands before. A file has these keys:

```yaml
model:
  class_path: SFT            # which model
  init_args: {{learning_rate: 1e-4}}
data:
  class_path: ConversationDataModule
  init_args: {{train_file: data/facts/conversations_train.jsonl}}
trainer: {{max_epochs: 2}}
seed_everything: 0
```

A class of your own is named by its path, `module.Class` ([your own parts](../how-to/extend.md)).
Under every config lies `experiments/defaults/trainer.yaml`:

```yaml
{defaults}```
"""


def _class_section(of: type) -> str:
    head, _, rest = (of.__doc__ or "").strip().partition("\n")
    rest = "" if "Args:" in rest or "Attributes:" in rest else rest
    said = f"### {of.__name__}\n\n`{of.__module__}.{of.__name__}`: {_text(head)}\n\n{_text(rest)}\n\n"
    if isabstract(of):
        named = [f"[{one.__name__}](#{one.__name__.lower()})" for one in derived(of)]
        return said + f"{', '.join([*named, 'or a class' if named else 'A class'])} [of your own](../how-to/extend.md).\n"
    return said + (table(class_rows(of), "key") if class_rows(of) else "It has no keys.\n")


def _trainer_section() -> str:
    rows = [row for row in option_rows(trainer_parser("fit")._actions) if row.name.startswith("--trainer.")]
    short = [
        row._replace(name=row.name.removeprefix("--"), text=row.text.partition(". ")[0].partition("\n\n")[0]) for row in rows
    ]
    return f"## trainer\n\nLightning's `Trainer`, with Seeker's defaults.\n\n{table(short, 'key')}"


def _pipeline_section() -> str:
    said = _text((pipelines.__doc__ or "").partition("\n\n")[2])
    lines = ["| key | of the file | of a phase | values, the default first |", "|---|---|---|---|"]
    for key in sorted(pipelines.KEYS | pipelines.PHASE_KEYS):
        values = ", ".join(f"`{value}`" for value in pipelines.CHOICES.get(key, ()))
        lines.append(f"| `{key}` | {_yes(key in pipelines.KEYS)} | {_yes(key in pipelines.PHASE_KEYS)} | {values} |")
    return f"## Pipeline files\n\nWhat `seeker progressive --config` reads. {said}\n\n" + "\n".join(lines) + "\n"


def api_pages() -> dict[str, str]:
    """Return the pages of the Python API: an overview, and one for each module."""
    parts = [
        "# Python API\n\nWhat stands behind the commands, for use from Python; every verb is also `project.cli.main([…])`.\n"
    ]
    pages = {}
    for title, modules in API.items():
        parts.append(f"## {title}\n")
        for module in modules:
            parts.append(f"- [`{module}`](api/{module}.md): {_first_line(module)}")
            pages[f"reference/api/{module}.md"] = f"# {module}\n\n::: {module}\n    options:\n      show_root_heading: false\n"
        parts.append("")
    return {"reference/api.md": "\n".join(parts), **pages}


def _first_line(module: str) -> str:
    path = ROOT / Path(*module.split(".")).with_suffix(".py")
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return escaped(said.partition("\n\n")[0])


def _imported(name: str) -> type:
    module, _, inside = name.partition(":")
    found: type = getattr(import_module(f"project.{module}"), inside)
    return found


def _text(said: str) -> str:
    """Return the paragraphs of a docstring."""
    return "\n\n".join(escaped(part) for part in said.split("\n\n") if part.strip())


def _yes(held: bool) -> str:
    return "yes" if held else ""
