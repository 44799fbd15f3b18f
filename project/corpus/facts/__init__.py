"""Real facts as passages, questions and expert conversations: the embedded default data of Seeker.

`seeker data facts --output_dir DIR`. Nothing is downloaded: the facts come from installed packages (`sources.py`). Read
`table`, `sources`, `aspects`, `wording`, `passages`, `candidates`, `other_candidates`, `splits`, `expert`, `dataset`, `card`.
"""

import sys
from pathlib import Path

from project.errors import InputError
from project.records import DialectName


def facts(
    output_dir: Path,
    seed: int = 0,
    dialect: DialectName = "tags",
    train_questions: int = 2400,
    validation_questions: int = 60,
    test_questions: int = 200,
    train_conversations: int = 760,
    topk: int = 3,
    missed: float = 0.0,
    force: bool = False,
) -> None:
    """Write passages, questions and expert conversations from real facts about countries, languages and elements.

    Writes passages.jsonl, questions_{train,validation,test}.jsonl, conversations_{train,validation}.jsonl and README.md.

    Args:
        output_dir: folder to write into; made if missing.
        seed: chooses splits, questions and words; the same seed writes the same bytes.
        dialect: how the expert conversations are written.
        train_questions: number of training questions.
        validation_questions: number of validation questions, each with its conversation.
        test_questions: number of held-out questions, which get no conversation.
        train_conversations: the first so many training questions get an expert conversation.
        topk: search results shown for a query.
        missed: share of lookups whose first results come without their evidence in the conversations, as under search noise:
            the expert notices and searches again, so that a model learns not to give up.
        force: replace files that were made otherwise.

    Raises:
        InputError: a number is too small or too large, output_dir is a file, or a file in it was made otherwise.
    """
    from project.corpus.facts.dataset import Settings, build, write
    from project.dialects import get_dialect

    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"--output_dir {output_dir} is a file; give a folder")
    sizes = {"train": train_questions, "validation": validation_questions, "test": test_questions}
    settings = Settings(sizes, train_conversations, get_dialect(dialect), topk, seed, missed)
    summary = write(build(settings), settings, output_dir, force=force)
    sys.stdout.write(summary + "\n")
