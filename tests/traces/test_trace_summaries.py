"""Extractive summaries: only what the context holds, to the letter, within the budget."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_samples import TWO_HOPS, result, search, think, traces

from project.traces.steps import split
from project.traces.summaries import bm25, context_texts, sentences, summarise, with_summary


def test_the_layout_to_the_letter():
    context = TWO_HOPS.steps[:6]
    assert summarise(TWO_HOPS.question, context, 40).text == (
        "Question: Which currency is used where Ulaanbaatar is the capital?\n"
        "<think_summary>It is Mongolia. Now the currency.</think_summary>\n"
        "<information_summary>Ulaanbaatar: Ulaanbaatar is the capital of Mongolia. It lies on the Tuul.\n"
        "Mongolia: The tögrög is the currency of Mongolia. Horses are many there.</information_summary>"
    )


def test_a_small_budget_keeps_what_was_asked_for():
    # 24 words: 6 of thoughts, 18 of results. The two facts take 6 + 1 and 7 + 1 words with their titles, 15 of 18; the
    # two others (5 + 1 each) no longer fit.
    summary = summarise(TWO_HOPS.question, TWO_HOPS.steps[:6], 24)
    assert "Ulaanbaatar is the capital of Mongolia." in summary.text
    assert "The tögrög is the currency of Mongolia." in summary.text
    assert "Tuul" not in summary.text
    assert "Horses" not in summary.text


def test_bm25_by_hand():
    # Two texts of 2 words, so length factor 1.2 * (1 - 0.75 + 0.75 * 1) = 1.2. "a" is in one of two:
    # rarity ln(1 + 1.5 / 1.5) = ln 2; once in the text: ln 2 * 1 * 2.2 / (1 + 1.2) = ln 2; the wanted weight is 0.5.
    assert bm25({"a": 0.5}, [Counter("ab"), Counter("bc")]) == pytest.approx([0.5 * math.log(2), 0.0])
    assert bm25({"a": 1.0}, []) == []


def test_no_result_reads_as_the_agent_read_it():
    text = summarise("q?", (think("Hm."), search("a"), result()), 20).text
    assert text == "Question: q?\n<think_summary>Hm.</think_summary>\n<information_summary>No results.</information_summary>"


def test_sentences_are_cut_at_their_ends_only():
    text = 'J. R. R. Tolkien met Dr. Smith in 1924. "Why?" he asked. e.g. this\nA new line'
    assert sentences(text) == [
        "J. R. R. Tolkien met Dr. Smith in 1924.",
        '"Why?" he asked. e.g. this',
        "A new line",
    ]


def test_one_sentence_longer_than_the_budget_is_cut_between_words():
    text = summarise("q?", (search("a"), result("word " * 100 + "end.")), 8).text
    assert text.split("<information_summary>")[1] == " ".join(["word"] * 6) + "</information_summary>"


@given(traces(), st.integers(8, 60))
def test_every_piece_stands_in_the_context_and_the_budget_holds(made_up, max_words):
    for sample in split(made_up):
        summary = summarise(sample.question, sample.context, max_words)
        texts = context_texts(sample.context)
        assert all(any(piece in text for text in texts) for piece in summary.pieces)
        body = summary.text.split("\n", 1)[1]
        for tag in ("think_summary", "information_summary"):
            body = body.replace(f"<{tag}>", "").replace(f"</{tag}>", " ")
        assert len(body.split()) <= max_words


@given(traces())
def test_no_summary_holds_a_sentence_of_the_target_alone(made_up):
    for sample in split(made_up):
        told = with_summary(sample).summary
        seen = "\n".join([sample.question, *context_texts(sample.context)])
        for step in sample.target:
            for text in (step.content, *step.queries):
                assert all(s not in told for s in sentences(text) if s not in seen)


def test_a_first_decision_has_nothing_to_summarise():
    assert with_summary(split(TWO_HOPS)[0]).summary == ""
