"""`seeker data paraphrase`: passages in other words, to stand in for them as search noise.

A row is a passage's `id` and another `text` for it, as `seeker serve retrieval --noise.paraphrases` reads them. What is a copy,
says something else or was cut off is left out, by bounds that say how much a paraphrase may be like its passage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from project.dialects import clean
from project.errors import InputError
from project.records import Passage, Row
from project.rewards import terms
from project.streams import Made, as_paths
from project.teacher.client import Reply, Sampling, Teacher
from project.teacher.jobs import do
from project.teacher.maker import Asker, Job, Maker, together
from project.teacher.prompting import PROMPTS, Prompt

STYLES = (
    "in plain words, as one would tell a child",
    "as short as it can be said",
    "in the dry style of a handbook, with the sentences in another order",
)
MOST_LONGER = 3.0
"""Times that a paraphrase may be as long as its passage."""


@dataclass(frozen=True)
class Bounds:
    """How like its passage a paraphrase may be: the share of words that the two have in common (Jaccard 1912)."""

    low: float = 0.15
    """Below it says something else, as a refusal does."""
    high: float = 0.85
    """Above it is a copy."""

    def __post_init__(self) -> None:
        """Refuse bounds between which nothing lies."""
        if not 0 <= self.low < self.high <= 1:
            raise InputError(
                f"likeness.low={self.low} and likeness.high={self.high} must be shares, the first below the second"
            )

    def verdict(self, passage: str, reply: Reply) -> str:
        """Return why a reply is no paraphrase of a passage; empty where it is one."""
        if reply.finish == "length":
            return "cut off"
        alike = terms.likeness(passage, reply.text)
        if alike < self.low:
            return "something else"
        if alike > self.high:
            return "a copy"
        return "too long" if len(reply.text) > MOST_LONGER * len(passage) else ""


def paraphrase(
    input_file: list[Path] | Path,
    output_file: Path,
    teacher: Teacher = Teacher(),  # noqa: B008 - frozen
    styles: list[str] = list(STYLES),  # noqa: B006 - never changed
    likeness: Bounds = Bounds(),
    sampling: Sampling = Sampling(max_tokens=512),  # noqa: B008 - frozen
    prompt_file: Path = PROMPTS / "paraphrase.txt",
    seed: int = 0,
    strict: bool = False,
    force: bool = False,
    dry_run: bool = False,
    yes: bool = False,
) -> None:
    """Have a teacher say passages in other words, in several styles.

    Args:
        input_file: one or several passage files, as seeker data corpus writes them.
        output_file: the paraphrases to write (.jsonl, .jsonl.gz or .parquet), for --noise.paraphrases.
        teacher: whom to ask, and how fast.
        styles: what each paraphrase of a passage should be like.
        likeness: how like its passage a paraphrase may be.
        sampling: how the teacher samples.
        prompt_file: the instructions, with a place for $style.
        seed: of the teacher's sampling.
        strict: stop at the first passage that gives nothing, instead of listing it in OUTPUT.rejected.jsonl.
        force: replace an output that was made otherwise.
        dry_run: show the first request and what the job may cost, and ask nothing.
        yes: begin though it may cost more than teacher.most_price.
    """
    if not styles:
        raise InputError("--styles names none; give one or several")
    prompt = Prompt.read(prompt_file, "style")
    parameters = {"prompt": prompt.told(), "styles": styles, "likeness": [likeness.low, likeness.high], **sampling.told()}
    maker = Maker("seeker data paraphrase", 1, partial(_paraphrase, prompt, styles, likeness, sampling), parameters)
    job = Job(as_paths(input_file), {"paraphrases": output_file}, teacher, seed, strict, force, dry_run, yes)
    do(maker, job)


async def _paraphrase(
    prompt: Prompt, styles: Sequence[str], bounds: Bounds, sampling: Sampling, row: Row, asker: Asker, made: Made
) -> None:
    passage = Passage.from_row(row)
    requests = [
        asker.ask(
            [{"role": "system", "content": prompt.fill(style=style)}, {"role": "user", "content": clean(passage.text)}],
            sampling,
            attempt=number,
        )
        for number, style in enumerate(styles)
    ]
    replies = await together(requests)
    wrong = [bounds.verdict(passage.text, reply) for reply in replies]
    for style, reply, why in zip(styles, replies, wrong, strict=True):
        if why:
            made.counts[f"left out: {why}"] += 1
        else:
            text = clean(reply.text).strip()
            made.put("paraphrases", {"id": passage.id, "text": text, "title": passage.title, "style": style})
    if all(wrong):
        msg = f"no paraphrase: {', '.join(sorted(set(wrong)))}"
        raise ValueError(msg)
