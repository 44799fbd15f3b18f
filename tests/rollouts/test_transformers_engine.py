"""The engine of transformers against plain forward passes of the same tiny model."""

import asyncio
import random

import numpy as np
import pytest
import torch
from tiny import tiny_model_folder

from project.errors import InputError
from project.rollouts.engines import make_engine
from project.rollouts.engines.protocol import Sampling, preserved_rng
from project.rollouts.engines.transformers import TransformersEngine

PROMPTS = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [200, 100]]


def sharpened(path, seed):
    """Return the tiny model with matrices five times as large: as made, every token is about as likely as any other."""
    from transformers import AutoModelForCausalLM

    tiny_model_folder(path, seed=seed)
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5 if weight.dim() > 1 else 1)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sharpened(tmp_path_factory.mktemp("tiny") / "model", seed=0)


@pytest.fixture
def engine(folder) -> TransformersEngine:
    return make_engine("transformers", folder, 256)


def sampling(temperature=1.0, max_tokens=12, stop=(), seed=3) -> Sampling:
    return Sampling(temperature, max_tokens, stop, seed)


def generate(engine, prompts, samplings):
    async def run():
        return await asyncio.gather(*(engine.generate(p, s) for p, s in zip(prompts, samplings, strict=True)))

    return asyncio.run(run())


def forward(engine, prompt, ids, temperature=1.0):
    """Return the log-probabilities of every next token, by one plain forward pass of the whole text."""
    with torch.no_grad():
        logits = engine._model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    return (logits.double() / temperature).log_softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_sampling_distribution(engine, temperature):
    found = generate(engine, PROMPTS, [sampling(temperature, seed=i) for i in range(4)])
    for prompt, generation in zip(PROMPTS, found, strict=True):
        expected = forward(engine, prompt, generation.ids, temperature).gather(1, torch.tensor(generation.ids)[:, None])[:, 0]
        assert generation.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
        assert (len(generation.ids), generation.finish, generation.version) == (12, "length", 0)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_a_request_gives_the_same_tokens_alone_and_among_others(engine, temperature):
    samplings = [sampling(temperature, max_tokens=6 + 3 * i, seed=10 + i) for i in range(4)]
    together = generate(engine, PROMPTS, samplings)
    for prompt, own, expected in zip(PROMPTS, samplings, together, strict=True):
        (alone,) = generate(engine, [prompt], [own])
        assert alone.ids == expected.ids
        assert alone.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


def test_seeds_make_the_difference(engine):
    first, again, other = generate(engine, [PROMPTS[0]] * 3, [sampling(seed=1), sampling(seed=1), sampling(seed=2)])
    assert first.ids == again.ids
    assert first.logprobs == pytest.approx(again.logprobs, abs=1e-5)  # a batch may be summed in another order
    assert first.ids != other.ids


def test_greedy_is_the_argmax(engine):
    (found,) = generate(engine, [PROMPTS[0]], [sampling(0.0)])
    expected = forward(engine, PROMPTS[0], found.ids)
    assert list(found.ids) == expected.argmax(-1).tolist()
    assert found.logprobs == pytest.approx(expected.max(-1).values.tolist(), abs=1e-4)  # those at temperature 1


def test_samples_follow_the_distribution(engine):
    count = 4000
    logits = forward(engine, [5], [0])[0]
    top = int(logits.argmax())
    found = generate(engine, [[5]] * count, [sampling(0.5, max_tokens=1, seed=i) for i in range(count)])
    p = float((logits * 2).softmax(-1)[top])
    share = sum(g.ids[0] == top for g in found) / count
    assert share == pytest.approx(p, abs=4 * (p * (1 - p) / count) ** 0.5)


def test_the_stop_token_is_kept_and_ends_the_turn(engine):
    (free,) = generate(engine, [PROMPTS[0]], [sampling()])
    stop = free.ids[4]
    first = free.ids.index(stop)
    (found,) = generate(engine, [PROMPTS[0]], [sampling(stop=(stop,))])
    assert found.ids == free.ids[: first + 1]
    assert found.finish == "stop"


def test_score_equals_a_forward_pass(engine):
    ids = [7, 8, 9]
    expected = forward(engine, PROMPTS[2], ids).gather(1, torch.tensor(ids)[:, None])[:, 0]
    assert engine.score(PROMPTS[2], ids) == pytest.approx(expected.tolist(), abs=1e-5)


def test_sync_brings_the_weights_and_raises_the_version(engine, tmp_path):
    other = make_engine("transformers", sharpened(tmp_path / "other", seed=1), 256)
    (before,) = generate(engine, [PROMPTS[0]], [sampling()])
    (wanted,) = generate(other, [PROMPTS[0]], [sampling()])
    share = engine.sync(other._model.state_dict().items())
    (after,) = generate(engine, [PROMPTS[0]], [sampling()])
    assert after.ids == wanted.ids != before.ids
    assert (before.version, after.version) == (0, 1)
    assert share > 0.7  # norms are all 1 in both, and the tied head stands in the table a second time
    assert engine.sync(other._model.state_dict().items()) == 0
    assert engine.version == 2


def test_sync_tells_the_share_of_values_that_changed(engine):
    name, weight = "model.layers.0.self_attn.q_proj.weight", engine._model.model.layers[0].self_attn.q_proj.weight
    changed = weight.detach().clone()
    changed[:8] += 1  # a quarter of the 32 rows
    assert engine.sync([(name, changed)]) == 0.25
    assert torch.equal(weight, changed)


def test_an_empty_prompt_is_refused(engine):
    with pytest.raises(InputError, match="no token"):
        generate(engine, [[]], [sampling()])


def test_a_cancelled_request_does_not_hang_the_others(engine):
    async def run():
        gone = asyncio.create_task(engine.generate(PROMPTS[0], sampling()))
        kept = asyncio.create_task(engine.generate(PROMPTS[1], sampling()))
        await asyncio.sleep(0)
        gone.cancel()
        return await asyncio.wait_for(kept, 20)

    assert len(asyncio.run(run()).ids) == 12


def test_an_error_of_the_model_reaches_every_caller(engine):
    async def run():
        tasks = (engine.generate([999_999], sampling()), engine.generate([5], sampling()))
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(result, Exception) for result in asyncio.run(run()))
    assert len(generate(engine, [[5]], [sampling()])[0].ids) == 12  # and the engine goes on


def test_generating_draws_nothing_from_torch(engine):
    state = torch.get_rng_state()
    generate(engine, PROMPTS, [sampling(seed=i) for i in range(4)])
    assert torch.equal(torch.get_rng_state(), state)


def test_preserved_rng():
    def seed(number):
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)

    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed(5)
    expected = draw()
    seed(5)
    with preserved_rng():
        seed(1)
    assert draw() == expected


def test_a_watcher_that_raises_ends_its_own_request_alone(engine):
    alone = generate(engine, PROMPTS[:1], [sampling(seed=1)])[0]
    seen, refused = [], []

    def refuse(token):
        refused.append(token)
        if len(refused) == 3:
            raise ValueError("enough")

    async def run():
        one = engine.generate(PROMPTS[0], sampling(seed=1), seen.append)
        other = engine.generate(PROMPTS[1], sampling(seed=2), refuse)
        return await asyncio.gather(one, other, return_exceptions=True)

    watched, ended = asyncio.run(run())
    assert tuple(seen) == watched.ids == alone.ids
    assert (len(refused), str(ended)) == (3, "enough")
