"""Which traces stay: named expressions over the columns of `features.py`, and duplicates left out.

A trace is removed by the first expression that is not true of it; a null is not true. Of duplicates the first that no
expression removes stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from project.errors import InputError
from project.model_cache import tokenizer_digest
from project.records import Step, Trace
from project.traces.features import COSTLY, features, trace_texts
from project.traces.near_duplicates import bands, signature
from project.traces.table import question_group, trace_digest

if TYPE_CHECKING:
    import polars as pl

FILTERS = {
    "correct": "correct",
    "answered": "answered",
    "searched": "searches > 0",
    "answer_found": "answer_found",
    "no_tool_error": "errors = 0",
    "no_malformed": "malformed = 0",
}
"""Filters by name, each an SQL expression that is true for a trace that stays."""
NO_DUPLICATES, NO_NEAR_DUPLICATES = "no_duplicates", "no_near_duplicates"
"""Filters by what was written before: the same question with the same steps, or with nearly the same."""
ALIKE = (9, 13)
"""Bands and hashes of each by which near duplicates are told: of pairs of a likeness of 0.95 it finds 998 in 1,000, of 0.9 928,
of 0.8 399, of 0.7 84, of 0.5 1 (`near_duplicates.bands_for(0.8, 0.5)`)."""
_EXAMPLE = Trace("", "a question", (), (Step("answer", "an answer"),))
"""What filters are tried on before anything is read."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What `seeker data traces --filters` names."""

    names: tuple[str, ...] = ()
    tokenizer: str | None = None
    """What counts the column `tokens`; None is the default model's."""

    @property
    def expressions(self) -> dict[str, str]:
        """The SQL expression of each filter by its name; one that has no name is its own."""
        return {name: FILTERS.get(name, name) for name in self.names if name not in (NO_DUPLICATES, NO_NEAR_DUPLICATES)}

    @property
    def costly(self) -> tuple[str, ...]:
        """The costly columns that are named."""
        return tuple(name for name in COSTLY if any(re.search(rf"\b{name}\b", one) for one in self.expressions.values()))

    @property
    def tokenizer_digest(self) -> str | None:
        """What tells the tokenizer from another, where a filter counts tokens."""
        if "tokens" not in self.costly:
            return None
        return tokenizer_digest(self.tokenizer)

    def table(self, traces: Sequence[Trace]) -> pl.DataFrame:
        """Return the columns that the filters are computed from."""
        return features(traces, self.costly, self.tokenizer)

    def check(self) -> None:
        """Refuse an expression that cannot be computed, or is neither true nor false, or looks at more than one trace."""
        import polars as pl
        from polars.exceptions import PolarsError

        table = self.table([_EXAMPLE, replace(_EXAMPLE, correct=True, steps=_EXAMPLE.steps * 3)])
        for name, expression in self.expressions.items():
            try:
                found = table.select(pl.sql_expr(expression)).to_series()
                alone = [table[row].select(pl.sql_expr(expression)).to_series().to_list() for row in range(len(table))]
            except PolarsError as error:
                cause = str(error).partition("\n")[0]
                columns = dict.fromkeys((*table.columns, *COSTLY))
                raise InputError(
                    f"the filter '{name}' cannot be computed ({cause}); give one of "
                    f"{', '.join([*FILTERS, NO_DUPLICATES, NO_NEAR_DUPLICATES])}, or an SQL expression over the columns "
                    f"{', '.join(columns)}"
                ) from error
            if found.dtype != pl.Boolean:
                raise InputError(
                    f"the filter '{name}' is {found.dtype}, expected true or false; write a comparison, as in 'turns <= 6'"
                )
            if [[value] for value in found] != alone:
                raise InputError(f"the filter '{name}' does not look at each trace by itself; leave out avg, max and the like")

    def removed_by(self, traces: Sequence[Trace]) -> list[str | None]:
        """Return the first filter that removes each trace, None for one that stays."""
        import polars as pl

        if not self.expressions:
            return [None] * len(traces)
        stays = {name: pl.sql_expr(expression).fill_null(value=False) for name, expression in self.expressions.items()}
        reasons = [pl.when(stay.not_()).then(pl.lit(name)) for name, stay in stays.items()]
        found = self.table(traces).select(pl.coalesce(*reasons, pl.lit(None, pl.String)).alias("removed_by"))
        return found["removed_by"].to_list()

    def keys(self, trace: Trace) -> tuple[str | bytes, ...]:
        """Return what a trace shares with its duplicates, of the kinds that are to be left out."""
        same = (trace_digest(trace),) if NO_DUPLICATES in self.names else ()
        if NO_NEAR_DUPLICATES not in self.names:
            return same
        asked = question_group(trace.question).encode()  # two questions a word apart can have opposite answers
        return (*same, *(asked + band for band in bands(signature("\n".join(trace_texts(trace))), *ALIKE)))
