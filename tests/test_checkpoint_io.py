"""Checkpoint files are whole or absent, and a damaged one is named."""

import resource
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from project.checkpoint_io import WholeCheckpointIO
from project.errors import InputError, TrainingError


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    WholeCheckpointIO().save_checkpoint({"a": torch.arange(3)}, tmp_path / "sub" / "last.ckpt")
    assert WholeCheckpointIO().load_checkpoint(tmp_path / "sub" / "last.ckpt")["a"].tolist() == [0, 1, 2]
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["last.ckpt"]


def test_a_write_that_is_cut_off_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"a": 1}, path)

    def cut(self: object, checkpoint: object, path: str, storage_options: object = None) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", cut)
    with pytest.raises(KeyboardInterrupt):
        WholeCheckpointIO().save_checkpoint({"a": 2}, path)
    assert WholeCheckpointIO().load_checkpoint(path) == {"a": 1}


def test_a_full_disk_is_one_sentence_and_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    """The system refuses to let the file grow, as it does when the disk is full."""
    path = tmp_path / "sub" / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"a": 1}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"^the checkpoint .*last\.ckpt cannot be written \(.+\); free space, and"):
            WholeCheckpointIO().save_checkpoint({"a": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert WholeCheckpointIO().load_checkpoint(path) == {"a": 1}
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_checkpoint_that_was_cut_off_is_refused_in_one_sentence(tmp_path: Path, share: float) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"state_dict": {str(i): torch.randn(64, 64) for i in range(20)}}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path)


@pytest.mark.parametrize("content", [b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_checkpoint_is_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    refused(path)


def refused(path: Path) -> None:
    with pytest.raises(InputError, match=r"last\.ckpt cannot be read .*leave --ckpt_path out to start afresh$") as caught:
        WholeCheckpointIO().load_checkpoint(path)
    assert "\n" not in str(caught.value)
