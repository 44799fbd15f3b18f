"""`seeker data split`: conversations -> train, validation and test, by group (DESIGN §8.8).

A group's place is the hash of its name and the seed, so that adding rows moves nobody, and the sets of several phases split
alike; only questions that go together as near duplicates can move, with what joins them. With `check` nothing is split: any
files of questions or conversations are shown to share nothing (`overlap.py`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from project.errors import InputError
from project.files import read_chunks, read_rows
from project.overlap import marks, refuse_overlap
from project.records import Conversation, Question, Row
from project.streams import CHUNK_BYTES, ROW_ERRORS, Made, each, run
from project.traces.near_duplicates import groups_of
from project.traces.phases import FileFormat
from project.traces.table import as_paths, print_counts, question_group
from project.writing import suffix_of

SPLITS = ("train", "validation", "test")


def split(
    input_file: list[Path] | Path,
    output_dir: Path | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.0,
    by: str = "question",
    near_duplicates: float | None = None,
    seed: int = 0,
    file_format: FileFormat = "parquet",
    check: bool = False,
    strict: bool = False,
    force: bool = False,
) -> None:
    """Split conversations by group into NAME_train, NAME_validation and NAME_test, or check files that are split.

    Args:
        input_file: one or several files of conversations, as seeker data phases writes them; to check, files of conversations
            or questions whose names end with _train, _validation or _test.
        output_dir: the folder for NAME_train.parquet, NAME_validation.parquet and NAME_test.parquet.
        validation_share: the share of the groups that are for validation, from 0 to 1.
        test_share: the share of the groups that are for the test, from 0 to 1.
        by: what stays together: question (its words), group (the column), trace, or a name in extra_info.
        near_duplicates: questions of which at least so much is alike (the Jaccard index of their character 5-grams, over 0 and
            under 1) also stay together; give all the files of one training at once then. None by default.
        seed: of the split.
        file_format: jsonl, jsonl.gz or parquet.
        check: write nothing; show that the files' sides share no group, trace, opening, or question with its answer.
        strict: stop at the first row that is no conversation, instead of listing it in TRAIN_FILE.rejected.jsonl.
        force: replace sets that were made otherwise.
    """
    if check:
        print_counts("rows checked, nothing shared", check_files(as_paths(input_file)))
        return
    if output_dir is None:
        raise InputError(
            "--output_dir is missing; name the folder for the split sets, or --check true for files that are split"
        )
    shares = {"validation": validation_share, "test": test_share}
    if not all(0.0 <= share < 1.0 for share in shares.values()) or not 0.0 < sum(shares.values()) < 1.0:
        raise InputError(
            f"--validation_share is {validation_share} and --test_share {test_share}; give shares from 0 to 1 that leave "
            "something to train on and something to measure with"
        )
    parts = ("train", *(part for part, share in shares.items() if share))
    named = {path: path.name.removesuffix(".gz").removesuffix(f".{suffix_of(path)}") for path in as_paths(input_file)}
    _refuse_others(named, output_dir, {f"{part}.{file_format}" for part in parts})
    joined = _joined(list(named), by, near_duplicates) if near_duplicates is not None else {}
    for path, name in named.items():
        outputs = {part: output_dir / f"{name}_{part}.{file_format}" for part in parts}
        program = partial(each, partial(_place, by, seed, shares, joined))
        parameters = shares | {"by": by, "seed": seed}
        if near_duplicates is not None:
            parameters |= {"near_duplicates": near_duplicates, "joined": _digest(joined)}
        counts = run("seeker data split", program, [path], outputs, parameters, strict=strict, force=force, full=True)
        print_counts(f"split {name}", counts)


def _refuse_others(named: Mapping[Path, str], folder: Path, written: set[str]) -> None:
    """Refuse two inputs of one name, and sides of another split that would stand beside the new ones."""
    for path, name in named.items():
        if same := next((other for other in named if other != path and named[other] == name), None):
            raise InputError(f"{path} and {same} would both be split into {name}_train; split them into two folders")
        held = {f"{part}.{suffix}": folder / f"{name}_{part}.{suffix}" for part in SPLITS for suffix in get_args(FileFormat)}
        if other := next((file for end, file in held.items() if end not in written and file.exists()), None):
            raise InputError(f"{other} is there from another split of {name}; delete it, or give another --output_dir")


def check_files(paths: Sequence[Path]) -> dict[str, int]:
    """Return the rows of each side of files that are split.

    Raises:
        InputError: a file's name does not say its side, there is one side only, or two share something.
    """
    sides: dict[str, set[str]] = {}
    rows: Counter[str] = Counter()
    for path in paths:
        stem = path.name.removesuffix(".gz").removesuffix(f".{suffix_of(path)}")
        side = stem.rpartition("_")[2]
        if side not in SPLITS:
            raise InputError(f"{path} does not say which side it is; its name must end with _train, _validation or _test")
        for number, row in read_rows(path):
            try:
                record = Conversation.from_row(row) if "messages" in row else Question.from_row(row)
            except ROW_ERRORS as error:
                raise InputError(f"{path}, line {number}: {error}") from error
            sides.setdefault(side, set()).update(marks(record))
            rows[side] += 1
    if len(sides) < 2:
        raise InputError(f"the files are all of one side, {', '.join(sides)}; give those of two or three")
    refuse_overlap(sides)
    return dict(rows)


def _joined(paths: Sequence[Path], by: str, near_duplicates: float) -> dict[str, str]:
    """Return, for the groups of questions that are like others', the group that they go with."""
    if by != "question" or not 0.0 < near_duplicates < 1.0:
        raise InputError(
            f"--near_duplicates is {near_duplicates} and --by {by}; give a share over 0 and under 1, and --by question"
        )
    questions: dict[str, str] = {}
    for chunk in read_chunks(paths, CHUNK_BYTES):
        for _, row, _ in chunk.rows():
            if isinstance(row, dict) and (question := str(row.get("question") or "")):
                questions.setdefault(question_group(question), question)
    joined = groups_of(questions, near_duplicates)
    print_counts(
        "near duplicates",
        {"questions": len(questions), "like another": len(joined), "groups of these": len(set(joined.values()))},
    )
    return joined


def _digest(joined: Mapping[str, str]) -> str:
    return hashlib.sha256(repr(sorted(joined.items())).encode()).hexdigest()[:16]


def _place(by: str, seed: int, shares: Mapping[str, float], joined: Mapping[str, str], row: Row, made: Made) -> None:
    conversation = Conversation.from_row(row)
    group = group_of(conversation, by)
    position = place(joined.get(group, group), seed)
    made.counts["with a question like another"] += group in joined
    for part, share in shares.items():
        if position < share:
            made.put(part, row)
            return
        position -= share
    made.put("train", row)


def group_of(conversation: Conversation, by: str) -> str:
    """Return what must not be on two sides.

    Raises:
        ValueError: the conversation has no such thing.
    """
    if by == "question":
        found = question_group(conversation.question) if conversation.question else ""
    elif by == "group":
        found = conversation.group
        if "|" in found:
            msg = f"conversation '{conversation.id}' is of several groups, {found}; split by what it is of one of"
            raise ValueError(msg)
    elif by == "trace":
        found = str(conversation.extra_info.get("trace_id") or conversation.id)
    else:
        found = str(conversation.extra_info.get(by, ""))
    if not found:
        msg = f"field '{by}' of conversation '{conversation.id}' is empty, which it is split by"
        raise ValueError(msg)
    return found


def place(group: str, seed: int) -> float:
    """Return a group's place in [0, 1), which depends on nothing but itself and the seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8]) / 2**64
