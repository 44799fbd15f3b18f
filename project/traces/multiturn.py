"""`seeker data multiturn`: a trace -> one conversation in either dialect.

A trace becomes a conversation only where each of its turns can be written and the last one answers; the others are
dropped and counted by their problem, so that no conversation looks finished that was not (DESIGN §8.9).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path

from project.dialects import Action, Dialect, clean, format_documents, get_dialect
from project.records import Conversation, DialectName, Document, Message, Row, Step, Trace, with_weight
from project.streams import Made, as_paths, each, print_counts, run
from project.traces.readers.observations import by_query
from project.traces.table import parse_trace, question_group

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
    strict: bool = False,
    force: bool = False,
) -> None:
    """Write one conversation per trace that ends with an answer.

    Args:
        input_file: one or several trace files, as seeker data traces writes them.
        output_file: the conversations to write (.jsonl, .jsonl.gz or .parquet).
        dialect: how the agent's turns are written; tags, tools, or a class of your own, as module.Class.
        keep_malformed: keep traces with malformed turns; those turns are written with weight 0, a correction after them.
        other_tools: write lookups and page visits as searches; otherwise traces with them are dropped.
        strict: stop at the first row that is no trace, instead of listing it in OUTPUT.rejected.jsonl.
        force: replace an output that was made otherwise.
    """
    parameters = {"dialect": get_dialect(dialect).identity, "keep_malformed": keep_malformed, "other_tools": other_tools}
    program = partial(each, partial(_written, get_dialect(dialect), keep_malformed, other_tools))
    outputs = {"conversations": output_file}
    counts = run("seeker data multiturn", program, as_paths(input_file), outputs, parameters, strict=strict, force=force)
    print_counts("multiturn", counts)


def _written(dialect: Dialect, keep_malformed: bool, other_tools: bool, row: Row, made: Made) -> None:
    trace = parse_trace(row)
    found = problem(trace, keep_malformed=keep_malformed, other_tools=other_tools)
    if found:
        made.counts[f"traces dropped: {found}"] += 1
    else:
        made.put("conversations", conversation(trace, dialect).to_row())


def problem(trace: Trace, *, keep_malformed: bool = False, other_tools: bool = False) -> Problem | None:
    """Return the gravest problem that keeps a trace from being a conversation; None where it is one."""
    for found in problems(trace.steps):
        if not (keep_malformed and found.can_be_kept) and not (other_tools and found is Problem.OTHER_TOOL):
            return found
    return None


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
