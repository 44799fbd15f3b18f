"""SQuAD 2.0 to Question-Answer-Search rows: `seeker data squad --input_file FILE --output_dir DIR`.

The label is answerability, as people judged it: given a passage and a question, the agent answers where the passage holds
the answer and searches where it does not. Nothing here guesses from words. Articles, not questions, are split.

Reads the official layout (`.json[.gz]`), flat rows as `datasets` gives them (`.jsonl`, `.parquet`), or a hub id. Writes for
each split `<split>.jsonl` (Alpaca columns and the label), `conversations_<split>.jsonl` (tags dialect),
`questions_<split>.jsonl` (for evaluation; `opening` builds the prompt from `extra_info.passage`), and `README.md`.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from project.corpus.fields import need, need_text, need_texts
from project.corpus.words import STOP_WORDS
from project.dialects import ANSWER_TOKEN, SEARCH_TOKEN, Action, clean, get_dialect
from project.errors import InputError
from project.files import file_digest, read_rows
from project.manifests import plan, write_outputs
from project.records import Conversation, Message, Question, Row
from project.writing import write_text

SPLITS = {"train": 0.7, "validation": 0.1, "test": 0.2}
"""Shares of the articles."""
SYSTEM_PROMPT = (
    f"Answer the question from the passage. If the passage holds the answer, write {ANSWER_TOKEN} and "
    f"<answer> the words of the passage </answer>. If it does not, write {SEARCH_TOKEN} and <search> a query </search>."
)
LABEL_SOURCE = "squad2:is_impossible"
_HUB_ID = re.compile(r"[\w.-]+/[\w-]+")
_TERM = re.compile(r"\w(?:[\w'’.-]*\w)?")
_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Item:
    """One question on one passage."""

    id: str
    article: str
    passage: str
    question: str
    answers: tuple[str, ...]
    """Distinct answers, the one most annotators gave first; empty where the passage cannot answer."""

    @property
    def action(self) -> Action:
        """What the agent should do."""
        return Action(answer=clean(self.answers[0])) if self.answers else Action(queries=(keywords(self.question),))


def squad(
    input_file: Path | str,
    output_dir: Path,
    label: Literal["answerability"] = "answerability",
    max_context_tokens: int | None = None,
    seed: int = 0,
    force: bool = False,
) -> None:
    """Turn SQuAD 2.0 into rows that teach when to search, split by article 70/10/20.

    Args:
        input_file: the official layout (.json, .json.gz), flat rows (.jsonl, .parquet), or a hub id (rajpurkar/squad_v2).
        output_dir: the folder to write.
        label: what decides between answering and searching; `answerability` is the data set's own judgement.
        max_context_tokens: leave out passages longer than this, counted in words and punctuation marks; default: none.
        seed: which articles go to which split.
        force: replace files that were made otherwise.
    """
    items = read_items(str(input_file))
    kept = [item for item in items if max_context_tokens is None or len(_TOKEN.findall(item.passage)) <= max_context_tokens]
    if not kept:
        raise InputError(f"--max_context_tokens {max_context_tokens} leaves none of {len(items)} questions; raise it")
    split_of = split_articles({item.article for item in kept}, seed)
    splits = {name: [item for item in kept if split_of[item.article] == name] for name in SPLITS}
    outputs: dict[Path, list[Row]] = {}
    for name, members in splits.items():
        outputs[output_dir / f"{name}.jsonl"] = [qas_row(item, seed) for item in members]
        outputs[output_dir / f"conversations_{name}.jsonl"] = [conversation(item).to_row() for item in members]
        outputs[output_dir / f"questions_{name}.jsonl"] = [question(item).to_row() for item in members]
    dropped = len(items) - len(kept)
    parameters: Row = {"label": label, "max_context_tokens": max_context_tokens, "seed": seed}
    if on_hub := _is_hub_id(str(input_file)):
        parameters |= {
            "hub_id": str(input_file),
            "digest": hashlib.sha256(repr(items).encode(errors="surrogatepass")).hexdigest()[:16],
        }
    planned = plan("seeker data squad", parameters, [] if on_hub else [Path(input_file)])
    write_outputs(planned, outputs, {"questions left out for long passages": dropped}, force=force)
    write_text(output_dir / "README.md", _card(str(input_file), label, splits, dropped, max_context_tokens, seed))
    _print(splits, dropped)


def opening(passage: str, text: str) -> list[Message]:
    """Return the prompt: system prompt, then passage and question, both without the agent's tags."""
    content = f"Passage: {clean(passage).strip()}\nQuestion: {clean(text).strip()}"
    return [Message("system", SYSTEM_PROMPT), Message("user", content)]


def keywords(text: str) -> str:
    """Return the words of a question that are worth searching for, in their order.

    >>> keywords("When was the Duchy of Normandy founded?")
    'Duchy Normandy founded'
    """
    kept = [term for term in _TERM.findall(clean(text)) if term.lower() not in STOP_WORDS]
    return " ".join(kept) or clean(text).strip()


def qas_row(item: Item, seed: int) -> Row:
    """Return Alpaca columns (`instruction` is the whole user message) and the label with its origin."""
    system, user = opening(item.passage, item.question)
    return {
        "instruction": user.content,
        "input": "",
        "output": get_dialect("tags").write(item.action).content,
        "system": system.content,
        "history": [],
        "id": item.id,
        "group": item.article,
        "question": item.question,
        "answers": list(item.answers),
        "thoughts": "",
        "search": not item.answers,
        "label_source": LABEL_SOURCE,
        "teacher": "",
        "seed": seed,
    }


def conversation(item: Item) -> Conversation:
    """Return the same row as a conversation of one turn."""
    messages = (*opening(item.passage, item.question), get_dialect("tags").write(item.action))
    info = {"needs_search": not item.answers, "label_source": LABEL_SOURCE}
    return Conversation(item.id, messages, (), item.question, item.answers, item.article, info)


def question(item: Item) -> Question:
    """Return the question for evaluation."""
    kind = "answerable" if item.answers else "unanswerable"
    return Question(item.id, item.question, item.answers, (), not item.answers, kind, item.article, {"passage": item.passage})


def split_articles(articles: set[str], seed: int) -> dict[str, str]:
    """Return the split of each article; every split gets at least one."""
    if len(articles) < len(SPLITS):
        raise InputError(f"the input holds {len(articles)} articles; a split by article needs at least {len(SPLITS)}")
    names = sorted(articles)
    random.Random(seed).shuffle(names)
    sizes = {name: max(1, round(share * len(names))) for name, share in SPLITS.items()}
    held = sizes["validation"] + sizes["test"]
    return {
        article: "validation" if i < sizes["validation"] else "test" if i < held else "train" for i, article in enumerate(names)
    }


def read_items(source: str) -> list[Item]:
    """Read every question, checked.

    Raises:
        InputError: the file is missing or a field is wrong (named by its path), an id occurs twice, the hub fails.
    """
    items: dict[str, Item] = {}
    for line, row in _hub_rows(source) if _is_hub_id(source) else read_rows(source):
        try:
            for item in _official(row) if "data" in row else [_flat(row)]:
                if item.id in items:
                    msg = f"field 'id' is '{item.id}' for the second time; ids must differ"
                    raise ValueError(msg)
                items[item.id] = item
        except ValueError as error:
            raise InputError(f"{source}{'' if 'data' in row else f', line {line}'}: {error}") from error
    if not items:
        raise InputError(f"{source} holds no questions; expected SQuAD's layout: data[].paragraphs[].qas[]")
    return list(items.values())


def _is_hub_id(source: str) -> bool:
    return _HUB_ID.fullmatch(source) is not None and not Path(source).exists()


def _hub_rows(name: str) -> Iterator[tuple[int, Row]]:
    import datasets

    try:
        splits = datasets.load_dataset(name)
    except (OSError, ValueError) as error:
        raise InputError(f"'{name}' is no file here and cannot be loaded from the hub: {error}") from error
    yield from enumerate((row for split in splits.values() for row in split), 1)


def _official(document: Row) -> Iterator[Item]:
    for a, article in enumerate(need(document, "data", list)):
        title = need_text(article, "title", f"data[{a}].")
        for p, paragraph in enumerate(need(article, "paragraphs", list, f"data[{a}].")):
            where = f"data[{a}].paragraphs[{p}]."
            context = need_text(paragraph, "context", where)
            for q, qa in enumerate(need(paragraph, "qas", list, where)):
                at = f"{where}qas[{q}]."
                given = need(qa, "answers", list, at)
                texts = [need_text(answer, "text", f"{at}answers[{i}].") for i, answer in enumerate(given)]
                yield _item(qa, title, context, texts, at)


def _flat(row: Row) -> Item:
    texts = need_texts(need(row, "answers", dict), "text", "answers.")
    return _item(row, need_text(row, "title"), need_text(row, "context"), texts, "")


def _item(row: Row, title: str, context: str, texts: list[str], where: str) -> Item:
    impossible = row.get("is_impossible")
    if impossible is not None and bool(impossible) == bool(texts):
        msg = f"field '{where}is_impossible' is {impossible} with {len(texts)} answers"
        raise ValueError(msg)
    answers = tuple(text for text, _ in Counter(map(str.strip, texts)).most_common())
    return Item(need_text(row, "id", where), title, context, need_text(row, "question", where), answers)


def _card(source: str, label: str, splits: dict[str, list[Item]], dropped: int, limit: int | None, seed: int) -> str:
    digest = file_digest(source) if Path(source).is_file() else "from the hub"
    omitted = f"Passages over {limit} words and punctuation marks were left out, with {dropped} questions." if limit else ""
    rows = "\n".join("| " + " | ".join(cells) + " |" for cells in _balance(splits))
    return f"""# SQuAD 2.0, labelled by {label}

Made by `seeker data squad` from `{source}` (digest {digest}), seed {seed}. Licence: CC BY-SA 4.0 (SQuAD 2.0; Wikipedia text).
The label says whether the passage holds the answer, as SQuAD's annotators judged it ({LABEL_SOURCE}); there is no teacher.
Split by article: no article is in two splits. {omitted}
The majority class of the test split is the baseline that a trained decision has to beat.

| split | articles | questions | answer | search | share of search |
|---|---|---|---|---|---|
{rows}
"""


def _balance(splits: dict[str, list[Item]]) -> Iterator[list[str]]:
    for name, members in splits.items():
        search = sum(not item.answers for item in members)
        counts = (len({item.article for item in members}), len(members), len(members) - search, search)
        yield [name, *map(str, counts), f"{search / len(members):.1%}"]


def _print(splits: dict[str, list[Item]], dropped: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="SQuAD 2.0 by answerability", caption=f"{dropped} questions left out for long passages" if dropped else ""
    )
    for column in ("split", "articles", "questions", "answer", "search", "share of search"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for cells in _balance(splits):
        table.add_row(*cells)
    Console().print(table)
