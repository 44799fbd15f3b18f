"""`seeker data steps`: a trace -> one sample per search result.

The context of sample i is the question and all steps up to result i; its target is what the agent did next, until the
next result or the end. With `include_first` the first decision (question -> first search) is a target too, which the
predecessors never trained (DESIGN §8.12). So a trace with N results gives N + 1 samples, less one where nothing follows
the last result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from project.errors import InputError
from project.files import write_records
from project.records import Row, Step, Trace
from project.traces.table import as_paths, print_counts, question_group, read_traces, refuse_same_file


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
            tuple(row.get("answers") or ()),
            int(row["split_index"]),
            int(row["total_splits"]),
            context,
            target,
            str(row["group"]),
            str(row.get("source") or ""),
            row.get("correct"),
            str(row.get("summary") or ""),
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
        }


def steps(input_file: list[Path] | Path, output_file: Path, include_first: bool = True) -> None:
    """Write one sample per search result of each trace.

    Args:
        input_file: one or several trace files, as seeker data traces writes them.
        output_file: the samples to write (.jsonl, .jsonl.gz or .parquet).
        include_first: also write the first decision, from the question to the first search.
    """
    paths = as_paths(input_file)
    refuse_same_file(paths, output_file)
    traces = read_traces(paths)
    samples = [sample for trace in traces for sample in split(trace, include_first=include_first)]
    if not samples:
        raise InputError(f"{len(traces)} traces give no sample; give traces in which something follows a result")
    write_records(output_file, samples)
    print_counts("steps", _counts(traces) | {"samples written": len(samples)})


def split(trace: Trace, *, include_first: bool = True) -> list[StepSample]:
    """Return the samples of a trace. One without any result gives one: the question and all steps."""
    ends = [number for number, step in enumerate(trace.steps, 1) if step.type == "search_result"]
    starts = [0, *ends] if include_first or not ends else ends
    samples = []
    for start in starts:
        target = trace.steps[start : next((end - 1 for end in ends if end > start), len(trace.steps))]
        if target:
            samples.append(_sample(trace, start, ends, target))
    return samples


def _sample(trace: Trace, start: int, ends: Sequence[int], target: tuple[Step, ...]) -> StepSample:
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
    )


def _counts(traces: Sequence[Trace]) -> dict[str, int]:
    return {
        "traces": len(traces),
        "results": sum(step.type == "search_result" for trace in traces for step in trace.steps),
        "traces without a search": sum(all(step.type != "search_result" for step in trace.steps) for trace in traces),
        "last results that nothing follows": sum(trace.steps[-1].type == "search_result" for trace in traces),
    }
