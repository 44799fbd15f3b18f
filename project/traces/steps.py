"""`seeker data steps`: a trace -> one sample per search result.

The context of sample i is the question and all steps up to result i; its target is what the agent did next, until the
next result or the end. With `include_first` the first decision (question -> first search) is a target too, which the
predecessors never trained (DESIGN §8.12). So a trace with N results gives N + 1 samples, less one where nothing follows
the last result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from project.records import Row, Step, Trace, maybe_bool, strings
from project.streams import Made, as_paths, each, print_counts, run
from project.traces.multiturn import problem
from project.traces.table import parse_trace, question_group


@dataclass(frozen=True, slots=True)
class StepSample:
    """What an agent had read and thought at one point of a trace, and what it did next."""

    id: str
    """`TRACE_ID#split_index`."""
    trace_id: str
    question: str
    answers: tuple[str, ...]
    split_index: int
    """How many results the context holds; 0 is the first decision."""
    total_splits: int
    """How many results the trace holds."""
    context: tuple[Step, ...]
    target: tuple[Step, ...]
    group: str
    source: str = ""
    correct: bool | None = None
    summary: str = ""
    """The summary of the context, without its tags; empty where there is none."""
    previous_summary: str = ""
    """That of the sample before, which the agent had when it chose its last search."""
    problem: str = ""
    """Why the trace is no conversation; empty where it is one."""

    @classmethod
    def from_row(cls, row: Row) -> StepSample:
        """Read a sample row; `ValueError` names the field that is wrong."""
        for name in ("id", "trace_id", "question", "split_index", "total_splits", "context", "target", "group"):
            if row.get(name) is None:
                msg = f"field '{name}' is missing"
                raise ValueError(msg)
        context, target = (tuple(Step.from_row(step) for step in row[name]) for name in ("context", "target"))
        return cls(
            str(row["id"]),
            str(row["trace_id"]),
            str(row["question"]),
            strings(row, "answers"),
            int(row["split_index"]),
            int(row["total_splits"]),
            context,
            target,
            str(row["group"]),
            str(row.get("source") or ""),
            maybe_bool(row, "correct"),
            str(row.get("summary") or ""),
            str(row.get("previous_summary") or ""),
            str(row.get("problem") or ""),
        )

    def to_row(self) -> Row:
        """Return the sample as a JSON object."""
        return {
            "id": self.id,
            "trace_id": self.trace_id,
            "question": self.question,
            "answers": list(self.answers),
            "split_index": self.split_index,
            "total_splits": self.total_splits,
            "context": [step.to_row() for step in self.context],
            "target": [step.to_row() for step in self.target],
            "group": self.group,
            "source": self.source,
            "correct": self.correct,
            "summary": self.summary,
            "previous_summary": self.previous_summary,
            "problem": self.problem,
        }


def steps(
    input_file: list[Path] | Path,
    output_file: Path,
    include_first: bool = True,
    strict: bool = False,
    force: bool = False,
) -> None:
    """Write one sample per search result of each trace.

    Args:
        input_file: one or several trace files, as seeker data traces writes them.
        output_file: the samples to write (.jsonl, .jsonl.gz or .parquet).
        include_first: also write the first decision, from the question to the first search.
        strict: stop at the first row that is no trace, instead of listing it in OUTPUT.rejected.jsonl.
        force: replace an output that was made otherwise.
    """
    program = partial(each, partial(_split_row, include_first))
    outputs, parameters = {"samples": output_file}, {"include_first": include_first}
    counts = run("seeker data steps", program, as_paths(input_file), outputs, parameters, strict=strict, force=force)
    print_counts("steps", counts)


def _split_row(include_first: bool, row: Row, made: Made) -> None:
    trace = parse_trace(row)
    results = sum(step.type == "search_result" for step in trace.steps)
    made.counts["results"] += results
    made.counts["traces without a result"] += not results
    made.counts["last results that nothing follows"] += trace.steps[-1].type == "search_result"
    for sample in split(trace, include_first=include_first):
        made.put("samples", sample.to_row())


def split(trace: Trace, *, include_first: bool = True) -> list[StepSample]:
    """Return the samples of a trace. One without any result gives one: the question and all steps."""
    ends = [number for number, step in enumerate(trace.steps, 1) if step.type == "search_result"]
    starts = [0, *ends] if include_first or not ends else ends
    found = problem(trace) or ""
    samples = []
    for start in starts:
        target = trace.steps[start : next((end - 1 for end in ends if end > start), len(trace.steps))]
        if target:
            samples.append(_sample(trace, start, ends, target, str(found)))
    return samples


def _sample(trace: Trace, start: int, ends: Sequence[int], target: tuple[Step, ...], found: str) -> StepSample:
    index = sum(end <= start for end in ends)
    return StepSample(
        id=f"{trace.id}#{index}",
        trace_id=trace.id,
        question=trace.question,
        answers=trace.answers,
        split_index=index,
        total_splits=len(ends),
        context=trace.steps[:start],
        target=target,
        group=question_group(trace.question),
        source=trace.source,
        correct=trace.correct,
        problem=found,
    )
