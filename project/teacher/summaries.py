"""`seeker data summaries`: step samples -> the same with a summary of the context, extractive or written by a teacher.

The teacher is given the question and the context, and what the agent did next only where that is asked for (`see_next`). What
it writes is checked: both parts are there, quotations stand in the context to the letter, the gold answer is not said before
the context holds it, it is shorter than the context and no more than `max_words`. What fails is asked again with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from project.answers import normalise_answer
from project.dialects import NO_RESULTS, clean, write_summary
from project.errors import InputError
from project.records import Row, Step
from project.streams import Made, as_paths
from project.teacher.client import Reply, Sampling, Teacher
from project.teacher.jobs import do
from project.teacher.maker import Asker, Job, Maker
from project.teacher.prompting import PROMPTS, Prompt, read_object
from project.traces.steps import StepSample
from project.traces.summaries import MAX_WORDS, check_max_words, context_before, context_texts
from project.traces.summaries import summaries as extractive

SCHEMA: Row = {
    "type": "object",
    "properties": {"thoughts": {"type": "string"}, "facts": {"type": "string"}},
    "required": ["thoughts", "facts"],
    "additionalProperties": False,
}
_QUOTED = re.compile(r'["“]([^"“”]{2,})["”]')


@dataclass(frozen=True)
class Summarising:
    """How summaries are written and checked."""

    prompt: Prompt
    sampling: Sampling
    max_words: int
    least_quoted: float
    tries: int
    see_next: bool
    structured: bool


def summaries(
    input_file: list[Path] | Path,
    output_file: Path,
    summariser: Literal["extractive", "teacher"] = "extractive",
    max_words: int = MAX_WORDS,
    teacher: Teacher = Teacher(),  # noqa: B008 - frozen
    max_concurrent: int | None = None,
    least_quoted: float = 1.0,
    tries: int = 3,
    see_next: bool = False,
    structured: bool = True,
    sampling: Sampling = Sampling(temperature=0.3, max_tokens=512),  # noqa: B008 - frozen
    prompt_file: Path = PROMPTS / "summaries.txt",
    seed: int = 0,
    strict: bool = False,
    force: bool = False,
    dry_run: bool = False,
    yes: bool = False,
) -> None:
    """Add a summary of its context to each step sample, by rule or by a teacher.

    Args:
        input_file: one or several sample files, as seeker data steps writes them.
        output_file: the samples with summaries to write (.jsonl, .jsonl.gz or .parquet).
        summariser: `extractive` keeps sentences of the context to the letter, without a language model; `teacher` asks one.
        max_words: at most so many words of thoughts and results in a summary; by rule a quarter of them are thoughts.
        teacher: whom to ask, and how fast. This and what follows is for the teacher.
        max_concurrent: requests in flight; the same as teacher.max_concurrent.
        least_quoted: the share of a summary's quotations that must stand in the context to the letter.
        tries: times that the teacher is asked for a summary that passes the checks.
        see_next: show the teacher what the agent did next, too; it may then say what only that tells.
        structured: ask the endpoint to hold the reply to a JSON schema; false for one that cannot.
        sampling: how the teacher samples.
        prompt_file: the instructions, with a place for $words.
        seed: of the teacher's sampling.
        strict: stop at the first row that gives nothing, instead of listing it in OUTPUT.rejected.jsonl.
        force: replace an output that was made otherwise.
        dry_run: show the first request and what the job may cost, and ask nothing.
        yes: begin though it may cost more than teacher.most_price.
    """
    if summariser == "extractive":
        extractive(input_file, output_file, max_words, strict, force)
        return
    check_max_words(max_words)
    if not 0 <= least_quoted <= 1 or tries < 1:
        raise InputError(f"--least_quoted is {least_quoted} and --tries {tries}; give a share from 0 to 1 and at least 1")
    if max_concurrent is not None:
        teacher = replace(teacher, max_concurrent=max_concurrent)
    how = Summarising(Prompt.read(prompt_file, "words"), sampling, max_words, least_quoted, tries, see_next, structured)
    parameters: Row = {name: getattr(how, name) for name in ("max_words", "least_quoted", "tries", "see_next", "structured")}
    parameters |= {"prompt": how.prompt.told(), **sampling.told()}
    maker = Maker("seeker data summaries", 1, partial(_summarise, how), parameters)
    do(maker, Job(as_paths(input_file), {"samples": output_file}, teacher, seed, strict, force, dry_run, yes))


async def _summarise(how: Summarising, row: Row, asker: Asker, made: Made) -> None:
    sample = StepSample.from_row(row)
    before = context_before(sample.context)
    next_search = [step for step in sample.context[len(before) :] if step.type != "search_result"]
    previous = await _summary(how, sample, before, next_search, asker) if before else ""
    summary = await _summary(how, sample, sample.context, sample.target, asker) if sample.context else ""
    made.counts["samples without a context"] += not sample.context
    made.counts["words of contexts"] += _words(context_texts(sample.context))
    made.counts["words of summaries"] += len(summary.split())
    made.put("samples", replace(sample, summary=summary, previous_summary=previous).to_row())


async def _summary(
    how: Summarising, sample: StepSample, context: Sequence[Step], following: Sequence[Step], asker: Asker
) -> str:
    """Return the summary of a context, asked for until it passes the checks.

    The request is the trace's and the context's: what one sample is asked is the previous summary of the next.
    """
    told = f"Question: {clean(sample.question)}\n\n{_written(context)}"
    if how.see_next:
        told += f"\n\nWhat the agent does next, which the notes must prepare:\n{_written(following)}"
    system = how.prompt.fill(words=str(how.max_words))
    messages: list[Row] = [{"role": "system", "content": system}, {"role": "user", "content": told}]
    results = sum(step.type == "search_result" for step in context)
    for number in range(how.tries):
        schema = SCHEMA if how.structured else None
        reply = await asker.ask(messages, how.sampling, row=sample.trace_id, attempt=number, turn=results, schema=schema)
        thoughts, facts, fault = _read(how, sample, context, reply)
        if not fault:
            return write_summary(sample.question, thoughts, facts or NO_RESULTS)
        messages = [
            *messages[:2],
            {"role": "assistant", "content": reply.text or "{}"},
            {"role": "user", "content": f"That cannot be used: {fault}. Write the whole JSON object again."},
        ]
    msg = f"no summary in {how.tries} tries: {fault}"
    raise ValueError(msg)


def _written(steps: Sequence[Step]) -> str:
    lines = []
    for step in steps:
        if step.type == "search":
            lines.append(f"Search: {' | '.join(map(clean, step.queries))}")
        elif step.type == "search_result":
            found = (f"- {clean(d.title)}: {clean(d.content)}" if d.title else f"- {clean(d.content)}" for d in step.documents)
            lines.append("Results:\n" + ("\n".join(found) or NO_RESULTS))
        else:
            lines.append(f"{step.type.capitalize()}: {clean(step.content)}")
    return "\n\n".join(lines)


def _read(how: Summarising, sample: StepSample, context: Sequence[Step], reply: Reply) -> tuple[str, str, str]:
    """Return the parts of a reply, and what is wrong with them; empty where nothing is."""
    held = read_object(reply.text) or {}
    parts = [held.get(name) for name in ("thoughts", "facts")]
    if not all(isinstance(part, str) for part in parts):
        return "", "", "it is no JSON object with thoughts and facts"
    thoughts, facts = (clean(str(part)).strip() for part in parts)
    return thoughts, facts, find_fault(thoughts, facts, sample, context, how.max_words, how.least_quoted)


def find_fault(
    thoughts: str, facts: str, sample: StepSample, context: Sequence[Step], max_words: int, least_quoted: float
) -> str:
    """Return why a summary cannot be used; empty where it can."""
    texts = context_texts(context)
    words = len(thoughts.split()) + len(facts.split())
    if not thoughts or (not facts and any(step.documents for step in context)):
        return "thoughts or facts are missing"
    if words > max_words:
        return f"it has {words} words, and at most {max_words} are allowed"
    if words > _words(texts):
        return "it is longer than what it summarises"
    squeezed = [" ".join(text.split()) for text in texts]
    quoted = [" ".join(quote.split()).rstrip(".,;") for quote in _QUOTED.findall(f"{thoughts} {facts}")]
    strange = [quote for quote in quoted if not any(quote in text for text in squeezed)]
    if quoted and len(quoted) - len(strange) < least_quoted * len(quoted):
        return f'"{strange[0]}" stands in no result to the letter'
    said = f" {normalise_answer(f'{thoughts} {facts}')} "
    held = " ".join(f" {normalise_answer(text)} " for text in (*texts, sample.question))
    answers = {f" {normalise_answer(answer)} " for answer in sample.answers} - {" yes ", " no "}
    if any(answer in said and answer not in held for answer in answers):
        return "it says an answer that no result holds"
    return "" if quoted or not any(step.documents for step in context) else "it quotes nothing that a result says"


def _words(texts: Sequence[str]) -> int:
    return sum(len(text.split()) for text in texts)
