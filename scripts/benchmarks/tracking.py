"""What tracking costs a training, a step: on the training's own thread, and on the machine.

    python scripts/benchmarks/tracking.py --steps 40 --step_seconds 0.5 --metrics 20

Each row is a training whose steps sleep and log: with Seeker's logger on SQLite, on an MLflow server at 200 ms, and on one that
dies after the start; and for comparison with Lightning's own MLFlowLogger. `waited` is the time that the training waits in the
logger's `log_metrics` (median, longest); `share` that of a step of 1 s; `thread` and `process` the processor time a step of the
training's thread and of the whole process, less what the same takes without a logger.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from project.runtime import prepare_process
from project.tracking.callback import TrackRun
from project.tracking.logger import SeekerLogger

LATENCY_SECONDS = 0.2


class Sleeper(LightningModule):
    """A step sleeps, and logs some numbers."""

    def __init__(self, step_seconds: float, metrics: int) -> None:
        super().__init__()
        self.layer, self.step_seconds, self.metrics = nn.Linear(2, 1), step_seconds, metrics
        self.cost = (0.0, 0.0)
        """Seconds of processor of the training's thread and of the process, from the first step to the last."""

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        """Sleep and log."""
        time.sleep(self.step_seconds)
        self.log_dict({f"group{n % 4}/metric{n}": float(index + n) for n in range(self.metrics)})
        return self.layer(batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the plainest."""
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_train_start(self) -> None:
        """Begin to count."""
        self.cost = (-time.thread_time(), -time.process_time())

    def on_train_end(self) -> None:
        """Count."""
        self.cost = (self.cost[0] + time.thread_time(), self.cost[1] + time.process_time())


@dataclass
class Cost:
    """Of one training."""

    waited: list[float] = field(default_factory=list)
    thread: float = 0.0
    process: float = 0.0


class Cut(Callback):
    """Stops a process when the training begins."""

    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        self.process = process

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it."""
        self.process.kill()


def trained(logger: Logger | bool, folder: Path, measure: tuple[int, float, int], *callbacks: Callback) -> Cost:
    """Return what a training cost, given its steps, their seconds and how much each logs."""
    steps, step_seconds, count = measure
    cost = Cost()
    if isinstance(logger, Logger):
        log = logger.log_metrics

        def timed(metrics: dict[str, float], step: int | None = None) -> None:
            started = time.perf_counter()
            log(metrics, step)
            cost.waited.append(time.perf_counter() - started)

        logger.log_metrics = timed  # type: ignore[method-assign]
    trainer = Trainer(
        logger=logger,
        callbacks=[TrackRun(), *callbacks],
        max_steps=steps,
        accelerator="cpu",
        log_every_n_steps=1,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Sleeper(step_seconds, count)
    trainer.fit(module, DataLoader(torch.ones(steps, 2), batch_size=1))
    cost.thread, cost.process = (seconds / steps for seconds in module.cost)
    return cost


@contextmanager
def slow_server(folder: Path) -> Iterator[tuple[str, multiprocessing.process.BaseProcess]]:
    """Give the address of an MLflow server behind a wire of 200 ms, and the wire, which can be cut."""
    inner, outer = free_port(), free_port()
    words = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(inner), "--workers", "1", *words]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    wire = multiprocessing.get_context("spawn").Process(target=run_wire, args=(outer, inner), daemon=True)
    try:
        wait_for(inner)
        wire.start()
        wait_for(outer)
        yield f"http://127.0.0.1:{outer}", wire
    finally:
        wire.kill()
        os.killpg(server.pid, 9)
        server.wait()


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(port: int) -> None:
    """Wait until somebody listens at a port."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    sys.exit(f"nothing answers at port {port}")


def run_wire(outer: int, inner: int) -> None:
    """Pass on what comes at one port to the other, requests 200 ms late."""
    asyncio.run(_wire(outer, inner))


async def _wire(outer: int, inner: int) -> None:
    async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter, seconds: float) -> None:
        while data := await source.read(1 << 16):
            await asyncio.sleep(seconds)
            sink.write(data)
        sink.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", inner)
        await asyncio.gather(pass_on(reader, forth, LATENCY_SECONDS), pass_on(back, writer, 0.0))

    async with await asyncio.start_server(connected, "127.0.0.1", outer) as server:
        await server.serve_forever()


def shown(name: str, cost: Cost, without: Cost) -> str:
    """Return a row of the table."""
    waited = sorted(cost.waited)[:-1] or [0.0]  # the last is TrackRun's, of the memory, after the training
    thread, process = (1e3 * (getattr(cost, kind) - getattr(without, kind)) for kind in ("thread", "process"))
    times = f"{1e3 * median(waited):9.2f} {1e3 * waited[-1]:9.2f} {100 * sum(waited) / len(waited):8.3f} %"
    return f"{name:<34} {times} {thread:9.2f} {process:9.2f}"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--step_seconds", type=float, default=0.5)
    parser.add_argument("--metrics", type=int, default=20, help="logged a step")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    prepare_process()
    print(f"{'ms a step':<34} {'waited':>9} {'longest':>9} {'share':>10} {'thread':>9} {'process':>9}")
    with tempfile.TemporaryDirectory(prefix="seeker-tracking-") as scratch:
        folder = Path(scratch)
        measure = (given.steps, given.step_seconds, given.metrics)
        trained(False, folder, (3, 0.0, given.metrics))  # what is only done once
        without = trained(False, folder, measure)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        print(shown("Seeker, SQLite", trained(SeekerLogger(), folder / "a", measure), without), flush=True)
        quiet = SeekerLogger(machine_seconds=0)
        print(shown("the same, machine not measured", trained(quiet, folder / "b", measure), without), flush=True)
        theirs = MLFlowLogger(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
        print(shown("Lightning's, SQLite", trained(theirs, folder / "c", measure), without), flush=True)
        with slow_server(folder) as (uri, wire):
            os.environ["MLFLOW_TRACKING_URI"] = uri
            print(shown("Seeker, server at 200 ms", trained(SeekerLogger(), folder / "d", measure), without), flush=True)
            theirs = MLFlowLogger(tracking_uri=uri)
            print(shown("Lightning's, server at 200 ms", trained(theirs, folder / "e", measure), without), flush=True)
            dead = trained(SeekerLogger(wait_minutes=0.02), folder / "f", measure, Cut(wire))
            print(shown("Seeker, server dies at the start", dead, without), flush=True)


if __name__ == "__main__":
    main()
