"""The demo's model and story: moments come while an episode runs, it stops at once, and what is drawn is what happened."""

import asyncio
import time

import pytest
from demo_parts import ANSWER, SEARCH, SUMMARY, scripted, small_index, tags_folder

from project.apps.demo.drawing import draw_story, matched
from project.apps.demo.live import Asked, Controls, Ended, Failed, LiveModel, Searched, Stopped, Turned, Wrote, model_of
from project.apps.demo.story import Shown, Story, StoryCard, with_support
from project.errors import InputError, RetrievalError
from project.evaluation.report_cards import Part
from project.records import FinishReason, Question

QUESTION = Question("demo", "Which metal is liquid?", ())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tags_folder(tmp_path_factory.mktemp("demo") / "model")


@pytest.fixture(scope="module")
def index():
    return small_index()


def told(asking, seconds=20):
    found, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        found += asking.news(0.05)
        if found and isinstance(found[-1], (Ended, Stopped, Failed)):
            return found
    raise AssertionError(f"never over: {found[-3:]}")


def story_of(moments, live, answers=None):
    story = Story(live.decode, answers)
    story.take(moments)
    return story


def test_moments_come_in_order_and_hold_scores(folder, index):
    live = scripted(folder, [SEARCH, ANSWER])
    moments = told(live.ask(QUESTION, Controls(topk=2), index))
    kinds = [type(one).__name__ for one in moments if not isinstance(one, Wrote)]
    assert kinds == ["Asked", "Searched", "Turned", "Asked", "Turned", "Ended"]
    written = [one.token for one in moments if isinstance(one, Wrote)]
    assert bytes(token for token in written if token < 256).decode() == SEARCH + ANSWER
    (searched,) = (one for one in moments if isinstance(one, Searched))
    direct = asyncio.run(index.search(["liquid metals"], 2))[0]
    assert [(hit.passage.id, hit.score) for hit in searched.hits[0]] == [(hit.passage.id, hit.score) for hit in direct]
    assert moments[-1].episode.answer == "Mercury"
    assert moments[0].tokens < next(one.tokens for one in moments[5:] if isinstance(one, Asked))
    live.close()


def test_a_story_shows_what_was_read_its_scores_and_what_supports_the_answer(folder, index):
    live = scripted(folder, [SEARCH, ANSWER])
    moments = told(live.ask(QUESTION, Controls(topk=3), index))
    story = story_of(moments, live, ("Mercury", "Hg"))
    assert [card.role for card in story.cards] == ["assistant", "results", "assistant"]
    documents = story.cards[1].parts
    (searched,) = (one for one in moments if isinstance(one, Searched))
    assert [one.score for one in documents] == [hit.score for hit in searched.hits[0]]
    assert {one.query for one in documents} == {"liquid metals"}
    assert [one.part.label for one in documents if one.supports] == ["Doc 1: Mercury"]
    assert (story.answer, story.is_wrong, story.end, story.is_over) == ("Mercury", False, "", True)
    assert story.verdict == "Right (gold: Mercury or Hg)"
    drawn = draw_story(story, "tiny")
    assert "It stands in Doc 1: Mercury." in drawn
    assert "<mark>metal</mark> that is <mark>liquid</mark>" in drawn
    assert "<script>" not in drawn and "<img" not in drawn
    live.close()


@pytest.mark.parametrize(
    ("answers", "verdict"), [((), "Not the gold answer (gold: none: the corpus cannot answer)"), (None, "")]
)
def test_the_verdict_without_gold(folder, index, answers, verdict):
    live = scripted(folder, [ANSWER])
    story = story_of(told(live.ask(QUESTION, Controls(), index)), live, answers)
    assert story.verdict == verdict
    assert "No document that was read holds these words." in draw_story(story, "tiny")
    live.close()


def test_folding_is_shown(folder, index):
    live = scripted(folder, [SEARCH, SUMMARY, ANSWER])
    story = story_of(told(live.ask(QUESTION, Controls(fold_turns=1), index)), live)
    roles = [card.role for card in story.cards]
    assert roles == ["assistant", "results", "notice", "assistant", "notice", "assistant"]
    assert story.cards[3].parts[0].part.kind == "summary"
    live.close()


def test_stop_ends_a_turn_in_its_middle(folder, index):
    live = scripted(folder, [SEARCH, ANSWER], pause_s=0.02)  # the first turn alone lasts over a second
    asking = live.ask(QUESTION, Controls(), index)
    while not any(isinstance(one, Wrote) for one in asking.news(1)):
        pass
    began = time.monotonic()
    asking.stop()
    moments = told(asking)
    assert isinstance(moments[-1], Stopped) and time.monotonic() - began < 0.5
    story = story_of(moments, live)
    assert (story.end, story.is_over) == ("Stopped.", True)
    assert told(live.ask(QUESTION, Controls(), index))[-1].episode.answer == "Mercury"  # the model answers the next
    live.close()


class Slow:
    """A corpus that never answers."""

    async def search(self, queries, k):
        await asyncio.sleep(60)

    async def aclose(self):
        pass


def test_stop_ends_a_search(folder):
    live = scripted(folder, [SEARCH])
    asking = live.ask(QUESTION, Controls(), Slow())
    moments = []
    while not any(isinstance(one, Wrote) and one.token == live._renderer.end_id for one in moments):
        moments += asking.news(1)
    began = time.monotonic()
    asking.stop()
    assert isinstance(told(asking)[-1], Stopped) and time.monotonic() - began < 1
    live.close()


class Down:
    """A corpus whose server is down."""

    async def search(self, queries, k):
        raise RetrievalError("http://127.0.0.1:1 does not answer; is it running?")

    async def aclose(self):
        pass


def test_errors_are_said_in_words(folder, index):
    live = scripted(folder, [SEARCH])
    story = story_of(told(live.ask(QUESTION, Controls(), Down())), live)
    assert story.end == "The search failed: http://127.0.0.1:1 does not answer; is it running?"
    story = story_of(told(live.ask(QUESTION, Controls(max_turns=2), index)), live)
    assert "all its turns" in story.end
    story = story_of(told(live.ask(Question("demo", "Why? " * 2000, ()), Controls(), index)), live)
    assert "tokens" in story.end and "context_tokens" in story.end
    live._engine.turns = ["nothing that is a search"]
    story = story_of(told(live.ask(QUESTION, Controls(), index)), live)
    assert "neither a search nor an answer" in story.end
    assert [card.role for card in story.cards] == ["assistant", "results", "assistant"]  # a correction stands among results
    live.close()


def test_noise_is_drawn_from_the_seed(folder, index):
    live = scripted(folder, [SEARCH, ANSWER])
    best = asyncio.run(index.search(["liquid metals"], 1))[0][0].passage.id
    moments = told(live.ask(QUESTION, Controls(drop_best=1.0, topk=2), index))
    (searched,) = (one for one in moments if isinstance(one, Searched))
    assert best not in [hit.passage.id for hit in searched.hits[0]]
    live._engine.said = 0
    moments = told(live.ask(QUESTION, Controls(fail=1.0), index))
    assert moments[-1].episode.finish is FinishReason.TOOL_ERROR
    live.close()


def test_two_people_ask_at_once(folder, index):
    live = LiveModel(str(folder), context_tokens=2048)
    drawn = [Controls(turn_tokens=16, max_turns=2, seed=seed, temperature=1.0) for seed in range(3)]
    askings = [live.ask(QUESTION, controls, index) for controls in drawn]
    ended = [told(asking)[-1] for asking in askings]
    assert all(isinstance(one, Ended) for one in ended)
    texts = [one.episode.messages[2].content for one in ended]
    assert len({*texts}) == 3
    again = told(live.ask(QUESTION, drawn[1], index))[-1]
    assert again.episode.messages[2].content == texts[1]
    live.close()


def test_what_the_model_writes_is_streamed_token_by_token(folder, index):
    live = LiveModel(str(folder), context_tokens=2048)
    moments = told(live.ask(QUESTION, Controls(turn_tokens=24, max_turns=1, temperature=1.0), index))
    (turn,) = (one for one in moments if isinstance(one, Turned))
    written = [one.token for one in moments if isinstance(one, Wrote)]
    assert len(written) == turn.tokens
    assert live._renderer.decode(written) == turn.text
    live.close()


def test_a_model_that_is_none(tmp_path):
    with pytest.raises(InputError, match="is no model folder, no training, and no run"):
        LiveModel(str(tmp_path / "none"))
    assert model_of("Qwen/Qwen3-0.6B", tmp_path / "x") == "Qwen/Qwen3-0.6B"
    assert model_of(None, tmp_path / "x") is None


def test_an_adapter_is_its_merged_model(folder, tmp_path):
    """A random LoRA adapter, as PEFT saves it, answers as what PEFT itself computes with it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    adapted.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "seeker.json").write_text((folder / "seeker.json").read_text())
    live = LiveModel(str(tmp_path / "adapter"), context_tokens=2048)
    prompt, ids = [5, 6, 7, 8], [9, 10, 11]
    with torch.no_grad():
        logits = adapted(torch.tensor([prompt + ids])).logits[0, 3:-1].log_softmax(-1)
    wanted = logits.gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
    assert live._engine.score(prompt, ids) == pytest.approx(wanted, abs=1e-4)
    live.close()


def test_matched_words_share_a_stem():
    assert matched("Melting points of <b>metals</b>", "melted metal") == (
        "<mark>Melting</mark> points of &lt;b&gt;<mark>metals</mark>&lt;/b&gt;"
    )
    assert matched("The end", "the") == "The end"  # a stop word is no match


def test_a_refusal_stands_in_no_document(folder, index):
    live = scripted(folder, [SEARCH, ANSWER])
    story = story_of(told(live.ask(QUESTION, Controls(), index)), live)
    cards = [card for card in story.cards if card.role == "results"]
    said = Part("result", "Doc 1: Report", "The cause is unknown.")
    read = [StoryCard("results", (Shown(said),))]
    assert not with_support(read, "unknown")[0].parts[0].supports
    assert with_support(read, "the cause")[0].parts[0].supports
    marked = with_support(cards, "gallium melts")
    assert [part.supports for part in marked[0].parts].count(True) == 1
    live.close()
