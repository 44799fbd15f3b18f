"""`seeker data traces`: the logs of any agent -> the trace table (DESIGN §3).

Each row is read by the reader that fits it (`readers/`) and made uniform (`tidy.py`). A row that no reader can read is
counted by its reason and listed with file and line. By default all stay (`filters.py`); what a filter removed is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from project.named import named_identity
from project.records import Row, Trace
from project.streams import ROW_ERRORS, Made, Placed, as_paths, print_counts, run
from project.traces.filters import Filters
from project.traces.readers import ReaderName, TraceReader, read_trace, reader_named
from project.traces.table import uniform


def traces(
    input_file: list[Path] | Path,
    output_file: Path,
    reader: ReaderName = "auto",
    filters: list[str] | None = None,
    tokenizer: str | None = None,
    strict: bool = False,
    force: bool = False,
) -> None:
    """Read raw agent traces of any known format into the trace table.

    Args:
        input_file: one or several files (.jsonl, .json or .parquet, also .gz) of agents' logs.
        output_file: the trace table to write (.jsonl, .jsonl.gz or .parquet).
        reader: the format of the rows; auto looks at each row; or a class of your own, as module.Class.
        filters: which traces stay: correct, answered, searched, answer_found, no_tool_error, no_malformed, no_duplicates,
            no_near_duplicates (of traces of one question that are about nine tenths alike, one stays), or any SQL expression
            over source, correct, answered, answer_found, turns, searches, results, errors, malformed, words, chars, tokens and
            language, as in "[correct, no_duplicates, 'turns <= 6', 'tokens < 4000', 'language in (''en'', ''de'')']".
        tokenizer: what counts tokens: a model's folder or its name on the hub; by default the default model.
        strict: stop at the first row that cannot be read, instead of listing it in OUTPUT.rejected.jsonl.
        force: replace an output that was made otherwise.
    """
    wanted = Filters(tuple(filters or ()), tokenizer)
    wanted.check()
    if reader != "auto":
        reader_named(reader)  # refused before a row is read
    parameters: Row = {"reader": named_identity(reader, TraceReader), "filters": filters or []}
    if digest := wanted.tokenizer_digest:
        parameters["tokenizer"] = digest
    program = partial(ingest, reader, wanted)
    counts = run(
        "seeker data traces", program, as_paths(input_file), {"traces": output_file}, parameters, strict=strict, force=force
    )
    print_counts("traces", counts)


def ingest(reader: ReaderName, filters: Filters, rows: Sequence[Placed], made: Made) -> Iterator[tuple[Placed, str]]:
    """Read rows into traces; a `Program` of `streams.py`."""
    found: list[Trace] = []
    for placed in rows:
        stem = placed.file.name.split(".")[0]
        own = {name: value for name, value in placed.row.items() if value not in (None, "")}
        named = {"id": f"{stem}-{placed.line}", "source": stem} | own
        try:
            name, trace = read_trace(named, reader)
            trace = uniform(trace)
        except ROW_ERRORS as error:
            yield placed, str(error)
            continue
        made.counts[f"read by '{name}'"] += 1
        found.append(trace)
    for trace, removed_by in zip(found, filters.removed_by(found), strict=True):
        if removed_by:
            made.counts[f"removed by {removed_by}"] += 1
        else:
            made.put("traces", trace.to_row(), once=filters.keys(trace), same_id="rename")
