"""The plan of an epoch and the loader that follows it: each sample once, ranks in step, resumable anywhere."""

import random
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from project.datamodules.plan import PlannedLoader, collate, pack, plan_epoch
from project.datamodules.samples import Samples
from project.errors import InputError
from project.rendering import Sample

plans = st.tuples(
    st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 4), st.integers(1, 3), st.integers(50, 200)
)


def flat(plan):
    return [i for step in plan for micro in step for share in micro for i in share]


@given(plans, st.integers(0, 5), st.integers(0, 5))
def test_each_sample_stands_in_the_plan_once_and_no_share_is_over_its_budget(case, seed, epoch):
    lengths, accumulate, world, budget = case
    plan = plan_epoch(lengths, seed, epoch, budget, accumulate, world)
    assert sorted(flat(plan)) == list(range(len(lengths)))
    assert all(len(step) == accumulate and all(len(micro) == world for micro in step) for step in plan)
    assert all(sum(lengths[i] for i in share) <= budget for step in plan for micro in step for share in micro)
    assert plan == plan_epoch(lengths, seed, epoch, budget, accumulate, world)


@given(plans)
def test_every_epoch_has_as_many_steps_and_they_hold_even_numbers_of_filled_shares(case):
    lengths, accumulate, world, budget = case
    epochs = [plan_epoch(lengths, 0, epoch, budget, accumulate, world) for epoch in range(4)]
    assert len({len(plan) for plan in epochs}) == 1
    for plan in epochs:
        filled = [sum(bool(share) for micro in step for share in micro) for step in plan]
        assert max(filled) - min(filled) <= 1
        assert min(filled) >= 1


@pytest.mark.parametrize("seed", range(5))
def test_an_epoch_that_packs_otherwise_than_the_first_still_fills_every_step(seed):
    """Sixes and fours in bins of ten over several windows: how many bins there are depends on the order."""
    lengths = [6] * 300 + [4] * 300
    epochs = [plan_epoch(lengths, seed, epoch, 10, 1, 1) for epoch in range(8)]
    packings = [pack(lengths, random.Random(f"{seed}/{epoch}").sample(range(600), 600), 10) for epoch in range(8)]
    assert len({len(bins) for bins in packings}) > 1
    assert len({len(plan) for plan in epochs}) == 1
    assert all(share for plan in epochs for step in plan for micro in step for share in micro)
    assert all(sorted(flat(plan)) == list(range(600)) for plan in epochs)
    assert len({tuple(flat(plan)) for plan in epochs}) == 8


def test_best_fit_by_hand():
    # Decreasing: 6 opens a bin, 5 a second; 4 fits best beside 6 (0 left), 3 beside 5 (2 left), 2 there; 1 opens a third.
    assert pack([5, 1, 4, 6, 2, 3], range(6), 10) == [[3, 2], [0, 5, 4], [1]]


@pytest.mark.parametrize(("budget", "least"), [(2048, 0.96), (4096, 0.97), (16384, 0.97)])
def test_micro_batches_are_filled(budget, least):
    """Lengths as in SQuAD's conversations (130-600) and as in agents' traces (300-1,900)."""
    draw = random.Random(0)
    for lengths in ([draw.randint(130, 600) for _ in range(5000)], [int(300 + 1600 * draw.random() ** 2) for _ in range(3000)]):
        bins = pack(lengths, list(range(len(lengths))), budget)
        assert sum(lengths) / (budget * len(bins)) >= least


def test_the_order_differs_by_epoch_and_seed():
    lengths = [5] * 64
    orders = {tuple(flat(plan_epoch(lengths, seed, epoch, 20, 1, 1))) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(orders) == 6


def test_different_epochs_put_different_samples_together():
    lengths = list(range(1000, 1200))  # no two alike: only windows make packings differ

    def together(epoch):
        plan = plan_epoch(lengths, 0, epoch, 5000, 1, 1)
        return {frozenset(share) for step in plan for micro in step for share in micro}

    assert len(together(0) & together(1)) < 0.2 * len(together(0))


def make(index: int, length: int) -> Sample:
    return Sample(str(index), [index] * length, [0] * length, [0.0] + [float(index + 1)] * (length - 1))


SAMPLES = Samples.of([make(i, 2 + i % 5) for i in range(11)])


def loader(**changes) -> PlannedLoader:
    return PlannedLoader(SAMPLES, **({"pad_id": 99, "micro_tokens": 8, "accumulate": 2, "seed": 1} | changes))


def shown(batches):
    return [batch["input_ids"].tolist() for batch in batches]


def test_collate_by_hand():
    batch = collate([Sample("a", [7, 8], [1, 2], [0.5, 1.5]), Sample("b", [9, 6, 5], [3, 4, 4], [0.5, 2.0, 0.0])], 0)
    assert {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in batch.items()} == {
        "input_ids": [7, 8, 9, 6, 5],
        "kinds": [1, 2, 3, 4, 4],
        "weights": [0.0, 1.5, 0.0, 2.0, 0.0],  # nothing predicts a first token, least of all the sample before
        "lengths": [2, 3],
        "tokens": 5,
        "names": ["a", "b"],
    }


def test_the_first_token_has_no_share_in_the_weight():
    # Nothing predicts the first token: 2 + 3, not 1 + 2 + 3.
    assert Samples.of([Sample("a", [1, 2, 3], [0, 0, 0], [1.0, 2.0, 3.0])]).column("total") == [5]


@pytest.mark.parametrize(("accumulate", "world"), [(1, 1), (4, 1), (2, 2)])
def test_every_micro_batch_knows_the_weight_of_its_whole_step(accumulate, world):
    ranks = [list(loader(accumulate=accumulate, rank=r, world=world)) for r in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    for start in range(0, len(ranks[0]), accumulate):
        window = [b for batches in ranks for b in batches[start : start + accumulate]]
        held = sum(float(b["weights"].sum()) for b in window)
        assert [b["step_weight"] for b in window] == pytest.approx([held] * len(window))


def test_the_short_last_step_keeps_its_number_of_micro_batches():
    # Lengths 2 3 4 5 6 2 3 4 5 6 2 in bins of 8: 42 tokens in 6 bins, so with 4 a step two steps of 3 and an empty one.
    batches = list(loader(accumulate=4))
    assert len(batches) == len(loader(accumulate=4)) == 8
    assert [b["tokens"] > 0 for b in batches] == [True, True, True, False] * 2


def test_a_rank_without_samples_still_takes_part():
    batches = list(loader(accumulate=1, rank=3, world=4))
    assert len(batches) == 2
    assert [b["input_ids"].tolist() for b in batches] == [[99, 99]] * 2
    assert not any(b["weights"].any() or b["tokens"] for b in batches)


@pytest.mark.parametrize("change", [{"micro_tokens": 9}, {"accumulate": 1}, {"seed": 2}, {"world": 2}])
def test_a_position_in_another_plan_is_refused(change):
    with pytest.raises(InputError, match="stands in another plan of the samples"):
        loader(**change).load_state_dict(loader().state_dict())
    with pytest.raises(InputError, match="stands in another plan of the samples"):
        loader().load_state_dict({"epoch": 0, "position": 3})  # as Seeker wrote it before plans were packed


def test_the_loader_goes_on_at_another_number_of_ranks_with_the_same_steps():
    """Steps of two micro-batches, or of one on each of two ranks; three steps an epoch, stopped after the first."""
    whole = list(loader())
    one, ranks = loader(), [loader(accumulate=1, rank=rank, world=2) for rank in (0, 1)]
    list(islice(one, 2))
    for rank in ranks:
        rank.load_state_dict(one.state_dict())
    assert [batch for pair in zip(*map(shown, ranks), strict=True) for batch in pair] == shown(whole)[2:]
    ranks[0].load_state_dict(one.state_dict())
    list(islice(ranks[0], 1))
    again = loader()
    again.load_state_dict(ranks[0].state_dict())
    assert shown(again) == shown(whole)[4:]


@pytest.mark.parametrize(("accumulate", "world"), [(2, 1), (1, 2)])
def test_a_step_begun_starts_anew(accumulate, world):
    """Its gradients are in no checkpoint."""
    one = loader(world=1)
    given = list(islice(one, 3))
    resumed = loader(accumulate=accumulate, world=world)
    resumed.load_state_dict(one.state_dict())
    assert resumed.position == accumulate
    assert torch.equal(next(iter(resumed))["input_ids"], given[2]["input_ids"])


@pytest.mark.parametrize("given_batches", range(7))  # 6 an epoch
def test_the_loader_resumes_exactly(given_batches):
    whole = loader()
    expected = shown(whole) + shown(whole)
    first, second = loader(), loader()
    before = list(islice(first, given_batches))
    before = before[: given_batches // 2 * 2]  # a step has two
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
