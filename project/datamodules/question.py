"""Questions for reinforcement learning, validation, test and prediction."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning import LightningDataModule

from project.datamodules.plan import draw
from project.errors import InputError
from project.files import read_records
from project.overlap import lasting, marks, record_marks, refuse_overlap
from project.records import Question, Row
from project.rewards.constraints import check_constraints

WAVES = 16
"""Times as many questions in a batch of a test as run at once: at its end some wait for the slowest, and rows are written."""


@dataclass
class QuestionLoader:
    """Yields lists of questions; shuffled anew each epoch from (seed, epoch), and resumable inside an epoch."""

    questions: list[Question]
    batch_size: int
    seed: int | None = None
    """None = in the file's order, the last batch may be short; else shuffled, short batches left out."""
    epoch: int = 0
    passes: int = 1
    """Times that an epoch goes over the questions, each in an order of its own."""
    balanced: bool = False
    """The kinds of question follow at even distances: each batch holds its share of each, so that batches can be compared."""
    position: int = field(default=0, init=False)

    def __len__(self) -> int:
        count = len(self.questions) / self.batch_size
        return self.passes * int(count) if self.seed is not None else -int(-count // 1)

    def __iter__(self) -> Iterator[list[Question]]:
        if self.seed is None:  # evaluation always sees all, also after a sanity check that stopped early
            self.position = 0
        elif self.position >= len(self):  # Lightning takes len(self) batches and never asks for the end
            self.epoch, self.position = self.epoch + 1, 0
        per_pass = len(self) // self.passes
        for number in range(self.position, len(self)):
            self.position = number + 1
            of_pass, place = divmod(number, per_pass)
            start = place * self.batch_size
            yield self._order(self.epoch * self.passes + of_pass)[start : start + self.batch_size]
        self.epoch, self.position = self.epoch + 1, 0

    def others(self, used: Collection[str], count: int, key: int) -> list[Question]:
        """Return `count` questions but those whose ids are used, or all that are left, drawn by the seed and a key."""
        left = [question for question in self.questions if question.id not in used]
        return random.Random(f"{self.seed}/others/{key}").sample(left, min(count, len(left)))

    def _order(self, number: int) -> list[Question]:
        """Return the questions in the order of the pass of this number, counted over all epochs."""
        order = list(self.questions)
        if self.seed is not None:
            random.Random(f"{self.seed}/{number}").shuffle(order)
        return spread(order) if self.balanced else order

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader stands, and among which questions."""
        return {"epoch": self.epoch, "position": self.position, "plan": self._digest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` stood.

        Raises:
            InputError: it stood among other questions, or they were dealt otherwise.
        """
        if state.get("plan") != self._digest():
            raise InputError(
                "the checkpoint stands in another plan of the questions: the file, data.kinds, data.train_limit, "
                "data.train_balanced, data.train_passes, data.batch_questions or data.seed has changed; give what it was made "
                "with, or start without --ckpt_path"
            )
        self.epoch, self.position = state["epoch"], state["position"]

    def _digest(self) -> str:
        held = ([question.id for question in self.questions], self.batch_size, self.seed, self.passes, self.balanced and "even")
        return hashlib.sha256(repr(held).encode()).hexdigest()[:16]


def in_turn(questions: Sequence[Question]) -> list[Question]:
    """Return the questions, one of each kind in turn while the kind lasts; those of a kind keep their order."""
    return _ordered(questions, lambda rank, _: rank)


def spread(questions: Sequence[Question]) -> list[Question]:
    """Return the questions, those of each kind at even distances, so that any run of them holds its share of each."""
    return _ordered(questions, lambda rank, number: (rank + 0.5) / number)


def _ordered(questions: Sequence[Question], place: Callable[[int, int], float]) -> list[Question]:
    """Order by where `place` puts each, given its number among those of its kind (from 0) and theirs."""
    numbers, seen = Counter(question.kind for question in questions), Counter[str]()
    turns = []
    for question in questions:
        turns.append((place(seen[question.kind], numbers[question.kind]), question.kind, question))
        seen[question.kind] += 1
    return [question for *_, question in sorted(turns, key=lambda turn: turn[:2])]


class QuestionDataModule(LightningDataModule):
    """Question files; only those that the chosen verb needs must be given."""

    def __init__(
        self,
        train_file: Path | None = None,
        validation_file: Path | None = None,
        test_file: Path | None = None,
        predict_file: Path | None = None,
        batch_questions: int = 8,
        eval_batch_questions: int = 64,
        limit: int | None = None,
        train_limit: int | None = None,
        train_balanced: bool = False,
        train_passes: int = 1,
        kinds: Sequence[str] | None = None,
        seed: int = 0,
        check_split: bool = True,
        leave_out: Sequence[Path] = (),
    ) -> None:
        """Take the files.

        Args:
            train_file: questions for training (`seeker fit`).
            validation_file: questions for validation.
            test_file: questions for `seeker test`.
            predict_file: questions for `seeker predict`.
            batch_questions: training questions in one update.
            eval_batch_questions: episodes that run at once in validation, test and prediction.
            limit: use only so many questions of each file but the training one, drawn by the seed, in the file's order.
            train_limit: train on only so many of the training questions, drawn by the seed.
            train_balanced: draw as many of each kind of question, give or take one, and deal them so to the batches: the
                commonest kind's habits (one search is enough) are else learnt for all.
            train_passes: times that an epoch of training goes over them.
            kinds: use only questions of these kinds, of each file; None uses all.
            seed: of the draws, and of the order of the training questions.
            check_split: refuse training, validation and test questions that share a group, or a question with its answer.
            leave_out: files of questions or conversations, such as what another model was trained on; a question for
                validation, test or prediction that one of them asks is not used.
        """
        super().__init__()
        files = {"train": train_file, "validation": validation_file, "test": test_file, "predict": predict_file}
        self.data_files = {name: Path(path) for name, path in files.items() if path is not None}
        self.batch_questions, self.eval_batch_questions = batch_questions, eval_batch_questions
        self.limit, self.train_limit, self.train_passes, self.seed = limit, train_limit, train_passes, seed
        self.train_balanced, self.kinds, self.check_split = train_balanced, kinds, check_split
        self.leave_out = tuple(leave_out)
        self._questions: dict[str, list[Question]] = {}

    def setup(self, stage: str) -> None:
        """Read all files and refuse what training, validation and test must not share."""
        needed = {"fit": "train", "validate": "validation"}.get(stage, stage)
        if needed not in self.data_files:
            raise InputError(f"seeker {stage} needs data.{needed}_file; give a file of questions")
        self._questions = {name: read_records(path, _read) for name, path in self.data_files.items()}
        if self.check_split:
            sides = {name: found for name, found in self._questions.items() if name != "predict"}
            refuse_overlap({f"the {name} questions": set().union(*map(marks, found)) for name, found in sides.items()})
        if self.leave_out:
            asked = lasting(mark for path in self.leave_out for found in read_records(path, record_marks) for mark in found)
            for name in self._questions.keys() - {"train"}:
                self._questions[name] = [q for q in self._questions[name] if not asked & marks(q)]
                if not self._questions[name]:
                    raise InputError(f"data.leave_out leaves no question of {self.data_files[name]}; give another file")
        if self.kinds is not None:
            self._questions = {name: self._of_kinds(name, found) for name, found in self._questions.items()}

    def marks(self, name: str) -> set[str]:
        """Return the marks of the questions used for `train`, `validation` or `test`; see `overlap.marks`."""
        loader = self.train_dataloader() if name == "train" else self._held_out(name)
        return set().union(*map(marks, loader.questions))

    def _of_kinds(self, name: str, questions: list[Question]) -> list[Question]:
        chosen = [question for question in questions if question.kind in (self.kinds or ())]
        if not chosen:
            held = ", ".join(sorted({str(question.kind) for question in questions}))
            raise InputError(f"{self.data_files[name]} holds no question of data.kinds={self.kinds}; its kinds are {held}")
        return chosen

    def train_dataloader(self) -> QuestionLoader:
        """Return shuffled batches of training questions."""
        questions = draw(self._questions["train"], None if self.train_balanced else self.train_limit, self.seed)
        if self.train_balanced:
            questions = in_turn(random.Random(self.seed).sample(questions, len(questions)))[: self.train_limit]
        if len(questions) < self.batch_questions:
            raise InputError(
                f"{len(questions)} questions of {self.data_files['train']} are to be trained on, less than "
                f"{self.batch_questions} a batch; lower data.batch_questions, or give more"
            )
        passes, balanced = self.train_passes, self.train_balanced
        return QuestionLoader(list(questions), self.batch_questions, self.seed, passes=passes, balanced=balanced)

    def val_dataloader(self) -> QuestionLoader | list[object]:
        """Return the validation questions in order."""
        return self._held_out("validation") if "validation" in self._questions else []

    def test_dataloader(self) -> QuestionLoader:
        """Return the test questions in order."""
        return self._held_out("test", WAVES)

    def predict_dataloader(self) -> QuestionLoader:
        """Return the questions to predict in order."""
        return self._held_out("predict", WAVES)

    def _held_out(self, name: str, waves: int = 1) -> QuestionLoader:
        questions = self._questions[name]
        drawn = sorted(draw(range(len(questions)), self.limit, f"{self.seed}/{name}"))
        return QuestionLoader([questions[i] for i in drawn], waves * self.eval_batch_questions)


def _read(row: Row) -> Question:
    """Read a question, and refuse constraints that no answer could be checked by."""
    question = Question.from_row(row)
    check_constraints(question)
    return question
