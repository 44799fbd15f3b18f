"""Made-up traces for the tests of project/traces, small enough to check by hand, and strategies that make any trace."""

from hypothesis import strategies as st

from project.records import Document, Step, Trace


def think(text):
    return Step("reasoning", text)


def search(*queries, tool="search"):
    return Step("search", tool=tool, queries=queries)


def result(*texts, title="", error=""):
    return Step("search_result", documents=tuple(Document(text, title) for text in texts), error=error)


def answer(text):
    return Step("answer", text)


def trace(*steps, question="Which currency does Mongolia use?", ident="t1", correct=True, answers=("tögrög",)):
    return Trace(ident, question, answers, steps, correct, "made_up")


TWO_HOPS = trace(
    think("I need the country first."),
    search("country with capital Ulaanbaatar"),
    result("Ulaanbaatar is the capital of Mongolia. It lies on the Tuul.", title="Ulaanbaatar"),
    think("It is Mongolia. Now the currency."),
    search("currency of Mongolia"),
    result("The tögrög is the currency of Mongolia. Horses are many there.", title="Mongolia"),
    think("I have it."),
    answer("tögrög"),
    question="Which currency is used where Ulaanbaatar is the capital?",
)
"""Two results, so three samples."""

NORMALISED = {
    "id": "n1",
    "source": "react",
    "question": "Question: Who wrote Hamlet?",
    "gold_answers": ["Shakespeare"],
    "correct": None,
    "steps": [
        {"type": "thought", "text": "I look it up."},
        {"type": "action", "name": "search", "argument": "Hamlet author"},
        {"type": "observation", "text": "Could not find [Hamlet author]. Similar: ['Hamlet']"},
        {"type": "thought", "text": 'Then the play itself. The query is "'},
        {"type": "action", "name": "search", "argument": "Hamlet"},
        {"type": "observation", "text": "(1)Title: Hamlet Text:  A play.\n(2)Title: Shakespeare Text:  He wrote it."},
        {"type": "thought", "text": "Shakespeare.</think>\n\n<answer>Shakespeare</answer>"},
        {"type": "action", "name": "finish", "argument": "Shakespeare"},
        {"type": "observation", "text": "Episode finished, reward = 0"},
    ],
}

_WORDS = ["the", "currency", "of", "Mongolia", "is", "tögrög", "Berlin", "lies", "on", "Spree", "1924", "old"]
_words = st.lists(st.sampled_from(_WORDS), min_size=1, max_size=8)
_sentence = _words.map(lambda words: " ".join(words).capitalize() + ".")
_text = st.lists(_sentence, min_size=1, max_size=4).map(" ".join)
_documents = st.lists(st.builds(Document, _text, st.sampled_from(["", "Berlin", "Mongolia"])), max_size=3).map(tuple)
_result = st.builds(lambda documents: Step("search_result", documents=documents), _documents)
_search = st.builds(lambda query: Step("search", tool="search", queries=(query,)), _sentence)
_answer = st.builds(lambda text: Step("answer", text), _sentence)
_thought = st.builds(lambda text: Step("reasoning", text), _text)


@st.composite
def traces(draw, finished=None, searches=0):
    """Any well-formed trace: turns of a thought (or none), a search and its result; at the end an answer, or none."""
    steps = []
    for _ in range(draw(st.integers(searches, 4))):
        steps += draw(st.lists(_thought, max_size=1))
        steps += [draw(_search), draw(_result)]
    ends = draw(st.booleans()) if finished is None else finished
    if ends or not steps:
        steps += [*draw(st.lists(_thought, max_size=1)), draw(_answer)]
    return trace(*steps, question=draw(_sentence), ident=draw(st.sampled_from("abc")))


@st.composite
def any_steps(draw):
    """Steps in any order, malformed ones among them."""
    other = st.builds(lambda text: Step("other", text), _sentence)
    return tuple(draw(st.lists(st.one_of(_thought, _search, _result, _answer, other), min_size=1, max_size=10)))
