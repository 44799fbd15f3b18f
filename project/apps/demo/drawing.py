"""Cards to HTML. All that a model, a passage or a person wrote is escaped; matched words and the answer are marked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from project.apps.demo.story import Story, StoryCard
from project.apps.printout import visible
from project.corpus.words import stems, words
from project.records import Hit

FOLDER = Path(__file__).parent
_WORD = re.compile(r"\w+")


def style() -> str:
    """Return the page's own CSS."""
    return (FOLDER / "demo.css").read_text("utf-8")


def draw_story(story: Story, title: str) -> str:
    """Return a live episode as HTML."""
    return _templates().get_template("story.jinja").render(title=title, story=story, cards=story.drawn())


def draw_past(title: str, question: str, answers: Sequence[str], facts: Sequence[str], cards: Sequence[StoryCard]) -> str:
    """Return an episode that was kept as HTML; `facts` are what else is known of it, in words."""
    contents = {"title": title, "question": question, "answers": answers, "facts": facts, "cards": cards}
    return _templates().get_template("past.jinja").render(**contents)


def draw_hits(query: str, hits: Sequence[Hit], seconds: float) -> str:
    """Return what a search found as HTML."""
    return _templates().get_template("hits.jinja").render(query=query, hits=hits, seconds=seconds)


def draw_error(reason: str) -> str:
    """Return one sentence that says what went wrong."""
    return str(Markup('<div class="seeker"><p class="end" role="alert">{}</p></div>').format(visible(reason)))


@lru_cache(maxsize=2048)
def matched(text: str, query: str) -> Markup:
    """Return a text with the words marked that share a stem with a query's.

    >>> matched("The capitals of Mali.", "capital of Mali")
    Markup('The <mark>capitals</mark> of <mark>Mali</mark>.')
    """
    found = [(word, folded[0]) for word in _WORD.finditer(text) if (folded := words(word[0]))]
    wanted, of_text = {*stems(words(query))}, stems([folded for _, folded in found])
    pieces, last = list[Markup](), 0
    for (word, _), stem in zip(found, of_text, strict=True):
        if stem in wanted:
            pieces += [escape(visible(text[last : word.start()])), Markup("<mark>{}</mark>").format(word[0])]
            last = word.end()
    return Markup("").join([*pieces, escape(visible(text[last:]))])


@cache
def _templates() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(FOLDER)
    made = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    made.filters |= {"visible": visible, "matched": matched, "supporting": _supporting}
    return made


def _supporting(cards: Iterable[StoryCard]) -> list[str]:
    """Return the labels of the documents that hold the answer, each once."""
    return list(dict.fromkeys(shown.part.label for card in cards for shown in card.parts if shown.supports))
