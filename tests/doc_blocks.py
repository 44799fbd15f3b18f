"""The fenced blocks of a page: files that it shows, and commands that it tells people to type.

A block ```` ```bash ```` is run, one whose title begins with `needs ` only where what it needs is there (minutes, or what
`doc_needs.py` gives); any other title is the name of the file that the block shows, from the folder that the page begins in.
A block without a language (README.md) shows commands with words like DIR and …, and what they do two spaces on.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from doc_needs import NEEDS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)?(?: title=\"(?P<title>[^\"]+)\")?[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_SERVER = re.compile(r"^(?:seeker serve|mlflow server)(?:[^\n]|\\\n)*?(?:--port (?P<port>\d+))(?:[^\n\\]|\\\n)*$", re.MULTILINE)
"""A command that goes on until it is stopped: its reader gives it a terminal, a script the background."""
_ANSWERS = "answers() { until (: < /dev/tcp/127.0.0.1/$1) 2> /dev/null; do kill -0 $!; sleep 0.3; done; }"
_ENDS = {";", "|", "||", "&", "&&", ">", ">>", "<", "(", ")", "2>", "2>&1"}


@dataclass(frozen=True)
class Block:
    language: str
    title: str
    text: str

    @property
    def is_file(self) -> bool:
        return bool(self.title) and not self.title.startswith("needs ")

    @property
    def needs_minutes(self) -> bool:
        return bool(re.fullmatch(r"needs (\S+|a few) minutes", self.title))

    def is_run(self, *, slow: bool = False) -> bool:
        return self.language == "bash" and (not self.title or (slow and (self.needs_minutes or self.title in NEEDS)))

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command, comments taken off and continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]

    @property
    def seeker_commands(self) -> list[list[str]]:
        """The words behind each `seeker`."""
        if self.language == "bash" and not self.is_file:
            return [found for line in self.text.replace("\\\n", " ").splitlines() for found in _of_bash(line)]
        lines = self.text.splitlines() if not self.language else []
        return [found for line in lines if line.startswith("seeker ") for found in of_readme(line)]


def blocks(page: Path | str) -> list[Block]:
    return _blocks((DOCS / page).read_text("utf-8"))


def sections(page: Path | str) -> dict[str, list[Block]]:
    """Return a page's blocks by the heading that they stand under."""
    text = (DOCS / page).read_text("utf-8")
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return {name: _blocks(body) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def write_files(folder: Path, found: list[Block]) -> None:
    for block in found:
        if block.is_file:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text, "utf-8")


def script(found: list[Block], *, slow: bool) -> str:
    """Return a page as a bash script: its files are written and its commands run, in order; servers are waited for."""
    parts = ["set -e", "page=$PWD", _ANSWERS]
    for number, block in enumerate(found):
        if block.is_file:
            name, end = f'"$page"/{shlex.quote(block.title)}', f"END_{number}"
            parts.append(f"mkdir -p \"$(dirname {name})\"\ncat > {name} <<'{end}'\n{block.text}{end}")
        elif block.is_run(slow=slow):
            parts.append(_SERVER.sub(r"\g<0> &\nanswers \g<port>", block.text))
    return "\n".join(parts) + "\n"


def _blocks(text: str) -> list[Block]:
    return [Block(m["language"] or "", m["title"] or "", dedent(m["text"])) for m in _BLOCK.finditer(text)]


def _of_bash(line: str) -> list[list[str]]:
    """The words behind each `seeker` or `-m project` of a line, up to the end of that command."""
    read = shlex.shlex(line, posix=True, punctuation_chars=";|&<>()")
    read.whitespace_split = True
    found: list[list[str]] = []
    before, inside = "", False
    for word in read:
        if word in _ENDS:
            inside = False
        elif inside:
            found[-1].append(word)
        elif word == "seeker" or (word == "project" and before == "-m"):
            found.append([])
            inside = True
        before = word
    return found


def of_readme(line: str) -> list[list[str]]:
    """The words of `seeker data steps|phases FILE [--seed N]   what it does`: one command a verb, all of its options."""
    left = re.split(r"\s{2,}", line)[0].partition(" > ")[0].replace(" | ", " ")
    left = re.sub(r"\[((?:--|[A-Z])[^\]]*)\]", r"\1", left)
    words = [re.sub(r"^([A-Z_]+)\|[A-Z_|]+$", r"\1", word) for word in shlex.split(left)[1:]]
    choices = next(((i, word.split("|")) for i, word in enumerate(words[:2]) if "|" in word), (0, words[:1]))
    return [[*words[: choices[0]], choice, *words[choices[0] + 1 :]] for choice in choices[1]]
