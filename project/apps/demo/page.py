"""The demo's page, laid out with Gradio: ask, search, bring documents, read episodes.

Handlers here only translate between the page and `live.py`, `story.py`, `corpora.py` and `episodes.py`. Whatever goes wrong is
a sentence on the page.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from project.apps.demo.corpora import Corpora
from project.apps.demo.drawing import draw_error, draw_hits, draw_story
from project.apps.demo.episodes import Episodes, find_episodes
from project.apps.demo.live import Asking, Controls
from project.apps.demo.models import Models
from project.apps.demo.story import Story
from project.errors import SeekerError
from project.records import Question

Done = TypeVar("Done")
NOBODY = "(none)"
"""The choice of no second model."""
POLL_S = 0.05
DRAW_S = 0.15
"""Seconds between two drawings of an episode, at least."""
AT_ONCE = 32
"""People who are served at once."""
KEPT_S = (3600, 86400)
"""Seconds between two looks for files that were brought, and after which they are removed: their passages are kept."""
TITLE = "Seeker"
SETTINGS: dict[str, tuple[str, float, float, float]] = {
    "temperature": ("temperature (0 = greedy)", 0, 1.5, 0.1),
    "seed": ("seed of sampling and noise", 0, 1000, 1),
    "max_turns": ("turns at most", 1, 12, 1),
    "turn_tokens": ("tokens a turn at most", 16, 512, 16),
    "topk": ("documents a search at most", 1, 10, 1),
    "fold_turns": ("fold after so many searches (0 = never)", 0, 5, 1),
    "drop_best": ("noise: share of searches without their best document", 0, 1, 0.1),
    "swap": ("noise: share of documents swapped for the likest other", 0, 1, 0.1),
    "fail": ("noise: share of searches that fail", 0, 1, 0.1),
}
"""Of each control: its label, least, most, step."""
LOADING = '<div class="seeker"><p class="doing" role="status">Loading the model …</p></div>'
KEYS = """<script>document.addEventListener("keydown", event => {
  if (event.key === "Escape") document.querySelector("#stop")?.click();
});</script>"""
"""Escape stops."""


@dataclass
class _Run:
    """What a page runs: an episode, or two beside each other."""

    stories: list[Story] = field(default_factory=list)
    askings: list[Asking] = field(default_factory=list)
    borrowed: list[str] = field(default_factory=list)
    """Names of the models that are to be given back."""
    stopped: bool = False

    def stop(self) -> None:
        """End it, also before it has begun."""
        self.stopped = True
        for asking in self.askings:
            asking.stop()


@dataclass
class Demo:
    """What the page shows."""

    models: Models
    corpora: Corpora
    examples: Sequence[Question]
    files: bool
    """Whether the page may open files of this machine."""
    _running: dict[str, _Run] = field(default_factory=dict)

    def page(self) -> gr.Blocks:
        """Return the page."""
        blocks = gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=KEPT_S)
        with blocks:
            gr.Markdown("# Seeker\nAsk a question and watch the agent think, search, read and answer.")
            names = self.corpora.names("")
            corpus = gr.Dropdown(names, value=names[0], label="Corpus", elem_id="corpus")  # of all tabs
            blocks.load(self.seen, None, corpus, show_progress="hidden", api_visibility="private")
            with gr.Tab("Ask"):
                self._ask_tab(corpus)
            with gr.Tab("Search"):
                self._search_tab(corpus)
            with gr.Tab("Your documents"):
                self._documents_tab(corpus)
            with gr.Tab("Episodes"):
                self._episodes_tab()
            blocks.unload(self.stop)
            blocks.queue(default_concurrency_limit=AT_ONCE)
        return blocks

    def seen(self, request: gr.Request) -> Any:  # noqa: ANN401 - Gradio's update
        """Return the corpora that a page sees as it opens."""
        return gr.update(choices=self.corpora.names(str(request.session_hash)))

    # --- ask ---------------------------------------------------------------------------------------------------------

    def _ask_tab(self, corpus: gr.Dropdown) -> None:
        question = gr.Textbox(label="Question", placeholder="Type a question, then Enter", elem_id="question", autofocus=True)
        with gr.Row():
            ask = gr.Button("Ask", variant="primary", elem_id="ask")
            stop = gr.Button("Stop (Esc)", variant="stop", interactive=False, elem_id="stop")
        names = self.models.names
        with gr.Row():
            model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model")
            other = gr.Dropdown([NOBODY, *names], value=NOBODY, label="Compare with", elem_id="other")
        with gr.Accordion("Settings", open=False, elem_id="settings"), gr.Row():
            controls = [_slider(name) for name in SETTINGS]
        with gr.Row():
            with gr.Column(min_width=320):
                left = gr.HTML(elem_id="left")
            with gr.Column(min_width=320, visible=False) as beside:
                right = gr.HTML(elem_id="right")
        self._example_list(question)
        inputs, outputs = [question, model, other, corpus, *controls], [left, right, beside, ask, stop]
        for trigger in (question.submit, ask.click):
            trigger(self.ask, inputs, outputs, show_progress="hidden", api_visibility="private")
        stop.click(self.stop, None, None, queue=False, api_visibility="private")

    def _example_list(self, question: gr.Textbox) -> None:
        if not self.examples:
            return
        rows = [[one.question, " or ".join(one.answers) or "(the corpus cannot answer)"] for one in self.examples]
        shown = gr.Dataset(
            components=[gr.Textbox(visible=False), gr.Textbox(visible=False)],
            headers=["example question", "gold answer"],
            samples=rows,
            type="index",
            label="Examples",
            elem_id="examples",
        )
        shown.click(lambda place: rows[place][0], shown, question, show_progress="hidden", api_visibility="private")

    def ask(
        self, request: gr.Request, question: str, model: str, other: str, corpus: str, *values: float
    ) -> Iterator[tuple[Any, ...]]:
        """Run an episode of one model, or of two, and draw them while they run; one that this page runs already ends."""
        names = [model] if other in (NOBODY, model) else [model, other]
        if not question.strip():
            yield _outcome([draw_error("Type a question first.")], running=False)
            return
        self.stop(request)
        session, run = str(request.session_hash), _Run()
        self._running[session] = run
        yield _outcome([LOADING], running=True)
        try:
            begin = partial(self._begin, run, question, names, corpus, session, _controls(values))
            wrong = guarded(begin, lambda said: said)
            yield from self._follow(names, run) if wrong is None else [_outcome([wrong], running=False)]
        finally:  # it is over, or the person has left
            run.stop()
            for name in run.borrowed:
                self.models.give_back(name)
            if self._running.get(session) is run:
                del self._running[session]

    def _begin(
        self, run: _Run, question: str, names: Sequence[str], corpus: str, session: str, controls: Controls
    ) -> str | None:
        known = {one.question: one.answers for one in self.examples}
        retriever, models = self.corpora.get(corpus, session), []
        for name in names:
            models.append(self.models.borrow(name))
            run.borrowed.append(name)
        asked = Question("demo", question.strip(), ())
        run.stories = [Story(one.decode, known.get(asked.question)) for one in models]
        run.askings = [one.ask(asked, controls, retriever) for one in models]
        if run.stopped:  # while the models were loaded
            run.stop()
        return None

    def _follow(self, names: Sequence[str], run: _Run) -> Iterator[tuple[Any, ...]]:
        stories, drawn_at = run.stories, 0.0
        while True:
            for story, asking in zip(stories, run.askings, strict=True):
                story.take([] if story.is_over else asking.news(POLL_S))
            is_over = all(story.is_over for story in stories)
            if is_over or time.monotonic() - drawn_at > DRAW_S:
                drawn = [draw_story(story, name) for story, name in zip(stories, names, strict=True)]
                drawn_at = time.monotonic()
                yield _outcome(drawn, running=not is_over)
            if is_over:
                return

    def stop(self, request: gr.Request) -> None:
        """End what a person's page is running."""
        if run := self._running.get(str(request.session_hash)):
            run.stop()

    # --- search ------------------------------------------------------------------------------------------------------

    def _search_tab(self, corpus: gr.Dropdown) -> None:
        query = gr.Textbox(label="Query", placeholder="What the agent would search for", elem_id="query")
        topk = gr.Slider(1, 20, value=5, step=1, label="documents at most")
        button = gr.Button("Search", variant="primary", elem_id="search")
        found = gr.HTML(elem_id="found")
        for trigger in (query.submit, button.click):
            trigger(self.search, [query, corpus, topk], found, show_progress="hidden", api_visibility="private")

    def search(self, request: gr.Request, query: str, corpus: str, topk: float) -> str:
        """Ask a corpus one query."""
        if not query.strip():
            return draw_error("Type a query first.")
        began, search = time.monotonic(), partial(self.corpora.search, corpus, str(request.session_hash), query, int(topk))
        return guarded(lambda: draw_hits(query, search(), time.monotonic() - began), lambda said: said)

    # --- documents ---------------------------------------------------------------------------------------------------

    def _documents_tab(self, corpus: gr.Dropdown) -> None:
        gr.Markdown("Bring documents (.md, .txt, .html, .pdf): they are cut into passages, indexed, and asked at once.")
        files = gr.File(file_count="multiple", label="Documents", elem_id="documents")
        name = gr.Textbox(label="Name of the corpus", placeholder="by default the first file's", elem_id="corpus-name")
        button = gr.Button("Index", variant="primary", elem_id="index")
        said = gr.HTML(elem_id="indexed")
        button.click(self.add, [files, name], [said, corpus], api_visibility="private")

    def add(self, request: gr.Request, files: list[str] | None, name: str) -> tuple[Any, ...]:
        """Index a person's documents and choose them."""
        return guarded(lambda: self._added(files or [], name, str(request.session_hash)), lambda said: (said, gr.skip()))

    def _added(self, files: Sequence[str], name: str, session: str) -> tuple[Any, ...]:
        corpus, passages = self.corpora.add([*map(Path, files)], name, session)
        chosen = gr.update(choices=self.corpora.names(session), value=corpus)
        said = f"{passages:,} passages of '{corpus}' are indexed and chosen; ask about them on the first tab."
        return f'<div class="seeker"><p role="status">{said}</p></div>', chosen

    # --- episodes ----------------------------------------------------------------------------------------------------

    def _episodes_tab(self) -> None:
        held = gr.State()
        what = "A run's name or id" + (", or the path of a results folder" if self.files else "")
        where = gr.Textbox(label=what, elem_id="where")
        button = gr.Button("Open", variant="primary", elem_id="open")
        chosen = gr.Dropdown([], label="Episode", elem_id="episode", interactive=True)
        shown = gr.HTML(elem_id="shown")
        for trigger in (where.submit, button.click):
            trigger(self.open, where, [held, chosen, shown], api_visibility="private")
        chosen.input(self.show, [held, chosen], shown, show_progress="hidden", api_visibility="private")

    def open(self, where: str) -> tuple[Any, ...]:
        """List the episodes of a run or a results file, and show the first."""
        return guarded(lambda: self._opened(where), lambda said: (None, gr.update(choices=[], value=None), said))

    def _opened(self, where: str) -> tuple[Any, ...]:
        found = find_episodes(where, files=self.files)
        first = gr.update(choices=list(found.labels), value=found.labels[0], label=found.summary)
        return found, first, found.draw(0)

    def show(self, held: Episodes | None, label: str) -> str:
        """Show an episode."""
        return held.draw(held.labels.index(label)) if held is not None and label in held.labels else ""


def guarded(work: Callable[[], Done], failed: Callable[[str], Done]) -> Done:
    """Return what `work` gives, or what `failed` makes of the sentence, as HTML, that says what went wrong.

    A page has no other place to say it, and must be usable afterwards: whatever is no error of Seeker's own is named.
    """
    try:
        return work()
    except SeekerError as error:
        return failed(draw_error(str(error)))
    except Exception as error:  # noqa: BLE001 - see above
        return failed(draw_error(f"{type(error).__name__}: {' '.join(str(error).split()):.300}"))


def _slider(name: str) -> gr.Slider:
    label, least, most, step = SETTINGS[name]
    return gr.Slider(least, most, value=getattr(Controls(), name), step=step, label=label, min_width=280, elem_id=f"set-{name}")


def _controls(values: Sequence[float]) -> Controls:
    default = Controls()
    given = {name: type(getattr(default, name))(value) for name, value in zip(SETTINGS, values, strict=True)}
    return replace(default, **given)


def _outcome(drawn: Sequence[str], *, running: bool) -> tuple[Any, ...]:
    """Return the values of both columns, whether there is a second, and both buttons."""
    left, right = (*drawn, "")[:2]
    return left, right, gr.update(visible=bool(right)), gr.update(interactive=not running), gr.update(interactive=running)
