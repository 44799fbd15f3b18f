"""Supervised fine-tuning of the tiny model: gradients against ones made by hand, however the step is cut; resume; export."""

import random
from types import SimpleNamespace

import numpy
import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import tiny_model_folder
from torch.nn import functional
from transformers import AutoModelForCausalLM

from project.datamodules.conversation import ConversationDataModule
from project.datamodules.plan import PlannedLoader, collate, plan_epoch
from project.dialects import Action, get_dialect
from project.errors import InputError, TrainingError
from project.modules.optimization import warmup_cosine
from project.modules.policy import AgentSettings, LoRA
from project.modules.sft import SFT, StepPart, check_finite, suspects
from project.modules.show_batch import ShowBatch
from project.records import Conversation, Document, Message
from project.rendering import KIND_INDEX, Sample, SpanKind
from project.writing import write_rows

SETTINGS = AgentSettings("tags", True)
MICRO = 700
"""Tokens a micro-batch: about three of the ten training samples."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("tiny") / "model")


def conversation(index: int) -> Conversation:
    dialect = SETTINGS.make_dialect()
    search = Action("I look." * (index % 3 + 1), (f"thing {index}",))
    messages = (
        Message("user", f"Question: {index}?"),
        dialect.write(search),
        *dialect.results([[Document(f"It is {index}.", "Thing")]], search),
        dialect.write(Action("So.", answer=str(index) * (index % 4 + 1))),
    )
    return Conversation(f"c{index}", messages)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("data"))


def write_files(data):
    for name, numbers in (("train", range(10)), ("validation", range(20, 23))):
        write_rows(data / f"{name}.jsonl", (conversation(i).to_row() for i in numbers))
    return data


def make_data(files, **changes) -> ConversationDataModule:
    return ConversationDataModule(files / "train.jsonl", files / "validation.jsonl", **({"micro_tokens": MICRO} | changes))


def make_module(folder, lora=None, **changes) -> SFT:
    torch.manual_seed(0)  # of LoRA's A
    return SFT(str(folder), SETTINGS, lora, "float32", **changes)


class Watch(Callback):
    """Keeps the gradients, and what was logged, of each optimizer step."""

    def __init__(self):
        self.gradients, self.logged, self.batches = [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append({n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append([row.tolist() for row in batch["input_ids"].split(batch["lengths"])])
        self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def fit(module, data, root, *, accumulate=1, ckpt_path=None, callbacks=(), **changes) -> Watch:
    watch = Watch()
    options = {"max_epochs": 1, "limit_val_batches": 0, "num_sanity_val_steps": 0} | changes
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=root,
        accumulate_grad_batches=accumulate, callbacks=[watch, *callbacks], log_every_n_steps=1,
        enable_checkpointing=bool(callbacks), **options,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=ckpt_path)
    watch.trainer = trainer
    return watch


def by_hand(module: SFT, folder, samples: list[Sample]) -> dict[str, torch.Tensor]:
    """Gradients of sum(w * CE) / sum(w), each sample alone, unpadded, label t + 1 at position t, by plain transformers."""
    fresh = SFT(str(folder), SETTINGS, None, "float32")
    fresh.configure_model()
    model = fresh.policy.model
    model.set_attn_implementation("eager")
    total = loss = 0.0
    for sample in samples:
        ids, weights = torch.tensor(sample.ids), torch.tensor(sample.weights)
        ce = functional.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
        loss, total = loss + (weights[1:] * ce).sum(), total + weights[1:].sum()
    (loss / total).backward()
    return {f"policy.model.{n}": p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 4), (2, 2), (3, 2)])
def test_gradients_of_each_step_equal_those_by_hand(folder, files, tmp_path, accumulate, steps):
    """10 samples in 4 micro-batches: with accumulate 3 the two steps hold 2 each and an empty one."""
    data, module = make_data(files), make_module(folder, learning_rate=0.0)  # the second step starts from the same weights
    watch = fit(module, data, tmp_path, accumulate=accumulate)
    samples = data.train_dataloader().samples
    plan = plan_epoch([len(s.ids) for s in samples], 0, 0, MICRO, accumulate, 1)
    assert len(watch.gradients) == len(plan) == steps
    for found, step in zip(watch.gradients, plan, strict=True):
        chosen = [samples[i] for micro in step for share in micro for i in share]
        expected = by_hand(module, folder, chosen)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lora", [None, LoRA(4, 8.0)], ids=["full", "lora"])
def test_accumulation_does_not_change_what_is_learnt(folder, files, tmp_path, lora):
    """All 10 samples in one micro-batch, or in four of an optimizer step."""
    found = []
    for accumulate, tokens in ((1, 100_000), (4, MICRO)):
        module, data = make_module(folder, lora, learning_rate=1e-3), make_data(files, micro_tokens=tokens)
        watch = fit(module, data, tmp_path / str(accumulate), accumulate=accumulate, max_steps=1, max_epochs=-1)
        assert len(watch.batches) == accumulate
        found.append({n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad})
    start = make_module(folder, lora)
    start.configure_model()
    moved = [not torch.equal(p, found[0][n]) for n, p in start.named_parameters() if p.requires_grad]
    assert any(moved)
    for name, weight in found[0].items():
        # AdamW's first step is the sign of the gradient: entries of almost 0 may differ by rounding.
        share = ((weight - found[1][name]).abs() > 1e-6).float().mean()
        assert share < 0.002, name


def test_two_ranks_average_to_the_same_gradient(folder, files, tmp_path):
    data = make_data(files, micro_tokens=100_000)
    watch = fit(make_module(folder, learning_rate=0.0), data, tmp_path, max_steps=1, max_epochs=-1)
    samples = data.train_dataloader().samples
    gradients = []
    for rank in (0, 1):
        module = make_module(folder)
        module.configure_model()
        module.log = lambda *args, **kwargs: None
        module._trainer = SimpleNamespace(accumulate_grad_batches=2, world_size=2)
        for batch in PlannedLoader(samples, 257, MICRO, 2, 0, rank, 2):
            (module.training_step(batch, 0) / 2).backward()  # Lightning divides by accumulate_grad_batches
        gradients.append({n: p.grad for n, p in module.named_parameters()})
    for name, expected in watch.gradients[0].items():
        mean = (gradients[0][name] + gradients[1][name]) / 2  # what DDP does
        torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-6)


class Fake:
    """A policy that is sure of the token at `offset` from the position that it is asked at."""

    def __init__(self, offset: int):
        self.offset = offset

    def __call__(self, ids, lengths, then):
        return then(50.0 * functional.one_hot(ids.roll(-self.offset), 260).float())

    def head_weight(self):
        return torch.eye(260)


def test_trap_01_labels_are_shifted(folder, files):
    module = make_module(folder)
    ids = [256, 10, 20, 30, 40, 257]
    batch = collate([Sample("a", ids, [0] * 6, [0.0, 0.0, 1.0, 2.0, 1.0, 1.0])], 257)

    def loss(offset):
        object.__setattr__(module, "policy", Fake(offset))
        total, _, right = module._loss(batch)
        return float(total), int(right.sum())

    # Five in all of weight stands on positions 2 to 5. The next token: no loss. The same token: 50 nats for each weight.
    module._modules.pop("policy", None)
    assert loss(1) == (pytest.approx(0, abs=1e-3), 4)
    assert loss(0) == (pytest.approx(250), 0)


def test_only_weighted_tokens_count(folder):
    module = make_module(folder)
    module.configure_model()
    sample = Sample("a", [256, 10, 20, 30], [0] * 4, [0.0, 0.0, 1.5, 0.0])
    with torch.no_grad():
        found, *_ = module._loss(collate([sample], 257))
        logits = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([[256, 10, 20, 30]])).logits[0]
        grown = module.policy.head(module.policy(torch.tensor([256, 10, 20, 30]), [4]))
    torch.testing.assert_close(grown[:, :258], logits, rtol=0, atol=1e-5)
    assert float(found) == pytest.approx(-1.5 * float(grown[1].log_softmax(-1)[20]), abs=1e-4)


def test_a_pack_has_the_loss_and_the_gradients_of_its_samples(folder):
    """loss(a) + loss(b) = loss(pack), also where the second would see the first, and where a first token has a weight."""
    samples = [Sample(str(n), [256, *range(10, 10 + n), 257], [0] * (n + 2), [1.0] * (n + 2)) for n in (3, 30, 1, 12)]

    def measured(*batches):
        module = make_module(folder)
        module.configure_model()
        loss = sum(module._loss(collate(batch, 257))[0] for batch in batches)
        loss.backward()
        return float(loss), {n: p.grad for n, p in module.named_parameters()}

    alone, expected = measured(*([sample] for sample in samples))
    together, found = measured(samples)
    assert together == pytest.approx(alone, rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_a_batch_without_a_trained_token_has_no_gradient(folder):
    module = make_module(folder)
    module.configure_model()
    loss, logprobs, right = module._loss(collate([], 257))
    loss.backward()
    assert float(loss) == 0
    assert len(logprobs) == len(right) == 0
    assert not any(p.grad is not None and p.grad.any() for p in module.parameters())


def test_trap_03_new_token_rows_train_and_the_folder_holds_them(folder, files, tmp_path):
    """The whole way: the rows of the decision tokens move in training, and the exported folder predicts like the module."""
    module = make_module(folder, LoRA(4, 8.0), learning_rate=1e-2, export_dir=tmp_path / "merged")
    module.configure_model()
    before = dict(module.policy.merged_weights())["model.embed_tokens.weight"].detach().clone()
    fit(module, make_data(files), tmp_path, max_epochs=3)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    after = exported.get_input_embeddings().weight
    assert ((after - before)[258:260].abs().sum(1) > 1e-3).all()
    torch.testing.assert_close(after[:258], before[:258], rtol=0, atol=0)
    ids = torch.tensor([[256, 10, 258, 20, 259, 257]])
    with torch.no_grad():
        logits = module.policy.head(module.policy(ids[0], [ids.shape[1]]))
        torch.testing.assert_close(exported(ids).logits[0], logits, rtol=0, atol=1e-4)
    assert AgentSettings.load(tmp_path / "merged") == SETTINGS


def test_the_logged_loss_and_tokens_are_those_of_the_whole_step(folder, files, tmp_path):
    """Not of the last micro-batch, which is the shortest: the weighted mean over the step's samples, each alone by hand."""
    data, module = make_data(files), make_module(folder, learning_rate=0.0)
    watch = fit(module, data, tmp_path, accumulate=3)
    model, samples = module.policy.model, data.train_dataloader().samples
    model.set_attn_implementation("eager")
    plan = plan_epoch([len(s.ids) for s in samples], 0, 0, MICRO, 3, 1)
    for step, logged in enumerate((watch.logged[2], watch.logged[-1])):
        chosen = [samples[i] for micro in plan[step] for share in micro for i in share]
        loss = total = 0.0
        for sample in chosen:
            ids, weights = torch.tensor(sample.ids), torch.tensor(sample.weights)[1:]
            ce = functional.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
            loss, total = loss + float((weights * ce).sum()), total + float(weights.sum())
        assert logged["train/loss"] == pytest.approx(loss / total, rel=1e-4)
        assert logged["train/tokens"] == sum(len(s.ids) for s in chosen)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_under_autocast_with_the_fused_optimizer(folder, files, tmp_path, algorithm):
    """The quickstart's trainer; AdamW's moments after the first step show the gradient that it was given."""

    def moments(name, **changes):
        module = make_module(folder, LoRA(4, 8.0))
        watch = fit(module, make_data(files), tmp_path / name, max_steps=1, max_epochs=-1, precision="bf16-mixed", **changes)
        (optimizer,) = watch.trainer.optimizers
        return torch.cat([10 * optimizer.state[p]["exp_avg"].flatten() for g in optimizer.param_groups for p in g["params"]])

    whole = moments("whole")
    clipped = moments("clipped", gradient_clip_val=0.01, gradient_clip_algorithm=algorithm)
    expected = whole.clamp(-0.01, 0.01) if algorithm == "value" else whole * 0.01 / whole.norm()
    assert whole.norm() > 0.02
    torch.testing.assert_close(clipped, expected, rtol=1e-3, atol=1e-6)


def test_training_lowers_the_loss(folder, files, tmp_path):
    watch = fit(make_module(folder, learning_rate=1e-2), make_data(files), tmp_path, max_epochs=6)
    losses = [row["train/loss"] for row in watch.logged]
    assert losses[0] == pytest.approx(5.56, abs=0.1)  # ln 260: the tiny model knows nothing
    assert losses[-1] < 0.75 * losses[0]


def test_each_epoch_trains_every_sample_once(folder, files, tmp_path):
    """Lightning never asks the loader for its end: the second and third epochs must not be empty."""
    watch = fit(make_module(folder, learning_rate=0.0), make_data(files), tmp_path, max_epochs=3)
    assert len(watch.batches) == 12
    epochs = [[tuple(row) for batch in watch.batches[i : i + 4] for row in batch] for i in (0, 4, 8)]
    assert [len(epoch) for epoch in epochs] == [10, 10, 10]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(("stop", "nf4"), [(2, False), (4, False), (2, True)], ids=["inside", "at the end", "qlora"])
def test_a_resumed_run_ends_with_the_same_parameters(folder, files, tmp_path, stop, nf4):
    """4 steps an epoch: a stop inside an epoch and one at its end."""

    def run(name, ckpt_path=None, save=False):
        module = make_module(folder, LoRA(4, 8.0, nf4=nf4), learning_rate=1e-2)
        saving = ModelCheckpoint(tmp_path / name, "{step}", every_n_train_steps=1, save_top_k=-1) if save else None
        data = make_data(files)
        callbacks = [saving] if saving else []
        watch = fit(module, data, tmp_path / name, ckpt_path=ckpt_path, callbacks=callbacks, max_epochs=2)
        return watch, {n: p.detach().clone() for n, p in module.named_parameters()}

    whole, expected = run("whole", save=True)
    resumed, found = run("resumed", str(tmp_path / "whole" / f"step={stop}.ckpt"))
    assert resumed.batches == whole.batches[stop:]
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    held = torch.load(tmp_path / "whole" / f"step={stop}.ckpt", weights_only=True)["state_dict"]
    assert not [name for name in held if "base_layer" in name]


def test_validation_measures_each_kind_and_sees_all(folder, files, tmp_path):
    module, data = make_module(folder, learning_rate=0.0), make_data(files, micro_tokens=300)
    watch = fit(
        module, data, tmp_path, max_steps=1, max_epochs=-1, limit_val_batches=1.0, num_sanity_val_steps=2, val_check_interval=1
    )
    metrics = watch.trainer.callback_metrics
    samples = data.val_dataloader()[0].samples
    total = loss = right = count = 0.0
    with torch.no_grad():
        for sample in samples:
            ids, weights = torch.tensor(sample.ids), torch.tensor(sample.weights)[1:]
            logits = module.policy.head(module.policy(ids, [len(ids)]))[:-1]
            loss += float((functional.cross_entropy(logits, ids[1:], reduction="none") * weights).sum())
            total += float(weights.sum())
            chosen = (torch.tensor(sample.kinds)[1:] == KIND_INDEX[SpanKind.THINK]) & (weights > 0)
            right, count = right + int((logits.argmax(-1) == ids[1:])[chosen].sum()), count + int(chosen.sum())
    assert float(metrics["val/loss"]) == pytest.approx(loss / total, rel=1e-5)
    assert float(metrics["val/accuracy_think"]) == pytest.approx(right / count, abs=1e-6)


def test_validation_logs_the_kinds_that_there_are_and_starts_anew(folder, files, tmp_path):
    module, data = make_module(folder, learning_rate=0.0), make_data(files)
    watch = fit(module, data, tmp_path, max_epochs=2, limit_val_batches=1.0)
    first = {k: float(v) for k, v in watch.trainer.callback_metrics.items() if k.startswith("val/")}
    kinds = ("think", "search", "decision", "answer", "end")
    assert set(first) == {"val/loss", *(f"val/{metric}_{kind}" for kind in kinds for metric in ("loss", "accuracy"))}
    again = fit(make_module(folder, learning_rate=0.0), make_data(files), tmp_path, limit_val_batches=1.0)
    assert first == {k: float(v) for k, v in again.trainer.callback_metrics.items() if k.startswith("val/")}


def test_further_files_are_validated_by_name_and_must_share_nothing_with_training(folder, files, tmp_path):
    """What a phase forgets of the others shows in their loss; of the same file it is the same number."""
    write_rows(tmp_path / "one.jsonl", [conversation(20).to_row()])
    also = {"same": files / "validation.jsonl", "one": tmp_path / "one.jsonl"}
    data = make_data(files, also_validate=also)
    watch = fit(make_module(folder, learning_rate=0.0), data, tmp_path, limit_val_batches=1.0, num_sanity_val_steps=2)
    found = {name: float(value) for name, value in watch.trainer.callback_metrics.items() if name.endswith("/loss")}
    assert found["val_same/loss"] == found["val/loss"]
    assert found["val_one/loss"] != found["val/loss"]
    assert {*data.data_files} == {"train", "validation", "validation_same", "validation_one"}
    shared = make_data(files, also_validate={"train": files / "train.jsonl"})
    with pytest.raises(InputError, match=r"training and validation are the same file .*train\.jsonl"):
        fit(make_module(folder), shared, tmp_path)
    write_rows(tmp_path / "shared.jsonl", [conversation(3).to_row()])
    with pytest.raises(InputError, match=r"the training conversations and those of shared\.jsonl"):
        fit(make_module(folder), make_data(files, also_validate={"x": tmp_path / "shared.jsonl"}), tmp_path)


def test_a_validation_loss_that_is_not_a_number_is_not_left_out(folder):
    module = make_module(folder)
    logged = {}
    module.log = lambda name, value: logged.update({name: float(value)})
    module.validation["loss"].update(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0]))
    module.validation["loss_think"].update(torch.tensor([2.0, 4.0]))
    module.on_validation_epoch_end()
    assert logged == {"val/loss": float("inf"), "val/loss_think": 3}


def test_a_gradient_that_is_not_finite_stops_before_the_step(folder, files, tmp_path):
    module = make_module(folder, learning_rate=1.0)
    module.configure_model()
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    module.policy.model.model.norm.register_full_backward_hook(lambda m, i, o: (torch.full_like(i[0], float("nan")),))
    with pytest.raises(TrainingError, match=r"not finite at step 0 \(samples c\d.*\); lower the learning rate"):
        fit(module, make_data(files), tmp_path)
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())


def test_the_samples_whose_loss_is_not_finite_are_named(folder, files, tmp_path):
    """Three micro-batches make a step; the one that holds sample c4 is bad, and its samples are named, no other."""
    module, told = make_module(folder), {}

    class Spoil(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if "c4" in batch["names"]:
                told["bad"] = batch["names"]
                batch["weights"][-1] = float("inf")

    with pytest.raises(TrainingError) as caught:
        fit(module, make_data(files), tmp_path, accumulate=3, callbacks=[Spoil()])
    assert f"(samples {', '.join(told['bad'])});" in str(caught.value)


def test_scaled_gradients_are_refused(folder):
    module = make_module(folder)
    module._trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=object()))
    with pytest.raises(InputError, match=r"16-mixed scales gradients.*take bf16-mixed"):
        module.on_fit_start()


@pytest.mark.parametrize("change", [{"lora": LoRA(4, 16.0)}, {"optimizer": "adamw_8bit"}, {"learning_rate": 0.5}])
def test_training_goes_on_with_what_it_began_with(folder, files, tmp_path, change):
    given = {"lora": LoRA(4, 8.0)}
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    fit(make_module(folder, **given), make_data(files), tmp_path, max_steps=1, max_epochs=-1, callbacks=[saving])
    with pytest.raises(InputError, match=f"model.{next(iter(change))}=.*the training in the checkpoint goes on with"):
        fit(make_module(folder, **{**given, **change}), make_data(files), tmp_path, ckpt_path=str(tmp_path / "step=1.ckpt"))


def test_many_samples_are_counted():
    parts = [StepPart(torch.tensor(1.0), 3, [f"c{i}" for i in range(20)])]
    assert suspects(parts) == [f"c{i}" for i in range(20)]
    module = SimpleNamespace(
        parameters=lambda: [SimpleNamespace(grad=torch.tensor([float("nan")]))],
        trainer=SimpleNamespace(strategy=SimpleNamespace(reduce=lambda flag, reduce_op: flag)),
        device=torch.device("cpu"),
        global_step=4,
    )
    with pytest.raises(TrainingError, match=r"at step 4 .samples c0, c1, c2, c3, c4, c5, c6, c7 and 12 more.; lower"):
        check_finite(module, suspects(parts))


def test_gradient_checkpointing_changes_memory_and_not_the_gradient(folder, files, tmp_path):
    def run(checkpointing):
        module, calls = make_module(folder, gradient_checkpointing=checkpointing), []
        module.configure_model()
        module.policy.causal_lm.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
        return fit(module, make_data(files), tmp_path / str(checkpointing), max_steps=1, max_epochs=-1), len(calls)

    (plain, once), (again, twice) = run(False), run(True)
    assert (once, twice) == (1, 2)
    for name, gradient in plain.gradients[0].items():
        torch.testing.assert_close(again.gradients[0][name], gradient, rtol=0, atol=0)


def test_checkpoints_hold_plain_types_and_the_random_numbers(folder, files, tmp_path):
    """A resumed run draws what the whole one would have drawn, whatever was drawn before its first batch."""

    class Draw(Callback):
        def __init__(self, waste):
            self.waste, self.drawn = waste, []

        def on_train_start(self, trainer, pl_module):
            if self.waste:
                for draw in (random.random, numpy.random.rand, torch.rand):
                    draw(*([3] if draw is torch.rand else []))

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.drawn.append((random.random(), numpy.random.rand(), float(torch.rand(()))))

    def run(name, waste=False, ckpt_path=None):
        saving = ModelCheckpoint(tmp_path / name, "{step}", every_n_train_steps=1, save_top_k=-1)
        draw = Draw(waste)  # before the checkpoint is saved
        module = make_module(folder, LoRA(4, 8.0))
        fit(module, make_data(files), tmp_path / name, callbacks=[draw, saving], ckpt_path=ckpt_path)
        return draw.drawn

    whole = run("whole")
    path = tmp_path / "whole" / "step=2.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 2
    assert run("resumed", True, str(path)) == whole[2:]


def test_show_batch_prints_runs_of_kinds_with_their_weights(folder, files, tmp_path, capsys):
    module, data = make_module(folder), make_data(files)
    watch = fit(module, data, tmp_path, callbacks=[ShowBatch()], max_epochs=2)
    said = capsys.readouterr().out
    assert said.count("\nsample ") + 1 == len(watch.batches[0])
    assert "  1.5  think    '<think>\\nI look." in said
    assert "  2    decision " in said
    assert "  0    result   " in said
    name = said.split()[1].rstrip(":")
    sample = next(s for s in data.train_dataloader().samples if s.id == name)
    assert f"{len(sample.ids)} tokens, {sum(w > 0 for w in sample.weights)} trained" in said.splitlines()[0]


def test_warmup_cosine_by_hand():
    # 10 steps, 2 of warm-up: 1/2, 1, then 0.5 * (1 + cos(pi * k / 8)) for k = 0..7.
    factor = warmup_cosine(10, 0.2)
    expected = [0.5, 1.0, 1.0, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060]
    assert [factor(step) for step in range(10)] == pytest.approx(expected, abs=1e-6)
    assert factor(10) == pytest.approx(0)


def test_the_dialects_of_training_and_settings_agree(folder):
    module = make_module(folder)
    assert module.make_renderer({}).dialect == get_dialect("tags", decision_tokens=True)
