"""What runs cost: time, tokens, speed and memory, from what they logged.

| metric | of |
|---|---|
| `train/tokens` | the trained tokens of a step; their sum is of the steps that were logged |
| `speed/NAME_tokens_s`, `time/NAME_s` | tokens a second, and seconds, of a part of a PPO update |
| `memory/…_gib` | memory of the process or the GPU |
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from project.tracking.curves import Histories

if TYPE_CHECKING:
    from mlflow.entities import Run

COUNTED = ("train/tokens", "train/loss", "train/reward", "time/train_s", "speed/train_tokens_s")
SHOWN = ("speed/", "memory/")

Of = Mapping[str, Mapping[int, float]]
"""A run's curves by metric."""


def costs(runs: Sequence[Run], histories: Histories) -> dict[str, list[str]]:
    """Return a row a cost, with a text a run; what no run has is left out.

    `wall time` is from the run's start to its end, pauses before a resume included; `wall time a step` divides it by the steps
    that logged a loss or a reward.
    """
    names = sorted({name for metrics in histories.metrics for name in metrics if name.startswith(SHOWN)})
    curves = {name: histories.of(name) for name in (*COUNTED, *names)}
    held = [{name: of[place] for name, of in curves.items() if of[place]} for place in range(len(runs))]
    seconds = [_seconds(run) for run in runs]
    rows = {
        "wall time": [duration(one) for one in seconds],
        "wall time a step": [_a_step(of, one) for of, one in zip(held, seconds, strict=True)],
        "trained tokens": [_tokens(of) for of in held],
    }
    for name in names:
        pick, said = (max, "most") if name.startswith("memory/") else (_mean, "mean")
        rows[f"{name}, {said}"] = [f"{pick(of[name].values()):.4g}" if name in of else "-" for of in held]
    return {name: texts for name, texts in rows.items() if set(texts) != {"-"}}


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values)


def _seconds(run: Run) -> float | None:
    return (run.info.end_time - run.info.start_time) / 1000 if run.info.end_time else None


def _a_step(of: Of, seconds: float | None) -> str:
    steps = len(of.get("train/loss") or of.get("train/reward") or ())
    return duration(seconds / steps) if seconds is not None and steps else "-"


def _tokens(of: Of) -> str:
    if "train/tokens" in of:
        return f"{sum(of['train/tokens'].values()):,.0f}"
    speed, seconds = of.get("speed/train_tokens_s", {}), of.get("time/train_s", {})
    tokens = sum(speed[step] * seconds[step] for step in speed.keys() & seconds.keys())
    return f"{tokens:,.0f}" if tokens else "-"


def duration(seconds: float | None) -> str:
    """Return a time as one reads it.

    >>> duration(0.0421), duration(7325), duration(64), duration(None)
    ('42.1 ms', '2 h 2 min', '1 min 4 s', '-')
    """
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
