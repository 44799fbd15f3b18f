"""A model of two weights and a datamodule of eight rows: what the CLI and the tracking are tested with."""

import time
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from project.errors import InputError


class BoringAgent(LightningModule):
    def __init__(self, learning_rate: float = 0.1, prompt: str = "", model_path: Path | None = None, stop_at: int = -1):
        super().__init__()
        if prompt == "refuse":
            raise InputError("the model folder has no tokenizer")
        self.save_hyperparameters()
        self.model_path, self.stop_at, self.learning_rate = model_path, stop_at, learning_rate
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        if self.global_step == self.stop_at:
            raise RuntimeError("killed")
        loss = self.layer(batch).pow(2).mean()
        self.log("loss", loss)
        return loss

    def test_step(self, batch: Tensor, index: int) -> None:
        self.log("test/em", 0.5)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


class BoringData(LightningDataModule):
    def __init__(self, data_file: Path | None = None, rows: int = 8):
        super().__init__()
        self.rows = rows
        self.data_files = {"train": data_file} if data_file else {}

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.ones(self.rows, 2), batch_size=4)

    def test_dataloader(self) -> DataLoader:
        return self.train_dataloader()


class ToldAgent(BoringAgent):
    """Each of its ranks writes down the id of the run that it takes part in."""

    def on_train_start(self) -> None:
        folder = Path(self.trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"rank{self.global_rank}").write_text(str(self.logger.run_id))


class SlowAgent(BoringAgent):
    """Takes 10 ms a step and logs five numbers that follow from it."""

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        time.sleep(0.01)
        self.log_dict({f"m{n}": float(self.global_step * (n + 1)) for n in range(5)})
        return super().training_step(batch, index)
