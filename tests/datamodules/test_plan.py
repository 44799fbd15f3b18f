"""The plan of an epoch and the loader that follows it: each sample once, ranks in step, resumable anywhere."""

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from project.datamodules.plan import PlannedLoader, collate, plan_epoch, shifted_weight
from project.rendering import Sample

plans = st.tuples(
    st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5)
)


def flat(plan):
    return [i for step in plan for micro in step for share in micro for i in share]


@given(plans, st.integers(0, 5), st.integers(0, 5))
def test_each_sample_stands_in_the_plan_once(case, seed, epoch):
    lengths, accumulate, world, share = case
    plan = plan_epoch(lengths, seed, epoch, share * accumulate * world, accumulate, world)
    assert sorted(flat(plan)) == list(range(len(lengths)))
    assert all(len(step) == accumulate and all(len(micro) == world for micro in step) for step in plan)
    assert all(len(flat([step])) <= share * accumulate * world for step in plan)
    assert plan == plan_epoch(lengths, seed, epoch, share * accumulate * world, accumulate, world)


@given(plans)
def test_ranks_differ_by_one_sample_at_most(case):
    lengths, accumulate, world, share = case
    for step in plan_epoch(lengths, 0, 0, share * accumulate * world, accumulate, world):
        sizes = [len(s) for micro in step for s in micro]
        assert max(sizes) - min(sizes) <= 1


def test_the_steps_do_not_depend_on_how_they_are_cut():
    lengths = list(range(1, 30))

    def steps(accumulate, world):
        return [sorted(flat([step])) for step in plan_epoch(lengths, 3, 1, 8, accumulate, world)]

    assert steps(1, 1) == steps(4, 1) == steps(2, 2) == steps(1, 8)


def test_the_order_differs_by_epoch_and_seed():
    lengths = [5] * 64
    orders = {tuple(flat(plan_epoch(lengths, seed, epoch, 4, 1, 1))) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(orders) == 6


def test_micro_batches_hold_samples_of_like_length():
    (step,) = plan_epoch([9, 1, 8, 2, 10, 3, 7, 4], 0, 0, 8, 4, 1)
    # Sorted, the longest first: 10 9 | 8 7 | 4 3 | 2 1.
    assert [sorted(i for share in micro for i in share) for micro in step] == [
        [0, 4],
        [2, 6],
        [5, 7],
        [1, 3],
    ]


def make(index: int, length: int) -> Sample:
    return Sample(str(index), [index] * length, [0] * length, [0.0] + [float(index + 1)] * (length - 1))


SAMPLES = [make(i, 2 + i % 5) for i in range(11)]


def loader(**changes) -> PlannedLoader:
    return PlannedLoader(SAMPLES, **({"pad_id": 99, "step_samples": 4, "accumulate": 2, "seed": 1} | changes))


def shown(batches):
    return [batch["input_ids"].tolist() for batch in batches]


def test_collate_by_hand():
    batch = collate([Sample("a", [7, 8], [1, 2], [0.0, 1.5]), Sample("b", [9], [3], [0.5])], 0)
    assert {k: v.tolist() for k, v in batch.items()} == {
        "input_ids": [[7, 8], [9, 0]],
        "attention_mask": [[1, 1], [1, 0]],
        "weights": [[0.0, 1.5], [0.5, 0.0]],
        "kinds": [[1, 2], [3, 0]],
    }


def test_the_first_token_has_no_share_in_the_weight():
    # Nothing predicts the first token: 2 + 3, not 1 + 2 + 3.
    assert shifted_weight(Sample("a", [1, 2, 3], [0, 0, 0], [1.0, 2.0, 3.0])) == 5


@pytest.mark.parametrize(("accumulate", "world"), [(1, 1), (4, 1), (2, 2)])
def test_every_micro_batch_knows_the_weight_of_its_whole_step(accumulate, world):
    ranks = [list(loader(accumulate=accumulate, rank=r, world=world)) for r in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    for start in range(0, len(ranks[0]), accumulate):
        window = [b for batches in ranks for b in batches[start : start + accumulate]]
        held = sum(float(b["weights"][:, 1:].sum()) for b in window)
        assert [b["step_weight"] for b in window] == pytest.approx([held] * len(window))


def test_the_short_last_step_keeps_its_number_of_micro_batches():
    # 11 samples, 4 a step, 2 micro-batches: 3 steps, the last of 3 samples as 2 + 1.
    batches = list(loader())
    assert len(batches) == len(loader()) == 6
    assert [len(b["input_ids"]) for b in batches] == [2, 2, 2, 2, 2, 1]


def test_a_rank_without_samples_still_takes_part():
    # 4 a step over 4 ranks, 11 samples: the last step has 3, so the last rank gets a row of padding that weighs nothing.
    batches = list(loader(accumulate=1, rank=3, world=4))
    assert len(batches) == 3
    assert batches[-1]["input_ids"].tolist() == [[99, 99]]
    assert not batches[-1]["weights"].any()


@pytest.mark.parametrize("given_batches", range(7))
def test_the_loader_resumes_exactly(given_batches):
    whole = loader()
    expected = shown(whole) + shown(whole)
    first, second = loader(), loader()
    before = list(islice(first, given_batches))
    second.load_state_dict(first.state_dict())
    after = list(second)
    if len(before) == len(whole):  # stopped at the end of an epoch: what follows is the next one
        assert shown(before) + shown(after) == expected
    else:
        assert shown(before) + shown(after) + shown(second) == expected


def test_an_epoch_that_was_not_run_to_its_end_is_followed_by_the_next():
    """Lightning takes len(loader) batches and never asks for one more."""
    stopping, whole = loader(), loader()
    taken = []
    for _ in range(3):
        iterator = iter(stopping)
        taken += [next(iterator) for _ in range(len(stopping))]
    assert shown(taken) == shown(whole) + shown(whole) + shown(whole)
    assert torch.equal(taken[0]["input_ids"], next(iter(loader()))["input_ids"])
