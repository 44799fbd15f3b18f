"""Training rows: exactly the ids that were sampled and read, and only the sampled ones trained."""

from hypothesis import given
from hypothesis import strategies as st

from project.records import Episode, FinishReason, Question, Turn
from project.rollouts.rows import collate_rows, training_rows

QUESTION = Question("q", "?", ("x",))
ids = st.lists(st.integers(0, 999), min_size=1, max_size=12)


def make(turns) -> Episode:
    made = tuple(Turn(tuple(c), tuple(s), tuple(-1.0 - i for i in range(len(s))), 0, True) for c, s in turns)
    return Episode(QUESTION, made, (), FinishReason.ANSWER)


def test_training_row_by_hand():
    row = training_rows(make([([10, 11], [1, 2]), ([20], [3])]), 0.5)[0]
    assert row.ids == [10, 11, 1, 2, 20, 3]
    assert row.trained == [False, False, True, True, False, True]
    assert row.logprobs == [0, 0, -1, -2, 0, -1]
    assert row.reward == 0.5


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=5))
def test_trap_14_no_token_of_a_result_is_trained_and_no_id_changes(turns):
    row = training_rows(make(turns), 1.0)[0]
    assert row.ids == [i for context, sampled in turns for part in (context, sampled) for i in part]
    assert [i for i, t in zip(row.ids, row.trained, strict=True) if t] == [i for _, sampled in turns for i in sampled]
    assert all(t or p == 0 for t, p in zip(row.trained, row.logprobs, strict=True))


@given(st.lists(st.lists(st.tuples(ids, ids), min_size=1, max_size=3), min_size=1, max_size=4))
def test_rows_lie_end_to_end_with_a_mask_and_a_logprob_for_each_token(episodes):
    rows = [training_rows(make(turns), 1.0)[0] for turns in episodes]
    batch = collate_rows(rows)
    assert batch["input_ids"].tolist() == [i for row in rows for i in row.ids]
    assert batch["lengths"] == [len(row.ids) for row in rows]
    assert batch["input_ids"][batch["trained"]].tolist() == [i for turns in episodes for _, sampled in turns for i in sampled]
    assert batch["logprobs"][batch["trained"]].tolist() == [
        -1.0 - i for turns in episodes for _, sampled in turns for i in range(len(sampled))
    ]
    assert not batch["logprobs"][~batch["trained"]].any()
    assert not any(row[0] for row in batch["trained"].split(batch["lengths"]))  # no row before predicts it
