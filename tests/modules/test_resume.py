"""Training stopped wherever Lightning saves a checkpoint, and gone on with: the same parameters, logged values and hooks."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from test_sft import conversation, fit, make_data, make_module
from tiny import tiny_model_folder

from project.errors import InputError
from project.modules.policy import LoRA
from project.modules.save_on_stop import SaveOnStop
from project.writing import write_rows

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from verify_resume import differences

UNLIKE = ("zero_grad", "val_loop")
"""Counts of what was done: a step done anew clears its gradients, and validates inside, twice."""


class Rows(Logger):
    """Keeps (step, metric, value)."""

    name = version = "rows"

    def __init__(self):
        super().__init__()
        self.rows = set()

    def log_metrics(self, metrics, step=None):
        self.rows |= {(step, name, value) for name, value in metrics.items()}

    def log_hyperparams(self, params, *args, **kwargs):
        pass


class Stops(Callback):
    """Notes the training hooks, and saves a checkpoint wherever Lightning's own callback may before the last step."""

    def __init__(self, folder):
        self.folder, self.hooks, self.saved, self.done = folder, [], [], 0

    def _at(self, trainer, hook=None):
        self.hooks += [hook] if hook else []
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches == 0:
            self.done = len(self.hooks)
        if self.folder and trainer.global_step < trainer.estimated_stepping_batches:
            self.saved.append((self.folder / f"{len(self.saved)}.ckpt", self.done, set(trainer.logger.rows)))
            trainer.save_checkpoint(self.saved[-1][0])

    def on_train_epoch_start(self, trainer, pl_module):
        self.hooks.append("epoch start")
        self.done = len(self.hooks)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._at(trainer, batch["names"])

    def on_validation_start(self, trainer, pl_module):
        self.hooks.append("validation")

    def on_validation_end(self, trainer, pl_module):
        self._at(trainer)

    def on_train_epoch_end(self, trainer, pl_module):
        self._at(trainer, "epoch end")


def run(folder, options, accumulate=1, save=None, ckpt_path=None):
    """Train 4 micro-batches an epoch, three epochs, with dropout; return the stops, what was logged and the last checkpoint."""
    stops, rows = Stops(save), Rows()
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, accumulate_grad_batches=accumulate, callbacks=[stops], logger=rows,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        log_every_n_steps=1, default_root_dir=folder / "run", **options,
    )  # fmt: skip
    module = make_module(folder / "model", LoRA(4, 8.0, dropout=0.1), learning_rate=1e-2)
    trainer.fit(module, make_data(folder), ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / "end.ckpt")
    return stops, rows.rows, torch.load(folder / "end.ckpt", weights_only=True)


def odd(expected, found):
    """Return what differs between two checkpoints."""
    return [name for name in differences(expected, found) if not any(word in name for word in (*UNLIKE, "callbacks"))]


@pytest.mark.parametrize(
    ("accumulate", "options"),
    [
        (1, {"val_check_interval": 2}),
        (2, {"val_check_interval": 1}),
        (2, {"val_check_interval": 3}),
        (4, {}),
        (2, {"limit_val_batches": 0}),
    ],
    ids=["steps", "validation inside steps", "validation inside a step", "one step an epoch", "no validation"],
)
def test_training_goes_on_from_every_checkpoint(tmp_path, accumulate, options):
    """A validation or an epoch's end that was due right after the checkpoint still comes."""
    tiny_model_folder(tmp_path / "model")
    for name, numbers in (("train", range(10)), ("validation", range(20, 23))):
        write_rows(tmp_path / f"{name}.jsonl", (conversation(i).to_row() for i in numbers))

    whole, rows, expected = run(tmp_path, options, accumulate, save=tmp_path / "stops")
    assert len(whole.saved) > 10
    for path, done, logged in whole.saved:
        resumed, again, found = run(tmp_path, options, accumulate, ckpt_path=path)
        assert resumed.hooks == whole.hooks[done:]
        assert again <= rows
        assert {row for row in rows if row[1].startswith("val/")} <= logged | again
        assert odd(expected, found) == []


def test_a_checkpoint_of_the_validation_that_a_resume_begins_with_holds_the_random_numbers(tmp_path):
    """They are set before the first micro-batch, and it is saved before that."""
    tiny_model_folder(tmp_path / "model")
    for name, numbers in (("train", range(10)), ("validation", range(20, 23))):
        write_rows(tmp_path / f"{name}.jsonl", (conversation(i).to_row() for i in numbers))
    options = {"val_check_interval": 2}
    whole, _, expected = run(tmp_path, options, save=tmp_path / "stops")
    second = whole.saved[1]
    resumed, _, _ = run(tmp_path, options, ckpt_path=second[0], save=tmp_path / "again")
    assert resumed.hooks[0] == "validation"
    _, _, found = run(tmp_path, options, ckpt_path=resumed.saved[0][0])
    assert odd(expected, found) == []


def test_a_checkpoint_saved_inside_a_micro_batch_is_refused(tmp_path):
    """The loader has given it and the loop has not done it: it would be left out."""
    folder = tiny_model_folder(tmp_path / "model")
    for name, numbers in (("train", range(10)), ("validation", range(20, 23))):
        write_rows(tmp_path / f"{name}.jsonl", (conversation(i).to_row() for i in numbers))

    class Fail(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            if trainer.global_step == 2:
                raise RuntimeError("failed")

    saving = ModelCheckpoint(tmp_path / "saved", save_on_exception=True)
    with pytest.raises(RuntimeError, match="failed"):
        fit(make_module(folder), make_data(tmp_path), tmp_path, callbacks=[Fail(), saving])
    (path,) = (tmp_path / "saved").glob("*.ckpt")
    with pytest.raises(InputError, match="was saved inside a micro-batch, by save_on_exception or a scheduler's signal"):
        fit(make_module(folder), make_data(tmp_path), tmp_path, ckpt_path=path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["on_train_batch_start", "on_train_batch_end", "on_validation_batch_start"])
def test_a_training_that_is_asked_to_stop_saves_first(tmp_path, capsys, number, where):
    """Inside a step of two micro-batches, right after `SaveOnStop` looked, and in the validation after the second step."""
    folder = tiny_model_folder(tmp_path / "model")
    for name, numbers in (("train", range(10)), ("validation", range(20, 40))):
        write_rows(tmp_path / f"{name}.jsonl", (conversation(i).to_row() for i in numbers))

    class Ask(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if where == "on_train_batch_start" and batch_idx == 2:
                os.kill(os.getpid(), number)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if where == "on_train_batch_end" and batch_idx == 0:
                os.kill(os.getpid(), number)

        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            if where == "on_validation_batch_start" and batch_idx == 0:
                assert trainer.num_val_batches[0] > 1
                os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGINT)
    options = {"accumulate": 2, "limit_val_batches": 1.0, "max_epochs": 2}
    with pytest.raises(SystemExit):
        fit(make_module(folder), make_data(tmp_path), tmp_path / "run", callbacks=[SaveOnStop(), Ask()], **options)
    signal.signal(signal.SIGINT, before)  # Lightning leaves it ignored
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    step = 2 if where == "on_validation_batch_start" else 1
    assert f"seeker: stopped after step {step}; go on with the same command and --ckpt_path" in capsys.readouterr().err
    resumed = fit(make_module(folder), make_data(tmp_path), tmp_path / "run", ckpt_path=path, **options)
    whole = fit(make_module(folder), make_data(tmp_path), tmp_path / "whole", **options)
    assert resumed.batches == whole.batches[2 * step :]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("setup", "before its first step"),
        ("on_sanity_check_start", "before its first step"),
        ("on_train_batch_start", "after step 1, unsaved"),
    ],
)
def test_a_training_that_is_interrupted_unsaved_says_so(tmp_path, capsys, where, said):
    """A second Ctrl-C, which does not wait for the step, in the last case."""
    folder = tiny_model_folder(tmp_path / "model")
    for name, numbers in (("train", range(10)), ("validation", range(20, 23))):
        write_rows(tmp_path / f"{name}.jsonl", (conversation(i).to_row() for i in numbers))

    class Press(Callback):
        def __getattribute__(self, name):
            return super().__getattribute__("press") if name == where else super().__getattribute__(name)

        def press(self, trainer, *_, **__):
            if where != "on_train_batch_start":
                raise KeyboardInterrupt
            if trainer.global_step == 1:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    options = {"num_sanity_val_steps": 1, "limit_val_batches": 1.0}
    with pytest.raises(SystemExit) as ended:
        fit(make_module(folder), make_data(tmp_path), tmp_path / "run", callbacks=[SaveOnStop(), Press()], **options)
    signal.signal(signal.SIGINT, before)  # Lightning leaves it ignored
    assert ended.value.code == 1
    assert capsys.readouterr().err.endswith(f"seeker: fit was interrupted {said}\n")
