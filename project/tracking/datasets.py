"""Files of rows in MLflow: by the digest of their content, with the manifest that says how they were made."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from project.files import file_digest
from project.manifests import manifest_of
from project.records import Row
from project.tracking.provenance import git_tags, version_tags
from project.tracking.store import MANIFESTS, MAX_PARAM, client, experiment_id

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

INDEX = "index"
"""What a run calls the index that it searched."""
EXPERIMENT = "seeker-data"
"""Of the runs that made data."""


def log_datasets(store: MlflowClient, run_id: str, files: Mapping[str, Path]) -> None:
    """Log files as a run's datasets, each by what it is for; what is no file is left out."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for name, path in files.items():
        if not path.is_file():
            continue
        digest = file_digest(path)
        store.set_tag(run_id, f"dataset.{name}", digest)
        store.set_tag(run_id, f"dataset_file.{name}", str(path))
        manifest = _index_of(path, digest) if name == INDEX else manifest_of(path, digest)
        if manifest:
            store.log_text(run_id, json.dumps(manifest, ensure_ascii=False, indent=1), f"{MANIFESTS}/{name}.json")
        held = json.dumps(manifest["outputs"].get(path.name)) if manifest else None
        dataset = Dataset(name=path.name, digest=digest, source_type="local", source=path.resolve().as_uri(), profile=held)
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", name)]))
    if inputs:
        store.log_inputs(run_id, datasets=inputs)


def _index_of(path: Path, digest: str) -> Row:
    """Return how an index was made, which its own manifest says, as the manifests of other files do."""
    from project.tracking.commands import index_manifest

    return index_manifest(json.loads(path.read_text(encoding="utf-8")), digest)


def log_made(program: str, outputs: Mapping[str, Path], parameters: Row, counts: Mapping[str, int], seconds: float) -> str:
    """Write a run of a program that made data, with the files it made as datasets; return the run's id.

    Args:
        program: `seeker data questions`.
        outputs: the files, by name.
        parameters: what decided them, as the manifest has it.
        counts: as the manifest has them; they become metrics.
        seconds: that it took.
    """
    from mlflow.entities import Metric, Param, RunTag

    store, now = client(), int(time.time() * 1000)
    run = store.create_run(
        experiment_id(EXPERIMENT), start_time=now - int(seconds * 1000), run_name=program.removeprefix("seeker ")
    )
    tags = {"seeker.verb": program, **git_tags(), **version_tags()}
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for name, value in parameters.items()
    }
    store.log_batch(
        run.info.run_id,
        metrics=[Metric(_metric(name), float(value), now, 0) for name, value in {**counts, "seconds": seconds}.items()],
        params=[Param(name, text[:MAX_PARAM]) for name, text in texts.items()],
        tags=[RunTag(name, text) for name, text in tags.items()],
    )
    log_datasets(store, run.info.run_id, outputs)
    store.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def _metric(name: str) -> str:
    """Return a count's name as MLflow takes it."""
    return "".join(c if c.isalnum() or c in " _-" else " " for c in name)[:250]
