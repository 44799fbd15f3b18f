"""`seeker index bench`: how well an index finds what is judged relevant, and how fast.

nDCG@10 and recall@10 and @100 as trec_eval computes them (through ir_measures), scored per document: of a document's pieces the
best counts. Judgements are a file of TREC's or BEIR's form, or the `evidence` of questions.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from project.corpus.engines.choose import AnyEngine, Remote, open_engine
from project.corpus.index import RankingSettings
from project.corpus.retrievers import Retriever
from project.errors import InputError
from project.evaluation.metrics import Estimate, estimate
from project.files import read_rows
from project.records import Hit, Row, strings
from project.tracking.paired import Scores, paired_results
from project.writing import write_text

DEPTH = 100
"""Documents that are looked at: the deepest measure's."""
PIECES = 10
"""Passages that are asked for a document, so that a document cut into many is not all that is seen."""
SINGLE = 200
"""Queries that are asked one by one, for their time."""
_RANKING, _REMOTE = RankingSettings(), Remote()
Judgements = dict[str, dict[str, int]]
"""Grades by document by query."""


def bench(
    queries: Path,
    index: str | None = None,
    qrels: Path | None = None,
    engine: AnyEngine | None = None,
    ranking: RankingSettings = _RANKING,
    remote: Remote = _REMOTE,
    against: list[AnyEngine] | None = None,
    output_file: Path | None = None,
) -> None:
    """Measure what an index finds for judged queries, and how fast.

    Args:
        queries: rows with `id` (or `_id`) and `text` (or `question`).
        index: the folder (or s3://…, db://…) that `seeker index build` wrote.
        qrels: judgements, tab or space separated: query, document, grade, or TREC's four columns; default: the queries' own
            `evidence`.
        engine: by which of the index's engines to search (default: that for which it was built), or one elsewhere.
        ranking: how engines are combined.
        remote: where an engine elsewhere is.
        against: other engines of the index, plain, that are measured too; the differences are tested query by query.
        output_file: a JSON file for the results; default: they are printed only.
    """
    asked = read_queries(queries)
    judged = read_qrels(qrels) if qrels else {ident: dict.fromkeys(row["evidence"], 1) for ident, row in asked.items()}
    judged = {ident: grades for ident, grades in judged.items() if ident in asked and any(g > 0 for g in grades.values())}
    if not judged:
        raise InputError(f"no query of {queries} has a relevant document in {qrels or 'its field evidence'}; check the ids")
    texts = {ident: asked[ident]["text"] for ident in judged}
    scores, about = _scored(index, engine, ranking, remote, texts, judged)
    others = [_scored(index, other, _RANKING, remote, texts, judged) for other in against or []]
    estimates = {name: estimate(list(values.values()), unit=True) for name, values in scores.items()}
    results: dict[str, Any] = {name: one._asdict() for name, one in estimates.items()}
    results |= {"index": index, **about, "ranking": asdict(ranking)}
    results["against"] = {told["engine"]: [one.to_row() for one in paired_results(other, scores)] for other, told in others}
    _print(estimates, results)
    if output_file:
        write_text(output_file, json.dumps(results, indent=1) + "\n")


def _scored(
    index: str | None, engine: AnyEngine | None, ranking: RankingSettings, remote: Remote, texts: Row, judged: Judgements
) -> tuple[Scores, Row]:
    """Return an engine's measures of each query, and what is known of it, its speed among it."""
    retriever, about = open_engine(index, engine, ranking, remote)
    found, speed = asyncio.run(_measured(retriever, list(texts.values())))
    named = {name for grades in judged.values() for name in grades}
    ranked = {ident: documents(hits, named) for ident, hits in zip(texts, found, strict=True)}
    return score(ranked, judged), about | speed


def read_queries(path: Path) -> dict[str, Row]:
    """Return queries by id, each with `text` and `evidence`."""
    asked: dict[str, Row] = {}
    for line, row in read_rows(path):
        ident = row.get("_id", row.get("id"))
        text = row.get("text", row.get("question"))
        if not isinstance(ident, (str, int)) or not isinstance(text, str):
            raise InputError(f"{path}, line {line}: a query needs `id` (or `_id`) and `text` (or `question`)")
        if str(ident) in asked:
            raise InputError(f"{path}, line {line}: the id '{ident}' occurs twice; ids must differ")
        try:
            asked[str(ident)] = {"text": text, "evidence": strings(row, "evidence")}
        except ValueError as error:
            raise InputError(f"{path}, line {line}: {error}") from error
    return asked


def read_qrels(path: Path) -> Judgements:
    """Return the grades of a file of judgements; a first line without a number is a heading."""
    judged: Judgements = {}
    for number, line in enumerate(_lines(path), 1):
        parts = line.split("\t") if "\t" in line else line.split()
        try:
            if len(parts) not in (3, 4):
                raise ValueError
            query, document, grade = parts[0], parts[-2], int(float(parts[-1]))
        except (ValueError, OverflowError) as error:
            if number == 1:
                continue
            raise InputError(f"{path}, line {number}: expected query, document and grade, found {line!r:.80}") from error
        judged.setdefault(query, {})[document] = grade
    return judged


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as lines:
            yield from (line.rstrip("\n") for line in lines if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as judgements: {error}") from error


def documents(hits: Sequence[Hit], judged: Collection[str]) -> list[str]:
    """Return as what a query's passages are judged, in their order, each once: themselves, or their documents."""
    idents = ((hit.passage.id, hit.passage.document) for hit in hits)
    return list(dict.fromkeys(own if own in judged else document for own, document in idents))[:DEPTH]


def score(found: Mapping[str, Sequence[str]], judged: Judgements) -> Scores:
    """Return nDCG@10, recall@10 and recall@100 of each query.

    Args:
        found: documents by query, best first.
        judged: grades by document by query.
    """
    import ir_measures
    from ir_measures import R, nDCG

    measures = {"nDCG@10": nDCG @ 10, "recall@10": R @ 10, "recall@100": R @ 100}
    qrels = [ir_measures.Qrel(query, doc, grade) for query, grades in judged.items() for doc, grade in grades.items()]
    run = [ir_measures.ScoredDoc(query, doc, -rank) for query, docs in found.items() for rank, doc in enumerate(docs)]
    values: Scores = {name: {} for name in measures}
    names = {measure: name for name, measure in measures.items()}
    for metric in ir_measures.iter_calc(list(measures.values()), qrels, run):
        values[names[metric.measure]][metric.query_id] = metric.value
    return values


async def _measured(retriever: Retriever, texts: Sequence[str]) -> tuple[list[list[Hit]], dict[str, float]]:
    """Return each query's hits, and queries a second in batches of 64 and milliseconds of a query alone."""
    try:
        first_hits = await retriever.search(texts[:64], DEPTH)  # loads what is loaded at the first search
        is_cut = any(hit.passage.document != hit.passage.id for hits in first_hits for hit in hits)
        depth = DEPTH * PIECES if is_cut else DEPTH
        start, found = time.perf_counter(), list[list[Hit]]()
        for first in range(0, len(texts), 64):
            found += await retriever.search(texts[first : first + 64], depth)
        seconds = time.perf_counter() - start
        speed = {"queries_per_second": len(texts) / seconds, **await _latencies(retriever, texts)}
    finally:
        await retriever.aclose()
    return found, speed


async def _latencies(retriever: Retriever, texts: Sequence[str]) -> dict[str, float]:
    """Return the median and 99th percentile of milliseconds of a query alone, for ten hits."""
    import numpy as np

    times = []
    for text in texts[:SINGLE]:
        start = time.perf_counter()
        await retriever.search([text], 10)
        times.append(1000 * (time.perf_counter() - start))
    return {"p50_ms": float(np.quantile(times, 0.5)), "p99_ms": float(np.quantile(times, 0.99))}


def _print(scores: Mapping[str, Estimate], results: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("measure", "value", "95 % interval", title=f"{results['index']}, n = {next(iter(scores.values())).n} queries")
    for name, one in scores.items():
        table.add_row(name, f"{one.mean:.3f}", f"[{one.low:.3f}, {one.high:.3f}]")
    for name in ("queries_per_second", "p50_ms", "p99_ms"):
        table.add_row(name.replace("_", " "), f"{results[name]:,.1f}", "")
    for other, tests in results["against"].items():
        for one in tests:
            interval = f"[{one['low']:+.3f}, {one['high']:+.3f}], p = {one['p']:.4f}"
            table.add_row(f"{one['metric']} - {other}", f"{one['difference']:+.3f}", interval)
    Console().print(table)
