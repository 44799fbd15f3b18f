"""What one training hands to the next: the same logits at the seam, whether the adapter goes on or is merged."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from test_sft import fit, make_data, make_module, write_files
from tiny import tiny_model_folder

from project.errors import InputError
from project.modules.hand_over import HAND_OVER, read_hand_over
from project.modules.policy import LoRA

ADAPTER = LoRA(4, 8)
IDS = torch.arange(30) % 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("seams") / "model")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("data"))


def logits(module):
    if module.policy is None:
        module.configure_model()
    module.policy.eval()
    with torch.no_grad():
        return module.policy.head(module.policy(IDS, [len(IDS)]))


def keeper(root):
    return ModelCheckpoint(root, "last", save_last=False, enable_version_counter=False, every_n_train_steps=1)


@pytest.fixture(scope="module")
def first(folder, files, tmp_path_factory):
    """A trained adapter: its folder, and its logits."""
    root = tmp_path_factory.mktemp("first")
    module = make_module(folder, ADAPTER, learning_rate=1e-2)
    fit(module, make_data(files), root, callbacks=[keeper(root)])
    return root, logits(module)


def test_an_adapter_that_goes_on_gives_the_same_logits_to_the_bit(folder, files, first, tmp_path):
    root, before = first
    begun = make_module(folder, ADAPTER, learning_rate=1e-2, start_from=root / "last.ckpt")
    assert torch.equal(logits(begun), before)
    assert not torch.equal(logits(make_module(folder, ADAPTER)), before), "a fresh adapter has other logits"
    watch = fit(make_module(folder, ADAPTER, learning_rate=1e-2, start_from=root / "last.ckpt"), make_data(files), tmp_path)
    assert watch.trainer.global_step == len(watch.gradients), "its steps are counted anew"
    assert not torch.equal(logits(watch.trainer.lightning_module), before), "and it trains"


def test_an_adapter_over_nf4_goes_on_to_the_bit(folder, files, tmp_path):
    """Its base is rounded again to the same values; merged weights would not be, which `seeker progressive` refuses."""
    adapter = LoRA(4, 8, nf4=True)
    module = make_module(folder, adapter, learning_rate=1e-2)
    fit(module, make_data(files), tmp_path, callbacks=[keeper(tmp_path)])
    assert torch.equal(logits(make_module(folder, adapter, start_from=tmp_path / "last.ckpt")), logits(module))


def test_the_last_checkpoint_is_of_the_last_step_and_says_what_was_measured(folder, files, tmp_path):
    """The callback has saved at no step; done already, it hands on the same when it is resumed."""
    root = tmp_path / "run"
    seldom = ModelCheckpoint(root, "last", every_n_train_steps=1000, enable_version_counter=False)
    module = make_module(folder, ADAPTER, learning_rate=1e-2)
    watch = fit(module, make_data(files), root, callbacks=[seldom], limit_val_batches=1.0)
    found = read_hand_over(root / HAND_OVER)["last"]
    assert (found.checkpoint, found.step) == (str(root / "last.ckpt"), watch.trainer.global_step)
    assert found.metrics["val/loss"] > 0
    assert torch.equal(logits(make_module(folder, ADAPTER, start_from=root / "last.ckpt")), logits(module))
    again = make_module(folder, ADAPTER, learning_rate=1e-2)
    seldom = ModelCheckpoint(root, "last", every_n_train_steps=1000, enable_version_counter=False)
    fit(again, make_data(files), root, callbacks=[seldom], limit_val_batches=1.0, ckpt_path=root / "last.ckpt")
    assert read_hand_over(root / HAND_OVER)["last"] == found
    assert torch.equal(logits(again), logits(module))


def test_a_merged_start_gives_the_same_logits(first):
    root, before = first
    begun = make_module(root / "merged", ADAPTER)
    torch.testing.assert_close(logits(begun), before, rtol=1e-4, atol=1e-4)


def test_full_weights_go_on_too(folder, files, tmp_path):
    module = make_module(folder, None, learning_rate=1e-3)
    fit(module, make_data(files), tmp_path, callbacks=[keeper(tmp_path)])
    assert torch.equal(logits(make_module(folder, None, start_from=tmp_path / "last.ckpt")), logits(module))


def test_the_best_by_its_validation_is_exported_beside_the_last(folder, files, tmp_path):
    """The loss falls; with mode="max" the first of three epochs is the best."""
    best = ModelCheckpoint(tmp_path, "best", monitor="val/loss", mode="max", save_top_k=1, enable_version_counter=False)
    module = make_module(folder, ADAPTER, learning_rate=1e-2)
    fit(module, make_data(files), tmp_path, callbacks=[best], max_epochs=3, limit_val_batches=1.0)
    at_best = logits(make_module(folder, ADAPTER, start_from=Path(best.best_model_path)))
    torch.testing.assert_close(logits(make_module(tmp_path / "merged_best", None)), at_best, rtol=1e-4, atol=1e-4)
    last = logits(make_module(tmp_path / "merged", None))
    assert not torch.allclose(last, at_best, atol=1e-2)


def test_without_a_metric_nothing_is_best(first):
    root, _ = first
    assert not (root / "merged_best").exists()


def test_a_start_that_does_not_fit_is_one_sentence(folder, first, tmp_path):
    root, _ = first
    with pytest.raises(InputError, match=r"start_from=.*nowhere does not exist"):
        make_module(folder, ADAPTER, start_from=tmp_path / "nowhere")
    (tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(InputError, match=r"broken\.ckpt cannot be read"):
        make_module(folder, ADAPTER, start_from=tmp_path / "broken.ckpt").configure_model()
    with pytest.raises(InputError, match=r"was trained with lora=LoRA\(rank=4.*give that"):
        make_module(folder, LoRA(8, 8), start_from=root / "last.ckpt").configure_model()
    other = tiny_model_folder(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="was trained on a base with digest"):
        make_module(other, ADAPTER, start_from=root / "last.ckpt").configure_model()
