"""`seeker serve mcp --index DIR`: the same search as a tool of the Model Context Protocol, by the official SDK.

Over pipes (`--transport stdio`, for clients that start their servers) or streamable HTTP, there with the token of
SEEKER_RETRIEVAL_TOKEN where it is set. The tool returns an object with a list of results; a search that fails is a failed
call, never an empty list.
"""

# No `from __future__ import annotations` here: the SDK reads the tool's annotations, whose types are imported locally.

import os
from typing import TYPE_CHECKING, Annotated, Literal

from project.corpus.engines.choose import AnyEngine, Remote, open_engine
from project.corpus.engines.http import TOKEN
from project.corpus.index import RankingSettings
from project.corpus.retrievers import Retriever
from project.corpus.serving.command import GRACE_S
from project.corpus.serving.limits import Refusal, authorise
from project.errors import RetrievalError
from project.ports import listen
from project.writing import json_bytes

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer
    from starlette.types import ASGIApp, Receive, Scope, Send

MOST_RESULTS = 100
_RANKING, _REMOTE = RankingSettings(), Remote()


def mcp(
    index: str | None = None,
    transport: Literal["stdio", "http"] = "stdio",
    host: str = "127.0.0.1",
    port: int = 8002,
    engine: AnyEngine | None = None,
    ranking: RankingSettings = _RANKING,
    remote: Remote = _REMOTE,
) -> None:
    """Serve search as an MCP tool until the client leaves, or until interrupted.

    Over http, where SEEKER_RETRIEVAL_TOKEN is set, only who sends it is answered.

    Args:
        index: the folder (or s3://…, db://…) that `seeker index build` wrote.
        transport: stdio, for clients that start their servers, or http (streamable, at /mcp).
        host: address to listen on for http; the default is this machine only.
        port: TCP port for http.
        engine: by which of the index's engines to search (default: that for which it was built), or one elsewhere: http (any
            /retrieve server), mcp, tavily, serper.
        ranking: how engines are combined.
        remote: where an engine elsewhere is.
    """
    listener = listen(host, port) if transport == "http" else None
    retriever, about = open_engine(index, engine, ranking, remote)
    server = make_server(retriever, about.get("passages"))
    if listener is None:
        server.run("stdio")
        return
    import uvicorn

    with listener:
        print(f"serving search at http://{host}:{port}/mcp", flush=True)
        app = _guarded(server.streamable_http_app(host=host, stateless_http=True, json_response=True), os.environ.get(TOKEN))
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE_S)
        uvicorn.Server(config).run(sockets=[listener])


def _guarded(app: "ASGIApp", token: str | None) -> "ASGIApp":
    """Return an application that refuses requests without the token."""
    from starlette.datastructures import Headers
    from starlette.responses import Response

    async def guarded(scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] == "http":
            try:
                authorise(Headers(scope=scope).get("authorization", ""), token)
            except Refusal as refusal:
                error = {"code": -32000, "message": refusal.detail}  # as JSON-RPC says it, so that clients show it
                body = json_bytes({"jsonrpc": "2.0", "id": None, "error": error})
                await Response(body, refusal.status, refusal.headers, "application/json")(scope, receive, send)
                return
        await app(scope, receive, send)

    return guarded


def make_server(retriever: Retriever, passages: int | None) -> "MCPServer":
    """Return an MCP server with one tool, `search`."""
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from pydantic import BaseModel, Field

    class Result(BaseModel):
        """A passage."""

        id: str
        title: str
        text: str
        score: float

    class Results(BaseModel):
        """What was found, best first; nothing is a right answer."""

        results: list[Result]

    async def search(
        query: Annotated[str, Field(description="What to look for, in a few words.", max_length=10_000)],
        topk: Annotated[int, Field(description="How many passages at most.", ge=1, le=MOST_RESULTS)] = 3,
    ) -> Results:
        try:
            (hits,) = await retriever.search([query], topk)
        except RetrievalError as error:
            raise ToolError(str(error)) from error  # other errors' words stay here
        found = [(hit.passage, hit.score) for hit in hits]
        return Results(results=[Result(id=p.id, title=p.title, text=p.text, score=score) for p, score in found])

    held = f" ({passages:,} passages)" if passages else ""
    server = MCPServer("seeker", instructions="Search a corpus for passages.", log_level="WARNING")
    server.add_tool(search, "search", description=f"Search the corpus{held} and return the best passages.")
    return server
