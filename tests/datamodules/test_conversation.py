"""Conversations to planned micro-batches: what is refused, dropped, weighted, and how the order goes on."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tiny import byte_tokenizer

from project.datamodules.conversation import ConversationDataModule, _check_limit
from project.dialects import Action, get_dialect
from project.errors import InputError
from project.records import Conversation, Message
from project.rendering import DEFAULT_WEIGHTS, KINDS, Renderer, prepare_tokenizer
from project.writing import write_rows


def conversation(index: int, group: str = "", words: int = 1) -> Conversation:
    answer = get_dialect("tags", decision_tokens=False).write(Action("So.", answer="x" * words))
    return Conversation(f"c{index}", (Message("user", f"Question: {index}?"), answer), group=group)


class Module:
    """What the datamodule asks of the trainer's module."""

    def make_renderer(self, weights) -> Renderer:
        tokenizer, dialect = byte_tokenizer(), get_dialect("tags", decision_tokens=False)
        prepare_tokenizer(tokenizer, dialect)
        return Renderer(tokenizer, dialect, "append", weights)


def write(path, conversations):
    write_rows(path, (c.to_row() for c in conversations))
    return path


def make(tmp_path, train=None, held_out=None, accumulate=1, rank=0, world=1, mixture=None, **changes) -> ConversationDataModule:
    train = write(tmp_path / "train.jsonl", train or [conversation(i) for i in range(10)])
    held_out = write(tmp_path / "validation.jsonl", held_out or [conversation(i) for i in range(10, 13)])
    data = ConversationDataModule(mixture or train, held_out, **({"micro_tokens": 400} | changes))
    data.trainer = SimpleNamespace(
        lightning_module=Module(), accumulate_grad_batches=accumulate, global_rank=rank, world_size=world,
        limit_train_batches=1.0, fast_dev_run=False,
    )  # fmt: skip
    return data


def ready(*args, **kwargs) -> ConversationDataModule:
    data = make(*args, **kwargs)
    data.setup("fit")
    return data


@pytest.mark.parametrize(
    ("train", "held_out"), [("a", "a"), ("a|b", "b"), ("a", "c|a"), ("a|b", "b|c")], ids=["same", "in", "holds", "overlap"]
)
def test_trap_08_train_and_validation_share_no_group(tmp_path, train, held_out):
    with pytest.raises(InputError, match=r"share the group '[ab]'; split them by group"):
        ready(tmp_path, [conversation(0, train)], [conversation(1, held_out)])


def test_trap_08_without_groups_the_id_counts(tmp_path):
    with pytest.raises(InputError, match="share the id 'c1' and 1 more"):
        ready(tmp_path, [conversation(0), conversation(1)], [conversation(1)])


def test_trap_13_train_and_validation_are_not_one_file(tmp_path):
    path = write(tmp_path / "one.jsonl", [conversation(0)])
    (tmp_path / "link.jsonl").symlink_to(path)
    data = make(tmp_path)
    data.mixture, data.validation_file = {path: 1.0}, tmp_path / "link.jsonl"
    with pytest.raises(InputError, match="training and validation are the same file"):
        data.setup("fit")


def test_ids_are_not_cut_into_groups(tmp_path):
    named = [replace(conversation(i), id=f"trace{i}|3") for i in range(2)]
    data = ready(tmp_path, named[:1], named[1:])
    assert [s.id for s in data.train_dataloader().samples] == ["trace0|3"]


def test_different_groups_pass(tmp_path):
    data = ready(tmp_path, [conversation(0, "a|b")], [conversation(1, "c")])
    assert data.dropped == {"train": 0, "validation": 0}


def test_trap_08_an_opening_is_not_shared_unless_told_so(tmp_path):
    shared = [conversation(0, "a")], [conversation(0, "b")]
    with pytest.raises(InputError, match="share the opening 'question 0'"):
        ready(tmp_path, *shared)
    assert len(ready(tmp_path, *shared, check_split=False).train_dataloader().samples) == 1


def test_trap_03_no_label_is_cut_off(tmp_path, caplog):
    """A sample over the limit is left out whole and counted; what stays ends with its trained end-of-turn token."""
    with caplog.at_level(logging.WARNING):
        data = ready(tmp_path, [conversation(0), conversation(1, words=300), conversation(2)], micro_tokens=200)
    assert data.dropped == {"train": 1, "validation": 0}
    assert "dropped 1 of 3 train samples over 200 tokens" in caplog.text
    kept = data.train_dataloader().samples
    assert [s.id for s in kept] == ["c0", "c2"]
    assert all(s.ids[-1] == 257 and s.weights[-1] == 1.0 for s in kept)


def test_all_too_long_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"all 10 samples of .*train.jsonl are longer than micro_tokens=5"):
        ready(tmp_path, micro_tokens=5)


def test_trap_03_a_missing_file_is_never_replaced(tmp_path):
    data = make(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(InputError, match=r"train\.jsonl does not exist"):
        data.setup("fit")


@pytest.mark.parametrize(("limit", "taken"), [(3, 3), (0.5, 3)])
def test_an_epoch_that_ends_inside_a_step_is_refused(tmp_path, limit, taken):
    trainer = SimpleNamespace(limit_train_batches=limit, accumulate_grad_batches=2, fast_dev_run=False)
    with pytest.raises(
        InputError, match=rf"^trainer.limit_train_batches={limit} ends an epoch after {taken} micro-batches, in"
    ):
        _check_limit(trainer, 6)
    _check_limit(SimpleNamespace(**{**vars(trainer), "limit_train_batches": 1.0}), 6)
    _check_limit(SimpleNamespace(**{**vars(trainer), "limit_train_batches": 100}), 6)
    _check_limit(SimpleNamespace(**{**vars(trainer), "fast_dev_run": 1}), 6)


def test_weights_of_the_config_lie_over_the_defaults(tmp_path):
    assert make(tmp_path).weights == DEFAULT_WEIGHTS
    data = ready(tmp_path, weights={"think": 0.0, "answer": 3.0})
    sample = data.train_dataloader().samples[0]
    found = {str(KINDS[k]): w for k, w in zip(sample.kinds, sample.weights, strict=True)}
    assert (found["think"], found["answer"], found["end"], found["user"]) == (0, 3, 1, 0)


def test_limit_draws_training_conversations_only(tmp_path):
    data = ready(tmp_path, limit=2)
    assert len(data.train_dataloader().samples) == 2
    assert len(data.val_dataloader()[0].samples) == 3


def test_ranks_share_a_step_and_its_weight(tmp_path):
    loaders = [ready(tmp_path, accumulate=2, rank=r, world=2, micro_tokens=200).train_dataloader() for r in (0, 1)]
    first, second = (list(loader) for loader in loaders)
    assert len(first) == len(second)
    assert [b["step_weight"] for b in first] == [b["step_weight"] for b in second]
    total = sum(loaders[0].samples.column("total"))
    assert sum(b["step_weight"] for b in first[::2]) == pytest.approx(total)


def test_validation_sees_all_after_a_sanity_check_that_stopped_early(tmp_path):
    loader = ready(tmp_path, micro_tokens=100).val_dataloader()[0]
    whole = [b["input_ids"].tolist() for b in loader]
    next(iter(loader))
    assert [b["input_ids"].tolist() for b in loader] == whole
    assert len(whole) == 3
