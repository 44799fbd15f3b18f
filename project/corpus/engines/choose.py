"""An engine by its name: of an index, or somebody else's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from project.corpus.engines.http import HttpRetriever
from project.corpus.engines.lance import Lance
from project.corpus.engines.mcp import McpRetriever
from project.corpus.engines.web import WebRetriever
from project.corpus.index import PARTS, EngineName, Index, RankingSettings, read_manifest
from project.corpus.retrievers import Retriever
from project.errors import InputError
from project.named import class_named, is_path
from project.records import Row

LANCE: dict[str, Literal["text", "vector"] | None] = {"lance": None, "lance_text": "text", "lance_vector": "vector"}
LanceName = Literal["lance", "lance_text", "lance_vector"]
"""LanceDB by all that its table holds, by its words, by its vectors."""
RemoteName = Literal["http", "mcp", "tavily", "serper"]
AnyEngine = EngineName | LanceName | RemoteName | str
"""Or the path of a `Retriever` of your own: `module.Class`. It is made with `remote.address` where that is given."""


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
    index: str | Path | None, engine: AnyEngine | None, ranking: RankingSettings, remote: Remote
) -> tuple[Retriever, Row]:
    """Return an engine and what is known of it.

    Raises:
        InputError: the index or the address is missing, or cannot be opened.
    """
    if engine not in (None, *PARTS) and ranking != RankingSettings():
        raise InputError(f"--ranking.* is for an index of bm25, dense or hybrid, and the engine is {engine}; leave it out")
    if engine in ("tavily", "serper"):
        name: Any = engine
        return WebRetriever(name, remote.address, remote.timeout_s), {"engine": engine}
    if engine == "http" or engine == "mcp":
        if remote.address is None:
            raise InputError(f"the engine {engine} needs --remote.address; give the server's")
        about: Row = {"engine": engine}
        if engine == "http":
            return HttpRetriever(remote.address, remote.timeout_s), about
        return McpRetriever(remote.address, remote.tool, remote.timeout_s), about
    if engine is not None and is_path(engine):
        chosen: Any = class_named(engine, Retriever, "--engine")  # type: ignore[type-abstract]
        return chosen(*([remote.address] if remote.address is not None else [])), {"engine": engine}
    if engine is not None and engine not in (*PARTS, *LANCE):
        known = ", ".join((*PARTS, *LANCE, *get_args(RemoteName)))
        raise InputError(f"--engine is {engine}, which is none of {known}; give one, or a class of your own as module.Class")
    if index is None:
        raise InputError("--index is missing; give the folder that 'seeker index build' wrote, or an --engine elsewhere")
    if engine is None and ("://" in str(index) or read_manifest(Path(index))["engine"] == "lance"):
        engine = "lance"
        if ranking != RankingSettings():
            raise InputError("--ranking.* is for an index of bm25, dense or hybrid, and this is LanceDB's; leave it out")
    if engine in LANCE:
        return _lance(str(index), engine)
    part: Any = engine
    opened = Index.load(Path(index), part, ranking)
    opened.find(["warm up"], 1)  # compiles and loads what the first search needs
    return opened, {"engine": opened.engine, "passages": len(opened), "digest": opened.digest}


def _lance(uri: str, engine: str) -> tuple[Retriever, Row]:
    if "://" not in uri:
        read_manifest(Path(uri))
    table = Lance(uri, LANCE[engine])
    return table, {"engine": engine, "passages": len(table), "digest": table.about["digest"]}
