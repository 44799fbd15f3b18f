"""`seeker data phases`: traces, or step samples with summaries -> the training sets of the phases, all of them conversations.

- `multiturn`: the whole trace; every turn is trained.
- `summary_only`: the question and a summary of what was read -> the next turn. It is what the agent sees after a fold.
- `summary_prefix`: question and turns so far (weight 0), `<fold/>` -> the summary; the question with it -> the next turn. After
  the first result also from the summary before: question with it, the last search and result, as when an agent folds again;
  where the new summary says only what these show.
- `previous_turn`: question, the agent's last summary and search (weight 0), what it found -> a new summary and the next turn.

Traces get extractive summaries (`summaries.py`); samples bring their own, a teacher's for example. Both give the same sets
where the summaries are the same. `seeker data split` comes after, and keeps a question's conversations of all sets together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from project.dialects import FOLD_REQUEST, Action, Dialect, get_dialect
from project.evaluation.summaries import PARTS, quoted
from project.records import Conversation, DialectName, Message, Row, Step, Trace, with_weight
from project.streams import Made, as_paths, each, print_counts, run
from project.traces.multiturn import conversation, problem, steps_messages
from project.traces.steps import StepSample, split
from project.traces.summaries import MAX_WORDS, check_max_words, context_before, context_texts, with_summary
from project.traces.table import parse_trace

PHASES = ("multiturn", "summary_only", "summary_prefix", "previous_turn")
FileFormat = Literal["jsonl", "jsonl.gz", "parquet"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the sets depend on beside the rows."""

    dialect: DialectName = "tags"
    max_words: int = MAX_WORDS
    include_first: bool = True
    keep_wrong: bool = False


def phases(
    input_file: list[Path] | Path,
    output_dir: Path,
    dialect: DialectName = "tags",
    max_words: int = MAX_WORDS,
    include_first: bool = True,
    keep_wrong: bool = False,
    file_format: FileFormat = "jsonl",
    strict: bool = False,
    force: bool = False,
) -> None:
    """Write the training sets multiturn, summary_only, summary_prefix and previous_turn.

    Args:
        input_file: one or several files of traces, as seeker data traces writes them, or of step samples with summaries.
        output_dir: the folder for PHASE.jsonl.
        dialect: how the agent's turns are written; tags, tools, or a class of your own, as module.Class.
        max_words: at most so many words of thoughts and results in a summary of a trace; samples bring their summaries.
        include_first: also train the first decision (question -> first search) in summary_only.
        keep_wrong: also train traces whose answer is known to be wrong.
        file_format: jsonl, jsonl.gz or parquet.
        strict: stop at the first row that is neither a trace nor a sample, instead of listing it.
        force: replace sets that were made otherwise.
    """
    check_max_words(max_words)
    settings = Settings(dialect, max_words, include_first, keep_wrong)
    parameters: Row = {"dialect": get_dialect(dialect).identity, "max_words": max_words}
    parameters |= {"include_first": include_first, "keep_wrong": keep_wrong}
    outputs = {phase: output_dir / f"{phase}.{file_format}" for phase in PHASES}
    program = partial(each, partial(of_row, settings))
    counts = run("seeker data phases", program, as_paths(input_file), outputs, parameters, strict=strict, force=force)
    print_counts("phases", counts)


def of_row(settings: Settings, row: Row, made: Made) -> None:
    """Add the conversations of a trace, or of one step sample; what cannot be one, or has a wrong answer, is counted."""
    dialect = get_dialect(settings.dialect)
    if "context" in row:
        sample = StepSample.from_row(row)
        whole = _whole_trace(sample)
        if dropped := _dropped(sample.problem, sample.correct, settings):
            made.counts[f"traces dropped: {dropped}"] += whole is not None
            return
        found = [*([("multiturn", conversation(whole, dialect))] if whole else []), *of_sample(sample, dialect, settings)]
    else:
        trace = parse_trace(row)
        if dropped := _dropped(problem(trace) or "", trace.correct, settings):
            made.counts[f"traces dropped: {dropped}"] += 1
            return
        found = [("multiturn", conversation(trace, dialect))]
        for sample in split(trace):
            found += of_sample(with_summary(sample, settings.max_words), dialect, settings)
    for phase, one in found:
        made.put(phase, one.to_row())


def _whole_trace(sample: StepSample) -> Trace | None:
    """Return the trace where the sample is its last."""
    if sample.split_index < sample.total_splits:
        return None
    steps = (*sample.context, *sample.target)
    return Trace(sample.trace_id, sample.question, sample.answers, steps, sample.correct, sample.source)


def _dropped(found: str, correct: bool | None, settings: Settings) -> str:
    """Return why a trace is not trained; a wrong answer is no example (DESIGN §8.9)."""
    return found or ("a wrong answer" if correct is False and not settings.keep_wrong else "")


def of_sample(sample: StepSample, dialect: Dialect, settings: Settings) -> Iterator[tuple[str, Conversation]]:
    """Yield a sample's conversation of each phase that it has one for."""
    if sample.summary or (settings.include_first and not sample.context):
        yield "summary_only", summary_only(sample, dialect)
    if sample.summary:
        yield "summary_prefix", summary_prefix(sample, dialect)
        if _says_only(sample.summary, [sample.previous_summary, *context_texts(_latest(sample))]):
            yield "summary_prefix", folded_again(sample, dialect)
        yield "previous_turn", previous_turn(sample, dialect)


def summary_only(sample: StepSample, dialect: Dialect) -> Conversation:
    """Return (question, summary) -> target; without a summary it is the first decision."""
    messages = [*dialect.opening(sample.question, sample.summary), _target(sample, dialect)]
    return _sample_conversation("summary_only", sample, messages, dialect)


def summary_prefix(sample: StepSample, dialect: Dialect) -> Conversation:
    """Return context -> summary + target: the summary answers `<fold/>`, the target what a fold leaves."""
    messages = [*dialect.opening(sample.question), *_folded(sample, sample.context, dialect)]
    return _sample_conversation("summary_prefix", sample, messages, dialect)


def folded_again(sample: StepSample, dialect: Dialect) -> Conversation:
    """Return (question, last summary), what came after it -> a new summary + target."""
    messages = [*dialect.opening(sample.question, sample.previous_summary), *_folded(sample, _latest(sample), dialect)]
    again = _sample_conversation("summary_prefix", sample, messages, dialect)
    return replace(again, id=f"{again.id}/again", extra_info=again.extra_info | {"again": True})


def _says_only(summary: str, shown: Sequence[str]) -> bool:
    """Return whether each sentence of a summary stands in what is shown, the first of which is the summary before."""
    return bool(shown[0]) and quoted(summary, shown, PARTS) == 1


def _folded(sample: StepSample, context: Sequence[Step], dialect: Dialect) -> list[Message]:
    """Return a context that is folded, and the next turn."""
    return [
        *_untrained(steps_messages(context, dialect)),
        Message("user", FOLD_REQUEST),
        dialect.write(Action(summary=sample.summary)),
        dialect.opening(sample.question, sample.summary)[-1],
        _target(sample, dialect),
    ]


def _latest(sample: StepSample) -> Sequence[Step]:
    """Return what came after the result before the last one."""
    return sample.context[len(context_before(sample.context)) :]


def previous_turn(sample: StepSample, dialect: Dialect) -> Conversation:
    """Return (question, last summary and search, what it found) -> a new summary and the target, one message each."""
    last, *found = _untrained(steps_messages(_latest(sample), dialect))
    if sample.previous_summary:
        last = _with_summary(last, sample.previous_summary, dialect)
    target = _with_summary(_target(sample, dialect), sample.summary, dialect)
    return _sample_conversation("previous_turn", sample, [*dialect.opening(sample.question), last, *found, target], dialect)


def _with_summary(message: Message, summary: str, dialect: Dialect) -> Message:
    parts = (dialect.write(Action(summary=summary)).content, message.content)
    return replace(message, content="\n".join(part for part in parts if part))


def _untrained(messages: Sequence[Message]) -> list[Message]:
    return [with_weight(m, 0.0) if m.role == "assistant" else m for m in messages]


def _target(sample: StepSample, dialect: Dialect) -> Message:
    """Return the one assistant message of a target: the thoughts with the search or the answer they led to."""
    messages = steps_messages(sample.target, dialect)
    if len(messages) != 1:
        msg = f"field 'target' of sample '{sample.id}' gives {len(messages)} messages, expected one turn"
        raise ValueError(msg)
    return messages[0]


def _sample_conversation(phase: str, sample: StepSample, messages: Sequence[Message], dialect: Dialect) -> Conversation:
    info = {"phase": phase, "trace_id": sample.trace_id, "split_index": sample.split_index, "total_splits": sample.total_splits}
    info |= {"source": sample.source, "correct": sample.correct}
    name = f"{phase}:{sample.id}"
    return Conversation(name, tuple(messages), dialect.tools, sample.question, sample.answers, sample.group, info)
