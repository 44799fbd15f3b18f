"""What a training hands on: `hand_over.json` in its folder names its best and its last weights, and what they measured.

`best` is by the metric that a `ModelCheckpoint` monitors and is there only where one does. Each is a checkpoint, from which
`model.start_from` goes on, and a merged model folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from project.errors import InputError
from project.records import Row
from project.tracking.store import RUN_ID_FILE
from project.writing import write_text

HAND_OVER = "hand_over.json"
BEFORE = "before.json"
"""What the weights measured that a training started from."""
MEASURED = "seeker_measured"
"""The key of a checkpoint under which it holds the metrics of the last validation before it."""


@dataclass(frozen=True)
class HandedOn:
    """The weights that a training hands on."""

    model: str
    """The folder of the merged model."""
    checkpoint: str | None
    """The checkpoint of the same weights; None where the training kept none."""
    step: int
    """Optimizer steps after which they were taken."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the last validation before that measured, by name."""

    def to_row(self) -> Row:
        """Return it as JSON holds it."""
        return asdict(self)


def measured(trainer: Any) -> dict[str, float]:  # noqa: ANN401 - Lightning's own
    """Return what the last validation logged."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val")}


def note_run(folder: Path, logger: Any) -> None:  # noqa: ANN401 - any logger of Lightning
    """Leave in an exported folder, which may go elsewhere, the id of the run that made it, if it is tracked."""
    if run_id := getattr(logger, "run_id", None):
        write_text(folder / RUN_ID_FILE, f"{run_id}\n")


def write_hand_over(folder: Path, hands_on: Mapping[str, HandedOn]) -> None:
    """Write `hand_over.json` into a run's folder."""
    rows = {which: row.to_row() for which, row in hands_on.items()}
    write_text(folder / HAND_OVER, json.dumps(rows, indent=1) + "\n")


def read_hand_over(file: Path) -> dict[str, HandedOn]:
    """Return what a training handed on, `last` and, where there is one, `best`.

    Raises:
        InputError: it does not exist, or is damaged.
    """
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        found = {which: HandedOn(**row) for which, row in rows.items()}
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist: no training of SFT or PPO has ended there; train it to its end") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged ({error}); train that run anew") from error
    if "last" not in found:
        raise InputError(f"{file} names no last weights; train that run anew")
    return found
