"""The documentation builds without a warning: links, anchors, navigation; its references hold every verb, option and key."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import yaml
from doc_blocks import DOCS, ROOT

from project import cli
from project.datamodules.conversation import ConversationDataModule
from project.datamodules.question import QuestionDataModule
from project.datamodules.summary import SummaryDataModule
from project.modules.alarms import Alarms
from project.modules.ppo import PPO
from project.modules.ppo_settings import PPOSettings
from project.modules.sft import SFT
from project.modules.summary_agent import SummaryAgent
from project.verb_parser import make_parser

sys.path.append(str(DOCS))

from option_tables import class_rows, default_text, escaped, option_rows, type_text, with_nested


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; nothing is written to the checkout."""
    folder = tmp_path_factory.mktemp("site")
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1", "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


def test_the_site_builds_strictly(site):
    assert (site / "index.html").is_file() and (site / "search" / "search_index.json").is_file()


def test_links_and_anchors_are_checked():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    assert settings["strict"] is True
    assert set(settings["validation"].values()) == {"warn"}


def test_every_page_is_in_the_navigation():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    generated = {"reference/commands.md", "reference/config.md", "reference/api.md"}
    assert set(_leaves(settings["nav"])) == pages | generated


def test_nothing_comes_from_elsewhere(site):
    scripts = r"<(?:script|img|iframe)[^>]*\bsrc=\"?(?://|http)"
    loaded = re.compile(scripts + r"|<link[^>]*rel=\"?(?:stylesheet|preconnect)[^>]*href=\"?(?://|http)")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert not [page.name for page in pages if loaded.search(page.read_text("utf-8"))]


def test_a_bar_in_a_tables_code_is_a_bar(site):
    text = (site / "from" / "squad.html").read_text("utf-8")
    assert "<td>the tokens <code>&lt;|SEARCH|&gt;</code> and <code>&lt;|ANSWER|&gt;</code>" in text
    assert not [
        page.name for page in site.rglob("*.html") if re.search(r"<code>[^<]*\\\|[^<]*</code>", page.read_text("utf-8"))
    ]


def test_every_verb_and_option_is_in_the_reference(site):
    text = (site / "reference" / "commands.html").read_text("utf-8")
    shown = set(re.findall(r"<code>(--[\w.]+)</code>", text))
    for verb in cli.descriptions():
        assert f'id="seeker-{verb.replace(" ", "-")}"' in text, verb
        if verb in cli.VERBS:
            options = make_parser(verb, cli.function_of(verb))._option_string_actions
            own = {one.option_strings[0] for one in options.values() if type(one).__name__ == "ActionTypeHint"}
            assert own - {"--config"} <= shown, verb
    assert {"--ckpt_path", "--show_batch", "--allow_fresh", "--allow_overlap", "--measure", "--room_gb"} <= shown


def test_every_key_is_in_the_reference(site):
    text = (site / "reference" / "config.html").read_text("utf-8")
    for name in (
        *("SFT", "PPO", "SearchAgent", "SummaryAgent", "ConversationDataModule", "QuestionDataModule", "SummaryDataModule"),
        *(
            "AgentSettings",
            "LoRA",
            "PPOSettings",
            "EpisodeLimits",
            "AnswerReward",
            "Judge",
            "Teacher",
            "Alarms",
            "SeekerLogger",
        ),
    ):
        assert f'id="{name.lower()}"' in text, name
    keys = set(re.findall(r"<td><code>([\w.]+)</code></td>", text))
    assert {row.name for row in class_rows(PPOSettings)} <= keys
    assert {"trainer.max_epochs", "phases", "start_from", "adapter"} <= keys


def test_every_option_and_key_says_what_it_is():
    for verb in cli.VERBS:
        assert not [row.name for row in option_rows(make_parser(verb, cli.function_of(verb))._actions) if not row.text], verb
    for one in with_nested([SFT, PPO, SummaryAgent, ConversationDataModule, QuestionDataModule, SummaryDataModule, Alarms]):
        assert not [row.name for row in class_rows(one) if not row.text], one


def test_every_module_of_the_api_has_a_page(site):
    text = (site / "reference" / "api.html").read_text("utf-8")
    for module in ("records", "dialects", "losses", "rewards.answer", "corpus.retrievers", "modules.ppo", "tracking.logger"):
        assert f"api/project.{module}.html" in text
        assert len((site / "reference" / "api" / f"project.{module}.html").read_text("utf-8")) > 10_000


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Literal["a", "b"] | None, "`a`, `b` or `null`"),
        (list[Path] | str, "list of path or text"),
        (dict[str, float], "mapping of text to number"),
        (PPOSettings, "[PPOSettings](#pposettings)"),
        (bool, "`true` or `false`"),
    ],
)
def test_types_in_words(hint, words):
    assert type_text(hint) == words


def test_defaults_and_texts_of_cells():
    assert [default_text(value) for value in (None, True, 0.5, "", (1, 2))] == ["null", "true", "0.5", '""', "[1, 2]"]
    assert default_text(PPOSettings()) == "its defaults"
    assert default_text(PPOSettings(clip=0.3)) == "{clip: 0.3}"
    assert escaped("a|b\n  in `c|d`, <e> ``f``") == r"a\|b in `c|d`, &lt;e> `f`"


def _leaves(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    inside = nav.values() if isinstance(nav, dict) else nav
    return [leaf for one in inside for leaf in _leaves(one)]
