"""Batches of questions: shuffled and resumable for training, all and in order for evaluation."""

from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from project.datamodules.question import QuestionDataModule, QuestionLoader, in_turn, spread
from project.errors import InputError
from project.records import Question
from project.writing import write_rows


def question(index: int, group: str = "") -> Question:
    return Question(f"q{index}", f"{index}?", ("x",), group=group)


QUESTIONS = [question(i) for i in range(10)]


def ids(batches):
    return [[q.id for q in batch] for batch in batches]


@given(st.integers(1, 12), st.integers(0, 3), st.integers(0, 3))
def test_a_training_epoch_is_shuffled_and_has_full_batches_only(batch_size, seed, epoch):
    found = ids(QuestionLoader(QUESTIONS, batch_size, seed, epoch))
    assert len(found) == len(QUESTIONS) // batch_size
    assert all(len(batch) == batch_size for batch in found)
    flat = [i for batch in found for i in batch]
    assert len(set(flat)) == len(flat)
    assert found == ids(QuestionLoader(QUESTIONS, batch_size, seed, epoch))


def test_epochs_and_seeds_differ():
    loader = QuestionLoader(QUESTIONS, 5, 0)
    assert len({str(ids(x)) for x in (loader, loader, QuestionLoader(QUESTIONS, 5, 1))}) == 3


@given(st.integers(1, 12))
def test_evaluation_sees_all_in_order(batch_size):
    loader = QuestionLoader(QUESTIONS, batch_size)
    next(iter(loader))  # a sanity check that stopped early
    found = ids(loader)
    assert [i for batch in found for i in batch] == [q.id for q in QUESTIONS]
    assert len(found) == len(loader)
    assert ids(loader) == found


@pytest.mark.parametrize("given_batches", range(5))
def test_the_loader_resumes_exactly(given_batches):
    whole = QuestionLoader(QUESTIONS, 2, 7)
    expected = ids(whole) + ids(whole)
    first, second = QuestionLoader(QUESTIONS, 2, 7), QuestionLoader(QUESTIONS, 2, 7)
    before = ids(islice(first, given_batches))
    second.load_state_dict(first.state_dict())
    assert before + ids(second) + ids(second) == expected


def test_an_epoch_that_was_not_run_to_its_end_is_followed_by_the_next():
    """Lightning takes len(loader) batches and never asks for one more."""
    whole, stopping = QuestionLoader(QUESTIONS, 4, 7), QuestionLoader(QUESTIONS, 4, 7)
    assert [b for _ in range(3) for b in ids(islice(stopping, 2))] == ids(whole) + ids(whole) + ids(whole)


def write(path, questions):
    write_rows(path, (q.to_row() for q in questions))
    return path


def test_each_loader_has_its_own_file_and_size(tmp_path):
    train = write(tmp_path / "train.jsonl", QUESTIONS)
    others = {
        f"{name}_file": write(tmp_path / f"{name}.jsonl", [question(100 * n + i) for i in range(5)])
        for n, name in enumerate(("validation", "test", "predict"), 1)
    }
    data = QuestionDataModule(train, **others, batch_questions=3, eval_batch_questions=2, limit=3)
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 3  # limit is for the others
    loaders = (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader())
    for n, loader in enumerate(loaders, 1):
        batches = ids(loader)
        assert [len(batch) for batch in batches] == ([2, 1] if n == 1 else [3])  # a test's batch holds more than run at once
        drawn = [name for batch in batches for name in batch]
        assert drawn == sorted(set(drawn))  # in the file's order
        assert set(drawn) <= {f"q{100 * n + i}" for i in range(5)}


def test_a_limit_draws_by_the_seed_and_not_the_first(tmp_path):
    path = write(tmp_path / "test.jsonl", [question(i) for i in range(100)])

    def drawn(seed):
        data = QuestionDataModule(test_file=path, limit=10, eval_batch_questions=10, seed=seed)
        data.setup("test")
        return ids(data.test_dataloader())[0]

    assert drawn(0) == drawn(0) != drawn(1)
    assert len({name for seed in range(20) for name in drawn(seed)}) > 60


@pytest.mark.parametrize("name", ["validation", "test"])
@pytest.mark.parametrize(("train", "held_out"), [("a", "a"), ("a|b", "b|c")])
def test_trap_08_train_shares_no_group_with_what_is_held_out(tmp_path, name, train, held_out):
    files = {
        "train_file": write(tmp_path / "train.jsonl", [question(0, train)]),
        f"{name}_file": write(tmp_path / "held_out.jsonl", [question(1, held_out)]),
    }
    with pytest.raises(InputError, match=f"train questions and the {name} questions share the group '[ab]'"):
        QuestionDataModule(**files).setup("fit")


def test_trap_13_train_and_validation_are_not_one_file(tmp_path):
    path = write(tmp_path / "one.jsonl", QUESTIONS)
    with pytest.raises(InputError, match="share the answer to '0', 'x' and 19 more"):
        QuestionDataModule(path, path).setup("fit")


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_a_verb_without_its_file_is_one_sentence(stage):
    name = {"fit": "train", "validate": "validation"}.get(stage, stage)
    with pytest.raises(InputError, match=rf"seeker {stage} needs data.{name}_file"):
        QuestionDataModule().setup(stage)


def test_train_limit_draws_by_the_seed_and_meets_the_same_questions_each_epoch(tmp_path):
    train = tmp_path / "train.jsonl"
    write_rows(train, (Question(f"q{i}", "?", ("a",)).to_row() for i in range(40)))

    def epochs(seed):
        data = QuestionDataModule(train, batch_questions=2, train_limit=4, seed=seed)
        data.setup("fit")
        loader = data.train_dataloader()
        return [{question.id for batch in loader for question in batch} for _ in range(2)]

    first, second = epochs(0)
    assert first == second
    assert len(first) == 4
    assert first == epochs(0)[0] != epochs(1)[0]


def test_passes_are_epochs_in_one():
    loader = QuestionLoader(QUESTIONS, 4, 7, passes=3)
    assert len(loader) == 6
    once = QuestionLoader(QUESTIONS, 4, 7)
    assert ids(loader) + ids(loader) == [batch for _ in range(6) for batch in ids(once)]


@pytest.mark.parametrize("given_batches", range(6))
def test_passes_resume_inside(given_batches):
    first, second = QuestionLoader(QUESTIONS, 4, 7, passes=3), QuestionLoader(QUESTIONS, 4, 7, passes=3)
    before = ids(islice(first, given_batches))
    second.load_state_dict(first.state_dict())
    whole = QuestionLoader(QUESTIONS, 4, 7, passes=3)
    expected = ids(whole) + ids(whole)
    assert before + ids(second) + ids(second) == expected


def test_fewer_questions_than_a_batch_is_one_sentence(tmp_path):
    data = QuestionDataModule(write(tmp_path / "train.jsonl", QUESTIONS), batch_questions=11)
    data.setup("fit")
    with pytest.raises(InputError, match=r"10 questions of .* are to be trained on, less than 11 a batch"):
        data.train_dataloader()


def test_trap_03_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        QuestionDataModule(tmp_path / "none.jsonl").setup("fit")


def test_questions_of_each_kind_in_turn():
    kinds = ["one"] * 3 + ["two"] * 2 + ["none"]
    questions = [Question(f"q{i}", "?", ("a",), kind=kind) for i, kind in enumerate(kinds)]
    assert [q.id for q in in_turn(questions)] == ["q5", "q0", "q3", "q1", "q4", "q2"]


def test_questions_of_each_kind_at_even_distances():
    """Places of 6 `one`: 1/12, 3/12, …; of 3 `two`: 2/12, 6/12, 10/12."""
    kinds = ["one"] * 6 + ["two"] * 3
    questions = [Question(f"q{i}", "?", ("a",), kind=kind) for i, kind in enumerate(kinds)]
    assert [q.id for q in spread(questions)] == ["q0", "q6", "q1", "q2", "q7", "q3", "q4", "q8", "q5"]
    assert spread(questions[:3] + questions[6:]) == in_turn(questions[:3] + questions[6:])


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), st.integers(1, 40))
@example(kinds="a" * 30 + "b" * 10, length=8)
def test_every_run_holds_its_share_of_each_kind(kinds, length):
    questions = [Question(f"q{i}", "?", ("a",), kind=kind) for i, kind in enumerate(kinds)]
    found = [q.kind for q in spread(questions)]
    for start in range(0, len(found) - length + 1, length):
        for kind in set(kinds):
            share = length * kinds.count(kind) / len(kinds)
            assert abs(found[start : start + length].count(kind) - share) <= max(1, len(set(kinds)) - 1)


@pytest.mark.parametrize("order", [in_turn, spread])
@given(kinds=st.lists(st.sampled_from("abc"), max_size=30))
def test_nothing_is_lost_in_turns(order, kinds):
    questions = [Question(f"q{i}", "?", ("a",), kind=kind) for i, kind in enumerate(kinds)]
    found = order(questions)
    assert sorted(q.id for q in found) == sorted(q.id for q in questions)
    for kind in set(kinds):
        assert [q for q in found if q.kind == kind] == [q for q in questions if q.kind == kind]


def test_train_balanced_draws_evenly(tmp_path):
    rows = [Question(f"q{i}", "?", ("a",), kind="rare" if i % 10 == 0 else "common") for i in range(40)]
    data = QuestionDataModule(write(tmp_path / "t.jsonl", rows), batch_questions=2, train_limit=8, train_balanced=True)
    data.setup("fit")
    batches = [[q.kind for q in batch] for batch in data.train_dataloader()]
    assert batches == [["common", "rare"]] * 4
    uneven = QuestionDataModule(tmp_path / "t.jsonl", batch_questions=3, train_limit=12, train_balanced=True)
    uneven.setup("fit")
    assert [sorted(q.kind for q in batch) for batch in uneven.train_dataloader()] == [["common", "common", "rare"]] * 4
    other = QuestionDataModule(tmp_path / "t.jsonl", batch_questions=2, train_limit=8, train_balanced=True, seed=1)
    other.setup("fit")
    drawn = [{q.id for batch in one.train_dataloader() for q in batch if q.kind == "common"} for one in (data, data, other)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    "change", [{"questions": QUESTIONS[1:]}, {"batch_size": 3}, {"seed": 8}, {"passes": 2}, {"balanced": True}]
)
def test_a_position_among_other_questions_is_refused(change):
    given = {"questions": QUESTIONS, "batch_size": 4, "seed": 7}
    state = QuestionLoader(**given).state_dict()
    QuestionLoader(**given).load_state_dict(state)
    with pytest.raises(InputError, match="stands in another plan of the questions"):
        QuestionLoader(**{**given, **change}).load_state_dict(state)


def test_kinds_choose_from_each_file(tmp_path):
    path, other = tmp_path / "train.jsonl", tmp_path / "validation.jsonl"
    kinds = ["one_hop", "two_hop", "two_hop", None]
    write_rows(path, (Question(f"q{i}", f"What is {i}?", ("a",), kind=kind).to_row() for i, kind in enumerate(kinds)))
    write_rows(other, [Question("v", "What is v?", ("a",), kind="one_hop").to_row()])
    module = QuestionDataModule(path, batch_questions=2, kinds=["two_hop"])
    module.setup("fit")
    assert {question.id for batch in module.train_dataloader() for question in batch} == {"q1", "q2"}
    module = QuestionDataModule(path, other, kinds=["two_hop", "three_hop"])
    with pytest.raises(InputError, match=r"validation.jsonl holds no question of data.kinds=.*; its kinds are one_hop"):
        module.setup("fit")


def test_constraints_that_cannot_be_checked_are_refused_with_their_line(tmp_path):
    rows = [question(0).to_row(), question(1).to_row() | {"extra_info": {"constraints": {"max_words": 0}}}]
    write_rows(tmp_path / "q.jsonl", rows)
    module = QuestionDataModule(test_file=tmp_path / "q.jsonl")
    with pytest.raises(InputError, match=r"q\.jsonl, line 2: extra_info\.constraints\.max_words is 0"):
        module.setup("test")


def test_questions_that_other_files_ask_are_left_out(tmp_path):
    """By the question and its answer, whatever the id; of what is held out, not of the training."""
    starts = {"train": 0, "test": 9}
    files = {name: write(tmp_path / f"{name}.jsonl", [question(n + i) for i in range(4)]) for name, n in starts.items()}
    same = replace(question(10), id="another")
    others = write(tmp_path / "others.jsonl", [same, question(2)])
    data = QuestionDataModule(files["train"], test_file=files["test"], batch_questions=4, leave_out=[others])
    data.setup("test")
    assert ids(data.test_dataloader()) == [["q9", "q11", "q12"]]
    assert len(ids(data.train_dataloader())[0]) == 4
    with pytest.raises(InputError, match="leaves no question"):
        QuestionDataModule(test_file=files["test"], leave_out=[files["test"]]).setup("test")
