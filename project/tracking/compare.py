"""Runs side by side: `seeker compare RUN RUN…`, `seeker runs`, `seeker lineage RUN`.

What differs is shown and what is equal left out. Metrics are the last value logged, with n and the 95 % interval where the
run logged them (`n`, `NAME_low`, `NAME_high`); runs that kept scores per question are tested in pairs.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from project.errors import InputError
from project.records import Row
from project.tracking.store import all_runs, client, dataset_manifests, find_run, run_metrics, run_params, tracking_uri
from project.tracking.trend import TRAINED, Trend, trained_reward
from project.writing import write_text

if TYPE_CHECKING:
    from mlflow.entities import Run
    from rich.console import Console
    from rich.table import Table
    from rich.tree import Tree

    from project.tracking.paired import PairedResult, Scores

    Paired = dict[tuple[int, int], list[PairedResult]]

FIXED_TAGS = ("seeker.parent", "git.commit", "git.dirty")
Rows = dict[str, list[str]]


def compare(run: list[str], output_file: Path | None = None) -> None:
    """Show runs side by side, with the paired test of each and the one before it: `seeker compare RUN RUN…`.

    Args:
        run: names or ids of the runs; a name means its newest run.
        output_file: also write it as JSON, with the paired tests of all pairs.
    """
    if len(run) < 2:
        raise InputError(f"compare takes two runs or more, got {len(run)}; `seeker runs` lists them")
    runs = [find_run(name) for name in run]
    params = _differing([run_params(one) for one in runs])
    origins = _all_rows([_origin(one) for one in runs])
    paired = paired_tests(runs)
    tested = {f"test/{result.metric}" for results in paired.values() for result in results}
    rows = metric_rows([run_metrics(one) for one in runs]).items()
    metrics = {key: values for key, values in rows if key in tested or len(set(values)) > 1}
    trends = [trained_reward(one) for one in runs]
    metrics |= _training_rows(trends)
    names = [str(one.info.run_name) for one in runs]
    if output_file is not None:
        write_text(output_file, json.dumps(_report(runs, params, paired, trends), indent=2) + "\n")
    sections = {"origin": origins, "parameters that differ": params, "metrics": metrics}
    _console(len(runs)).print(_table(names, sections, paired))


def runs() -> None:
    """List the tracked runs, newest first."""
    from rich.table import Table

    found = all_runs()
    table = Table("run", "verb", "status", "started", "parent", "id", title=f"{len(found)} runs in {tracking_uri()}")
    names = {one.info.run_id: str(one.info.run_name) for one in found}
    for one in found:
        tags, started = one.data.tags, time.strftime("%Y-%m-%d %H:%M", time.localtime(one.info.start_time / 1000))
        parent = tags.get("seeker.parent", "")
        verb = tags.get("seeker.verb", "")
        table.add_row(names[one.info.run_id], verb, one.info.status, started, names.get(parent, parent), one.info.run_id)
    _console().print(table)


def lineage(run: str) -> None:
    """Show what a run was made from: its parents, with the datasets and checkpoints of each.

    Args:
        run: name or id of the run.
    """
    _console().print(lineage_tree(find_run(run)))


def lineage_tree(run: Run, seen: frozenset[str] = frozenset()) -> Tree:
    """Return a run with its code, data and checkpoints, and below it the run it started from, and so on."""
    from rich.tree import Tree

    tags, manifests = run.data.tags, dataset_manifests(run.info.run_id)
    tree = Tree(f"[bold]{run.info.run_name}[/bold] {run.info.run_id} {tags.get('seeker.verb', '')} {run.info.status}")
    if "git.commit" in tags:
        tree.add(f"code {tags['git.commit'][:12]}{' with changes' if tags.get('git.dirty') == 'true' else ''}")
    for name, value in sorted(tags.items()):
        kind, _, key = name.partition(".")
        if kind == "dataset":
            _add_origin(tree.add(f"dataset {key} {value} {tags.get(f'dataset_file.{key}', '')}"), manifests.get(key))
        elif kind == "checkpoint":
            tree.add(f"checkpoint {key} {value}")
    parent = tags.get("seeker.parent")
    if parent and parent not in seen:
        tree.add("parent").add(lineage_tree(find_run(parent), seen | {run.info.run_id}))
    return tree


def _add_origin(tree: Tree, manifest: Row | None) -> None:
    """Add below a dataset the program that made it, and below that its inputs, and so on."""
    if manifest is None:
        return
    from rich.markup import escape

    options = " ".join(f"{name}={escape(str(value))}" for name, value in manifest["parameters"].items())
    made = tree.add(f"made by {manifest['program']} {manifest['version']} {options}")
    for source in manifest["inputs"]:
        _add_origin(made.add(f"from {source['file']} {source['digest']}"), source.get("made_by"))


def metric_rows(metrics: list[dict[str, float]]) -> Rows:
    """Return a row a metric; `em` with `em_low`, `em_high` and `n` becomes `0.812 [0.75, 0.87] n=200`."""

    def folded(name: str) -> bool:
        return any(name == f"{base}{end}" for of in metrics for base in of for end in ("_low", "_high", "_n"))

    keys = sorted({key for of in metrics for key in of if not folded(key)})
    return {key: [_metric_text(of, key) for of in metrics] for key in keys}


def _training_rows(trends: list[tuple[str, Trend] | None]) -> Rows:
    """Return the row of the training reward's trend in the runs or what they were made from; none if none has it."""
    texts = ["-" if found is None else f"{found[1]} of {found[0]}" for found in trends]
    return {f"{TRAINED}, slope an update": texts} if any(trends) else {}


def _metric_text(metrics: Mapping[str, float], key: str) -> str:
    if key not in metrics:
        return "-"
    text = f"{metrics[key]:.4g}"
    low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
    n = metrics.get(f"{key}_n", metrics.get(f"{key.rpartition('/')[0]}/n", metrics.get("n")))
    if low is not None and high is not None:
        text += f" [{low:.3g}, {high:.3g}]" + (f" n={n:.0f}" if n is not None else "")
    return text


def paired_tests(runs: list[Run]) -> Paired:
    """Return {(position, later position): results} of the pairs of runs that kept scores for common questions."""
    from project.tracking.paired import paired_results

    scores = [run_scores(one) for one in runs]
    found = {(a, b): paired_results(scores[a], scores[b]) for a, b in combinations(range(len(runs)), 2)}
    return {pair: results for pair, results in found.items() if results}


def run_scores(run: Run) -> Scores:
    """Return {metric: {question: value}} of a test run, empty where it kept none."""
    from project.tracking.paired import FILES, read_scores

    store = client()
    held = {entry.path for entry in store.list_artifacts(run.info.run_id)}
    for name in FILES:
        if name in held:
            with tempfile.TemporaryDirectory() as folder:
                return read_scores(Path(store.download_artifacts(run.info.run_id, name, folder)))
    return {}


def _differing(of: list[dict[str, str]]) -> Rows:
    return {key: values for key, values in _all_rows(of).items() if len(set(values)) > 1}


def _all_rows(of: list[dict[str, str]]) -> Rows:
    keys: Iterable[str] = dict.fromkeys(key for one in of for key in one)
    return {key: [one.get(key, "-") for one in of] for key in sorted(keys)}


def _origin(run: Run) -> dict[str, str]:
    tags = run.data.tags
    wanted: Callable[[str], bool] = lambda key: key in FIXED_TAGS or key.startswith("dataset.")  # noqa: E731
    return {"id": run.info.run_id} | {key: value for key, value in tags.items() if wanted(key)}


def _report(runs: list[Run], params: Rows, paired: Paired, trends: list[tuple[str, Trend] | None]) -> dict[str, Any]:
    names = [str(one.info.run_name) for one in runs]
    rising = [found and {"run": found[0], **asdict(found[1])} for found in trends]
    return {
        "runs": [
            {"name": one.info.run_name, **_origin(one), "metrics": run_metrics(one), TRAINED: trained}
            for one, trained in zip(runs, rising, strict=True)
        ],
        "parameters": params,
        "paired": [
            {"run": names[later], "against": names[earlier]} | result.to_row()
            for (earlier, later), results in paired.items()
            for result in results
        ],
    }


def _console(columns: int = 3) -> Console:
    """Return a console that is wide enough for ids where the output is no terminal."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=max(160, 40 + 64 * columns))


def _table(names: list[str], sections: Mapping[str, Rows], paired: Paired) -> Table:
    """Return one table: what differs, a section each, and beside the metrics the paired test of each run and the one before."""
    from rich.table import Table

    steps = [pair for pair in pairwise(range(len(names))) if pair in paired]
    said = "" if steps else "; no two neighbours kept scores for common questions, so none is tested in pairs"
    table = Table(title=f"runs side by side; [95 % interval]{said}", title_justify="left")
    for name in ("", *names, *(f"{names[later]} - {names[earlier]}, paired" for earlier, later in steps)):
        table.add_column(name, overflow="fold")
    for title, rows in sections.items():
        table.add_row(f"[bold]{title}[/bold]" + ("" if rows else ": none"))
        for key, values in rows.items():
            table.add_row(key, *values, *(_change(paired[step], key.removeprefix("test/")) for step in steps))
        table.add_section()
    return table


def _change(results: list[PairedResult], metric: str) -> str:
    found = next((result for result in results if result.metric == metric), None)
    return "" if found is None else f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}] n={found.n} p={found.p:.4f}"
