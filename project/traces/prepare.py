"""`seeker data prepare`: the logs of any agent -> the sets of the phases, split, in one command."""

from __future__ import annotations

from pathlib import Path

from project.records import DialectName
from project.traces.check import SPLITS, check_files
from project.traces.ingest import traces
from project.traces.phases import PHASES, phases
from project.traces.split import check_options, split
from project.traces.summaries import MAX_WORDS


def prepare(
    input_file: list[Path] | Path,
    output_dir: Path,
    validation_share: float = 0.1,
    test_share: float = 0.0,
    dialect: DialectName = "tags",
    filters: list[str] | None = None,
    tokenizer: str | None = None,
    near_duplicates: float | None = None,
    max_words: int = MAX_WORDS,
    seed: int = 0,
    strict: bool = False,
    force: bool = False,
) -> None:
    """Make the training sets of the phases from agents' logs: traces, phases, split and its check, one after the other.

    Args:
        input_file: one or several files (.jsonl, .json or .parquet, also .gz) of agents' logs.
        output_dir: the folder for traces.parquet, phases/PHASE.parquet and sets/PHASE_train.parquet, PHASE_validation.parquet.
        validation_share: the share of the questions that are for validation, from 0 to 1.
        test_share: the share of the questions that are for the test, from 0 to 1.
        dialect: how the agent's turns are written; tags or tools.
        filters: which traces stay; see seeker data traces --help.
        tokenizer: what counts tokens in the filters; see seeker data traces --help.
        near_duplicates: how like each other questions go to one side, from 0 to 1; see seeker data split --help.
        max_words: at most so many words of thoughts and results in a summary.
        seed: of the split.
        strict: stop at the first row that cannot be read, instead of listing it.
        force: replace files that were made otherwise.
    """
    check_options(validation_share, test_share, "question", near_duplicates)
    table, sets = output_dir / "traces.parquet", output_dir / "sets"
    traces(input_file, table, filters=filters, tokenizer=tokenizer, strict=strict, force=force)
    phases(table, output_dir / "phases", dialect, max_words, file_format="parquet", strict=strict, force=force)
    made = [output_dir / "phases" / f"{phase}.parquet" for phase in PHASES]
    split(made, sets, validation_share, test_share, seed=seed, near_duplicates=near_duplicates, strict=strict, force=force)
    parts = [part for part in SPLITS if part == "train" or {"validation": validation_share, "test": test_share}[part]]
    check_files([sets / f"{phase}_{part}.parquet" for phase in PHASES for part in parts])
