"""The models that the demo's page offers: those that were given, the embedded one, and what runs have left."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from project.apps.demo.live import EngineName, LiveModel
from project.errors import InputError
from project.tracking.store import runs_folder

BASE = "SmolLM2-135M-Instruct, untrained"
PREFERRED = ("quickstart-ppo", "quickstart-sft")
"""Runs whose model is opened where none is given."""
LOADED = 2
"""Models that are in memory at once: as many as are compared."""


@dataclass
class Models:
    """Models by name, each loaded when it is first asked; the one that was asked longest ago makes room."""

    paths: dict[str, str | None]
    """A model's folder or hub id, None for the embedded one, by the name that people see."""
    engine: EngineName
    context_tokens: int
    _loaded: OrderedDict[str, LiveModel] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def find(cls, given: Sequence[str], engine: EngineName, context_tokens: int) -> Models:
        """Take what was given and what runs have left; the first is that which the page opens with.

        Raises:
            InputError: nothing was given, and no quickstart was run.
        """
        folders = sorted(path.parent for path in runs_folder().glob("**/merged/config.json"))
        left = {str(folder.parent.relative_to(runs_folder())): str(folder) for folder in folders}
        paths: dict[str, str | None] = {_given_name(path): path for path in given}
        if not given:
            first = next((name for name in PREFERRED if name in left), None)
            if first is None:
                raise InputError(
                    f"no quickstart has left a model in {runs_folder()}; run scripts/quickstart.sh, or give --model_path"
                )
            paths[first] = left[first]
        return cls(
            paths | {name: path for name, path in left.items() if name not in paths} | {BASE: None}, engine, context_tokens
        )

    @property
    def names(self) -> list[str]:
        """What people choose from."""
        return list(self.paths)

    def get(self, name: str) -> LiveModel:
        """Return a model, loaded.

        Raises:
            InputError: it is not there any longer.
            EngineError: the engine does not start on it.
        """
        with self._lock:
            if name not in self.paths:
                raise InputError(f"there is no model '{name}'; choose one of {', '.join(self.paths)}")
            if name not in self._loaded:
                while len(self._loaded) >= LOADED:
                    self._loaded.popitem(last=False)[1].close()
                self._loaded[name] = LiveModel(self.paths[name], self.engine, self.context_tokens)
            self._loaded.move_to_end(name)
            return self._loaded[name]


def _given_name(path: str) -> str:
    """Return what people see of a model that was given: of `RUN/merged` the run.

    >>> _given_name("lightning_logs/runs/quickstart-sft/merged"), _given_name("Qwen/Qwen3-0.6B")
    ('quickstart-sft', 'Qwen/Qwen3-0.6B')
    """
    folder = Path(path)
    if not folder.is_dir():
        return path
    return folder.resolve().parent.name if folder.name in ("merged", "merged_best") else folder.resolve().name
