"""`seeker data qas`: questions to Question-Answer-Search rows in two stages, the teacher's thoughts and then its decision.

Whether to search is labelled by up to three sources, one column each: `teacher`, what it decided by an explicit token;
`answerability`, what the data say of the passage that is shown; `self_knowledge`, a student that answers wrongly without the
passage and rightly with it. One is chosen to train on; where they disagree is counted. Nothing is guessed from words
(DESIGN §8.4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Literal

from project.answers import cover_exact_match
from project.corpus.squad import keywords, opening, question, read_items
from project.dialects import ANSWER_TOKEN, SEARCH_TOKEN, Action, clean, get_dialect
from project.environment.search import opening_messages
from project.errors import InputError
from project.records import Conversation, Message, Question, Row
from project.streams import Made, Readable, as_paths, chunked
from project.teacher.client import Sampling, Teacher
from project.teacher.jobs import do
from project.teacher.journal import key_of
from project.teacher.maker import Asker, Job, Maker, Rows
from project.teacher.prompting import PROMPTS, Prompt, read_object
from project.writing import path_beside, suffix_of

LabelSource = Literal["teacher", "answerability", "self_knowledge"]
SOURCES: tuple[LabelSource, ...] = ("teacher", "answerability", "self_knowledge")
DECISION: Row = {
    "type": "object",
    "properties": {"decision": {"type": "string", "enum": [SEARCH_TOKEN, ANSWER_TOKEN]}, "text": {"type": "string"}},
    "required": ["decision", "text"],
    "additionalProperties": False,
}
TEACHER = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"


@dataclass(frozen=True)
class Grid:
    """What each question's sampling is drawn from."""

    temperature: tuple[float, ...] = (0.5, 0.6, 0.7, 0.9)
    """0 = greedy."""
    top_p: tuple[float, ...] = (0.9, 0.95, 1.0)
    """Probability that the tokens to sample among have together."""
    repetition_penalty: tuple[float, ...] = (1.0, 1.05)
    """Above 1 against loops."""
    max_tokens: tuple[int, ...] = (512, 1024, 2048)
    """Of a reply."""

    def __post_init__(self) -> None:
        """Refuse a grid without points."""
        for name, values in vars(self).items():
            if not values:
                raise InputError(f"grid.{name} names no value; give one or several")

    def draw(self, rng: Random) -> Sampling:
        """Return a point of the grid."""
        return Sampling(**{name: rng.choice(values) for name, values in vars(self).items()})


@dataclass(frozen=True)
class Labelling:
    """How rows are made."""

    think: Prompt
    decide: Prompt
    closed: Prompt
    open: Prompt
    grid: Grid
    label: LabelSource
    structured: bool
    has_student: bool
    teacher: str
    seed: int


def qas(
    input_file: list[Path] | Path,
    output_file: Path,
    teacher: Teacher = Teacher(TEACHER),  # noqa: B008 - frozen
    label: LabelSource = "teacher",
    student: Teacher | None = None,
    grid: Grid = Grid(),
    balanced: bool = False,
    structured: bool = True,
    max_samples: int = -1,
    think_prompt_file: Path = PROMPTS / "qas_think.txt",
    decide_prompt_file: Path = PROMPTS / "qas_decide.txt",
    seed: int = 0,
    strict: bool = False,
    force: bool = False,
    dry_run: bool = False,
    yes: bool = False,
) -> None:
    """Have a teacher think about questions and decide whether to search, as rows that teach the decision.

    Args:
        input_file: SQuAD 2.0 in its official layout (.json, .json.gz), or question files (extra_info.passage may hold one).
        output_file: the rows to write (.jsonl, .jsonl.gz or .parquet), in Alpaca's columns; beside it NAME_conversations gets
            them as conversations of one turn, to split and to train on.
        teacher: whom to ask, and how fast.
        label: which source's label the rows are written by; a row that it says nothing of is left out.
        student: the model that will be trained, for self_knowledge: asked without and with the passage, greedily.
        grid: what each question's temperature, top_p, repetition_penalty and max_tokens are drawn from.
        balanced: leave out rows of the commoner class until both are as many, drawn by the seed.
        structured: ask the endpoint to hold the decision to a JSON schema; false for one that cannot.
        max_samples: use only so many questions, from the first on; -1 uses all.
        think_prompt_file: the instructions to think, with a place for $passage.
        decide_prompt_file: the instructions to decide, with a place for $passage.
        seed: of the grid's draws and the teacher's sampling.
        strict: stop at the first row that gives nothing, instead of listing it in OUTPUT.rejected.jsonl.
        force: replace an output that was made otherwise.
        dry_run: show the first request and what the job may cost, and ask nothing.
        yes: begin though it may cost more than teacher.most_price.
    """
    if label == "self_knowledge" and student is None:
        raise InputError("--label self_knowledge is what a student knows; give --student.model or --student.base_url")
    think, decide = (Prompt.read(path, "passage") for path in (think_prompt_file, decide_prompt_file))
    closed, opened = (Prompt.read(PROMPTS / f"answer_{name}.txt") for name in ("closed", "open"))
    how = Labelling(think, decide, closed, opened, grid, label, structured, student is not None, teacher.model, seed)
    parameters: Row = {
        "label": label,
        "balanced": balanced,
        "structured": structured,
        "grid": vars(grid),
        "prompts": [one.told() for one in (think, decide, closed, opened)],
    }
    maker = Maker("seeker data qas", 3, partial(_label, how), parameters, partial(_balance, seed) if balanced else None)
    outputs = {"rows": output_file, "conversations": path_beside(output_file, "conversations")}
    job = Job(as_paths(input_file), outputs, teacher, seed, strict, force, dry_run, yes, read_questions)
    do(maker, replace(job, student=student, most_rows=None if max_samples < 0 else max_samples))


def read_questions(inputs: Sequence[Path]) -> Iterator[Readable]:
    """Yield question rows, those of a SQuAD file as `seeker data squad` writes them."""
    for path in inputs:
        if suffix_of(path) == "json":
            items = read_items(str(path))
            yield Rows(path, 1.0, tuple((number, question(item).to_row(), "") for number, item in enumerate(items, 1)))
        else:
            yield from chunked([path])


# --- one question ------------------------------------------------------------------------------------------------------


async def _label(how: Labelling, row: Row, asker: Asker, made: Made) -> None:
    asked = Question.from_row(row)
    passage = str(asked.extra_info.get("passage") or "")
    sampling = how.grid.draw(Random(f"{how.seed}/{asked.id}"))
    thoughts, action = await _think(how, asked, passage, sampling, asker)
    labels: dict[LabelSource, bool | None] = {
        "teacher": bool(action.queries),
        "answerability": (not asked.answers if passage else asked.needs_search),
        "self_knowledge": await _self_knowledge(how, asked, passage, asker) if how.has_student and passage else None,
    }
    made.counts.update(_agreements(labels))
    chosen = labels[how.label]
    if chosen is None:
        msg = f"{how.label} says nothing of it"
        raise ValueError(msg)
    row, messages = _row(how, asked, passage, thoughts, action, labels)
    info = {"needs_search": chosen, "label_source": how.label}
    said = Conversation(asked.id, messages, (), asked.question, asked.answers, asked.group, info)
    made.put("rows", row, same_id="rename")
    made.put("conversations", said.to_row(), same_id="rename")
    made.counts["rows that search" if chosen else "rows that answer"] += 1


async def _think(how: Labelling, asked: Question, passage: str, sampling: Sampling, asker: Asker) -> tuple[str, Action]:
    """Return the teacher's thoughts and what it decided.

    Raises:
        ValueError: it decided nothing, or both.
    """
    told = (
        f"Question: {clean(asked.question)}"
        if not passage
        else f"Passage: {clean(passage)}\n\nQuestion: {clean(asked.question)}"
    )
    shown = ", with a passage to answer it from" if passage else ""
    messages: list[Row] = [{"role": "system", "content": how.think.fill(passage=shown)}, {"role": "user", "content": told}]
    first = await asker.ask(messages, sampling)
    if first.finish == "length":
        msg = "the thoughts were cut off"
        raise ValueError(msg)
    thoughts = clean(first.thoughts or first.text).strip()
    decide: list[Row] = [
        {"role": "system", "content": how.decide.fill(passage=shown)},
        {"role": "user", "content": f"{told}\n\nYour thoughts:\n{thoughts}"},
    ]
    greedy = replace(sampling, temperature=0.0, top_p=1.0)
    second = await asker.ask(decide, greedy, turn=1, schema=DECISION if how.structured else None)
    return thoughts, read_decision(second.text)


def read_decision(text: str) -> Action:
    """Return what a teacher decided: a search or an answer.

    Raises:
        ValueError: neither, or nothing to search for or to answer.
    """
    decided = read_object(text) or {}
    token, said = decided.get("decision"), decided.get("text")
    if token not in (SEARCH_TOKEN, ANSWER_TOKEN) or not isinstance(said, str) or not (said := clean(said).strip()):
        msg = "the teacher did not decide between the two"
        raise ValueError(msg)
    return Action(queries=(said,)) if token == SEARCH_TOKEN else Action(answer=said)


async def _self_knowledge(how: Labelling, asked: Question, passage: str, asker: Asker) -> bool | None:
    """Return whether the student must search: wrong without the passage and right with it; None where it is wrong with both."""
    greedy, answers = Sampling(temperature=0.0, max_tokens=64), asked.answers
    if not answers:
        return None
    said = f"Question: {asked.question}"
    without = await asker.ask([_system(how.closed.text), {"role": "user", "content": said}], greedy, turn=2, student=True)
    if cover_exact_match(without.text, answers):
        return False
    told = {"role": "user", "content": f"{passage}\n\n{said}"}
    shown = await asker.ask([_system(how.open.text), told], greedy, turn=3, student=True)
    return True if cover_exact_match(shown.text, answers) else None


def _system(text: str) -> Row:
    return {"role": "system", "content": text}


def _row(
    how: Labelling, asked: Question, passage: str, thoughts: str, action: Action, labels: dict[LabelSource, bool | None]
) -> tuple[Row, tuple[Message, ...]]:
    """Return Alpaca's columns and the labels, and the same as messages.

    The thoughts are left out where they led to another decision or answer than the row's, or saw a passage that the row does
    not show: what a model knows by itself (`self_knowledge`) is trained without one.

    Raises:
        ValueError: the label is to answer, and there is no answer.
    """
    search = bool(labels[how.label])
    shown = "" if how.label == "self_knowledge" else passage
    agrees = search == labels["teacher"] and shown == passage
    if search:
        done = Action(queries=action.queries or (keywords(asked.question),))
    else:
        if passage and not asked.answers:  # no answer is right, and to train one would teach to make it up
            msg = f"{how.label} says to answer what the passage does not"
            raise ValueError(msg)
        answer = asked.answers[0] if asked.answers else action.answer
        if answer is None:
            msg = f"{how.label} says to answer, and there is no answer"
            raise ValueError(msg)
        done = Action(answer=clean(answer).strip())
        if asked.answers and not cover_exact_match(action.answer, asked.answers):
            if how.label == "teacher":
                msg = "the teacher answers wrongly"
                raise ValueError(msg)
            agrees = False
    dialect = get_dialect("tags")
    bare = replace(asked, extra_info={})
    system, user = opening(shown, asked.question) if shown else opening_messages(bare, dialect)
    written = dialect.write(replace(done, thought=thoughts if agrees else ""))
    row = {
        "instruction": user.content,
        "input": "",
        "output": written.content,
        "system": system.content,
        "history": [],
        "id": asked.id,
        "group": asked.group,
        "question": asked.question,
        "answers": list(asked.answers),
        "thoughts": thoughts if agrees else "",
        "search": search,
        "label_source": how.label,
        **{f"label_{source}": labels[source] for source in SOURCES},
        "teacher": how.teacher,
        "seed": how.seed,
    }
    return row, (system, user, written)


def _agreements(labels: dict[LabelSource, bool | None]) -> Counter[str]:
    """Return, for each two sources that both say something, whether they say the same."""
    counts: Counter[str] = Counter()
    for one, other in combinations(SOURCES, 2):
        if labels[one] is not None and labels[other] is not None:
            counts[f"{one} and {other} {'agree' if labels[one] == labels[other] else 'differ'}"] += 1
    return counts


def _balance(seed: int, made: Iterable[Made]) -> Callable[[Made], Made]:
    """Return a function that leaves out rows of the commoner class, drawn by the seed."""
    found = [(str(row["id"]), row["search"]) for one in made for row in one.rows.get("rows", ())]
    classes = [[ident for ident, decided in found if decided is search] for search in (True, False)]
    fewer = min(map(len, classes))
    kept = {ident for of in classes for ident in sorted(of, key=lambda ident: key_of(seed, ident))[:fewer]}

    def keep(one: Made) -> Made:
        if one.rows.get("rows") and str(one.rows["rows"][0]["id"]) not in kept:
            return Made(counts=one.counts + Counter({"rows left out for balance": 1}))
        return one

    return keep
