"""The demo's page in a real browser: ask, stream, stop, compare, errors, search, documents, episodes, narrow screens."""

import asyncio
import shutil

import pytest
from demo_parts import ANSWER, SEARCH, results_folder, scripted, small_index, tags_folder
from stores import free_port

from project.apps.demo import corpora as corpora_module
from project.apps.demo.corpora import Corpora
from project.apps.demo.drawing import style
from project.apps.demo.models import Models
from project.records import Question

CHROMIUM = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
QUESTION = "Which metal is liquid at room temperature?"


@pytest.fixture(scope="module")
def browser(missing):
    from playwright.sync_api import sync_playwright

    if (binary := shutil.which("chromium")) is None:
        missing("chromium is not installed; apt-get install chromium")
    with sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=binary, args=CHROMIUM)


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """The page, with two models that say what a script says."""
    from project.apps.demo.page import Demo

    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setattr(corpora_module, "brought_folder", lambda: tmp_path / "brought folder")
    folder = tags_folder(tmp_path / "model")
    models = Models({"wordy": str(folder), "brief": str(folder)}, "transformers", 4096)
    models._loaded |= {
        "wordy": scripted(folder, [SEARCH, ANSWER], pause_s=0.01),
        "brief": scripted(folder, ["<answer>\nGallium\n</answer>"]),
    }
    corpora = Corpora({"metals": "memory", "down": f"http://127.0.0.1:{free_port()}"})
    corpora._open["metals"] = small_index()
    examples = [Question("q1", QUESTION, ("Mercury",)), Question("q2", "Who knows?", ())]
    yield Demo(models, corpora, examples, files=True)
    for model in models._loaded.values():
        model.close()


@pytest.fixture
def address(demo):
    blocks = demo.page()
    port, policy = free_port(), asyncio.get_event_loop_policy()
    blocks.launch(server_name="127.0.0.1", server_port=port, quiet=True, prevent_thread_lock=True, css=style(), ssr_mode=False)
    yield f"http://127.0.0.1:{port}"
    blocks.close()
    asyncio.set_event_loop_policy(policy)  # uvicorn sets uvloop's, for all that comes after it in this process


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(30_000)
    failures = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("dialog", lambda dialog: failures.append(f"a script of a passage ran: {dialog.message}"))
    outside = []
    page.on("request", lambda request: outside.append(request.url))
    page.goto(address)
    page.wait_for_selector("#question")
    yield page
    page.close()
    assert failures == []
    assert [url for url in outside if not url.startswith((address, "data:", "blob:"))] == []  # nothing is fetched elsewhere


def type_into(page, where, text):
    page.locator(f"{where} textarea, {where} input").first.fill(text)


def choose(page, where, name):
    page.locator(f"{where} input").click()
    page.get_by_role("option", name=name, exact=True).click()


def wait_for_end(page, column="#left"):
    page.wait_for_function(
        f"document.querySelector('{column} h3, {column} .end') && !document.querySelector('{column} .doing')"
    )


def test_ask_streams_cards_and_ends_with_a_supported_answer(page):
    page.get_by_text(QUESTION).click()  # an example
    page.wait_for_function(f"document.querySelector('#question textarea, #question input').value == '{QUESTION}'")
    page.locator("#question textarea, #question input").first.press("Enter")
    page.wait_for_selector("#left .card.assistant .part.think")
    early = page.inner_text("#left")
    assert "Mercury is the only metal" not in early  # the first thought is there before the search
    wait_for_end(page)
    said = page.inner_text("#left")
    for expected in (
        "I look for the metal.",
        "liquid metals",
        "Mercury is the only metal",
        "score",
        "tokens/s",
        "It stands in Doc 1: Mercury.",
    ):
        assert expected in said
    assert "Right (gold: Mercury)" in said
    assert page.locator("#left mark").count() >= 2
    assert "${1+1} and {{7*7}} and <img src=x" in said  # a passage is text, whatever it holds
    assert page.locator("#left .supports").count() == 1
    assert page.locator("#ask").is_enabled() and page.locator("#stop").is_disabled()


def test_escape_and_the_button_stop(page, demo):
    for model in demo.models._loaded.values():
        model._engine.pause_s = 0.1
    type_into(page, "#question", QUESTION)
    page.click("#ask")
    page.wait_for_selector("#left .card.assistant")
    page.locator("#stop:not([disabled])").click()
    wait_for_end(page)
    assert "Stopped." in page.inner_text("#left")
    assert page.locator("#left .final").count() == 0
    assert demo._running == {}


def test_two_models_side_by_side_on_one_question(page):
    assert page.locator("#right").count() == 0 or not page.locator("#right").is_visible()
    choose(page, "#other", "brief")
    type_into(page, "#question", QUESTION)
    page.click("#ask")
    wait_for_end(page)
    wait_for_end(page, "#right")
    assert "Right (gold: Mercury)" in page.inner_text("#left")
    assert "Not the gold answer" in page.inner_text("#right")
    left, right = (page.locator(f"{column} .seeker").bounding_box() for column in ("#left", "#right"))
    assert abs(left["y"] - right["y"]) < 5 and right["x"] > left["x"] + left["width"] - 5


def test_errors_are_words_on_the_page(page):
    page.click("#ask")
    page.wait_for_selector("#left .end")
    assert "Type a question first." in page.inner_text("#left")
    choose(page, "#corpus", "down")
    type_into(page, "#question", QUESTION)
    page.click("#ask")
    page.wait_for_selector("#left .end:has-text('search failed')", timeout=90_000)
    assert "127.0.0.1" in page.inner_text("#left .end")


def test_the_index_is_searched_directly(page):
    page.get_by_role("tab", name="Search").click()
    type_into(page, "#query", "liquid")
    page.locator("#query textarea, #query input").first.press("Enter")
    page.wait_for_selector("#found .card")
    assert page.locator("#found .card").count() == 3
    type_into(page, "#query", "zyzzyva ${q+q} {{w*w}}")
    page.click("#search")
    page.wait_for_selector("#found .note:has-text('nothing in the corpus')")
    assert "${q+q} {{w*w}}" in page.inner_text("#found")


def test_documents_are_brought_and_asked(page, tmp_path):
    document = tmp_path / "my notes.md"
    document.write_text("# The boiler\nThe boiler of the house in Ulm is serviced by Frau Kessler every March.\n", "utf-8")
    page.get_by_role("tab", name="Your documents").click()
    page.locator("#documents input[type=file]").set_input_files(str(document))
    page.wait_for_selector("#documents :text('my notes')")
    type_into(page, "#corpus-name", "House & home")
    page.click("#index")
    page.wait_for_selector("#indexed :text('indexed and chosen')")
    assert "house-home" in page.inner_text("#indexed")
    page.reload()  # what was brought can be chosen on a page that opens later
    page.wait_for_selector("#corpus input")
    choose(page, "#corpus", "house-home")
    page.get_by_role("tab", name="Search").click()
    type_into(page, "#query", "Who services the boiler?")
    page.click("#search")
    page.wait_for_selector("#found .card")
    assert "Frau Kessler" in page.inner_text("#found")
    page.get_by_role("tab", name="Ask").click()
    assert page.locator("#corpus input").input_value() == "house-home"


def test_documents_of_another_kind_are_refused_in_words(page, tmp_path):
    page.get_by_role("tab", name="Your documents").click()
    page.click("#index")
    page.wait_for_selector("#indexed :text('no document was given')")
    binary = tmp_path / "picture.png"
    binary.write_bytes(b"\x89PNG")
    page.locator("#documents input[type=file]").set_input_files(str(binary))
    page.wait_for_selector("#documents :text('picture')")
    page.click("#index")
    page.wait_for_selector("#indexed :text('has another suffix')")


def test_a_narrow_screen_does_not_scroll_sideways(page):
    page.set_viewport_size({"width": 360, "height": 800})
    choose(page, "#other", "brief")
    type_into(page, "#question", QUESTION)
    page.click("#ask")
    wait_for_end(page)
    wait_for_end(page, "#right")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    left, right = (page.locator(f"{column} .seeker").bounding_box() for column in ("#left", "#right"))
    assert right["y"] > left["y"]  # one below the other


def test_the_keyboard_alone_asks(page):
    page.locator("#question textarea, #question input").first.focus()
    page.keyboard.type(QUESTION)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "ask"
    page.keyboard.press("Space")
    wait_for_end(page)
    assert "Mercury" in page.inner_text("#left .final")


def test_a_second_question_ends_the_first(page, demo):
    for model in demo.models._loaded.values():
        model._engine.pause_s = 0.05
    type_into(page, "#question", "Slow one?")
    page.click("#ask")
    page.wait_for_selector("#left .card.assistant")
    demo.models._loaded["wordy"]._engine.pause_s = 0.005
    type_into(page, "#question", QUESTION)
    page.locator("#question textarea, #question input").first.press("Enter")
    page.wait_for_selector("#left .final", timeout=60_000)
    page.wait_for_timeout(1000)
    assert "Mercury" in page.inner_text("#left .final")  # the end of the first has not stopped the second
    assert demo._running == {} and not +demo.models._users


def test_an_error_of_any_kind_leaves_a_page_that_works(page, demo, monkeypatch):
    borrow = demo.models.borrow

    def broken(name):
        raise MemoryError("not enough memory for\n<b>this</b>")

    monkeypatch.setattr(demo.models, "borrow", broken)
    type_into(page, "#question", QUESTION)
    page.click("#ask")
    page.wait_for_selector("#left .end:has-text('MemoryError: not enough memory for <b>this</b>')")
    monkeypatch.setattr(demo.models, "borrow", borrow)
    page.locator("#ask:not([disabled])").click()
    page.wait_for_selector("#left .final")


def test_an_episode_of_a_results_folder_is_opened(page, tmp_path):
    folder = results_folder(tmp_path / "held out")
    page.get_by_role("tab", name="Episodes").click()
    type_into(page, "#where", str(folder))
    page.click("#open")
    page.wait_for_selector("#shown .card.results")
    assert "answer: Norway" in page.inner_text("#shown")
    choose(page, "#episode", "2. EM 0: Where is number 1?")
    page.wait_for_selector("#shown :text('answer: Peru')")
    type_into(page, "#where", "no such run")
    page.click("#open")
    page.wait_for_selector("#shown .end:has-text('no such run')")
