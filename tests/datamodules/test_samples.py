"""Tokenised sets: the samples of the renderer, from a cache that is never stale, and weighted by row."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace

import pytest
from test_conversation import Module, conversation, ready, write

from project.datamodules import samples
from project.datamodules.samples import Samples, cache_folder, join, row_weights, tokenised
from project.errors import InputError, RenderingError
from project.overlap import marks
from project.rendering import DEFAULT_WEIGHTS, Sample

ROWS = [conversation(i, f"g{i}", words=i + 1) for i in range(6)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "rows.jsonl", ROWS)


def renderer(**weights):
    return Module().make_renderer(DEFAULT_WEIGHTS | weights)


def made() -> int:
    return len(list(cache_folder().iterdir())) if cache_folder().exists() else 0


def test_the_samples_are_the_renderers(path):
    expected = [sample for row in ROWS for sample in renderer().samples(row)]
    for _ in range(2):  # made, then from the cache
        found = tokenised(path, renderer())
        assert list(found) == expected
        assert found.column("tokens") == [len(sample.ids) for sample in expected]
        assert found.column("total") == [sum(sample.weights[1:]) for sample in expected]
        assert [set(held) for held in found.column("marks")] == [marks(row) for row in ROWS]
    assert made() == 1


def test_a_file_that_is_written_while_it_is_read_is_not_kept(path, monkeypatch):
    digests = iter(["before", "after"])
    monkeypatch.setattr(samples, "_code", lambda: [])
    monkeypatch.setattr(samples, "file_digest", lambda _: next(digests))
    with pytest.raises(InputError, match=r"rows.jsonl was written while it was read; run the same command again"):
        tokenised(path, renderer())
    assert made() == 0


def test_a_second_reading_renders_nothing(path, monkeypatch):
    tokenised(path, renderer())
    monkeypatch.setattr(samples, "_made", lambda *_: pytest.fail("rendered again"))
    assert len(tokenised(path, renderer())) == 6


def test_parallel_rendering_keeps_the_order(path, monkeypatch):
    one = tokenised(path, renderer())
    monkeypatch.setattr(samples, "PARALLEL", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(samples, "_code", lambda: ["another place in the cache"])
    environment = os.environ
    two = tokenised(path, renderer())
    assert list(two) == list(one)
    assert two.key == one.key
    assert made() == 2
    assert os.environ is environment


@pytest.mark.parametrize("what", ["row", "weight", "row weight", "template", "vocabulary", "history", "dialect", "code"])
def test_whatever_decides_the_samples_makes_another_set(path, what, monkeypatch):
    before = tokenised(path, renderer())
    changed, expression = renderer(), None
    match what:
        case "row":
            write(path, [*ROWS[1:], ROWS[0]])  # the same length and the same rows
        case "weight":
            changed = renderer(think=1.25)
        case "row weight":
            expression = "2.0"
        case "template":
            changed.tokenizer.chat_template += "{# another #}"
        case "vocabulary":
            changed.tokenizer.add_tokens(["so"])
        case "history":
            changed = replace(changed, history="template")
        case "dialect":
            changed = replace(changed, dialect=replace(changed.dialect, decision_tokens=True))
        case "code":
            monkeypatch.setattr(samples, "_code", lambda: ["changed"])
    after = tokenised(path, changed, expression)
    assert made() == 2
    assert (after.key == before.key) == (list(after) == list(before))  # a plan stands, whoever made its samples
    assert (after.key == before.key) == (what not in {"row", "weight", "row weight", "history"})


def test_killed_while_writing_nothing_half_written_is_read(path, monkeypatch):
    from datasets import Dataset

    def die(self, folder, **_):
        folder.mkdir()
        (folder / "state.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "save_to_disk", die)
        with pytest.raises(KeyboardInterrupt):
            tokenised(path, renderer())
    assert made() == 0
    assert len(tokenised(path, renderer())) == 6


def _dies(batch, renderer):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_one_sentence(path, monkeypatch):
    monkeypatch.setattr(samples, "PARALLEL", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(samples, "_render", _dies)
    with pytest.raises(InputError, match=r"a process that tokenised .*rows.jsonl was killed, as the system does when memory"):
        tokenised(path, renderer())
    assert made() == 0


def test_what_no_one_used_for_a_month_goes_when_a_set_is_made(path):
    tokenised(path, renderer())
    tokenised(path, renderer(think=1.25))
    left = cache_folder() / ".making-killed"
    left.mkdir()
    for folder in cache_folder().iterdir():
        os.utime(folder, (0, time.time() - 31 * 24 * 3600))
    tokenised(path, renderer())  # used again
    assert made() == 3
    tokenised(path, renderer(think=1.75))
    assert made() == 2
    assert not left.exists()


def _make(path, barrier, queue):
    barrier.wait()
    queue.put([sample.ids for sample in tokenised(path, renderer())])


@pytest.mark.parametrize("parallel", [False, True])
def test_a_conversation_that_cannot_be_rendered_is_named(tmp_path, monkeypatch, parallel):
    monkeypatch.setattr(samples, "PARALLEL", 2 if parallel else 1000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    bad = replace(conversation(7), messages=conversation(7).messages[:1])
    with pytest.raises(RenderingError, match="conversation 'c7' has no assistant message to train"):
        tokenised(write(tmp_path / "bad.jsonl", [*ROWS, bad]), renderer())
    assert made() == 0


def test_two_processes_at_once_both_get_the_set(path):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_make, args=(path, barrier, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert found[0] == found[1] == [sample.ids for sample in tokenised(path, renderer())]
    assert made() == 1


def test_a_cache_that_cannot_be_written_is_one_sentence(path, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot be written.*set XDG_CACHE_HOME"):
        tokenised(path, renderer())


def test_a_disk_that_fills_up_leaves_nothing(path, monkeypatch):
    from datasets import Dataset

    def full(self, folder, **_):
        folder.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Dataset, "save_to_disk", full)
    with pytest.raises(InputError, match=r"No space left on device.*free space"):
        tokenised(path, renderer())
    assert made() == 0


def test_taking_and_joining():
    one, two = (Samples.of([Sample(f"{n}{i}", [i], [0], [1.0]) for i in range(3)]) for n in "ab")
    both = join([one.take([2, 2]), two.take([1])])
    assert [s.id for s in both] == ["a2", "a2", "b1"]
    assert [s.id for s in both[1:]] == ["a2", "b1"]
    assert len({one.key, one.take([0]).key, one.take([1]).key, both.key, join([two, one]).key, join([one, two]).key}) == 6


def test_row_weights_by_hand():
    rows = [replace(conversation(i), extra_info={"hops": i % 3, "kind": "compare"[: i + 2]}) for i in range(4)]
    assert row_weights(rows, "case when hops = 2 then 3.0 else 0.5 end") == [0.5, 0.5, 3.0, 0.5]
    assert row_weights(rows, "turns * 2") == [2.0] * 4
    assert row_weights(rows, "1.5") == [1.5] * 4


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("depth + 1", "cannot be computed.*the columns are answers, group, id, question, turns"),
        ("case when", "cannot be computed"),
        ("turns - 3", "is -2.0 for conversation 'c0'"),
        ("turns / 0", "is inf for conversation 'c0'"),
        ("cast(id as double)", "cannot be computed"),
        ("nullif(turns, 1)", "is None for conversation 'c0'"),
    ],
)
def test_a_row_weight_that_is_none_is_one_sentence(expression, said):
    with pytest.raises(InputError, match=said):
        row_weights(ROWS, expression)


def test_row_weights_multiply_and_zero_leaves_out(tmp_path):
    rows = [conversation(i, words=i + 1) for i in range(4)]
    rows = [replace(row, extra_info={"good": i}) for i, row in enumerate(rows)]
    plain, weighted = (ready(tmp_path, rows, row_weight=w).train_dataloader().samples for w in (None, "good"))
    assert [s.id for s in weighted] == ["c1", "c2", "c3"]
    for sample in weighted:
        index = int(sample.id[1:])
        assert sample.weights == [index * w for w in plain[index].weights]


def test_a_mixture_goes_through_each_file_as_often_as_it_says(tmp_path):
    other = write(tmp_path / "other.jsonl", [conversation(i) for i in range(20, 24)])
    first = tmp_path / "train.jsonl"
    data = ready(tmp_path, mixture={first: 0.5, other: 2.25})
    names = [s.id for s in data.train_dataloader().samples]
    assert len(names) == 5 + 2 * 4 + 1
    assert len({n for n in names if int(n[1:]) < 10}) == 5
    assert {names.count(f"c{i}") for i in range(20, 24)} == {2, 3}
    assert set(data.data_files) == {"train", "train_2", "validation"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": {"think": -1.0}}, r"weights.think=-1.0 must be a finite number from 0"),
        ({"weights": {"think": float("nan")}}, r"weights.think=nan must be"),
        ({"mixture": {"a": 0.0}}, "train_file are all 0"),
        ({"mixture": {"a": -1.0}}, "train_file.a=-1.0 must be"),
        ({"mixture": {"a": 1.0, "b": 1.0}, "limit": 3}, "limit=3 has no meaning for 2 files"),
    ],
)
def test_numbers_that_train_nothing_are_refused(tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        ready(tmp_path, **changes)


def test_a_share_that_leaves_nothing_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"no train sample is left of .*raise its times in train_file"):
        ready(tmp_path, mixture={tmp_path / "train.jsonl": 0.01})


def test_fewer_samples_than_a_step_takes(tmp_path):
    with pytest.raises(InputError, match="the 2 training samples fill 1 micro-batches of 400 tokens, fewer than the 4 of"):
        ready(tmp_path, [conversation(0), conversation(1)], accumulate=4).train_dataloader()
