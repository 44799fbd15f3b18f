"""`seeker data split`: conversations or questions -> train, validation and test, by group (DESIGN §8.8).

A group's place is the hash of its name and the seed, so that adding rows moves nobody, and the sets of several phases split
alike; only questions that go together as near duplicates can move, with what joins them. With `check` nothing is split: files
that are split are shown to share nothing (`check.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from project.errors import InputError
from project.records import Conversation, Question, Row
from project.streams import Made, as_paths, chunked, each, print_counts, run
from project.traces.check import SPLITS, check_files
from project.traces.near_duplicates import LEAST, MOST, groups_of
from project.traces.phases import FileFormat
from project.traces.table import question_group
from project.writing import stem_of


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
    """Split conversations or questions by group into NAME_train, NAME_validation and NAME_test, or check files that are split.

    Args:
        input_file: one or several files of conversations, as seeker data phases writes them, or of questions; to check, files
            whose names end with _train, _validation or _test.
        output_dir: the folder for NAME_train.parquet, NAME_validation.parquet and NAME_test.parquet.
        validation_share: the share of the groups that are for validation, from 0 to 1.
        test_share: the share of the groups that are for the test, from 0 to 1.
        by: what stays together: question (its words), group (the column), trace, or a name in extra_info.
        near_duplicates: questions of which at least so much is alike (the Jaccard index of their character 5-grams, 0.3 to
            0.99) also stay together; give all the files of one training at once. Thousands of one form take minutes.
        seed: of the split.
        file_format: jsonl, jsonl.gz or parquet.
        check: write nothing; show that the files' sides share no group, trace, opening, or question with its answer.
        strict: stop at the first row that is neither, instead of listing it in TRAIN_FILE.rejected.jsonl.
        force: replace sets that were made otherwise.
    """
    if check:
        print_counts("rows checked, nothing shared", check_files(as_paths(input_file)))
        return
    if output_dir is None:
        raise InputError(
            "--output_dir is missing; name the folder for the split sets, or --check true for files that are split"
        )
    check_options(validation_share, test_share, by, near_duplicates)
    shares = {"validation": validation_share, "test": test_share}
    parts = ("train", *(part for part, share in shares.items() if share))
    named = {path: stem_of(path) for path in as_paths(input_file)}
    _refuse_others(named, output_dir, {f"{part}.{file_format}" for part in parts})
    joined = _joined(list(named), near_duplicates) if near_duplicates is not None else {}
    for path, name in named.items():
        outputs = {part: output_dir / f"{name}_{part}.{file_format}" for part in parts}
        program = partial(each, partial(_place, by, seed, shares, joined))
        parameters = shares | {"by": by, "seed": seed}
        if near_duplicates is not None:
            parameters |= {"near_duplicates": near_duplicates, "joined": _digest(joined)}
        counts = run("seeker data split", program, [path], outputs, parameters, strict=strict, force=force, full=True)
        print_counts(f"split {name}", counts)


def check_options(validation_share: float, test_share: float, by: str, near_duplicates: float | None) -> None:
    """Refuse shares that leave a side empty, and a likeness that questions cannot be compared by."""
    shares = (validation_share, test_share)
    if not all(0.0 <= share < 1.0 for share in shares) or not 0.0 < sum(shares) < 1.0:
        raise InputError(
            f"--validation_share is {validation_share} and --test_share {test_share}; give shares from 0 to 1 that leave "
            "something to train on and something to measure with"
        )
    if near_duplicates is not None and (by != "question" or not LEAST <= near_duplicates <= MOST):
        raise InputError(f"--near_duplicates is {near_duplicates} and --by {by}; give {LEAST} to {MOST}, and --by question")


def _refuse_others(named: Mapping[Path, str], folder: Path, written: set[str]) -> None:
    """Refuse two inputs of one name, and sides of another split that would stand beside the new ones."""
    for path, name in named.items():
        if same := next((other for other in named if other != path and named[other] == name), None):
            raise InputError(f"{path} and {same} would both be split into {name}_train; split them into two folders")
        held = {f"{part}.{suffix}": folder / f"{name}_{part}.{suffix}" for part in SPLITS for suffix in get_args(FileFormat)}
        if other := next((file for end, file in held.items() if end not in written and file.exists()), None):
            raise InputError(f"{other} is there from another split of {name}; delete it, or give another --output_dir")


def _joined(paths: Sequence[Path], near_duplicates: float) -> dict[str, str]:
    """Return, for the groups of questions that are like others', the group that they go with."""
    questions: dict[str, str] = {}
    for chunk in chunked(paths):
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
    group = group_of(Conversation.from_row(row) if "messages" in row else Question.from_row(row), by)
    position = place(joined.get(group, group), seed)
    made.counts["with a question like another"] += group in joined
    for part, share in shares.items():
        if position < share:
            made.put(part, row)
            return
        position -= share
    made.put("train", row)


def group_of(row: Conversation | Question, by: str) -> str:
    """Return what must not be on two sides.

    Raises:
        ValueError: the row has no such thing.
    """
    if by == "question":
        found = question_group(row.question) if row.question else ""
    elif by == "group":
        found = row.group
        if "|" in found:
            msg = f"'{row.id}' is of several groups, {found}; split by what it is of one of"
            raise ValueError(msg)
    elif by == "trace":
        found = str(row.extra_info.get("trace_id") or row.id)
    else:
        found = str(row.extra_info.get(by, ""))
    if not found:
        other = "" if by == "question" else "; fill it in, or split --by question"
        msg = f"field '{by}' of '{row.id}' is empty, which it is split by{other}"
        raise ValueError(msg)
    return found


def place(group: str, seed: int) -> float:
    """Return a group's place in [0, 1), which depends on nothing but itself and the seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8]) / 2**64
