"""`seeker data multiturn`: a trace -> one conversation in either dialect.

A trace becomes a conversation only where each of its turns can be written and the last one answers; the others are
dropped and counted by their problem, so that no conversation looks finished that was not (DESIGN §8.9).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from project.dialects import Action, Dialect, clean, format_documents, get_dialect
from project.errors import InputError
from project.files import write_records
from project.records import Conversation, DialectName, Document, Message, Step, Trace, with_weight
from project.traces.readers.observations import by_query
from project.traces.table import as_paths, print_counts, question_group, read_traces, refuse_same_file

UNREADABLE = "This turn could not be read."
NOTHING_RETURNED = "The search returned nothing."


class Problem(StrEnum):
    """Why a trace is no conversation."""

    NO_ANSWER = "no answer at the end"
    EARLY_ANSWER = "steps after the answer"
    MALFORMED = "a malformed step"
    NO_RESULT = "a search without a result"
    NO_CALL = "a result without a search"
    OTHER_TOOL = "a tool other than search"

    @property
    def can_be_kept(self) -> bool:
        """True where `keep_malformed` writes the turn untrained, as the agent and its environment left it."""
        return self in (Problem.MALFORMED, Problem.NO_RESULT, Problem.NO_CALL)


@dataclass(frozen=True, slots=True)
class Turn:
    """One thought with what it led to, and what came back."""

    thought: str
    act: Step | None
    """A `search`, `answer` or `other`; None where a result came, or the trace ended, without any."""
    result: Step | None = None

    @property
    def problem(self) -> Problem | None:
        """What keeps the turn from being written, but for where it stands in the trace."""
        if self.act is None:
            return Problem.NO_CALL if self.result else Problem.NO_ANSWER
        if self.act.type == "other":
            return Problem.MALFORMED
        if self.act.type == "search":
            return Problem.OTHER_TOOL if self.act.tool != "search" else None if self.result else Problem.NO_RESULT
        return Problem.EARLY_ANSWER if self.result else None


def multiturn(
    input_file: list[Path] | Path,
    output_file: Path,
    dialect: DialectName = "tags",
    keep_malformed: bool = False,
    other_tools: bool = False,
) -> None:
    """Write one conversation per trace that ends with an answer.

    Args:
        input_file: one or several trace files, as seeker data traces writes them.
        output_file: the conversations to write (.jsonl, .jsonl.gz or .parquet).
        dialect: how the agent's turns are written; tags or tools.
        keep_malformed: keep traces with malformed turns; those turns are written with weight 0, a correction after them.
        other_tools: write lookups and page visits as searches; otherwise traces with them are dropped.
    """
    paths = as_paths(input_file)
    refuse_same_file(paths, output_file)
    traces = read_traces(paths)
    kept, dropped = usable(traces, keep_malformed=keep_malformed, other_tools=other_tools)
    written = get_dialect(dialect)
    write_records(output_file, (conversation(trace, written) for trace in kept))
    print_counts("multiturn", dropped_counts(dropped) | {"conversations written": len(kept)})


def usable(
    traces: Iterable[Trace], *, keep_malformed: bool = False, other_tools: bool = False
) -> tuple[list[Trace], Counter[Problem]]:
    """Return the traces that become conversations, and how many do not for which problem. None at all is an error."""
    kept: list[Trace] = []
    dropped: Counter[Problem] = Counter()
    for trace in traces:
        found = problems(trace.steps)
        if keep_malformed:
            found = [problem for problem in found if not problem.can_be_kept]
        if other_tools:
            found = [problem for problem in found if problem is not Problem.OTHER_TOOL]
        if found:
            dropped[found[0]] += 1
        else:
            kept.append(trace)
    if not kept:
        reasons = ", ".join(f"{count} with {problem}" for problem, count in dropped.most_common())
        raise InputError(f"no trace becomes a conversation ({reasons}); give traces that end with an answer")
    return kept, dropped


def dropped_counts(dropped: Counter[Problem]) -> dict[str, int]:
    """Return the counts of the problems with words for people."""
    return {f"traces dropped: {problem}": count for problem, count in dropped.most_common()}


def problems(steps: Sequence[Step]) -> list[Problem]:
    """Return what keeps the steps from being a conversation, the gravest first."""
    *early, last = turns(steps)
    found = {turn.problem for turn in (*early, last)}
    if last.act is None or last.act.type != "answer":
        found.add(Problem.NO_ANSWER)
    if any(turn.act and turn.act.type == "answer" for turn in early):
        found.add(Problem.EARLY_ANSWER)
    return [problem for problem in Problem if problem in found]


def turns(steps: Iterable[Step]) -> list[Turn]:
    """Return the steps as turns. Each thought belongs to the act after it, each result to the act before it."""
    found: list[Turn] = []
    thoughts: list[str] = []
    for step in steps:
        if step.type == "reasoning":
            thoughts.append(step.content)
            continue
        if step.type != "search_result":
            found.append(Turn("\n\n".join(thoughts), step))
        elif found and not thoughts and found[-1].act and not found[-1].result:
            found[-1] = replace(found[-1], result=step)
        else:
            found.append(Turn("\n\n".join(thoughts), None, step))
        thoughts = []
    return [*found, Turn("\n\n".join(thoughts), None)] if thoughts or not found else found


def conversation(trace: Trace, dialect: Dialect) -> Conversation:
    """Return the trace as a conversation: system prompt, question, and each turn with its results."""
    messages = [*dialect.opening(trace.question), *steps_messages(trace.steps, dialect)]
    info = {"source": trace.source, "correct": trace.correct}
    group = question_group(trace.question)
    return Conversation(trace.id, tuple(messages), dialect.tools, trace.question, trace.answers, group, info)


def steps_messages(steps: Iterable[Step], dialect: Dialect) -> list[Message]:
    """Return the messages of steps: an assistant message per turn and what came back. The last may await its result."""
    found = turns(steps)
    return [
        message
        for number, turn in enumerate(found, 1)
        for message in turn_messages(turn, dialect, awaits_result=number == len(found))
    ]


def turn_messages(turn: Turn, dialect: Dialect, *, awaits_result: bool = False) -> list[Message]:
    """Return a turn's message and its results; a turn that could not be read has weight 0 and a correction."""
    act, result = turn.act, turn.result
    if act and act.type == "answer":
        return [dialect.write(Action(turn.thought, answer=act.content))]
    if act is None or act.type == "other":
        said = "\n".join(part for part in (dialect.write(Action(turn.thought)).content, act.content if act else "") if part)
        reply = (result.error or format_documents(result.documents)) if result else UNREADABLE
        return [Message("assistant", said, weight=0.0), *dialect.correction(reply, said)]
    if result is None:
        message = dialect.write(Action(turn.thought, act.queries))
        if awaits_result:
            return [message]
        message = dialect.write(Action(turn.thought, ("; ".join(act.queries),)))
        return [with_weight(message, 0.0), *dialect.correction(NOTHING_RETURNED, "<tool_call>")]
    return _search_messages(turn.thought, act, result, dialect)


def _search_messages(thought: str, search: Step, result: Step, dialect: Dialect) -> list[Message]:
    """Return a search and its results; where a failure or a result is not one query's own, the queries are written as one."""
    documents = by_query(result, len(search.queries))
    if documents is not None and not result.error:
        action = Action(thought, search.queries)
        return [dialect.write(action), *dialect.results(documents, action)]
    action = Action(thought, ("; ".join(search.queries),))
    if result.error and not result.documents:
        return [dialect.write(action), *dialect.correction(clean(result.error), "<tool_call>")]
    found = [*result.documents, *([Document(result.error)] if result.error else [])]
    return [dialect.write(action), *dialect.results([found], action)]
