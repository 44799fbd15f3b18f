"""HotpotQA contexts to a corpus and questions: `seeker data hotpotqa --input_file FILE --output_dir DIR`.

The corpus is every distinct paragraph of the file's contexts, so that the agent has to find the two it needs among
thousands. Gold evidence are the paragraphs that the supporting facts name. The test questions are drawn first; traces of
other agents on test or validation questions are then dropped, so nothing that is trained on is measured on.

Writes `passages.jsonl`, `questions_{train,validation,test}.jsonl`, `README.md`, and with `--traces` `traces_train.jsonl`:
correct HotpotQA traces, each row as it was, for `seeker data traces`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from project.answers import normalise_answer
from project.corpus.fields import need, need_text, need_texts
from project.errors import InputError
from project.files import file_digest, read_records, read_rows
from project.manifests import manifest_path, plan, write_outputs
from project.records import Passage, Question, Row
from project.writing import write_text

SPLITS = ("train", "validation", "test")
TRACES = "traces_train.jsonl"
TRACE_SOURCES = ("fireact_gpt4_hotpotqa", "fireact_eval_", "reflexion_react_", "r1searcher_hotpotqa_")
"""How the names of the trace sources begin whose questions are HotpotQA's."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question with the paragraphs of its context."""

    question: Question
    passages: tuple[Passage, ...]


@dataclass(frozen=True, slots=True)
class TraceCounts:
    """What became of the traces. A trace belongs to a question if the two are equal once normalised."""

    read: int
    shared: int
    """Traces of any source on a question of the file."""
    shared_test: int
    """Those on a test question: dropped, right or wrong."""
    shared_validation: int
    """Those on a validation question: dropped."""
    correct: int
    """Correct HotpotQA traces, on any question."""
    correct_test: int
    """Of these, dropped for a test question."""
    correct_validation: int
    """Of these, dropped for a validation question."""
    kept: int
    """Rows of `traces_train.jsonl`: correct - correct_test - correct_validation."""


def hotpotqa(
    input_file: Path,
    output_dir: Path,
    traces: Path | None = None,
    test_questions: int = 200,
    validation_questions: int = 100,
    seed: int = 0,
    force: bool = False,
) -> None:
    """Turn HotpotQA's contexts into passages and questions, and other agents' correct traces into a training set.

    Args:
        input_file: rows with `_id` (or `id`), `question, answer, supporting_facts, context`, in HotpotQA's own layout or the
            hub's (.jsonl, .json or .parquet, also .gz).
        output_dir: the folder to write.
        traces: normalised agent traces with `question, source, correct`; default: none are written.
        test_questions: how many questions to keep back for the test; drawn before anything else.
        validation_questions: how many to keep back for validation.
        seed: which questions are kept back.
        force: replace files that were made otherwise.
    """
    items = _read(input_file)
    split_of = split_questions([item.question for item in items], test_questions, validation_questions, seed)
    rows, counts = select_traces(traces, split_of) if traces else ([], None)
    passages = list({passage.id: passage for item in items for passage in item.passages}.values())
    splits = {name: [item.question for item in items if split_of[item.question.group] == name] for name in SPLITS}
    if not traces:
        _remove_traces(output_dir / TRACES, force=force)
    outputs = {output_dir / "passages.jsonl": [passage.to_row() for passage in passages]}
    outputs |= {output_dir / f"questions_{name}.jsonl": [q.to_row() for q in questions] for name, questions in splits.items()}
    if counts:
        outputs[output_dir / TRACES] = rows
    parameters = {"test_questions": test_questions, "validation_questions": validation_questions, "seed": seed}
    planned = plan("seeker data hotpotqa", parameters, [path for path in (input_file, traces) if path])
    write_outputs(planned, outputs, asdict(counts) if counts else {}, force=force)
    sizes = {"passages": len(passages)} | {f"questions, {name}": len(questions) for name, questions in splits.items()}
    report = [(what, str(count)) for what, count in sizes.items()] + _trace_report(counts)
    write_text(output_dir / "README.md", _card(input_file, traces, seed, report))
    _print(report)


def _remove_traces(path: Path, *, force: bool) -> None:
    """Let no traces of other splits stand beside the new questions."""
    if path.exists() and not force:
        raise InputError(
            f"{path} is there from another run; give --traces too, another --output_dir, or remove it with --force true"
        )
    for file in (path, manifest_path(path)):
        file.unlink(missing_ok=True)


def _read(path: Path) -> list[Item]:
    items = read_records(path, parse)
    seen: set[str] = set()
    for item in items:
        if item.question.id in seen:
            raise InputError(f"{path}: field '_id' is '{item.question.id}' in two rows; ids must differ")
        seen.add(item.question.id)
    return items


def parse(row: Row) -> Item:
    """Read one row of HotpotQA.

    Raises:
        ValueError: a field is missing or wrong, or a supporting fact names a title that the context does not hold.
    """
    passages: dict[str, Passage] = {}
    for passage in context_passages(row):
        passages.setdefault(passage.title, passage)
    facts = enumerate(_pairs(row, "supporting_facts", "sent_id"))
    titles = dict.fromkeys(_title(fact, f"supporting_facts[{number}]") for number, fact in facts)
    if missing := [title for title in titles if title not in passages]:
        msg = f"field 'supporting_facts' names '{missing[0]}', which is no title in 'context'"
        raise ValueError(msg)
    text = need_text(row, "question")
    question = Question(
        id=need_text(row, "_id" if "_id" in row else "id"),
        question=text,
        answers=(need_text(row, "answer"),),
        evidence=tuple(passages[title].id for title in titles),
        needs_search=True,
        kind=str(row.get("type") or ""),
        group=normalise_answer(text),
        extra_info={"level": row.get("level"), "hotpot_split": row.get("hotpot_split")},
    )
    return Item(question, tuple(passages.values()))


def context_passages(row: Row) -> list[Passage]:
    """Return the paragraphs of a row's `context`.

    Raises:
        ValueError: the field is missing or wrong.
    """
    return [_passage(pair, f"context[{number}]") for number, pair in enumerate(_pairs(row, "context", "sentences"))]


def _pairs(row: Row, name: str, second: str) -> list[Any]:
    """Return `[[title, value], …]`, also from the hub's `{"title": […], second: […]}`."""
    if not isinstance(row.get(name), dict):
        return need(row, name, list)
    columns = need(row, name, dict)
    titles, values = need(columns, "title", list, f"{name}."), need(columns, second, list, f"{name}.")
    if len(titles) != len(values):
        msg = f"field '{name}' has {len(titles)} of 'title' and {len(values)} of '{second}'; expected as many"
        raise ValueError(msg)
    return [list(pair) for pair in zip(titles, values, strict=True)]


def _title(pair: Any, where: str) -> str:  # noqa: ANN401 - whatever JSON held
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
        msg = f"field '{where}' is not a pair that begins with a title"
        raise ValueError(msg)
    return pair[0]


def _passage(paragraph: Any, where: str) -> Passage:  # noqa: ANN401 - whatever JSON held
    title = _title(paragraph, where)
    sentences = need_texts({"sentences": paragraph[1]}, "sentences", f"{where}.")
    text = " ".join(sentence.strip() for sentence in sentences).strip()
    return Passage(passage_id(title, text), title, text, "hotpotqa")


def passage_id(title: str, text: str) -> str:
    """Return an id that depends on title and text only, so that it is the same in every file and run."""
    return "hotpot-" + hashlib.sha256(f"{title}\n{text}".encode("utf-8", "surrogatepass")).hexdigest()[:12]


def split_questions(questions: list[Question], test: int, validation: int, seed: int) -> dict[str, str]:
    """Return the split of each group: `test` groups drawn first, then `validation`, the rest is train."""
    groups = sorted({question.group for question in questions})
    if min(test, validation) < 1 or test + validation >= len(groups):
        raise InputError(
            f"--test_questions {test} and --validation_questions {validation}: each must be above 0, and together below the "
            f"{len(groups)} distinct questions of the input"
        )
    random.Random(seed).shuffle(groups)
    names = ["test"] * test + ["validation"] * validation
    return {group: names[i] if i < len(names) else "train" for i, group in enumerate(groups)}


def select_traces(path: Path, split_of: dict[str, str]) -> tuple[list[Row], TraceCounts]:
    """Return the rows to train on, unchanged, and the counts; `split_of` maps normalised questions to splits."""
    tagged: list[tuple[Row, str | None]] = []
    for line, row in read_rows(path):
        try:
            tagged.append((row, split_of.get(normalise_answer(need_text(row, "question")))))
        except ValueError as error:
            raise InputError(f"{path}, line {line}: {error}") from error
    right = [(row, split) for row, split in tagged if row.get("correct") is True and _is_hotpotqa(row)]
    kept = [row for row, split in right if split not in ("test", "validation")]
    counts = TraceCounts(
        read=len(tagged),
        shared=sum(split is not None for _, split in tagged),
        shared_test=_in_split(tagged, "test"),
        shared_validation=_in_split(tagged, "validation"),
        correct=len(right),
        correct_test=_in_split(right, "test"),
        correct_validation=_in_split(right, "validation"),
        kept=len(kept),
    )
    return kept, counts


def _in_split(tagged: Iterable[tuple[Row, str | None]], name: str) -> int:
    return sum(split == name for _, split in tagged)


def _is_hotpotqa(row: Row) -> bool:
    return str(row.get("source") or "").startswith(TRACE_SOURCES)


def _trace_report(counts: TraceCounts | None) -> list[tuple[str, str]]:
    if counts is None:
        return []
    return [
        ("traces read", str(counts.read)),
        ("traces that share a question with the input", str(counts.shared)),
        ("  of these on a test question: dropped", str(counts.shared_test)),
        ("  of these on a validation question: dropped", str(counts.shared_validation)),
        ("correct HotpotQA traces", str(counts.correct)),
        ("  of these on a test question: dropped", str(counts.correct_test)),
        ("  of these on a validation question: dropped", str(counts.correct_validation)),
        ("traces to train on", str(counts.kept)),
    ]


def _card(source: Path, traces: Path | None, seed: int, report: list[tuple[str, str]]) -> str:
    files = "".join(f"- `{path}` (digest {file_digest(path)})\n" for path in (source, traces) if path)
    rows = "\n".join(f"| {what.strip()} | {count} |" for what, count in report)
    return f"""# HotpotQA: corpus, questions, traces

Made by `seeker data hotpotqa`, seed {seed}, from
{files}
Licence: CC BY-SA 4.0 (HotpotQA; Wikipedia text); traces keep their own. The corpus holds the paragraphs of all splits, as a
search engine would. Questions are split, test first; equal questions (normalised) share a split. Traces to train on are
correct ones on HotpotQA whose question is neither a test nor a validation question.

| what | count |
|---|---|
{rows}
"""


def _print(report: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="HotpotQA")
    table.add_column("what")
    table.add_column("count", justify="right")
    for what, count in report:
        table.add_row(what, count)
    Console().print(table)
