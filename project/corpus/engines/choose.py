"""An engine by its name: of an index, or somebody else's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from project.corpus.engines.http import HttpRetriever
from project.corpus.engines.mcp import McpRetriever
from project.corpus.engines.web import WebRetriever
from project.corpus.index import EngineName, Index, RankingSettings
from project.corpus.retrievers import Retriever
from project.errors import InputError
from project.records import Row

RemoteName = Literal["http", "mcp", "tavily", "serper"]


@dataclass(frozen=True)
class Remote:
    """A search engine elsewhere."""

    address: str | None = None
    """Of http a /retrieve server's URL, of mcp an MCP server's URL or command, of tavily and serper another server's URL."""
    tool: str | None = None
    """The MCP server's tool; default: `search`, or the only one that takes a query."""
    timeout_s: float = 30.0
    """Seconds for one search, further attempts included."""


def open_engine(
    index: Path | None, engine: EngineName | RemoteName | None, ranking: RankingSettings, remote: Remote
) -> tuple[Retriever, Row]:
    """Return an engine and what is known of it.

    Raises:
        InputError: the index or the address is missing, or cannot be opened.
    """
    if engine == "tavily" or engine == "serper":
        return WebRetriever(engine, remote.address, remote.timeout_s), {"engine": engine}
    if engine == "http" or engine == "mcp":
        if remote.address is None:
            raise InputError(f"the engine {engine} needs --remote.address; give the server's")
        about: Row = {"engine": engine, "address": remote.address}
        if engine == "http":
            return HttpRetriever(remote.address, remote.timeout_s), about
        return McpRetriever(remote.address, remote.tool, remote.timeout_s), about
    if index is None:
        raise InputError("--index is missing; give the folder that 'seeker index build' wrote, or an --engine elsewhere")
    opened = Index.load(index, engine, ranking)
    opened.find(["warm up"], 1)  # compiles and loads what the first search needs
    return opened, {"engine": opened.engine, "passages": len(opened), "digest": opened.digest}
