"""PPO on the tiny model through a real Trainer, with the engine of transformers and a real retrieval server."""

import threading
from itertools import groupby
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from metals import METALS, QUESTIONS
from openai_endpoint import Endpoint
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from project.advantages import ESTIMATORS
from project.corpus.serving.handle import ServerHandle
from project.datamodules.question import QuestionDataModule
from project.environment.search import EpisodeLimits
from project.errors import EngineError, InputError, RetrievalError, TrainingError
from project.modules.critic import Critic
from project.modules.hand_over import HAND_OVER, read_hand_over
from project.modules.policy import AgentSettings, LoRA
from project.modules.ppo import PPO, mean_kl
from project.modules.ppo_batches import Update, deal, pay, plan, together
from project.modules.ppo_settings import PPOSettings
from project.records import Episode, FinishReason, Turn
from project.rewards.answer import AnswerReward
from project.rewards.judge import Judge
from project.rollouts.engines.protocol import Generation
from project.rollouts.engines.transformers import TransformersEngine
from project.rollouts.rows import TrainingRow

SETTINGS = AgentSettings("tags", False)
SEARCH = "<search>\nmetal number 0\n</search>"


class Script(TransformersEngine):
    """The real engine and real log-probabilities, but what it samples is written here: every second episode is right."""

    async def generate(self, prompt_ids, sampling):
        prompt = bytes(i for i in prompt_ids if i < 256).decode()
        number = prompt.partition("has number ")[2][:1]
        good = sampling.seed // 1009 % 2 == 0
        text = (
            SEARCH if "<information>\nDoc" not in prompt else f"<answer>\n{METALS[int(number)] if good else 'Zinc'}\n</answer>"
        )
        ids = [*text.encode(), 257]
        return Generation(tuple(ids), tuple(self.score(prompt_ids, ids)), "stop", self.version)


class Watched(PPO):
    """Keeps what was logged, the micro-batches, and the parameters and gradients around each optimizer step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.logged, self.micro, self.gradients, self.all_episodes = [], [], [], []

    def log(self, name, value, *args, **kwargs):
        self.logged.append((name, float(value)))

    def log_dict(self, values, *args, **kwargs):
        for name, value in values.items():
            self.log(name, value)

    def gather_episodes(self, run):
        episodes = super().gather_episodes(run)
        self.all_episodes.append(episodes)
        return episodes

    def _prepare(self, rows):
        update = super()._prepare(rows)
        self.micro.append(update.micro)
        return update

    def of(self, name):
        return [value for key, value in self.logged if key == name]


class Gradients(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        found = {n: p.grad.clone() for n, p in pl_module.policy.named_parameters(prefix="policy") if p.grad is not None}
        pl_module.gradients.append(found)


class CountUpdates(Callback):
    """Logs a validation metric that says after which update it was."""

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/update", float(trainer.global_step))


def make(folder, *, url=None, index=None, engine=Script, ppo=None, kind=Watched, **changes) -> Watched:
    torch.manual_seed(0)
    numbers = {"episodes_per_question": 4, "minibatch_episodes": 8, "micro_episodes": 4} | (ppo or {})
    options = {"lora": LoRA(4, 8.0), "precision": "float32", "learning_rate": 1e-2} | changes
    limits = EpisodeLimits(max_turns=3, turn_tokens=48, context_tokens=2048)
    agent = {"model_path": str(folder), "settings": SETTINGS, "index": index, "retrieval_url": url}
    module = kind(ppo=PPOSettings(**numbers), engine="transformers", limits=limits, **agent, **options)
    if engine is not None:
        module._engine = engine(str(folder))
    return module


def fit(module, questions, root, steps=2, **until):
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=root,
        enable_checkpointing=False, callbacks=[Gradients()], **(until or {"max_steps": steps, "max_epochs": -1}),
    )  # fmt: skip
    trainer.fit(module, QuestionDataModule(questions, batch_questions=2))
    return trainer


@pytest.fixture(scope="module")
def trained(folder, index, questions, tmp_path_factory):
    """Two updates, from a server that the run starts itself."""
    root = tmp_path_factory.mktemp("run")
    module = make(folder, index=index)
    module.configure_model()
    module.before = {n: p.detach().clone() for n, p in module.named_parameters()}
    module.root, module.steps = root, fit(module, questions, root).global_step
    return module


def test_the_episodes_searched_and_the_reward_varied(trained):
    assert [len(episodes) for episodes in trained.all_episodes] == [8, 8]
    for episodes in trained.all_episodes:
        assert all(e.finish is FinishReason.ANSWER and e.queries == ("metal number 0",) and e.retrieved for e in episodes)
        rewards = [trained.reward(e)["total"] for e in episodes]
        assert sum(r >= 1 for r in rewards) == sum(r == 0 for r in rewards) == 4  # every second one is right


@pytest.mark.parametrize(("ranks", "at_once"), [(1, 8), (3, 3)])
def test_the_engine_is_made_for_an_updates_episodes(ranks, at_once, folder, index, questions, tmp_path, monkeypatch):
    asked = {}

    def start(_name, model, *_, **options):
        asked.update(options)
        return Script(model)

    monkeypatch.setattr("project.modules.agent.make_engine", start)
    module = make(folder, index=index, engine=None)
    fit(module, questions, tmp_path, steps=1)
    assert asked["requests"] == 8  # of two questions, four each
    monkeypatch.setattr("project.modules.rollout_agent.world", lambda: (0, ranks))
    module.trainer.training = True
    assert module._episodes_at_once() == at_once
    module.trainer.testing = True
    assert module._episodes_at_once() == 64


def test_at_update_0_kl_is_0_and_every_ratio_1(trained):
    """The reference is the model without its adapter, and a fresh adapter changes nothing."""
    first = trained.micro[0]
    assert all(float(b["kl"].abs().max()) < 1e-5 for b in first)
    assert all(float((b["importance"] - 1).abs().max()) < 1e-4 for b in first)
    assert trained.of("ppo/kl")[0] == pytest.approx(0, abs=1e-6)
    assert trained.of("ppo/ratio") == pytest.approx([1, 1], abs=1e-5)  # one inner epoch, one step: always the first
    assert trained.of("ppo/clip_fraction") == [0, 0]
    assert trained.of("ppo/engine_gap")[0] < 1e-4


def test_after_update_1_kl_is_no_longer_0(trained):
    assert max(float(b["kl"].abs().max()) for b in trained.micro[1]) > 1e-3


def test_the_reference_log_probabilities_are_those_of_the_base(trained, folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    batch = trained.micro[1][0]
    rows = zip(batch["input_ids"].split(batch["lengths"]), batch["trained"].split(batch["lengths"]), strict=True)
    found = []
    for ids, trained_T in rows:
        with torch.no_grad():
            logprobs = model(ids[None]).logits[0, :-1].log_softmax(-1)
        found.append(logprobs.gather(1, ids[1:, None])[:, 0][trained_T[1:]])
    reference = torch.cat(found)
    torch.testing.assert_close(batch["old_logprobs"] - reference, batch["kl"], rtol=0, atol=1e-4)


def test_trap_14_only_sampled_tokens_are_trained(trained):
    for batch in (b for update in trained.micro for b in update):
        for row, mask in zip(*(batch[name].split(batch["lengths"]) for name in ("input_ids", "trained")), strict=True):
            text = bytes(i for i in row[mask].tolist() if i < 256).decode()
            assert text.startswith(SEARCH + "<answer>")
            assert "Doc" not in text
            assert int((row[mask] == 257).sum()) == 2  # both end-of-turn tokens


def test_trap_02_parameters_move_and_every_adapter_has_a_gradient(trained):
    after = dict(trained.named_parameters())
    assert trained.steps == 2
    for name, weight in after.items():
        moved = not torch.equal(weight, trained.before[name])
        assert moved == ("lora_" in name or name.startswith("critic.")), name
    adapters = {n for n in after if "lora_" in n}
    assert len(adapters) == 2 * 2 * 7  # A and B, two layers, seven matrices
    # At first B is 0, so only B has a gradient; then both have.
    assert all(trained.gradients[0][n].any() for n in adapters if "lora_B" in n)
    assert all(trained.gradients[1][n].any() for n in adapters)


def test_advantages_are_scaled_and_favour_what_was_right(trained):
    for update, episodes in zip(trained.micro, trained.all_episodes, strict=True):
        flat = torch.cat([b["advantages"] for b in update])
        assert float(flat.square().mean()) == pytest.approx(1, abs=1e-4)
        assert sum(len(t.ids) for e in episodes for t in e.turns) == len(flat)
        for batch in update:
            rows = batch["advantages"].split([int(row.sum()) for row in batch["trained"].split(batch["lengths"])])
            right = [row.reward > 0.5 for row in batch["rows"]]
            assert all((float(row.mean()) > 0) == bool(good) for row, good in zip(rows, right, strict=True))


def test_the_engine_has_seen_every_update_and_holds_the_policys_weights(trained):
    assert trained._engine.version == int(trained.updates) == 2
    assert trained.of("sync/version") == [1, 2]
    assert [t.version for episodes in trained.all_episodes for e in episodes for t in e.turns] == [0] * 16 + [1] * 16
    assert all(share > 0.3 for share in trained.of("sync/changed_share"))
    assert all(gap < 1e-4 for gap in trained.of("sync/canary_gap"))
    ids = [256, 10, 20, 30, 257]
    assert trained._engine.score(ids[:2], ids[2:]) == pytest.approx(trained._score(ids[:2], ids[2:]).tolist(), abs=1e-4)


def test_the_exported_folder_is_the_trained_policy(trained):
    exported = AutoModelForCausalLM.from_pretrained(trained.root / "merged", dtype=torch.float32)
    ids = torch.tensor([[256, 10, 20, 30, 257]])
    with torch.no_grad():
        expected = trained.policy.head(trained.policy(ids[0], [5]))[None]
        torch.testing.assert_close(exported(ids).logits, expected, rtol=0, atol=1e-4)
    assert AgentSettings.load(trained.root / "merged") == SETTINGS


def test_the_best_and_the_last_weights_are_handed_on(folder, server, questions, tmp_path):
    """With mode="max" of the updates counted the last of two is the best; with "min" the first."""
    for mode, best_step in (("max", 2), ("min", 1)):
        root = tmp_path / mode
        module = make(folder, url=server.url, kind=PPO)
        keep = ModelCheckpoint(root, "best", monitor="val/update", mode=mode, save_on_train_epoch_end=False)
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=root, callbacks=[keep, CountUpdates()],
            max_steps=2, max_epochs=-1, val_check_interval=1, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(module, QuestionDataModule(questions, questions, batch_questions=2, limit=2, check_split=False))
        found = read_hand_over(root / HAND_OVER)
        assert [(which, one.step) for which, one in found.items()] == [("last", 2), ("best", best_step)]
        assert [one.metrics["val/update"] for one in found.values()] == [2, best_step]
        assert found["best"].metrics["val/reward"] >= 0
        last, best = (load_file(root / name / "model.safetensors") for name in ("merged", "merged_best"))
        assert all(torch.equal(best[name], last[name]) for name in last) is (mode == "max")
        held = torch.load(root / "last.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(held[name], p) for name, p in module.named_parameters() if "lora_" in name and name in held)
        ids = torch.tensor([256, 10, 20, 30, 257])
        with torch.no_grad():
            expected = module.policy.head(module.policy(ids, [5]))[:-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        sampled_from = torch.tensor(module._engine.score(ids[:1].tolist(), ids[1:].tolist()))
        torch.testing.assert_close(sampled_from, expected, rtol=0, atol=1e-4)


def test_the_server_of_the_run_is_stopped(trained):
    assert trained._server is None


def test_the_policy_learns_what_pays(folder, server, questions, tmp_path):
    """The right answers become likelier than the wrong one."""
    module = make(folder, url=server.url, learning_rate=3e-2, ppo={"kl_coef": 0.0})
    fit(module, questions, tmp_path, steps=4)
    episode = module.all_episodes[0][0]
    prompt = [*episode.turns[0].context_ids, *episode.turns[0].ids, *episode.turns[1].context_ids]
    fresh = Script(str(folder))

    def gain(text):
        ids = list(text.encode())
        return sum(module._score(prompt, ids).tolist()) - sum(fresh.score(prompt, ids))

    assert gain("<answer>\nGold") > gain("<answer>\nZinc") + 0.5


VARIANTS = {
    "rloo": {"estimator": "rloo"},
    "grpo": {"estimator": "grpo", "kl_coef": 0.01},
    "reinforce++": {"estimator": "reinforce++", "kl_coef": 0.01},
    "loss": {"kl_in": "loss", "length_norm": "episode"},
    "dr. grpo": {"estimator": "rloo", "length_norm": "constant", "length_tokens": 40},
    "dapo": {"estimator": "grpo", "clip_high": 0.28, "kl_coef": 0.0, "inner_epochs": 2},
    "all at once": {
        "dual_clip": 3.0,
        "entropy_coef": 0.001,
        "kl_target": 0.01,
        "kl_stop": 0.5,
        "inner_epochs": 2,
        "span_weights": {"answer": 2.0, "end": 0.5},
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_estimator_and_loss_learns_what_pays(folder, server, questions, tmp_path, name):
    module = make(folder, url=server.url, learning_rate=1e-2, ppo=VARIANTS[name])
    trainer = fit(module, questions, tmp_path, max_epochs=2)
    assert (module.critic is None) == (not module.estimator.critic) == (name not in ("all at once", "loss"))
    assert len(trainer.optimizers) == (2 if module.critic else 1)
    fresh, gains = Script(str(folder)), {True: [], False: []}
    for episode in module.all_episodes[0]:
        prompt, ids = (
            [*episode.turns[0].context_ids, *episode.turns[0].ids, *episode.turns[1].context_ids],
            episode.turns[1].ids,
        )
        gain = sum(module._score(prompt, list(ids)).tolist()) - sum(fresh.score(prompt, list(ids)))
        gains[episode.answer != "Zinc"].append(gain)
    assert sum(gains[True]) / len(gains[True]) > sum(gains[False]) / len(gains[False]) + 0.5
    assert bool(module.of("ppo/explained_variance")) == (module.critic is not None)
    assert all(0 < entropy < 6 for entropy in module.of("ppo/entropy"))  # at most the log of 259 tokens


class Folds(Script):
    """Searches, summarises when it is asked to, and then answers."""

    async def generate(self, prompt_ids, sampling):
        prompt = bytes(i for i in prompt_ids if i < 256).decode()
        number = prompt.partition("has number ")[2][:1]
        good = sampling.seed // 1009 % 2 == 0
        text = f"<answer>\n{METALS[int(number)] if good else 'Zinc'}\n</answer>"
        if "<summary>" not in prompt.partition("Question:")[2]:
            text = "<summary>\nwhat I read\n</summary>" if "<fold/>" in prompt else SEARCH
        ids = [*text.encode(), 257]
        return Generation(tuple(ids), tuple(self.score(prompt_ids, ids)), "stop", self.version)


def test_an_update_with_folds(folder, server, questions, tmp_path):
    module = make(folder, url=server.url, engine=Folds, ppo={"micro_episodes": 3, "lam": 0.9})  # 8 episodes, 16 rows: one step
    module.limits = EpisodeLimits(max_turns=3, turn_tokens=48, context_tokens=2048, fold_turns=1)
    fit(module, questions, tmp_path, max_epochs=1)
    assert module.of("train/contexts") == [2, 2]
    assert module.of("ppo/steps") == [1, 1]
    rows = [row for batch in module.micro[0] for row in batch["rows"]]
    assert sorted((row.episode, row.part) for row in rows) == [(e, part) for e in range(8) for part in (0, 1)]
    assert all(row.reward == 0 for row in rows if row.part == 0)
    assert all(row.reward != 0 for row in rows if row.part == 1)
    sampled = [bytes(i for i, t in zip(row.ids, row.trained, strict=True) if t and i < 256).decode() for row in rows]
    assert {text for text, row in zip(sampled, rows, strict=True) if row.part == 0} == {
        SEARCH + "<summary>\nwhat I read\n</summary>"
    }
    # at first every value is 0: an episode's first token earns its reward over the distance to its end
    counts = {(row.episode, row.part): sum(row.trained) for row in rows}
    for batch in module.micro[0]:
        for i, row in enumerate(batch["rows"]):
            first = batch["returns"].split(batch["counts"])[i][0]
            last = next(other.reward for other in rows if (other.episode, other.part) == (row.episode, 1))
            distance = sum(counts[row.episode, part] for part in range(row.part, 2)) - 1
            assert float(first) == pytest.approx(last * 0.9**distance, rel=1e-3)


def test_contexts_of_an_episode_are_joined_in_time():
    """The numbers of `test_gae_of_three_tokens_by_hand`: two tokens before a fold and one after it, in other micro-batches."""
    ppo = PPOSettings(gamma=0.9, lam=0.5)

    def note(penalty, values):
        return {"penalty": torch.tensor(penalty), "old_values": torch.tensor(values), "token_weights": torch.ones(len(values))}

    def row(part, reward, episode=4):
        return TrainingRow([], [], [], [], reward, episode, part)

    rows = [row(1, 2.0), row(0, 3.0, 9), row(0, 0.0)]
    notes = [note([0.0], [1.5]), note([0.0], [1.0]), note([0.0, -1.0], [0.5, 1.0])]
    pay(rows, notes, ESTIMATORS["gae"], ppo, "token")
    assert notes[2]["returns"].tolist() == pytest.approx([1.60875, 2.575])
    assert notes[0]["returns"].tolist() == [2.0]
    assert notes[1]["returns"].tolist() == [3.0]  # the other episode's token earns its own reward
    raw = torch.tensor([0.5, 2.0, 1.10875, 1.575])
    torch.testing.assert_close(together(notes, "advantages"), raw / raw.square().mean().sqrt())
    # with `episode` both episodes weigh the same, however many contexts, micro-batches and steps they lie in
    pay(rows, notes, ESTIMATORS["gae"], ppo, "episode")
    assert together(notes, "token_weights").tolist() == pytest.approx([2 / 3, 2.0, 2 / 3, 2 / 3])


def test_what_each_estimator_pays_an_episode(folder):
    right, wrong = ({"em": 1.0, "total": 1.0}, {"em": 0.0, "total": 0.0})
    turn = Turn((1,), (2, 3), (-1.0, -1.0), 0, True)
    episodes = [Episode(q, (turn,), (), FinishReason.ANSWER) for q in QUESTIONS[:2] for _ in range(2)]
    rewards = [score["total"] for score in (right, wrong, right, right)]
    paid = {}
    for name in ("gae", "rloo", "grpo", "reinforce++"):
        module = make(folder, url="http://127.0.0.1:1", ppo={"estimator": name})
        paid[name] = {row.episode: row.reward for row in module._telling_rows(episodes, rewards)}
    # the second question's episodes earned the same: groups leave them out, REINFORCE++ compares with the whole batch
    assert paid["gae"] == paid["rloo"] == {0: 1, 1: -1}
    assert paid["grpo"] == pytest.approx({0: 1, 1: -1}, abs=1e-4)
    assert paid["reinforce++"] == {0: 1, 1: 0, 2: 1, 3: 1}
    module = make(folder, url="http://127.0.0.1:1", ppo={"estimator": "reinforce++"})
    assert module._telling_rows(episodes, [0.5] * 4) == []  # nothing differs
    assert module._telling_rows(episodes[:1], [1.0]) == []  # nor is there anything to compare with
    assert int(module.flat) == 2
    # what failures leave alone of a group is measured against the others, where the baseline can
    alone = [episodes[0], *episodes[2:]]
    found = {}
    for name in ("rloo", "grpo"):
        module = make(folder, url="http://127.0.0.1:1", ppo={"estimator": name})
        found[name] = {row.episode: row.reward for row in module._telling_rows(alone, [1.0, 0.0, 0.0])}
    assert found == {"rloo": {0: 1.0}, "grpo": {}}
    assert int(module.flat) == 1


def test_trap_02_tokens_count_by_their_kind(folder, server, questions, tmp_path):
    module = make(folder, url=server.url, ppo={"span_weights": {"search": 0.0, "answer": 3.0, "end": 0.0}})
    fit(module, questions, tmp_path, steps=1)
    for batch in module.micro[0]:
        counts = [int(row.sum()) for row in batch["trained"].split(batch["lengths"])]
        ids = batch["input_ids"][batch["trained"]].split(counts)
        for row, weights in zip(ids, batch["token_weights"].split(counts), strict=True):
            searched = len(SEARCH) + 1
            assert not weights[:searched].any()
            assert set(weights[searched:-1].tolist()) == {3.0}
            assert (int(row[-1]), float(weights[-1])) == (257, 0)


def test_a_token_that_counts_nothing_has_no_gradient(folder, server, questions, tmp_path):
    """All that both kinds of episode wrote alike counts nothing here, and nothing is left to train on."""
    module = make(folder, url=server.url, ppo={"span_weights": {"search": 0.0, "answer": 0.0, "end": 0.0}, "kl_coef": 0.0})
    fit(module, questions, tmp_path, steps=1)
    assert all(not g.any() for g in module.gradients[0].values())


def test_the_critic_warms_up_before_the_policy_moves(folder, server, questions, tmp_path):
    module = make(folder, url=server.url, ppo={"critic_warmup": 2})
    module.configure_model()
    before = {n: p.detach().clone() for n, p in module.policy.named_parameters()}
    trainer = fit(module, questions, tmp_path, max_epochs=1)
    assert (int(module.updates), trainer.global_step) == (2, 2)
    assert not module.gradients
    assert all(torch.equal(p, before[n]) for n, p in module.policy.named_parameters())
    assert len(module.of("ppo/value_loss")) == int(module.critic_fits) == 2
    fit(module, questions, tmp_path, steps=1)
    assert module.of("ppo/steps") == [1]


def test_an_update_that_trains_nothing_is_no_warm_up(folder, server, questions, tmp_path):
    module = make(folder, url=server.url, ppo={"critic_warmup": 2, "kl_target": 0.01}, reward=lambda episode: {"total": 1.0})
    fit(module, questions, tmp_path, max_epochs=1)
    assert (int(module.updates), int(module.critic_fits), int(module.flat)) == (2, 0, 2)
    assert float(module.kl_scale) == 1  # nothing moved that could be steered


def test_inner_epochs_end_where_the_policy_has_moved_far_enough(folder, server, questions, tmp_path):
    module = make(folder, url=server.url, ppo={"inner_epochs": 8, "kl_stop": 0.001}, learning_rate=3e-2)
    fit(module, questions, tmp_path, max_epochs=1)
    assert all(2 <= steps < 8 for steps in module.of("ppo/steps"))  # the first finds the policy where it was


def test_the_kl_coefficient_is_steered(folder):
    module = make(folder, url="http://127.0.0.1:1", ppo={"kl_coef": 0.1, "kl_target": 0.5})
    module._steer_kl(5.0, 0.5)  # ten times too far: the error counts as 0.2, of which a tenth is heeded
    assert module.kl_coef == pytest.approx(0.102)
    module._steer_kl(0.45, 0.5)  # -0.1
    assert module.kl_coef == pytest.approx(0.102 * 0.99)
    module._steer_kl(-1.0, 0.5)
    assert module.kl_coef == pytest.approx(0.102 * 0.99 * 0.98)
    assert module.of("ppo/kl_coef") == pytest.approx([0.102, 0.10098, 0.0989604])


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"estimator": "grpo", "kl_in": "reward"}, "kl_in=reward has no baseline in grpo"),
        ({"kl_target": 0.0}, "kl_target=0.0 must be above 0"),
        ({"kl_target": 0.1, "kl_coef": 0.0}, "kl_target=0.1 steers kl_coef, which is 0"),
        ({"entropy_coef": -0.1}, "entropy_coef=-0.1 must be 0 or more"),
        ({"clip_high": -0.5}, "clip_high=-0.5 must be above 0"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"gamma": 1.5}, "gamma=1.5"),
        ({"estimator": "grpo", "episodes_per_question": 1}, "estimator=grpo compares episodes of a question"),
        ({"estimator": "rloo", "critic_warmup": 3}, "critic_warmup=3, and rloo has no critic"),
        ({"dual_clip": 1.0}, "dual_clip=1.0 must be above 1"),
        ({"span_weights": {"thought": 1.0}}, "span_weights holds thought: 1.0"),
        ({"span_weights": {"think": -1.0}}, "span_weights holds think: -1.0"),
        ({"length_tokens": 0}, "length_tokens=0"),
        ({"critic_in": "model", "estimator": "grpo"}, "critic_in=model, and grpo has no critic"),
        ({"critic_epochs": 0}, "critic_epochs=0 must be at least 1"),
        ({"resample_rounds": -1}, "resample_rounds=-1 must be 0 or more"),
        (
            {"resample_rounds": 1, "overlap": True},
            "resample_rounds=1 asks anew once an update's episodes are there, and ppo.overlap",
        ),
        ({"resample_rounds": 1, "estimator": "reinforce++"}, "resample_rounds=1 is for estimators that compare the episodes"),
    ],
)
def test_numbers_that_would_train_something_else_are_refused(numbers, said):
    with pytest.raises(InputError, match=said):
        PPOSettings(**numbers)


def test_only_questions_whose_episodes_differ_are_trained_on(folder, server, questions, tmp_path):
    even = {"q0", "q1", "q2"}

    def reward(episode):
        return {"total": float(episode.question.id in even or episode.answer != "Zinc")}

    module = make(folder, url=server.url, reward=reward)
    fit(module, questions, tmp_path, max_epochs=2)
    telling = [sum(e.question.id not in even for e in episodes) for episodes in module.all_episodes]
    assert {0, 4} <= set(telling)
    assert [sum(len(b["rows"]) for b in update) for update in module.micro] == [n for n in telling if n]
    assert module.of("train/trained_share") == [n / 8 for n in telling]
    assert module.of("sync/version") == [1, 2, 3, 4]  # an update that trains nothing is counted all the same


@pytest.fixture(scope="module")
def beside(folder, server, questions, tmp_path_factory):
    """Three updates that each train what was rolled out beside the one before, at the same time: a rollout waits for it."""
    module, training = make(folder, url=server.url, ppo={"overlap": True}), threading.Event()

    def own_episodes(*args):
        assert int(module.updates) == 0 or training.wait(60), "the update before must be trained beside the rollout"
        training.clear()
        return Watched.own_episodes(module, *args)

    def train(rows):
        training.set()
        Watched._train(module, rows)

    module.own_episodes, module._train = own_episodes, train
    fit(module, questions, tmp_path_factory.mktemp("beside"), 3)
    return module


def test_with_overlap_an_update_trains_the_episodes_before_its_own(beside):
    assert [len(episodes) for episodes in beside.all_episodes] == [8, 8, 8]
    assert [{t.version for e in episodes for t in e.turns} for episodes in beside.all_episodes] == [{0}, {1}, {2}]
    trained = [sorted(tuple(row.ids) for batch in update for row in batch["rows"]) for update in beside.micro]
    rolled = [sorted((*t[0].context_ids, *t[0].ids, *t[1].context_ids, *t[1].ids) for t in (e.turns for e in episodes))
              for episodes in beside.all_episodes]  # fmt: skip
    assert trained == rolled[:2]  # the first update has nothing to train, and the last ones' episodes are not trained
    assert beside.of("train/staleness") == [1, 1]  # syncs between the weights that wrote them and the engine's
    assert (int(beside.updates), beside._engine.version) == (3, 3)
    assert len(beside.of("time/rollout_s")) == len(beside.of("time/update_s")) == 3
    assert len(beside.of("time/train_s")) == 2
    assert all(0 <= idle < rollout for idle, rollout in zip(beside.of("time/idle_s"), beside.of("time/rollout_s"), strict=True))


def test_with_overlap_older_weights_are_corrected_for(beside):
    """Nothing was trained between the first episodes and their update, and one update between the second ones and theirs."""
    first, second = beside.micro
    assert all(float((b["importance"] - 1).abs().max()) < 1e-4 for b in first)
    for batch in second:
        behaviour = batch["logprobs"][batch["trained"]]
        torch.testing.assert_close(batch["importance"], (batch["old_logprobs"] - behaviour).exp().clamp(max=2.0))
    assert max(float((b["importance"] - 1).abs().max()) for b in second) > 1e-3


def test_the_kl_counts_tokens_as_the_policy_would_sample_them_now():
    notes = [
        {"importance": torch.tensor([1.0]), "kl": torch.tensor([0.1])},
        {"importance": torch.tensor([2.0]), "kl": torch.tensor([0.4])},
    ]
    assert mean_kl(notes) == pytest.approx((1 * 0.1 + 2 * 0.4) / 3)


def test_with_overlap_an_update_that_fails_ends_the_rollout_too(folder, server, questions, tmp_path):
    """The rollout gives up before its next turns: an engine may take minutes over them."""
    module = make(folder, url=server.url, ppo={"overlap": True})
    generate, asked, begun, failed = module._engine.generate, [], threading.Event(), threading.Event()

    async def counted(*args):
        asked.append(int(module.updates))
        if asked[-1]:
            begun.set()
            assert failed.wait(60)
        return await generate(*args)

    def fail(rows):
        assert begun.wait(60)
        failed.set()
        raise TrainingError("not finite")

    module._engine.generate, module._train = counted, fail
    with pytest.raises(TrainingError, match="not finite"):
        fit(module, questions, tmp_path)
    assert asked.count(0) == 16  # two turns each
    assert 1 <= asked.count(1) <= 8  # no second turn
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("seeker-")]


def test_with_overlap_a_rollout_that_fails_ends_the_update_too(folder, server, questions, tmp_path):
    module, asked = make(folder, url=server.url, ppo={"overlap": True}), []

    def fail(*args):
        asked.append(args)
        if len(asked) > 1:
            raise EngineError("the engine has died")
        return Watched.own_episodes(module, *args)

    module.own_episodes = fail
    with pytest.raises(EngineError, match="the engine has died"):
        fit(module, questions, tmp_path)
    assert int(module.updates) == 1


@pytest.mark.parametrize("overlap", [True, False])
def test_overlap_goes_on_as_it_was(folder, server, questions, tmp_path, overlap):
    """Else episodes that are due would be lost, or asked for where there are none."""
    first = make(folder, url=server.url, ppo={"overlap": overlap})
    fit(first, questions, tmp_path, 1).save_checkpoint(tmp_path / "one.ckpt")
    again = make(folder, url=server.url, ppo={"overlap": not overlap})
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=2,
                      max_epochs=-1, enable_checkpointing=False)  # fmt: skip
    with pytest.raises(
        InputError, match=f"ppo.overlap={not overlap}, and the training in the checkpoint goes on with {overlap}"
    ):
        trainer.fit(again, QuestionDataModule(questions, batch_questions=2), ckpt_path=tmp_path / "one.ckpt", weights_only=True)


def test_flat_questions_are_replaced_by_others(folder, server, questions, tmp_path):
    """q0 and q1 tell nothing; what is logged of the episodes is of the batch that was drawn."""
    flat = {"q0", "q1"}

    def reward(episode):
        return {"total": 1.0 if episode.question.id in flat else float(episode.answer != "Zinc")}

    module = make(folder, url=server.url, reward=reward, ppo={"resample_rounds": 3})
    fit(module, questions, tmp_path, max_epochs=3)
    asked = module.of("train/questions")
    drawn, rounds = list(module.of("train/flat_groups")), iter(module.all_episodes)
    for count, micro in zip(asked, module.micro, strict=True):
        ids, batch = [], next(rounds)
        ids += [episode.question.id for episode in batch][::4]
        while len(ids) < count:
            ids += [episode.question.id for episode in next(rounds)][::4]
        assert len(set(ids)) == len(ids) == count
        assert drawn.pop(0) == len(set(ids[:2]) & flat) / 2
        telling = sum(len(b["rows"]) for b in micro) // 4
        assert telling == len(set(ids) - flat) == 2  # three of five questions can tell: two are always found
    assert next(rounds, None) is None
    assert max(asked) > 2
    assert not drawn
    means = module.of("train/reward")
    assert len(means) == len(asked)
    assert {0.5, 0.75, 1.0} & {round(mean, 6) for mean in means} >= {0.5}


def test_resampling_has_an_end(folder, server, questions, tmp_path):
    module = make(folder, url=server.url, reward=lambda episode: {"total": 1.0}, ppo={"resample_rounds": 1})
    fit(module, questions, tmp_path, max_epochs=1)
    assert module.of("train/questions") == [4, 4]
    assert module.of("train/flat_groups") == [1, 1]
    module = make(folder, url=server.url, reward=lambda episode: {"total": 1.0}, ppo={"resample_rounds": 9})
    fit(module, questions, tmp_path / "all", max_epochs=1)
    assert module.of("train/questions") == [5, 5]  # there are no more


def test_an_update_without_a_difference_moves_nothing(folder, server, questions, tmp_path):
    module = make(folder, url=server.url, reward=lambda episode: {"total": 1.0})
    module.configure_model()
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    trainer = fit(module, questions, tmp_path, max_epochs=1)
    assert (int(module.updates), trainer.global_step, module.gradients) == (2, 2, [])
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())


@pytest.mark.parametrize("overlap", [False, True])
def test_trap_02_a_reward_that_does_not_vary_stops_the_run(folder, server, questions, tmp_path, overlap):
    module = make(folder, url=server.url, ppo={"flat_updates": 3, "overlap": overlap}, reward=lambda episode: {"total": 1.0})
    with pytest.raises(TrainingError, match="for 3 updates the episodes of each question have earned the same, 1 on average"):
        fit(module, questions, tmp_path, steps=9)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_run_that_has_learnt_all_there_is_ends_well(folder, server, questions, tmp_path, caplog, overlap):
    """After its first training everything is right: three flat updates later it stops of itself and hands its model on."""
    module = make(folder, url=server.url, ppo={"flat_updates": 3, "overlap": overlap})
    module.reward = lambda episode: {"total": float(int(module.updates) > overlap or episode.answer != "Zinc")}
    trainer = fit(module, questions, tmp_path, steps=100)
    assert (trainer.global_step, int(module.updates), len(module.gradients)) == (4 + overlap, 4 + overlap, 1)
    assert "for 3 updates the episodes of each question have earned the same, 1 on average now: the run ends" in caplog.text
    assert (tmp_path / "merged" / "config.json").is_file()


def test_the_critic_learns_what_it_is_shown_without_counting_as_steps(folder, server, questions, tmp_path):
    module = make(folder, url=server.url, ppo={"critic_steps": 200, "kl_coef": 0.0}, critic_learning_rate=1e-2)
    trainer = fit(module, questions, tmp_path, steps=1)
    hidden, returns = (torch.cat([b[name] for b in module.micro[0]]) for name in ("hidden", "returns"))
    # Values begin at 0, whose error is the mean square of the returns; right and wrong differ in the last few tokens only.
    assert float(((module.critic(hidden) - returns) ** 2).mean()) < 0.97 * float((returns**2).mean())
    assert (trainer.global_step, int(module.updates)) == (1, 1)


def test_the_critic_starts_at_0():
    assert not Critic(32)(torch.randn(5, 32)).any()


def parts_of(module):
    """Return the trained parameters by whose they are."""
    found = {"policy": {}, "body": {}, "head": {}}
    for name, parameter in module.named_parameters():
        owner = "policy" if name.startswith("policy.") else "body" if ".body." in name else "head"
        if parameter.requires_grad:
            found[owner][name] = parameter
    return found


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_trap_18_a_critic_with_layers_of_its_own_leaves_the_policy_alone(folder, server, questions, tmp_path, kind):
    """It learns the returns; the policy's adapter is trained as with a head, and no weight is both's."""
    deep = {"critic_in": kind, "critic_epochs": 20, "kl_coef": 0.0}
    module = make(folder, url=server.url, ppo=deep, critic_learning_rate={"adapter": 1e-2, "model": 1e-3}[kind])
    module.configure_model()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trained = parts_of(module)
    assert len(trained["policy"]) == 28
    assert len(trained["body"]) == (28 if kind == "adapter" else 20)
    assert len(trained["head"]) == 6
    storages = [{p.data_ptr() for p in trained[owner].values()} for owner in ("policy", "body")]
    assert not storages[0] & storages[1]
    frozen = {p.data_ptr() for p in module.policy.parameters() if not p.requires_grad}
    shared = frozen & {p.data_ptr() for p in module.critic.parameters()}
    assert bool(shared) == (kind == "adapter")
    fit(module, questions, tmp_path / kind, steps=2)
    after = parts_of(module)
    assert all(not torch.equal(before[name], p) for owner in ("policy", "head") for name, p in after[owner].items())
    moved = [not torch.equal(before[name], p) for name, p in after["body"].items()]
    assert sum(moved) >= len(moved) - 1  # the head of a model of its own is not asked
    assert all(torch.equal(before[name], p) for name, p in module.named_parameters() if not p.requires_grad)
    head = make(folder, url=server.url, ppo={"kl_coef": 0.0})
    fit(head, questions, tmp_path / "head", steps=1)
    assert module.gradients[0].keys() == head.gradients[0].keys()
    for name, gradient in head.gradients[0].items():  # both critics say 0 at first
        torch.testing.assert_close(module.gradients[0][name], gradient)
    returns, old = (torch.cat([b[name] for b in module.micro[1]]) for name in ("returns", "old_values"))
    values = torch.cat([module.critic.values(b, None) for b in module.micro[1]])
    assert float(((values - returns) ** 2).mean()) < 0.97 * float(((old - returns) ** 2).mean())


def test_a_critic_of_its_own_is_resumed_and_tested(folder, server, questions, tmp_path):
    module = make(folder, url=server.url, ppo={"critic_in": "adapter"})
    trainer = fit(module, questions, tmp_path, steps=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    held = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert all("lora_" in name or "head" in name for name in held if name.startswith("critic."))
    again = make(folder, url=server.url, ppo={"critic_in": "adapter"})
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, max_steps=2, enable_checkpointing=False)
    trainer.fit(again, QuestionDataModule(questions, batch_questions=2), ckpt_path=tmp_path / "a.ckpt")
    whole = make(folder, url=server.url, ppo={"critic_in": "adapter"})
    fit(whole, questions, tmp_path / "whole", steps=2)
    assert all(torch.equal(p, dict(whole.named_parameters())[name]) for name, p in again.named_parameters())


def test_trap_15_inner_epochs_and_minibatches_take_several_steps_and_count_as_one(folder, server, questions, tmp_path):
    module = make(folder, url=server.url, ppo={"inner_epochs": 2, "minibatch_episodes": 4})
    trainer = fit(module, questions, tmp_path, steps=1)
    # 8 episodes, 4 a step, 2 epochs: 4 steps in one update, which is what global_step counts (trap 15)
    assert len(module.gradients) == 4
    assert (trainer.global_step, int(module.updates), module._engine.version) == (1, 1, 1)
    # What is logged is the mean of the four: from the second on the policy is not the one that was rolled out.
    assert len(module.of("ppo/approx_kl")) == 1
    assert module.of("ppo/approx_kl")[0] > 1e-6


def rows_of(lengths, per_episode=1):
    return [TrainingRow([1] * n, [True] * n, [], [], 0.0, i // per_episode, i % per_episode) for i, n in enumerate(lengths)]


def test_optimizer_steps_are_even_and_take_the_longest_first():
    steps = []
    for count in (10, 8, 1, 13):  # of 2 episodes: 20, 16, 2 and 26 of them
        rows = rows_of([5] * 2 * count)
        notes = [{"token_weights": torch.ones(1)} for _ in rows]
        update = Update(rows, plan(rows, 2, 1), [], notes)
        steps += deal(update, 16, "token", torch.Generator().manual_seed(0))
    numbers = [step.micro for step in steps]
    assert [len(step) for step in numbers] == [10, 8, 1, 7, 6]  # not 8 and 2, nor 8 and 5
    assert all(step == sorted(step) for step in numbers)
    assert sorted(numbers[3] + numbers[4]) == list(range(13))
    assert numbers[3] != list(range(7))


def test_a_step_divides_by_its_own_weight_or_by_its_share():
    rows = rows_of([3, 2, 1])
    notes = [{"token_weights": torch.full((n,), w)} for n, w in ((3, 1.0), (2, 0.5), (1, 4.0))]
    generator, update = torch.Generator().manual_seed(0), Update(rows, plan(rows, 1, 1), [], notes)
    [step] = deal(update, 8, "token", generator)
    assert (step.micro, step.divisor, step.scale, step.tokens) == ([0, 1, 2], 6, 6 / 8, 6)
    parts = deal(update, 1, "episode", generator)
    assert [(len(part.micro), part.divisor, part.scale) for part in parts] == [(1, 2.0, 1.0)] * 3
    assert {part.micro[0]: part.tokens for part in parts} == {0: 3, 1: 2, 2: 1}


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40), size=st.integers(1, 5), ranks=st.integers(1, 8),
)  # fmt: skip
def test_trap_18_all_ranks_run_the_same_number_of_micro_batches(lengths, size, ranks):
    """Folding gives episodes different numbers of rows: each is run once, and some rank may run a filler in the last."""
    planned = plan(rows_of(lengths), size, ranks)
    assert all(len(micro) == ranks for micro in planned)
    run = [i for micro in planned for of_rank in micro for i in of_rank]
    assert sorted(run) == list(range(len(lengths)))
    assert all(len(of_rank) <= size for micro in planned for of_rank in micro)
    assert all(of_rank for micro in planned[:-1] for of_rank in micro)
    longest = [max(lengths[i] for of_rank in micro for i in of_rank) for micro in planned]
    assert longest == sorted(longest, reverse=True)
    counts = [len(of_rank) for of_rank in planned[-1]]
    assert max(counts) - min(counts) <= 1


def test_micro_batches_do_not_change_the_gradient(folder, server, questions, tmp_path):
    found = []
    for micro in (2, 8):
        module = make(folder, url=server.url, ppo={"micro_episodes": micro})
        fit(module, questions, tmp_path / str(micro), steps=1)
        found.append(module.gradients[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-3, atol=1e-6)


def test_real_sampling_gives_logprobs_that_the_trainer_agrees_with(folder, server, questions, tmp_path):
    module = make(folder, url=server.url, engine=None, ppo={"temperature": 0.7})
    module.reward = lambda episode: {"total": float(episode.turns[0].ids[0])}
    fit(module, questions, tmp_path, steps=2)
    assert isinstance(module._engine, TransformersEngine)
    assert all(gap < 1e-4 for gap in module.of("ppo/engine_gap"))  # also after the first sync
    assert all(e.finish in (FinishReason.LENGTH, FinishReason.MALFORMED) for es in module.all_episodes for e in es)


def test_trap_14_a_crashed_retriever_stops_the_run(folder, index, questions, tmp_path):
    with ServerHandle(index) as handle:
        module = make(folder, url=handle.url)
    module.configure_model()
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    with pytest.raises(RetrievalError, match="8 of 8 episodes lost their search tool"):
        fit(module, questions, tmp_path)
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())
    assert not module.of("train/reward")
    assert not (tmp_path / "merged").exists()


def test_the_engine_sleeps_while_the_trainer_has_the_memory(folder, server, questions, tmp_path):
    asked = []

    class Sleeper(Script):
        async def generate(self, prompt_ids, sampling):
            asked.append("generate")
            return await super().generate(prompt_ids, sampling)

        def sleep(self):
            asked.append("sleep")

        def sync(self, weights):
            asked.append("sync")
            return super().sync(weights)

    class Trained(Watched):
        def _train(self, rows):
            asked.append("train")
            super()._train(rows)

    fit(make(folder, url=server.url, engine=Sleeper, kind=Trained), questions, tmp_path)
    assert [name for name, _ in groupby(asked)] == ["generate", "sleep", "train", "sync"] * 2


@pytest.mark.parametrize("changes", [{}, {"engine": "vllm", "ppo": PPOSettings(overlap=True)}])
def test_an_engine_that_cannot_sleep_is_refused(folder, changes):
    options = {"ppo": PPOSettings(), "engine": "transformers", "retrieval_url": "http://127.0.0.1:1"} | changes
    with pytest.raises(
        InputError, match=r"model.engine_sleeps is for engine: vllm without ppo.overlap, not \w+ with ppo.overlap"
    ):
        PPO(model_path=str(folder), settings=SETTINGS, engine_sleeps=True, **options)


def test_a_judge_is_asked_of_what_is_rolled_out_and_pays(folder, server, questions, tmp_path):
    """It takes zinc for right, which no exact match does: both answers are paid, zinc by the judge's share."""
    with Endpoint() as endpoint:
        judge = Judge("m", endpoint.url, cache_file=tmp_path / "judge.db")
        reward = AnswerReward(f1_share=0.0, judge_share=0.5, evidence_bonus=0.0)
        module = make(folder, url=server.url, judge=judge, reward=reward)
        fit(module, questions, tmp_path, 1)
        (episodes,) = module.all_episodes
        assert {(e.answer == "Zinc", e.verdict, reward(e)["total"]) for e in episodes} == {(True, 1.0, 0.5), (False, 1.0, 1.0)}
        assert len(endpoint.asked) == 2  # zinc for each of two questions
        assert module.of("reward/verdict") == [1.0]
    with pytest.raises(InputError, match=r"reward.judge_share=0.5 is of a judge's verdict; give model.judge"):
        make(folder, url=server.url, reward=reward)
    with pytest.raises(
        InputError, match=r"reward.facts_bonus=0.1 is of a judge's word; give model.judge and judge.facts: true"
    ):
        make(folder, url=server.url, reward=AnswerReward(facts_bonus=0.1), judge=judge)


def test_trap_14_few_failed_episodes_are_left_out(folder):
    module = make(folder, url="http://127.0.0.1:1")
    turn = Turn((1,), (2,), (-1.0,), 0, True)
    failed = Episode(QUESTIONS[0], (turn,), (), FinishReason.TOOL_ERROR)
    wrong = Episode(QUESTIONS[0], (turn,), (), FinishReason.MAX_TURNS)
    module.run_episodes = lambda *args: [failed, wrong]
    kept, scores = module._scored(module._rollout([QUESTIONS[0]], 0))
    assert kept == [wrong]  # the policy's own failure is scored and trained
    assert [score["total"] for score in scores] == [0]


def test_trap_14_drift_stops_the_run(folder):
    module = make(folder, url="http://127.0.0.1:1")
    turn = Turn((1,), (2,), (-1.0,), 0, True, drifted=True)
    module.run_episodes = lambda *args: [Episode(QUESTIONS[0], (turn,), (), FinishReason.MAX_TURNS)]
    with pytest.raises(EngineError, match="in 1 turns the engine read other tokens than the rows hold"):
        module._scored(module._rollout([QUESTIONS[0]], 0))


def test_no_episode_to_train_is_one_sentence(folder):
    module = make(folder, url="http://127.0.0.1:1")
    module.run_episodes = lambda *args: [Episode(QUESTIONS[0], (), (), FinishReason.CONTEXT_FULL)]
    with pytest.raises(TrainingError, match="no episode of this update could be trained"):
        module._scored(module._rollout([QUESTIONS[0]], 0))


def test_trap_18_an_engine_that_was_there_before_the_process_group_is_refused(folder, monkeypatch):
    module = make(folder, url="http://127.0.0.1:1")
    module._trainer = SimpleNamespace(world_size=2)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    with pytest.raises(EngineError, match="the process group has 1 ranks and the trainer 2"):
        module.on_fit_start()


@pytest.mark.parametrize(
    ("changed", "message"), [(0.0, "no weight of the engine"), (0.1, "after sync 1 engine and trainer differ")]
)
def test_trap_14_an_engine_without_the_new_weights_stops_the_run(folder, server, questions, tmp_path, changed, message):
    class Stale(Script):
        def sync(self, weights):
            self.version += 1
            return changed

    module = make(folder, url=server.url, engine=Stale, learning_rate=0.5, ppo={"canary_tolerance": 0.01})
    with pytest.raises(EngineError, match=message):
        fit(module, questions, tmp_path)


def test_a_resumed_run_ends_with_the_same_parameters(folder, server, questions, tmp_path):
    def run(name, ckpt_path=None, *, batch=2, passes=1, **stop):
        torch.manual_seed(0)
        limits = EpisodeLimits(max_turns=3, turn_tokens=48, context_tokens=2048)
        numbers = PPOSettings(episodes_per_question=4, minibatch_episodes=8, micro_episodes=4, kl_target=0.01)
        module = PPO(
            ppo=numbers, lora=LoRA(4, 8.0), precision="float32", learning_rate=1e-2, model_path=str(folder), settings=SETTINGS,
            retrieval_url=server.url, engine="transformers", limits=limits,
        )  # fmt: skip
        module._engine = Script(str(folder))
        saving = ModelCheckpoint(tmp_path / name, "{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path / name, callbacks=[saving], **stop,
        )  # fmt: skip
        trainer.fit(module, QuestionDataModule(questions, batch_questions=batch, train_passes=passes), ckpt_path=ckpt_path)
        assert module._engine.version == int(module.updates) == 3
        return {n: p.detach().clone() for n, p in module.state_dict().items()}

    # 2 batches an epoch: the stop at 1 is inside the first, and 3 steps reach into the second.
    whole = run("whole", max_steps=3, max_epochs=-1)
    resumed = run("resumed", str(tmp_path / "whole" / "step=1.ckpt"), max_steps=3, max_epochs=-1)
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())
    # As the quickstart's: every update meets all questions, in one epoch of several passes; resumed twice.
    passes = {"batch": 4, "passes": 3, "max_epochs": 1}
    whole = run("passes", **passes)
    run("once", str(tmp_path / "passes" / "step=1.ckpt"), **passes)
    twice = run("twice", str(tmp_path / "once" / "step=2.ckpt"), **passes)
    assert all(torch.equal(twice[name], weight) for name, weight in whole.items())
    kept = torch.load(tmp_path / "whole" / "step=1.ckpt", weights_only=False)["state_dict"]
    assert {name.split(".")[0] for name in kept} == {"policy", "critic", "updates", "kl_scale", "critic_fits", "flat"}
    assert all("lora_" in name or "trainable_tokens" in name for name in kept if name.startswith("policy."))


def test_a_checkpoint_of_another_estimator_is_tested_and_not_trained_on(folder, server, questions, tmp_path):
    saved = tmp_path / "saved.ckpt"
    module = make(folder, url=server.url)
    fit(module, questions, tmp_path, steps=1).save_checkpoint(saved)
    checkpoint = torch.load(saved, weights_only=True)
    other = make(folder, url=server.url, ppo={"estimator": "grpo"})
    other.configure_model()
    other.on_load_checkpoint(checkpoint)
    other.load_state_dict(checkpoint["state_dict"])
    assert all(torch.equal(p, dict(module.policy.named_parameters())[n]) for n, p in other.policy.named_parameters())
    with pytest.raises(InputError, match="estimator=grpo, and the training in the checkpoint goes on with gae"):
        Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, max_steps=2).fit(
            make(folder, url=server.url, ppo={"estimator": "grpo"}), QuestionDataModule(questions), ckpt_path=saved
        )


def test_what_is_tested_is_the_checkpoint(folder):
    module = make(folder, url="http://127.0.0.1:1")
    module.configure_model()
    with torch.no_grad():
        for name, parameter in module.policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    module.updates += 7  # as a checkpoint would
    prompt, ids = list(b"Which metal"), list(b"Gold")
    assert module._engine.score(prompt, ids) != pytest.approx(module._score(prompt, ids).tolist(), abs=0.01)
    module.on_predict_start()
    assert module._engine.version == 7
    assert module._engine.score(prompt, ids) == pytest.approx(module._score(prompt, ids).tolist(), abs=1e-4)


def test_a_critic_that_is_not_finite_stops_the_run_before_its_step(folder, server, questions, tmp_path):
    module = make(folder, url=server.url, critic_learning_rate=1e38, ppo={"critic_steps": 3})
    with pytest.raises(TrainingError, match="not finite"):
        fit(module, questions, tmp_path, steps=1)


def test_a_kl_without_a_reference_is_refused(folder):
    options = {"model_path": str(folder), "settings": SETTINGS, "retrieval_url": "http://x", "lora": None}
    with pytest.raises(InputError, match=r"ppo\.kl_coef=0\.02 needs a reference.*give lora, or kl_coef: 0"):
        PPO(**options)
    PPO(**options, ppo=PPOSettings(kl_coef=0.0))


def test_an_adapter_is_synced_to_vllm_only(folder):
    with pytest.raises(InputError, match=r"model\.sync=adapter is for vLLM"):
        make(folder, url="http://x", sync="adapter")


def test_numbers_that_train_nothing_are_refused():
    with pytest.raises(InputError, match=r"ppo\.critic_steps=0 must be at least 1"):
        PPOSettings(critic_steps=0)


def test_index_and_address_exclude_each_other(folder, index):
    for arguments in ({}, {"index": index, "url": "http://127.0.0.1:1"}):
        with pytest.raises(InputError, match=r"one of model\.index"):
            make(folder, **arguments)
