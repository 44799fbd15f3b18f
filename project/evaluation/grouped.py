"""The figures of a test or validation as a torchmetrics metric: rows are taken on each rank, and computed from all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from project.evaluation.decisions import decision_scores
from project.evaluation.metrics import Estimate, Numbers, estimate_of, group_numbers
from project.records import Row

BY_KIND = ("em", "f1", "decision_accuracy", "own_em", "own_action")
"""Metrics that are given for each kind of question, too."""
_KIND, _NEEDED, _SEARCHED = "kind", "needed", "searched"


class GroupedRows(Metric):
    """Rows of numbers of the same names, each with the group that it belongs to; all ranks' once it computes.

    The one state is flat, `[group, value, value, …]` a row, as a rank may have none.
    """

    full_state_update = False
    rows: list[Tensor] | Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.set_dtype(torch.float64)
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, values: Sequence[float], group: str) -> None:
        """Take a row."""
        device = self.device if torch.distributed.is_initialized() else "cpu"  # Apple's GPUs have no float64
        assert isinstance(self.rows, list)
        self.rows.append(torch.tensor([*group_numbers([group]), *values], dtype=torch.float64, device=device))

    def columns(self) -> tuple[Numbers, dict[str, Numbers]]:
        """Return the rows' groups, and their values by name."""
        rows = (
            self.rows
            if isinstance(self.rows, Tensor)
            else torch.cat([torch.empty(0, dtype=torch.float64), *(row.cpu() for row in self.rows)])
        )
        table = rows.reshape(-1, 1 + len(self.names)).cpu().numpy()
        return table[:, 0], {name: table[:, 1 + place] for place, name in enumerate(self.names)}

    def compute(self) -> Any:  # noqa: ANN401 - what a subclass makes of them
        """Return the groups and columns."""
        return self.columns()


class ResultMetrics(GroupedRows):
    """All figures of a test, from all ranks' rows: means, those of each kind of question, and the decision's.

    `kinds` must be the same on all ranks before it computes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__((*names, _KIND, _NEEDED, _SEARCHED))
        self.kinds: tuple[str, ...] = ()

    def take(self, row: Row) -> None:
        """Take a row of the results."""
        needs, is_right = row.get("needs_search"), row.get("decision_accuracy", math.nan)
        needed = math.nan if needs is None or math.isnan(is_right) else float(needs)
        searched = float(is_right == needed)  # one that decided nothing was wrong either way
        values = [row[name] for name in self.names[:-3]]
        self.update([*values, float(group_numbers([row["kind"]])[0]), needed, searched], row["group"])

    def compute(self) -> tuple[dict[str, Estimate], int]:
        """Return {name: estimate} of what applied to at least one row, and the number of rows; `NAME_KIND` is of one kind."""
        groups, columns = self.columns()
        kind, needed, searched = (columns.pop(name) for name in (_KIND, _NEEDED, _SEARCHED))
        found = {name: estimate_of(name, column, groups) for name, column in columns.items()}
        for name in (name for name in BY_KIND if name in columns):
            for label, number in zip(self.kinds, group_numbers(self.kinds), strict=True):
                is_it = kind == number
                found[f"{name}_{label}"] = estimate_of(name, columns[name][is_it], groups[is_it])
        known = needed == needed
        if known.any():
            decisions = decision_scores(searched[known], needed[known], columns["search_probability"][known], groups[known])
            found |= {f"decision_{name}": one for name, one in decisions.items() if name != "accuracy"}  # that has its interval
        return {name: one for name, one in found.items() if one.n}, len(groups)
