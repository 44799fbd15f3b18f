"""Decisions as a classifier and a forecast: by hand, and against torchmetrics; the probability in a turn's own tokens."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import byte_tokenizer
from torchmetrics.functional import classification as reference

from project.dialects import ANSWER_TOKEN, SEARCH_TOKEN, TagsDialect, ToolsDialect
from project.evaluation.decisions import decision_scores, search_probability
from project.records import Turn
from project.rendering import Renderer, prepare_tokenizer


def scores(searched, needed, probability=None, groups=None):
    count = len(searched)
    probability = [math.nan] * count if probability is None else probability
    groups = range(count) if groups is None else groups
    columns = (np.asarray(of, dtype=np.float64) for of in (searched, needed, probability, groups))
    return decision_scores(*columns)


def test_trap_04_by_hand_with_the_baselines_beside_it():
    # Needed 4 of 10, searched 3, hits 2: precision 2/3, recall 1/2, F1 4/7. Not needed 6: answered 7, right 5: 5/7, 5/6, 10/13.
    found = scores([1, 1, 0, 0, 1] + [0] * 5, [1] * 4 + [0] * 6)
    means = {name: one.mean for name, one in found.items()}
    expected = {"accuracy": 0.7, "search_precision": 2 / 3, "search_recall": 0.5, "search_f1": 4 / 7}
    expected |= {"answer_precision": 5 / 7, "answer_recall": 5 / 6, "answer_f1": 10 / 13, "macro_f1": (4 / 7 + 10 / 13) / 2}
    assert means == pytest.approx(expected | {"majority": 0.6, "always_search": 0.4})
    assert all(one.low <= one.mean <= one.high for one in found.values())
    sizes = {"search_precision": 3, "search_recall": 4, "answer_precision": 7, "answer_recall": 6}
    assert {name: one.n for name, one in found.items()} == dict.fromkeys(found, 10) | sizes
    always = scores([1] * 10, [1] * 9 + [0])
    assert always["accuracy"].mean == always["majority"].mean == always["always_search"].mean == 0.9
    assert always["answer_f1"].mean == 0
    assert "answer_precision" not in always, "it never answered"
    assert always["search_recall"].low < 0.71, "Wilson's of 9 of 9"


def test_auroc_and_calibration_by_hand():
    # Pairs (needed, not): 0.8 over 0.3 and 0.6, 0.6 over 0.3 and tied with 0.6: (2 + 1.5) / 4.
    # Bins: 0.8 -> |1 - 0.8|, 0.3 -> |0 - 0.3|, 0.6 twice -> |1 - 1.2|; (0.2 + 0.3 + 0.2) / 4.
    found = scores([1, 1, 0, 1], [1, 1, 0, 0], [0.8, 0.6, 0.3, 0.6])
    assert found["auroc"].mean == pytest.approx(3.5 / 4)
    assert found["ece"].mean == pytest.approx(0.7 / 4)
    one_class = scores([1, 0], [1, 1], [0.5, 0.5])
    assert "auroc" not in one_class
    assert one_class["ece"].mean == 0.5
    assert scores([1, 0, 0], [1, 0, 0], [0.9, math.nan, 0.2])["auroc"].n == 2


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 99)), min_size=2, max_size=40))
def test_values_are_those_of_torchmetrics(rows):
    searched, needed, hundredths = zip(*rows, strict=True)
    probability = [(number + 0.5) / 100 for number in hundredths]
    found = {name: one.mean for name, one in scores(searched, needed, probability).items()}
    said, gold, forecast = torch.tensor(searched).int(), torch.tensor(needed).int(), torch.tensor(probability).double()
    assert found["accuracy"] == pytest.approx(float(reference.binary_accuracy(said, gold)))
    assert found["search_f1"] == pytest.approx(float(reference.binary_f1_score(said, gold)))
    if not all(needed):
        assert found["answer_recall"] == pytest.approx(float(reference.binary_recall(1 - said, 1 - gold)))
    if 0 < sum(needed) < len(needed):
        assert found["auroc"] == pytest.approx(float(reference.binary_auroc(forecast, gold)), abs=1e-6)
        assert found["ece"] == pytest.approx(float(reference.binary_calibration_error(forecast, gold, n_bins=10)), abs=1e-6)


def test_groups_are_resampled():
    searched, needed = [1, 1, 0, 0] * 10, [1] * 40
    alone, grouped = scores(searched, needed)["accuracy"], scores(searched, needed, groups=[0, 0, 1, 1] * 10)["accuracy"]
    assert alone.mean == grouped.mean == 0.5
    assert (grouped.low, grouped.high, grouped.groups) == (0, 1, 2)
    assert alone.high < 0.7


def _renderer(dialect):
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, dialect)
    return Renderer(tokenizer, dialect)


def _turn(renderer, text, probabilities):
    """A turn whose tokens have probability 1 but for the texts named."""
    ids = renderer.encode(text)
    ends = [len(renderer.decode(ids[: n + 1])) for n in range(len(ids))]
    logprobs = [0.0] * len(ids)
    for part, probability in probabilities.items():
        start = text.index(part)
        inside = [n for n, end in enumerate(ends) if start < end and (ends[n - 1] if n else 0) < start + len(part)]
        logprobs[inside[0]] = math.log(probability)
    return Turn((), tuple(ids), tuple(logprobs), 0, True)


@pytest.mark.parametrize(
    ("text", "mark", "expected"),
    [
        (f"<think>\nsay <search>\n</think>\n{SEARCH_TOKEN}\n<search>\nx\n</search>", SEARCH_TOKEN, 0.6),
        (f"<think>\nx\n</think>\n{ANSWER_TOKEN}\n<answer>\nx\n</answer>", ANSWER_TOKEN, 0.4),
        ("<search>\nx\n</search>", "<search>", 0.6),
        ("<answer>\nx\n</answer>", "<answer>", 0.4),
        ('<think>\nx\n</think>\n<tool_call>\n{"name": "search"}\n</tool_call>', "<tool_call>", 0.6),
    ],
)
def test_the_probability_of_a_search(text, mark, expected):
    renderer = _renderer(ToolsDialect() if "tool" in text else TagsDialect())
    others = {} if "<think>" not in text else {"<think>": 0.1}
    turns = [_turn(renderer, "hm", {}), _turn(renderer, text, {mark: 0.6, **others})]
    assert search_probability(turns, renderer) == pytest.approx(expected), "of the first turn that decides"


def test_a_turn_that_decides_nothing_has_none():
    renderer = _renderer(TagsDialect())
    assert math.isnan(search_probability([_turn(renderer, "<think>\nx\n</think> hm", {})], renderer))
    assert math.isnan(search_probability([_turn(renderer, "<search", {})], renderer))
