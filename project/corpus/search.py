"""`seeker index search --index DIR --query TEXT`: what any engine finds, in the terminal."""

from __future__ import annotations

import asyncio
from textwrap import shorten

from project.corpus.engines.choose import AnyEngine, Remote, open_engine
from project.corpus.index import RankingSettings
from project.errors import InputError
from project.records import Hit

_RANKING, _REMOTE = RankingSettings(), Remote()

LONGEST = 300
"""Characters of a passage that are shown."""


def search(
    query: str,
    index: str | None = None,
    topk: int = 5,
    engine: AnyEngine | None = None,
    ranking: RankingSettings = _RANKING,
    remote: Remote = _REMOTE,
) -> None:
    """Ask an index, or an engine elsewhere, one query and print what it finds.

    Args:
        query: any text.
        index: the folder (or s3://…, db://…) that `seeker index build` wrote.
        topk: how many passages at most.
        engine: by which of the index's engines to search (default: that for which it was built), or one elsewhere.
        ranking: how engines are combined.
        remote: where an engine elsewhere is.
    """
    if topk < 1:
        raise InputError(f"--topk is {topk}; give 1 or more")
    retriever, _ = open_engine(index, engine, ranking, remote)

    async def ask() -> list[Hit]:
        try:
            return (await retriever.search([query], topk))[0]
        finally:
            await retriever.aclose()

    _print(query, asyncio.run(ask()))


def _print(query: str, hits: list[Hit]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(query), caption="" if hits else "No results.")
    for column in ("score", "id", "title", "text"):
        table.add_column(column, justify="right" if column == "score" else "left")
    for hit in hits:
        passage = hit.passage
        text = shorten(passage.text, LONGEST, placeholder=" …")
        table.add_row(f"{hit.score:.3f}", *map(escape, (passage.id, passage.title, text)))
    Console().print(table)
