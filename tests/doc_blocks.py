"""The fenced blocks of a page: files that it shows, and commands that it tells people to type."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
_BLOCK = re.compile(
    r"^```(?P<language>\w+)?(?: title=\"(?P<title>[^\"]+)\")?[^\n]*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    language: str
    title: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command, comments taken off and continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path | str) -> list[Block]:
    text = (DOCS / page).read_text("utf-8")
    return [Block(m["language"] or "", m["title"] or "", m["text"]) for m in _BLOCK.finditer(text)]


def sections(page: Path | str) -> dict[str, list[Block]]:
    """Return a page's blocks by the heading that they stand under."""
    text = (DOCS / page).read_text("utf-8")
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return {
        name: [Block(m["language"] or "", m["title"] or "", m["text"]) for m in _BLOCK.finditer(body)]
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def write_files(folder: Path, found: list[Block]) -> None:
    for block in found:
        if block.title:
            (folder / block.title).write_text(block.text, "utf-8")
