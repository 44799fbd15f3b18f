"""`seeker data phases`: traces -> the training and validation sets of the three phases, all of them conversations.

- `multiturn`: the whole trace; every turn is trained.
- `summary_only`: the question and a summary of what was read -> the next turn. It is what the agent sees after a fold.
- `summary_prefix`: question and turns so far (weight 0), `<fold/>` -> the summary; the question with it -> the next turn.

The three are made of the same traces and split alike, by the hash of the question, so that no question, and with it no
prefix of a trace, is on both sides (DESIGN §8.8). Adding rows moves nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from project import __version__
from project.dialects import FOLD_REQUEST, Action, Dialect, get_dialect
from project.errors import InputError
from project.files import file_digest, write_records, write_text
from project.records import Conversation, DialectName, Message, Trace, with_weight
from project.traces.multiturn import conversation, dropped_counts, steps_messages, usable
from project.traces.steps import StepSample, split
from project.traces.summaries import MAX_WORDS, with_summary
from project.traces.table import as_paths, print_counts, question_group, read_traces

PHASES = ("multiturn", "summary_only", "summary_prefix")
SPLITS = ("train", "validation")
PHASE_TEXT = {
    "multiturn": "the whole trace; every turn is trained",
    "summary_only": "question and summary of what was read -> the next turn",
    "summary_prefix": "question and turns so far (not trained), `<fold/>` -> the summary, then the next turn",
}

Sets = dict[str, list[Conversation]]
"""Conversations by `PHASE_SPLIT`, the stem of the file's name."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the sets depend on beside the traces."""

    dialect: DialectName
    seed: int
    validation_share: float
    max_words: int
    include_first: bool


def phases(
    input_file: list[Path] | Path,
    output_dir: Path,
    dialect: DialectName = "tags",
    seed: int = 0,
    validation_share: float = 0.1,
    max_words: int = MAX_WORDS,
    include_first: bool = True,
    keep_wrong: bool = False,
) -> None:
    """Write multiturn, summary_only and summary_prefix sets, each for train and validation, and a card.

    Args:
        input_file: one or several trace files, as seeker data traces writes them; filter there.
        output_dir: the folder for PHASE_train.jsonl, PHASE_validation.jsonl and README.md.
        dialect: how the agent's turns are written; tags or tools.
        seed: of the split between train and validation.
        validation_share: the share of the questions that are for validation, between 0 and 1.
        max_words: at most so many words of thoughts and results in a summary.
        include_first: also train the first decision (question -> first search) in summary_only.
        keep_wrong: also train traces whose answer is known to be wrong.
    """
    if not 0.0 < validation_share < 1.0:
        raise InputError(f"--validation_share is {validation_share}; give a share between 0 and 1")
    paths = as_paths(input_file)
    settings = Settings(dialect, seed, validation_share, max_words, include_first)
    traces, counts = _trained(read_traces(paths), keep_wrong=keep_wrong)
    sets = build(traces, settings)
    for name, conversations in sets.items():
        write_records(output_dir / f"{name}.jsonl", conversations)
    write_text(output_dir / "README.md", card(paths, settings, traces, counts, sets))
    print_counts("phases", counts | {name: len(conversations) for name, conversations in sets.items()})


def _trained(traces: Sequence[Trace], *, keep_wrong: bool) -> tuple[list[Trace], dict[str, int]]:
    """Return the traces to train on and how many are not, by reason; a wrong answer is no example (DESIGN §8.9)."""
    kept, dropped = usable(traces)
    counts = dropped_counts(dropped)
    if keep_wrong:
        return kept, counts
    right = [trace for trace in kept if trace.correct is not False]
    if not right:
        raise InputError(f"all {len(kept)} usable traces have a wrong answer; give others, or set --keep_wrong true")
    return right, counts | {"traces dropped: a wrong answer": len(kept) - len(right)}


def build(traces: Sequence[Trace], settings: Settings) -> Sets:
    """Return the six sets of traces that all become conversations."""
    validation = validation_groups({question_group(t.question) for t in traces}, settings.seed, settings.validation_share)
    dialect = get_dialect(settings.dialect)
    sets: Sets = {f"{phase}_{part}": [] for phase in PHASES for part in SPLITS}
    for trace in traces:
        part = "validation" if question_group(trace.question) in validation else "train"
        for phase, made in _of_trace(trace, dialect, settings):
            sets[f"{phase}_{part}"].append(made)
    if empty := [name for name, made in sets.items() if not made]:
        raise InputError(f"no conversation for {', '.join(empty)}; give more traces that search, on more questions")
    return sets


def validation_groups(groups: Iterable[str], seed: int, share: float) -> set[str]:
    """Return the groups whose hash is below the share, so that adding rows moves nobody.

    Where so few groups leave one side empty, the lowest hash is for validation, or the highest for training.
    """
    ranked = sorted((_position(group, seed), group) for group in groups)
    if len(ranked) < 2:
        raise InputError("all traces ask one question, which cannot be both trained and validated on; give a second one")
    count = sum(position < share for position, _ in ranked)
    return {group for _, group in ranked[: min(max(count, 1), len(ranked) - 1)]}


def _position(group: str, seed: int) -> float:
    """Return a group's place in [0, 1), which depends on nothing but itself and the seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8]) / 2**64


def _of_trace(trace: Trace, dialect: Dialect, settings: Settings) -> Iterator[tuple[str, Conversation]]:
    yield "multiturn", conversation(trace, dialect)
    for sample in split(trace):
        told = with_summary(sample, settings.max_words)
        if told.summary or settings.include_first:
            yield "summary_only", summary_only(told, dialect)
        if told.summary:
            yield "summary_prefix", summary_prefix(told, dialect)


def summary_only(sample: StepSample, dialect: Dialect) -> Conversation:
    """Return (question, summary) -> target; without a summary it is the first decision."""
    messages = [*dialect.opening(sample.question, sample.summary), *_target(sample, dialect)]
    return _sample_conversation("summary_only", sample, messages, dialect)


def summary_prefix(sample: StepSample, dialect: Dialect) -> Conversation:
    """Return context -> summary + target: the summary answers `<fold/>`, the target what a fold leaves."""
    context = [with_weight(m, 0.0) if m.role == "assistant" else m for m in steps_messages(sample.context, dialect)]
    folded = [
        Message("user", FOLD_REQUEST),
        dialect.write(Action(summary=sample.summary)),
        dialect.opening(sample.question, sample.summary)[-1],
    ]
    messages = [*dialect.opening(sample.question), *context, *folded, *_target(sample, dialect)]
    return _sample_conversation("summary_prefix", sample, messages, dialect)


def _target(sample: StepSample, dialect: Dialect) -> list[Message]:
    """Return the one assistant message of a target: the thoughts with the search or the answer they led to."""
    messages = steps_messages(sample.target, dialect)
    if len(messages) != 1:
        raise InputError(f"sample '{sample.id}' has a target of {len(messages)} messages, expected one turn")
    return messages


def _sample_conversation(phase: str, sample: StepSample, messages: Sequence[Message], dialect: Dialect) -> Conversation:
    info = {"phase": phase, "trace_id": sample.trace_id, "split_index": sample.split_index, "total_splits": sample.total_splits}
    info |= {"source": sample.source, "correct": sample.correct}
    name = f"{phase}:{sample.id}"
    return Conversation(name, tuple(messages), dialect.tools, sample.question, sample.answers, sample.group, info)


def card(paths: Sequence[Path], settings: Settings, traces: Sequence[Trace], dropped: dict[str, int], sets: Sets) -> str:
    """Return the card of the sets: where they come from, how they were made, what they hold."""
    lines = ["# Training sets of the three phases", "", f"Written by `seeker data phases` {__version__}.", ""]
    lines += ["| input | sha256 |", "|---|---|", *(f"| {path} | {file_digest(path)} |" for path in paths), ""]
    lines += ["| set | conversations | questions | traces | trained messages | what |", "|---|--:|--:|--:|--:|---|"]
    lines += [_card_line(name, made) for name, made in sets.items()]
    lines += ["", f"Dialect `{settings.dialect}`, seed {settings.seed}, validation share {settings.validation_share}, "]
    lines[-1] += f"summaries (extractive) of at most {settings.max_words} words, first decision {settings.include_first}."
    lines += ["Split by the hash of the normalised question, alike for the three sets.", "", "| traces | count |", "|---|--:|"]
    right = {"a right": True, "a wrong": False, "an unjudged": None}
    lines += [f"| used, with {word} answer | {sum(t.correct is v for t in traces)} |" for word, v in right.items()]
    lines += [f"| used, with a failed tool call | {sum(any(s.error for s in t.steps) for t in traces)} |"]
    lines += [f"| {reason} | {count} |" for reason, count in dropped.items()]
    lines += ["", "| source | traces used |", "|---|--:|"]
    lines += [f"| {source} | {sum(t.source == source for t in traces)} |" for source in sorted({t.source for t in traces})]
    return "\n".join(lines) + "\n"


def _card_line(name: str, made: Sequence[Conversation]) -> str:
    phase = name.rsplit("_", 1)[0]
    traces = {c.extra_info.get("trace_id", c.id) for c in made}
    trained = sum(m.role == "assistant" and m.weight > 0 for c in made for m in c.messages)
    questions = len({c.group for c in made})
    return f"| {name} | {len(made)} | {questions} | {len(traces)} | {trained} | {PHASE_TEXT[phase]} |"
