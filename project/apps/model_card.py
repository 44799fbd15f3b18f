"""The model card of an exported folder: how to use it, its training and results, and what it cannot do.

Nothing is said that was not recorded: without a tracked run the card says so, without a test that nothing is known of how good
the model is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from project.apps.card_history import Base, Phase, Test, history
from project.apps.export_source import Source
from project.named import is_path
from project.records import Row

if TYPE_CHECKING:
    from project.modules.policy import AgentSettings

TEMPLATE = Path(__file__).with_name("model_card.jinja")
SMALL, FEW = 3_000_000_000, 200
"""Parameters under which a model is called small, and questions under which a test is."""


def write_card(source: Source, folder: Path, name: str, licence: str | None) -> str:
    """Return the text of an exported folder's README.md.

    Args:
        source: what was exported.
        folder: with everything else in it.
        name: by which the folder will be loaded: OWNER/NAME of the hub, or its own.
        licence: the hub's id; None for that of the base, where it is known.

    Raises:
        TrackingError: the store does not answer.
    """
    tokenizer, settings = tokenizer_of(folder)
    phases, tests, base = history(source)
    adapter = folder / "adapter_config.json"
    adapted = json.loads(adapter.read_text(encoding="utf-8")) if adapter.is_file() else None
    sizes = parameters_of(folder)
    dialect = settings.make_dialect()
    contents = {
        "title": source.name,
        "name": name,
        "source": source,
        "header": _front_matter(base, adapted, settings, licence),
        "phases": phases,
        "tests": tests,
        "base": base,
        "adapter": adapted,
        "parameters": sizes,
        "settings": settings,
        "is_own": is_path(settings.dialect),
        "system": json.dumps(dialect.system_prompt()),
        "tools": _python(dialect.tools),
        "end": tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer, settings)),
        "limits": list(_limits(sizes, phases, tests, source, is_adapter=adapted is not None)),
    }
    return str(_environment().from_string(TEMPLATE.read_text(encoding="utf-8")).render(contents))


def tokenizer_of(folder: Path) -> tuple[Any, AgentSettings]:
    """Return the tokenizer and settings of an exported folder."""
    from transformers import AutoTokenizer

    from project.modules.policy import AgentSettings

    settings = AgentSettings.load(folder)
    assert settings is not None
    return AutoTokenizer.from_pretrained(folder), settings


def end_of_turn(tokenizer: Any, settings: AgentSettings) -> int:  # noqa: ANN401 - any tokenizer of transformers
    """Return the id of the token that ends a turn."""
    from project.rendering import Renderer

    return Renderer(tokenizer, settings.make_dialect(), settings.history).end_id


def _environment() -> Any:  # noqa: ANN401 - jinja2's
    from jinja2 import Environment, StrictUndefined

    from project.evaluation.report import cell, fenced, interval, number

    made = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    made.filters |= {"cell": cell, "fenced": fenced, "interval": interval, "number": number}
    return made


def _front_matter(base: Base, adapted: Row | None, settings: AgentSettings, licence: str | None) -> str:
    from huggingface_hub import ModelCardData

    own = str(adapted["base_model_name_or_path"]) if adapted else None
    held = base.hub_id if own is None or Path(own).is_absolute() else own
    way = {"tools": ["tool-calling"], "tags": ["search-tags"]}.get(settings.dialect, [])
    data = ModelCardData(
        base_model=held,
        library_name="peft" if adapted else "transformers",
        pipeline_tag="text-generation",
        license=licence or base.licence,
        tags=["seeker", "search-agent", *way],
    )
    return str(data.to_yaml())


def _python(tools: Sequence[Row]) -> str:
    """Return tool schemas as Python writes them, a tool a line."""
    return "[\n" + "".join(f"    {tool!r},\n" for tool in tools) + "]" if tools else ""


def parameters_of(folder: Path) -> int:
    """Return how many values a folder's safetensors hold."""
    from math import prod

    from safetensors import safe_open

    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as held:
            total += sum(prod(held.get_slice(name).get_shape()) for name in held.keys())  # noqa: SIM118 - no mapping
    return total


# --- limits -------------------------------------------------------------------------------------------------------------------


def _limits(
    parameters: int, phases: Sequence[Phase], tests: Sequence[Test], source: Source, *, is_adapter: bool
) -> Iterator[str]:
    """Yield sentences, each of which follows from what was recorded."""
    if not source.ended:
        yield f"Its training did not end: these are the weights after step {source.step}."
    if not is_adapter and parameters < SMALL:
        yield (
            f"It is small ({parameters:,} parameters): it knows little by itself, and what it reads it may "
            "misread. Check an answer against the passages that it was shown."
        )
    corpora = sorted(
        {test.index for test in tests if test.index} | {d.name for p in phases for d in p.data if d.role == "index"}
    )
    trained = sorted({data.name for phase in phases for data in phase.data if data.role.startswith("train")})
    if trained:
        yield f"It was trained on {_listed(trained)} only; other kinds of questions, languages and corpora were not tried."
    if corpora:
        searched = f"Its searches were in the {_listed(corpora)}"
        yield f"{searched}; with another corpus or search engine it may search and stop otherwise."
    if not tests:
        yield "These weights were not tested: how often its answers are right is not known."
    for test in tests:
        yield from _limits_of(test)


def _limits_of(test: Test) -> Iterator[str]:
    found = {name: estimate for name, estimate, _ in test.figures}
    what = "questions" if test.samples == 1 else "episodes"
    if (em := found.get("em")) is not None:
        yield f"Of the {em.n} {what} of {test.file} it answered {em.mean:.1%} exactly as asked; the others it did not."
    if (without := found.get("answered_without_evidence")) is not None and without.mean > 0:
        yield f"In {without.mean:.1%} of {without.n} episodes it answered although nothing shown to it was evidence."
    if (wrong := found.get("refused_wrongly")) is not None and wrong.mean > 0:
        yield f"It refused in {wrong.mean:.1%} of {wrong.n} {what} whose question the corpus answers."
    if 0 < test.questions < FEW:
        yield f"{test.file} has {test.questions} questions only: read the intervals, not the means."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
