"""`seeker init DIR`: a folder for an agent on one's own documents, with its configs and the commands in order.

The files are templates in `init/`, in which `$name` is the name of the runs. It makes no data and trains nothing: the
folder's README.md says how, step by step.
"""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from pathlib import Path
from string import Template

from project.errors import InputError

TEMPLATES = Path(__file__).with_name("init")
FIRST = "seeker data corpus --input_file documents --output_file data/passages.jsonl"
NAME = re.compile(r"\w[\w.-]*")


def init(dir: Path, name: str | None = None) -> None:
    """Lay out a folder for an agent on your own documents: configs, an example document, and the commands in order.

    Args:
        dir: the folder to make (`seeker init DIR`); one that is there must be empty.
        name: what the names of its runs begin with: letters, digits, `.`, `_`, `-`; by default made of the folder's name.
    """
    folder = dir.expanduser()
    name = name or re.sub(r"[^\w.-]+", "-", folder.resolve().name).strip("-.") or "agent"
    if not NAME.fullmatch(name):
        raise InputError(f"--name is {name!r}; give letters, digits, '_', '.' and '-', the last two not first")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{dir} is there and {'not empty' if folder.is_dir() else 'a file'}; name a new folder")
    _write(folder, files(name))
    sys.stdout.write(f"{dir}: an example document and the configs of {name}. Next, what {folder / 'README.md'} says:\n")
    sys.stdout.write(f"  cd {shlex.quote(str(dir))}\n  {FIRST}\n")


def files(name: str) -> dict[str, str]:
    """Return the texts of the folder's files by their places in it."""
    activate = Path(sys.prefix, "bin", "activate")
    says = f"source {shlex.quote(str(activate))}" if activate.is_file() else "source .venv/bin/activate"
    texts = {
        path.relative_to(TEMPLATES).as_posix(): Template(path.read_text(encoding="utf-8")).substitute(name=name, activate=says)
        for path in sorted(TEMPLATES.rglob("*.*"))
    }
    return texts | {".gitignore": texts.pop("gitignore.txt")}


def _write(folder: Path, texts: dict[str, str]) -> None:
    """Write all of them beside their places and put the whole there, so that a failure leaves nothing behind."""
    is_there = folder.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder if is_there else folder.parent, prefix=".seeker-init-") as scratch:
        fresh = Path(scratch) / "folder"
        for place, text in texts.items():
            path = fresh / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        (fresh / "data").mkdir()
        for made in list(fresh.iterdir()) if is_there else [fresh]:  # the current folder, say, must stay the same one
            made.rename(folder / made.name if is_there else folder)
