"""Results cut to a budget of tokens, here words."""

from hypothesis import given
from hypothesis import strategies as st

from project.environment.fit import CUT, LEAST_TOKENS, fit
from project.records import Document


def words(text: str) -> int:
    return len(text.split())


def test_whole_passages_then_a_part():
    documents = [Document("a b c", "T", "1"), Document(" ".join("x" * 30), "U", "2"), Document("d", "V", "3")]
    assert fit(documents, 100, words) == documents
    found = fit(documents, 4 + 20, words)
    assert [document.id for document in found] == ["1", "2"]
    assert found[1].content == " ".join("x" * 18) + CUT  # a title, 18 words and the mark
    assert fit(documents, 4 + 10, words) == documents[:1]  # too little of the second; the third is worse than it
    assert [document.content for document in fit(documents, 3, words)] == ["a" + CUT]  # a title, a word and the mark
    assert fit([], 5, words) == []


def test_the_best_passage_is_shown_however_little_room_there_is():
    assert [d.content for d in fit([Document("one two", "T")], 1, words)] == ["one" + CUT]
    assert fit([Document("", "a long title")], 1, words) == [Document("", "a long title")]


@given(
    contents=st.lists(st.text("ab \n", max_size=60), max_size=5),
    budget=st.integers(1, 60),
)  # fmt: skip
def test_never_over_the_budget_and_never_inside_a_word(contents, budget):
    documents = [Document(content, "", str(i)) for i, content in enumerate(contents)]
    kept = fit(documents, budget, words)
    assert [document.id for document in kept] == [str(i) for i in range(len(kept))]
    assert bool(kept) == bool(documents)
    assert kept[:-1] == documents[: len(kept[:-1])]
    used = sum(words(document.content) for document in kept)
    assert used <= max(budget, 2)  # a word and the mark
    for shown, whole in zip(kept, documents, strict=False):
        if shown != whole:
            part = shown.content.removesuffix(CUT)
            assert shown.content.endswith(CUT)
            assert whole.content.startswith(part)
            assert whole.content[len(part)].isspace()
            assert len(kept) == 1 or words(shown.content) >= LEAST_TOKENS - 1


def test_text_without_spaces_is_cut_too():
    text = "\u6c34\u9280\u662f\u6db2\u9ad4\u7684\u91d1\u5c6c"
    assert [d.content for d in fit([Document(text * 9, "")], 20, len)] == [(text * 9)[:18] + CUT]
    assert fit([Document("word  ", "T")], 3, words) == [Document("word  ", "T")]
