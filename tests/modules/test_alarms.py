"""Alarms by hand, and in a training that is made to collapse."""

import pytest
import torch
from lightning import Callback, Trainer
from test_ppo import Watched, make
from test_resume import Rows

from project.datamodules.question import QuestionDataModule
from project.errors import InputError, TrainingError
from project.modules.alarms import Alarms
from project.modules.ppo import PPO

HEALTHY = {"train/correct_logprob": -0.5, "ppo/entropy": 0.4, "ppo/kl": 0.1, "train/tool_errors": 0.0, "train/reward": 0.3}


@pytest.mark.parametrize(
    ("rule", "changed", "said"),
    [
        ("entropy", {"ppo/entropy": 0.03}, "the entropy is 0.03 nats, 0.4 at first"),
        ("kl", {"ppo/kl": 1.5}, "the KL to the reference is 1.5 nats a token, over 1"),
        ("tool_errors", {"train/tool_errors": 0.25}, "25% of the episodes lost their search tool"),
    ],
)
def test_a_rule_by_hand(rule, changed, said):
    alarms = Alarms()
    assert alarms.look(HEALTHY) == {}
    assert alarms.look(HEALTHY | changed) == {rule: said}
    off = {"entropy": "least_entropy", "kl": "most_kl", "tool_errors": "most_tool_errors"}[rule]
    alarms = Alarms(**{off: None})
    alarms.look(HEALTHY)
    assert alarms.look(HEALTHY | changed) == {}


def test_likelihood_is_judged_by_its_running_mean():
    alarms = Alarms(likelihood_drop=1.0)
    alarms.look(HEALTHY)
    fallen = HEALTHY | {"train/correct_logprob": -5.5}
    assert alarms.look(fallen) == {}  # -1.0 on average
    assert alarms.look(fallen) == {}  # -1.45: 0.95 below the best
    assert alarms.look(fallen) == {"likelihood": "correct episodes have -1.85 nats a token, -0.5 at their best"}
    assert "likelihood" not in alarms.look({"ppo/entropy": 0.4})  # nothing was right: nothing is known


def test_an_update_without_episodes_has_no_reward():
    """With overlap the first has none: taken as 0, the mean would rise for many updates though the reward stands still."""
    alarms = Alarms()
    for metrics in ({}, {"train/reward": 0.5}, {}, {"train/reward": 0.5}):
        alarms.look(metrics)
    assert alarms.seen["reward"] == 0.5


def test_held_out_em_that_falls_while_the_reward_rises():
    alarms = Alarms(em_drop=0.2)
    alarms.look({"train/reward": 0.3})
    assert alarms.look_held_out({"val/em": 0.5}) == {}
    assert alarms.look_held_out({"val/em": 0.2}) == {}  # the reward is what it was
    alarms.look({"train/reward": 0.6})
    assert alarms.look_held_out({"val/em": 0.31}) == {}
    assert alarms.look_held_out({"val/em": 0.29}) == {
        "held_out": "the held-out EM fell from 0.5 to 0.29 while the training reward rose"
    }
    assert alarms.look_held_out({}) == {}


def test_settings_of_nothing_are_refused():
    with pytest.raises(InputError, match="patience=0"):
        Alarms(patience=0)
    with pytest.raises(InputError, match="slow_down=0"):
        Alarms(slow_down=0)


def fit(module, questions, root, alarms, steps=6, ckpt_path=None):
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=root,
        enable_checkpointing=False, callbacks=[alarms], max_steps=steps, max_epochs=-1,
    )  # fmt: skip
    trainer.fit(module, QuestionDataModule(questions, batch_questions=2), ckpt_path=ckpt_path)
    return trainer


class Logging(Watched):
    """Logs to Lightning too, whose callbacks read that."""

    def log(self, name, value, *args, **kwargs):
        super().log(name, value)
        PPO.log(self, name, value, *args, **kwargs)


class Broken(Alarms):
    """Sees what its rules would where the numbers of updates 2 and 3, or all from 2 on, are bad."""

    def __init__(self, *, ever=False, **arguments):
        super().__init__(patience=arguments.pop("patience", 1), **arguments)
        self.looks, self.ever = 0, ever

    def look(self, metrics):
        assert {"ppo/kl", "ppo/entropy", "train/correct_logprob", "train/tool_errors", "train/reward"} <= metrics.keys()
        self.looks += 1
        bad = {"ppo/kl": 2.0 + self.looks} if self.looks == 2 or (self.looks > 2 and self.ever) else {}
        return super().look(metrics | {"train/correct_logprob": -1.0, "ppo/entropy": 1.0, "ppo/kl": 0.0} | bad)


def module_of(folder, server):
    return make(folder, kind=Logging, url=server.url, learning_rate=0.1, ppo={"canary_tolerance": 9.0})


def test_an_alarm_stops_the_run_after_its_patience(folder, server, questions, tmp_path, caplog):
    said = r"an alarm stops the run at update 3: the KL to the reference is 5 nats a token, over 1; go on from"
    with pytest.raises(TrainingError, match=said):
        fit(module_of(folder, server), questions, tmp_path, Broken(ever=True, patience=2))
    assert "alarm after update 2: the KL to the reference is 4 nats a token, over 1" in caplog.text
    assert not (tmp_path / "merged").exists()


def test_a_warning_only_warns_and_so_does_an_alarm_that_passes(folder, server, questions, tmp_path, caplog):
    for name, alarms in (("warn", Broken(action="warn", ever=True)), ("passes", Broken(patience=2))):
        caplog.clear()
        module = module_of(folder, server)
        assert fit(module, questions, tmp_path / name, alarms, steps=4).global_step == 4
        assert caplog.text.count("alarm after update") == 1
        assert module.of("alarm/broken_rules") == [0, 1, *([1, 1] if name == "warn" else [0, 0])]


def test_rolling_back_gives_the_healthy_weights_and_goes_on_slower(folder, server, questions, tmp_path, caplog):
    module, before = module_of(folder, server), {}
    train = module._train

    def watched(rows):
        weights = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}
        momenta = [o.state[p]["exp_avg"].clone() for o in module.trainer.optimizers for p in o.state]
        before[int(module.updates)] = weights, momenta, int(module.critic_fits)
        train(rows)

    module._train = watched
    alarms = Broken(action="roll_back", snapshot_every=1, slow_down=0.5)
    trainer = fit(module, questions, tmp_path, alarms, steps=4)
    assert alarms.roll_backs == 1
    assert "rolled back to update 1, learning rates times 0.5: the KL to the reference is 4 nats" in caplog.text
    assert trainer.global_step == int(module.updates) == module._engine.version == 4  # the questions went on
    (healthy, momenta, fits), (back, their_momenta, their_fits) = before[1], before[2]
    assert all(torch.equal(back[name], weight) for name, weight in healthy.items())
    assert momenta
    assert all(torch.equal(a, b) for a, b in zip(momenta, their_momenta, strict=True))
    assert fits == their_fits == 1
    assert all(not torch.equal(before[3][0][name], w) for name, w in back.items() if "lora_B" in name)  # it trains on
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.05
    ids = [256, 10, 20, 30, 257]
    assert module._engine.score(ids[:2], ids[2:]) == pytest.approx(module._score(ids[:2], ids[2:]).tolist(), abs=1e-4)
    resumed = Alarms(action="roll_back")
    resumed.load_state_dict(alarms.state_dict())
    assert resumed.state_dict() == alarms.state_dict()


def test_after_so_many_roll_backs_it_stops(folder, server, questions, tmp_path):
    alarms = Broken(action="roll_back", ever=True, snapshot_every=1, most_roll_backs=1)
    with pytest.raises(TrainingError, match=r"an alarm stops the run at update 3 after 1 roll-backs"):
        fit(module_of(folder, server), questions, tmp_path, alarms, steps=9)


def test_only_a_module_that_can_go_back_is_rolled_back():
    with pytest.raises(InputError, match="Alarms are for PPO, not for Linear"):
        Alarms().setup(None, torch.nn.Linear(1, 1), "fit")


def test_numbers_of_earlier_updates_are_not_seen_again(folder, server, questions, tmp_path):
    """An update that trains nothing logs no KL: Lightning still shows the last one, which would count as another alarm."""
    seen = []

    class Looks(Alarms):
        def look(self, metrics):
            seen.append(dict(metrics))
            return super().look(metrics)

    module = module_of(folder, server)
    module.reward = lambda episode: {"em": 0.0, "total": float(int(module.updates) < 1 and episode.answer != "Zinc")}
    rows = Rows()
    trainer = Trainer(
        accelerator="cpu", logger=rows, log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, enable_checkpointing=False, callbacks=[Looks()], max_steps=2, max_epochs=-1,
    )  # fmt: skip
    trainer.fit(module, QuestionDataModule(questions, batch_questions=2))
    assert ["ppo/kl" in metrics for metrics in seen] == [True, False]
    assert "ppo/kl" in trainer.callback_metrics
    logged = {step: {name for s, name, _ in rows.rows if s == step} for step in (0, 1)}
    assert ["ppo/kl" in names for names in logged.values()] == [True, False]
    assert all({"train/reward", "alarm/broken_rules"} <= names for names in logged.values())


def test_the_snapshot_of_another_training_is_never_taken(folder, server, questions, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "healthy.ckpt").write_bytes(b"of another run")
    alarms = Broken(action="roll_back", ever=True, snapshot_every=100)
    with pytest.raises(TrainingError, match=r"an alarm stops the run at update 2: the KL"):
        fit(module_of(folder, server), questions, tmp_path, alarms)
    assert not (tmp_path / "checkpoints" / "healthy.ckpt").exists()


def test_what_a_validation_finds_is_acted_on_before_the_next_update(folder, server, questions, tmp_path):
    """Its own checkpoints are saved first: the best would else hold weights that never earned its score."""
    order = []

    class Falls(Alarms):
        def look_held_out(self, metrics):
            return {"held_out": "it fell"}

        def _act(self, trainer, pl_module, said):
            order.append(said)

    class Saves(Callback):
        def on_validation_end(self, trainer, pl_module):
            order.append("validation saved")

    module = module_of(folder, server)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        enable_checkpointing=False, callbacks=[Falls(patience=1), Saves()], max_steps=2, max_epochs=-1, num_sanity_val_steps=0,
        val_check_interval=1,
    )  # fmt: skip
    data = QuestionDataModule(questions, validation_file=questions, batch_questions=2, check_split=False)
    trainer.fit(module, data)
    assert order[:2] == ["validation saved", "it fell"]
