"""The models that the demo's page offers: those that were given, the embedded one, and what runs have left."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
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
    """Models by name, each loaded when it is first asked; of those that nobody is asking the one idle longest makes room."""

    paths: dict[str, str | None]
    """A model's folder or hub id, None for the embedded one, by the name that people see."""
    engine: EngineName
    context_tokens: int
    _loaded: OrderedDict[str, LiveModel] = field(default_factory=OrderedDict)
    _users: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def find(cls, given: Sequence[str], engine: EngineName, context_tokens: int) -> Models:
        """Take what was given and what runs have left; the first is that which the page opens with.

        vLLM holds one model a process: with it that is the only one.

        Raises:
            InputError: nothing was given, and no quickstart was run; or several for vLLM.
        """
        folders = sorted(path.parent for path in runs_folder().glob("**/merged/config.json"))
        left = {str(folder.parent.relative_to(runs_folder())): str(folder) for folder in folders}
        paths: dict[str, str | None] = {}
        for path in given:
            name = _given_name(path)
            paths[path if name in paths else name] = path
        if not given:
            first = next((name for name in PREFERRED if name in left), None)
            if first is None:
                raise InputError(
                    f"no quickstart has left a model in {runs_folder()}; run scripts/quickstart.sh, or give --model_path"
                )
            paths[first] = left[first]
        if engine == "vllm":
            if len(paths) > 1:
                raise InputError(f"--engine vllm holds one model, and {len(paths)} are given; leave --engine out to compare")
            return cls(paths, engine, context_tokens)
        others = {name: path for name, path in left.items() if name not in paths}
        return cls({**paths, **others, BASE: None}, engine, context_tokens)

    @property
    def names(self) -> list[str]:
        """What people choose from."""
        return list(self.paths)

    def borrow(self, name: str) -> LiveModel:
        """Return a model, loaded; it stays until it is given back.

        Raises:
            InputError: it is not there any longer, or all that may be loaded are being asked.
            EngineError: the engine does not start on it.
        """
        with self._lock:
            if name not in self.paths:
                raise InputError(f"there is no model '{name}'; choose one of {', '.join(self.paths)}")
            if name not in self._loaded:
                self._make_room()
                self._loaded[name] = LiveModel(self.paths[name], self.engine, self.context_tokens)
            self._loaded.move_to_end(name)
            self._users[name] += 1
            return self._loaded[name]

    def give_back(self, name: str) -> None:
        """Say that a model that was borrowed is not asked any more."""
        with self._lock:
            self._users[name] -= 1

    def _make_room(self) -> None:
        while len(self._loaded) >= LOADED:
            idle = next((name for name in self._loaded if not self._users[name]), None)
            if idle is None:
                raise InputError(
                    f"{' and '.join(self._loaded)} are being asked by others; choose one of them, or wait a little"
                )
            self._loaded.pop(idle).close()


def _given_name(path: str) -> str:
    """Return what people see of a model that was given: of `RUN/merged` the run.

    >>> _given_name("lightning_logs/runs/quickstart-sft/merged"), _given_name("Qwen/Qwen3-0.6B")
    ('quickstart-sft', 'Qwen/Qwen3-0.6B')
    """
    folder = Path(path)
    if not folder.is_dir():
        return folder.parent.name if folder.name in ("merged", "merged_best") else path
    return folder.resolve().parent.name if folder.name in ("merged", "merged_best") else folder.resolve().name
