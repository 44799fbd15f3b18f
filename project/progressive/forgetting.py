"""What a pipeline forgets: the loss on each phase's validation set before and after each phase, as metrics and as a picture.

They lie in one MLflow run of the pipeline, under which its page shows the phases' runs, and in the pipeline's folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from project.modules.hand_over import BEFORE
from project.progressive.pipeline import MANIFEST, Phase, Pipeline
from project.tracking.provenance import git_tags, version_tags
from project.tracking.store import client, experiment_id

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PICTURE = "forgetting.svg"
EXPERIMENT = "seeker"
START = "before"

Losses = dict[str, dict[str, float]]
"""By finished phase (or `before` the first) and validation set: the loss of the weights that the phase hands on."""


def own_sets(files: Mapping[str, str]) -> dict[str, str]:
    """Return the name of each phase's validation set, given their files: that of the first phase with the same file.

    >>> own_sets({"a": "x.jsonl", "b": "y.jsonl", "again": "x.jsonl"})
    {'a': 'a', 'b': 'b', 'again': 'a'}
    """
    first: dict[Path, str] = {}
    return {phase: first.setdefault(Path(file).resolve(), phase) for phase, file in files.items()}


def losses(pipeline: Pipeline) -> Losses:
    """Return what the first phase measured before it began, and what the phases' hand-overs say.

    That is of the best weights where a training kept such, else of the last.
    """
    first = pipeline.phases[0]
    before = pipeline.phase_folder(first) / BEFORE
    found = {START: _of_sets(pipeline, first, json.loads(before.read_text(encoding="utf-8")))} if before.is_file() else {}
    for phase in pipeline.phases:
        row = pipeline.done.get(phase.name, {})
        if row.get("finished"):
            metrics = row["hands_on"].get("best", row["hands_on"]["last"])["metrics"]
            found[phase.name] = _of_sets(pipeline, phase, metrics)
    return found


def _of_sets(pipeline: Pipeline, phase: Phase, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the losses by validation set of what a phase has measured."""
    own = pipeline.sets.get(phase.name, phase.name)
    found = {own: metrics["val/loss"]} if "val/loss" in metrics else {}
    others = {name: value for name, value in metrics.items() if name.startswith("val_") and name.endswith("/loss")}
    return found | {name.removeprefix("val_").removesuffix("/loss"): value for name, value in others.items()}


@contextmanager
def tracked(pipeline: Pipeline, file: Path) -> Iterator[None]:
    """Hold the pipeline's MLflow run open; it is the same one however often the pipeline is interrupted."""
    from mlflow.exceptions import MlflowException

    of = client()
    try:
        of.get_run(pipeline.run_id or "none")
    except MlflowException:  # a first time, or the store no longer has it
        pipeline.run_id = _new_run(of, pipeline)
        pipeline.write_manifest()
    run_id = str(pipeline.run_id)
    of.update_run(run_id, status="RUNNING")
    of.log_artifact(run_id, str(file))
    try:
        yield
    except BaseException:
        with suppress(MlflowException):  # a full disk, perhaps the same that is raised
            of.set_terminated(run_id, "FAILED")
        raise
    of.set_terminated(run_id)


def _new_run(of: MlflowClient, pipeline: Pipeline) -> str:
    tags = {"seeker.verb": "progressive", "seeker.folder": str(pipeline.folder), **git_tags(), **version_tags()}
    return str(of.create_run(experiment_id(EXPERIMENT), run_name=pipeline.name, tags=tags).info.run_id)


def record(pipeline: Pipeline) -> None:
    """Log the losses before the first phase (step 0) and after each finished one, whose number is the step, and draw them."""
    from mlflow.entities import Metric

    of, run_id, found = client(), str(pipeline.run_id), losses(pipeline)
    rows = [
        Metric(f"val_{name}/loss", value, 0, 0 if phase == START else pipeline.phase(phase).number)
        for phase, row in found.items()
        for name, value in row.items()
    ]
    if rows:
        of.log_batch(run_id, metrics=rows)
        draw(found, pipeline.folder / PICTURE)
        of.log_artifact(run_id, str(pipeline.folder / PICTURE))
    of.log_text(run_id, pipeline.manifest(), MANIFEST)


def draw(found: Losses, file: Path) -> None:
    """Draw the losses as a table of phase by set, darker where a set is further from its lowest loss."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    sets = list(dict.fromkeys(name for row in found.values() for name in row))
    table = np.array([[row.get(name, np.nan) for name in sets] for row in found.values()])
    above = table - np.nanmin(table, axis=0)
    figure, axis = plt.subplots(figsize=(2 + 1.6 * len(sets), 1.6 + 0.6 * len(found)), layout="constrained")
    axis.imshow(above, cmap="Oranges", vmin=0, vmax=max(float(np.nanmax(above)), 1e-9), aspect="auto", alpha=0.7)
    for (row, column), value in np.ndenumerate(table):
        axis.text(column, row, "" if np.isnan(value) else f"{value:.3f}", ha="center", va="center")
    axis.set_xticks(range(len(sets)), sets)
    axis.set_yticks(range(len(found)), [phase if phase == START else f"after {phase}" for phase in found])
    axis.set(title="validation loss; darker: further above the set's lowest")
    with plt.rc_context({"svg.hashsalt": "seeker"}):
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)
