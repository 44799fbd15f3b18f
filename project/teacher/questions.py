"""`seeker data questions`: passages to questions that can be answered by finding them (AutoDidact, 2025).

A question is kept if a passage that it names holds the answer to the letter, and its own words do not give it away; with
`attempts`, if the teacher also fails it without the passages and answers it with them. How many passages of the corpus hold
the answer's words is counted: an answer that stands everywhere proves no search.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from project.answers import cover_exact_match, normalise_answer
from project.dialects import clean
from project.errors import InputError
from project.records import Passage, Question, Row
from project.streams import Made, Readable, as_paths, chunked
from project.teacher.client import Sampling, Teacher
from project.teacher.jobs import do
from project.teacher.maker import Asker, Job, Maker, Rows
from project.teacher.prompting import PROMPTS, Prompt, read_object

DIFFICULTIES = ("easy", "medium", "hard")
SCHEMA: Row = {
    "type": "object",
    "properties": {
        "questions": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "question": {"type": "string"},
                    "answer": {"type": "string"},
                    "difficulty": {"type": "string", "enum": list(DIFFICULTIES)},
                    "passages": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["question", "answer", "difficulty", "passages"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["questions"],
    "additionalProperties": False,
}
MOST_WORDS = 12
"""Of an answer."""
_OF_THE_TEXT = re.compile(r"\b(?:passage|text|paragraph|document|excerpt|author)s?\b", re.IGNORECASE)
"""What a question that stands by itself does not speak of, unless the passages do."""


@dataclass(frozen=True)
class Prompts:
    """The instructions."""

    ask: Prompt
    closed: Prompt
    open: Prompt


@dataclass(frozen=True)
class Writing:
    """How questions are written."""

    prompts: Prompts
    sampling: Sampling
    each: int
    attempts: bool
    structured: bool


def questions(
    input_file: list[Path] | Path,
    output_file: Path,
    teacher: Teacher = Teacher(),  # noqa: B008 - frozen
    each: int = 2,
    neighbours: int = 0,
    attempts: bool = False,
    structured: bool = True,
    sampling: Sampling = Sampling(max_tokens=512),  # noqa: B008 - frozen
    prompt_file: Path = PROMPTS / "questions.txt",
    closed_prompt_file: Path = PROMPTS / "answer_closed.txt",
    open_prompt_file: Path = PROMPTS / "answer_open.txt",
    seed: int = 0,
    strict: bool = False,
    force: bool = False,
    dry_run: bool = False,
    yes: bool = False,
) -> None:
    """Have a teacher write questions that passages answer, for training and evaluation; split them with seeker data split.

    Args:
        input_file: one or several passage files, as seeker data corpus writes them.
        output_file: the questions to write (.jsonl, .jsonl.gz or .parquet), each with its passages' document as group.
        teacher: whom to ask, and how fast.
        each: questions to ask for of each passage.
        neighbours: passages of the same document shown before and after each.
        attempts: keep only questions that the teacher fails without the passages and answers with them.
        structured: ask the endpoint to hold the reply to a JSON schema; false for one that cannot.
        sampling: how the teacher samples.
        prompt_file: the instructions, with a place for $count.
        closed_prompt_file: the instructions for an attempt without passages.
        open_prompt_file: the instructions for an attempt with them.
        seed: of the teacher's sampling.
        strict: stop at the first passage that gives nothing, instead of listing it in OUTPUT.rejected.jsonl.
        force: replace an output that was made otherwise.
        dry_run: show the first request and what the job may cost, and ask nothing.
        yes: begin though it may cost more than teacher.most_price.
    """
    if each < 1 or neighbours < 0:
        raise InputError(f"--each is {each} and --neighbours {neighbours}; give at least 1 and 0")
    prompts = Prompts(Prompt.read(prompt_file, "count"), Prompt.read(closed_prompt_file), Prompt.read(open_prompt_file))
    writing = Writing(prompts, sampling, each, attempts, structured)
    parameters = {"each": each, "neighbours": neighbours, "attempts": attempts, "structured": structured, **sampling.told()}
    parameters |= {f"prompt_{name}": prompt.told() for name, prompt in vars(prompts).items()}
    inputs = as_paths(input_file)
    maker = Maker("seeker data questions", 1, partial(_write, writing), parameters, partial(_with_ambiguity, inputs))
    outputs = {"questions": output_file}
    windows = partial(read_windows, neighbours=neighbours)
    do(maker, Job(inputs, outputs, teacher, seed, strict, force, dry_run, yes, windows))


# --- passages with their neighbours ------------------------------------------------------------------------------------


def read_windows(inputs: Sequence[Path], neighbours: int) -> Iterator[Readable]:
    """Yield the passages of files, each as `{"passages": …, "at": …}` with its neighbours of the same document."""
    for path in inputs:
        before, waiting = list[Row](), list[tuple[int, Row, float]]()
        for chunk in chunked([path]):
            for line, row, reason in chunk.rows():
                if not isinstance(row, dict):
                    yield Rows(path, chunk.share, ((line, row, reason),))
                    continue
                waiting.append((line, row, chunk.share))
                if len(waiting) > neighbours:
                    yield _window(path, before, waiting, neighbours)
        while waiting:
            yield _window(path, before, waiting, neighbours)


def _window(path: Path, before: list[Row], waiting: list[tuple[int, Row, float]], neighbours: int) -> Rows:
    """Return the window around the first that waits, which is then one of those before."""
    line, row, share = waiting.pop(0)
    earlier = [other for other in before if _document(other) == _document(row)]
    later = [other for _, other, _ in waiting[:neighbours] if _document(other) == _document(row)]
    before.append(row)
    del before[: max(0, len(before) - neighbours)]
    return Rows(path, share, ((line, {"passages": [*earlier, row, *later], "at": len(earlier)}, ""),))


def _document(row: Row) -> str:
    return str(row.get("source") or row.get("id"))


# --- one window --------------------------------------------------------------------------------------------------------


async def _write(writing: Writing, row: Row, asker: Asker, made: Made) -> None:
    passages = [Passage.from_row(passage) for passage in row["passages"]]
    told = "\n\n".join(f"[{number}] {clean(p.title)}\n{clean(p.text)}" for number, p in enumerate(passages, 1))
    prompt = writing.prompts.ask.fill(count=str(writing.each))
    schema = SCHEMA if writing.structured else None
    reply = await asker.ask(_messages(prompt, told), writing.sampling, schema=schema)
    kept = 0
    for number, item in enumerate(read_items(reply.text)[: writing.each], 1):
        fault = find_fault(item, passages)
        if not fault and writing.attempts:
            fault = await _attempt(writing.prompts, item, told, asker, number)
        if fault:
            made.counts[f"left out: {fault}"] += 1
            continue
        kept += 1
        question = _question(item, passages, row["at"], number)
        made.put("questions", question.to_row(), once=(normalise_answer(question.question),), same_id="rename")
    if not kept:
        msg = "no question could be kept"
        raise ValueError(msg)


def _messages(system: str, user: str) -> list[Row]:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def read_items(text: str) -> list[Row]:
    """Return the questions of a reply, with or without words around the JSON.

    Raises:
        ValueError: there are none.
    """
    items = (read_object(text) or {}).get("questions")
    if not isinstance(items, list):
        msg = "the reply holds no JSON object with questions"
        raise ValueError(msg)
    return [item for item in items if isinstance(item, dict)]


def find_fault(item: Row, passages: Sequence[Passage]) -> str:
    """Return why a question cannot be kept; empty where it can."""
    question, answer = (item.get(name) for name in ("question", "answer"))
    if not isinstance(question, str) or not isinstance(answer, str) or not question.strip():
        return "no question or no answer"
    words = normalise_answer(answer)
    if not words or len(words.split()) > MOST_WORDS:
        return "no short answer"
    if not any(_holds(passage.text, words) for passage in _named(item, passages)):
        return "the answer is not in the evidence"
    if _holds(question, words):
        return "the question gives the answer away"
    if _OF_THE_TEXT.search(question) and not any(_OF_THE_TEXT.search(passage.text) for passage in passages):
        return "the question speaks of the passage"
    return ""


def _named(item: Row, passages: Sequence[Passage]) -> list[Passage]:
    """Return the passages that a question names; all where it names none that there is."""
    numbers = item.get("passages")
    named = [n for n in numbers if isinstance(n, int) and 0 < n <= len(passages)] if isinstance(numbers, list) else []
    return [passages[number - 1] for number in dict.fromkeys(named)] or list(passages)


def _holds(text: str, words: str) -> bool:
    """Return whether a text holds normalised words, one after the other."""
    return f" {words} " in f" {normalise_answer(text)} "


async def _attempt(prompts: Prompts, item: Row, told: str, asker: Asker, number: int) -> str:
    """Have the teacher answer without and with the passages; return why the question cannot be kept."""
    greedy, answers = Sampling(temperature=0.0, max_tokens=64), [item["answer"]]
    question = f"Question: {item['question']}"
    closed = await asker.ask(_messages(prompts.closed.text, question), greedy, attempt=number, turn=1)
    if cover_exact_match(closed.text, answers):
        return "known without the passages"
    opened = await asker.ask(_messages(prompts.open.text, f"{told}\n\n{question}"), greedy, attempt=number, turn=2)
    return "" if cover_exact_match(opened.text, answers) else "not answered from the passages"


def _question(item: Row, passages: Sequence[Passage], at: int, number: int) -> Question:
    words = normalise_answer(item["answer"])
    evidence = tuple(p.id for p in _named(item, passages) if item.get("passages") or _holds(p.text, words))
    difficulty = str(item.get("difficulty", ""))
    return Question(
        f"{passages[at].id}?{number}",
        clean(item["question"]).strip(),
        (clean(item["answer"]).strip(),),
        evidence,
        True,
        difficulty if difficulty in DIFFICULTIES else "",
        passages[at].document,
    )


# --- ambiguity ---------------------------------------------------------------------------------------------------------


def _with_ambiguity(inputs: Sequence[Path], made: Iterable[Made]) -> Callable[[Made], Made]:
    """Return a function that adds to each question how many passages hold its answer."""
    answers = {normalise_answer(row["answers"][0]) for one in made for row in one.rows.get("questions", ())}
    holding = count_holding(answers, inputs)

    def add(one: Made) -> Made:
        rows = [
            row | {"extra_info": row["extra_info"] | {"passages_with_answer": holding[normalise_answer(row["answers"][0])]}}
            for row in one.rows.get("questions", ())
        ]
        return replace(one, rows={"questions": rows})

    return add


def count_holding(answers: Iterable[str], inputs: Sequence[Path]) -> Counter[str]:
    """Return in how many passages of files each normalised answer stands, as whole words."""
    import polars as pl

    patterns = [f" {answer} " for answer in sorted(set(answers))]
    counts: Counter[str] = Counter()
    for chunk in chunked(inputs):
        texts = [
            f" {normalise_answer(str(row.get('text') or row.get('contents') or ''))} "
            for _, row, _ in chunk.rows()
            if isinstance(row, dict)
        ]
        if texts and patterns:
            found = pl.Series(texts).str.extract_many(patterns, overlapping=True)
            counts.update(answer.strip() for of_text in found.to_list() for answer in set(of_text))
    return counts
