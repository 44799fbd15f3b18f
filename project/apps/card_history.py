"""What is recorded of exported weights: the trainings from the first to theirs, the tests of exactly them, and the base.

All of it comes from the tracking store and from manifests; what they do not say is left empty. Files are named without folders.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from project.apps.export_source import Source
from project.errors import InputError, TrackingError
from project.evaluation.metrics import Estimate
from project.evaluation.results import SUMMARY
from project.records import Row
from project.traces.card import without_folders
from project.tracking.lineage import DataFile, Known
from project.tracking.logger import flatten
from project.tracking.reproduce import run_config
from project.tracking.store import client, reading, with_parents

if TYPE_CHECKING:
    from mlflow.entities import Run

DEFAULT_BASE, DEFAULT_LICENCE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
"""What the embedded default model was made from."""
SHOWN = (
    "em", "f1", "cover_em", "verdict", "decision_accuracy", "evidence_recall", "answered_without_evidence", "abstained",
    "refused_wrongly", "searches", "finish_malformed", "finish_length", "own_em", "own_f1", "answer_kept", "rouge_l",
    "compression", "unsupported",
)  # fmt: skip
"""Metrics that a card shows, of those that a test has."""
MEANING = {
    "refused_wrongly": "refused a question that the corpus answers",
    "finish_malformed": "ended as its turns could not be read",
    "finish_length": "ended as a turn grew too long",
}
NO_METHOD = (
    "model.model_path", "model.start_from", "model.export_dir", "model.index", "model.retrieval_url", "model.servers",
    "model.weights_dir", "model.engine_memory", "model.engine", "model.sync", "model.traced_episodes", "model.eval_samples",
    "model.eval_temperature", "model.limits.search_seconds", "model.ppo.canary_tolerance", "data.train_file",
    "data.validation_file", "data.test_file", "data.predict_file", "data.check_split", "data.also_validate",
    "data.eval_batch_questions",
)  # fmt: skip
"""Settings that are files and places, told elsewhere or of no effect on the weights."""
OF_TRAINER = (
    "max_epochs", "max_steps", "accumulate_grad_batches", "devices", "num_nodes", "precision", "gradient_clip_val",
)  # fmt: skip
OFF = ("None", "False", "[]", "{}", "-1", "")
SECRET = re.compile(r"(?<![^\W_])(?:(?:api)?keys?|token|secrets?|passwords?|passwd|credentials?)(?![^\W_])", re.IGNORECASE)
"""A whole part of the name of a setting that is nobody else's: in `api_key` and `token`, and not in `max_tokens`."""


@dataclass(frozen=True)
class Base:
    """What the first training started from."""

    name: str
    hub_id: str | None = None
    licence: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Data:
    """A data file of a training, or one that it was made from."""

    role: str
    name: str
    digest: str
    rows: int | None
    command: str


@dataclass(frozen=True)
class Phase:
    """A training."""

    name: str
    method: str
    parameters: tuple[tuple[str, str], ...]
    data: tuple[Data, ...]
    made_from: tuple[Data, ...]
    command: str
    code: str


@dataclass(frozen=True)
class Test:
    """What a test measured of exactly these weights."""

    name: str
    file: str
    digest: str
    questions: int
    samples: int
    """Of each question."""
    index: str
    about: str
    figures: tuple[tuple[str, Estimate, str], ...]


def history(source: Source) -> tuple[list[Phase], list[Test], Base]:
    """Return the trainings from the first to this one, the tests of these weights, and what the first started from."""
    if source.run is None:
        return [], [], Base("")
    with reading():
        known = Known()
        runs = list(with_parents(source.run))[::-1]
        phases = [_phase(run, known) for run in runs if run.data.tags.get("seeker.verb") == "fit"]
        tests = [test for run in known.children(source.run) if (test := _test_of(run, source, known)) is not None]
        return phases, tests, _base(runs[0])


def _config(run: Run) -> Row:
    try:
        return run_config(run)
    except TrackingError:  # it kept none, and the card does without
        return {}


def _phase(run: Run, known: Known) -> Phase:
    config, tags = _config(run), run.data.tags
    files = known.datasets(run)
    data = tuple(_data(file, known, role) for role, file in files.items())
    before = {one.digest: one for file in files.values() for one in _before(file, known)}
    method = str((config.get("model") or {}).get("class_path", "")).rpartition(".")[2] or "not recorded"
    code = f"{tags.get('git.commit', '')[:12]}{' with changes' if tags.get('git.dirty') == 'true' else ''}"
    command = told_command(tags.get("seeker.command", ""))
    return Phase(str(run.info.run_name), method, tuple(told_settings(config)), data, tuple(before.values()), command, code)


def told_settings(config: Row) -> Iterator[tuple[str, str]]:
    """Yield the settings that decide what is trained and how; what is off is left out, and what is secret."""
    kept = {
        "model": config.get("model") or {},
        "data": config.get("data") or {},
        "trainer": {name: value for name, value in (config.get("trainer") or {}).items() if name in OF_TRAINER},
        "seed": config.get("seed_everything"),
    }
    for name, value in flatten(kept).items():
        if value not in OFF and name not in (*NO_METHOD, "model", "data") and not SECRET.search(name):
            yield name, str(without_folders(value))


def told_command(command: str) -> str:
    """Return a command without folders and without the values of options that are secret.

    `seeker fit --model.api_key=abc` -> `seeker fit --model.api_key=HIDDEN`
    """
    if not SECRET.search(command):
        return str(without_folders(command))
    words = shlex.split(command)
    for place, word in enumerate(words):
        option, equals, _ = word.partition("=")
        if option.startswith("-") and SECRET.search(option):
            if equals:
                words[place] = f"{option}=HIDDEN"
            elif place + 1 < len(words):
                words[place + 1] = "HIDDEN"
    return str(without_folders(shlex.join(words)))


def _data(file: DataFile, known: Known, role: str = "") -> Data:
    name = Path(file.path).name
    if name == "manifest.json":
        name = f"index of {', '.join(Path(source.path).name for source in file.inputs()) or Path(file.path).parent.name}"
    made = known.command(file)
    told = (file.manifest or {}).get("outputs", {}).get(Path(file.path).name, {})
    return Data(role, name, file.digest, told.get("rows"), told_command(str(made)) if made else "")


def _before(file: DataFile, known: Known) -> Iterator[Data]:
    """Yield what a file was made from, an input before what was made of it."""
    for source in file.inputs():
        yield from _before(source, known)
        yield _data(source, known)


def _test_of(run: Run, source: Source, known: Known) -> Test | None:
    """Return what a run measured, if it is a test of exactly these weights, by the digest that it noted of those it loaded.

    Its model's path tells nothing: a training that went on, or began anew, wrote other weights there.
    """
    from project.modules.adapter_checkpoint import base_digest

    store = client()
    if run.data.tags.get("seeker.verb") != "test" or source.model is None:
        return None
    if SUMMARY not in {entry.path for entry in store.list_artifacts(run.info.run_id)}:
        return None
    with tempfile.TemporaryDirectory() as folder:
        held: Row = json.loads(Path(store.download_artifacts(run.info.run_id, SUMMARY, folder)).read_text(encoding="utf-8"))
    if held.get("model_digest") != base_digest(str(source.model)):
        return None
    index = known.datasets(run).get("index")
    return _test(str(run.info.run_name), held, _data(index, known).name if index is not None else "")


def _test(name: str, held: Row, index: str) -> Test:
    from project.evaluation.report_tables import meaning

    settings = held.get("settings") or {}
    limits = settings.get("limits") or {}
    told = {"temperature": settings.get("temperature"), "samples a question": settings.get("samples")}
    told |= {"documents a search": settings.get("topk"), "turns at most": limits.get("max_turns")}
    told |= {"context tokens at most": limits.get("context_tokens"), **(held.get("chosen") or {})}
    told |= {"left out, as their search failed,": int(held.get("environment_failures") or 0) or None}
    samples = int(settings.get("samples") or 1)
    figures = {metric: _estimate(row) for metric, row in held["metrics"].items() if row.get("n") and row["mean"] is not None}
    return Test(
        name,
        Path(str(held.get("test_file", ""))).name,
        str(held.get("test_digest", "")),
        _questions(held, samples),
        samples,
        index,
        ", ".join(f"{what} {value}" for what, value in told.items() if value is not None),
        tuple((metric, figures[metric], MEANING.get(metric) or meaning(metric)) for metric in SHOWN if metric in figures),
    )


def _questions(held: Row, samples: int) -> int:
    """Return how many questions were counted: avg@k has a value for each; without it, those of so many episodes."""
    told = held["metrics"].get(f"avg_at_{samples}") or {}
    return int(told.get("n") or math.ceil(int(held.get("n") or 0) / samples))


def _estimate(row: Row) -> Estimate:
    mean, low, high = (float("nan") if row[name] is None else float(row[name]) for name in ("mean", "low", "high"))
    return Estimate(mean, low, high, int(row["n"]), int(row.get("groups") or 0))


def _base(run: Run) -> Base:
    """Return the model that the first run started from."""
    from project.model_cache import PACKAGE, model_folder
    from project.modules.policy import resolve_model_path
    from project.tiny_model import TINY_NAME

    config = _config(run)
    if not config:
        return Base("")
    named = config["model"]["init_args"].get("model_path")
    if named is None or Path(named) == model_folder():
        note = f"from the 4-bit blocks of the package {PACKAGE}, as bfloat16"
        return Base(DEFAULT_BASE, DEFAULT_BASE, DEFAULT_LICENCE, note)
    if named == TINY_NAME:
        return Base(TINY_NAME, note="two layers of random weights, to check the machinery")
    try:
        path = Path(resolve_model_path(named))
    except InputError:
        return Base(Path(named).name)
    if "seeker.parent" in run.data.tags and not path.is_dir():  # a folder that is gone, of a run that the store does not have
        return Base(Path(named).name)
    is_folder = path.is_dir()
    return Base(path.name if is_folder else named, None if is_folder else named, _licence(named))


def _licence(named: str) -> str | None:
    """Return the licence in the card of a model that lies here, or in the hub's cache."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    file = Path(named) / "README.md" if Path(named).is_dir() else try_to_load_from_cache(named, "README.md")
    if not isinstance(file, (str, Path)) or not Path(file).is_file():
        return None
    try:
        held = ModelCard.load(file).data.to_dict().get("license")
    except (ValueError, OSError):  # a card whose header cannot be read
        return None
    return held if isinstance(held, str) else None
