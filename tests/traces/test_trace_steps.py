"""One sample per search result, and nothing of the trace lost."""

from hypothesis import given
from hypothesis import strategies as st
from trace_samples import TWO_HOPS, answer, result, search, think, trace, traces

from project.traces.steps import StepSample, split


def n_results(made_up):
    return sum(step.type == "search_result" for step in made_up.steps)


def test_two_results_give_three_samples():
    first, second, third = split(TWO_HOPS)
    assert (first.context, first.target) == ((), TWO_HOPS.steps[:2])
    assert (second.context, second.target) == (TWO_HOPS.steps[:3], TWO_HOPS.steps[3:5])
    assert (third.context, third.target) == (TWO_HOPS.steps[:6], TWO_HOPS.steps[6:])
    assert [(s.id, s.split_index, s.total_splits) for s in (first, second, third)] == [
        ("t1#0", 0, 2),
        ("t1#1", 1, 2),
        ("t1#2", 2, 2),
    ]


def test_without_the_first_decision():
    assert split(TWO_HOPS, include_first=False) == split(TWO_HOPS)[1:]


def test_nothing_follows_the_last_result():
    assert [s.split_index for s in split(trace(search("a"), result("b")))] == [0]
    assert split(trace(search("a"), result("b")), include_first=False) == []


def test_a_trace_without_a_search_gives_one_sample():
    made_up = trace(think("Easy."), answer("4"))
    for include_first in (True, False):
        (sample,) = split(made_up, include_first=include_first)
        assert (sample.context, sample.target, sample.total_splits) == ((), made_up.steps, 0)


@given(traces())
def test_n_results_give_n_plus_one_samples_less_one_where_nothing_follows(made_up):
    n = n_results(made_up)
    ends_in_result = made_up.steps[-1].type == "search_result"
    assert len(split(made_up)) == n + 1 - ends_in_result
    if n:
        assert len(split(made_up, include_first=False)) == n - ends_in_result


@given(traces())
def test_contexts_and_targets_give_back_the_trace(made_up):
    samples = split(made_up)
    results = [step for step in made_up.steps if step.type == "search_result"]
    rebuilt = []
    for sample in samples:
        assert sample.context == tuple(rebuilt)
        assert all(step.type != "search_result" for step in sample.target)
        rebuilt += [*sample.target, *results[sample.split_index : sample.split_index + 1]]
    assert tuple(rebuilt) == made_up.steps


@given(traces(), st.booleans())
def test_a_sample_is_read_back(made_up, include_first):
    for sample in split(made_up, include_first=include_first):
        assert StepSample.from_row(sample.to_row()) == sample
