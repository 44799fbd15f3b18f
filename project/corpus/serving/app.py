"""The web application: `POST /retrieve` (`wire.py`), `GET /health` and `GET /metrics` (Prometheus).

A refusal is one sentence under `detail` (`limits.py`).
"""

# No `from __future__ import annotations` here: FastAPI reads the endpoints' annotations, whose types are imported locally.

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from project.corpus.engines.noisy import Noise, Noisy
from project.corpus.retrievers import Retriever
from project.corpus.serving.batching import Batcher
from project.corpus.serving.cache import Cached
from project.corpus.serving.limits import REFUSALS, Limits, Refusal, authorise
from project.corpus.serving.metrics import Metrics
from project.errors import BusyError, RetrievalError
from project.records import Hit, Row
from project.writing import json_bytes

if TYPE_CHECKING:
    from fastapi import FastAPI, Request


def create_app(
    retrievers: Sequence[Retriever],
    about: Row,
    limits: Limits | None = None,
    token: str | None = None,
    noise: Noise | None = None,
) -> "FastAPI":
    """Return the application.

    Args:
        retrievers: what is searched; of several, one is drawn for each request.
        about: what /health says of it beside `status` and `pid`.
        limits: what clients may ask for.
        token: what they must send as `Authorization: Bearer TOKEN`; None asks for none.
        noise: how much worse the answers are made.
    """
    from fastapi import FastAPI, Request, Response
    from starlette.requests import ClientDisconnect

    from project.corpus.serving.wire import RESPONSE_SCHEMA, read_request, request_schema, response

    limits, metrics = limits or Limits(), Metrics()
    batchers = [Batcher(one, limits.batch, limits.max_waiting, observe=metrics.batch) for one in retrievers]
    metrics.watch_queue(lambda: sum(batcher.waiting for batcher in batchers))
    search = Noisy([Cached(batcher, limits.cache_hits, metrics.cache) for batcher in batchers], noise or Noise())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await search.aclose()

    pages: Any = {"docs_url": None, "redoc_url": None, "openapi_url": None} if token else {}
    app = FastAPI(title="Seeker retrieval", lifespan=lifespan, **pages)

    async def answer(request: Request) -> Row:
        authorise(request.headers.get("authorization", ""), token)
        asked = read_request(await _body(request, limits.max_body_bytes), limits)
        found = search.search(asked.texts, asked.limit, "" if asked.seed is None else str(asked.seed))
        return response(asked, await _within(found, limits.deadline_s))

    async def retrieve(request: Request) -> Response:
        start = time.perf_counter()
        try:
            content, status, headers = await answer(request), 200, {}
        except Refusal as refusal:
            content, status, headers = {"detail": refusal.detail}, refusal.status, refusal.headers
        except ClientDisconnect:
            content, status, headers = {"detail": "the client hung up"}, 499, {}
        except Exception:
            logging.getLogger("uvicorn.error").exception("a search failed")
            content, status, headers = {"detail": "the server failed; its log says why"}, 500, {}
        metrics.request(status, time.perf_counter() - start)
        return Response(json_bytes(content), status, headers, "application/json")

    async def health() -> Response:
        return Response(json_bytes({"status": "ok", **about, "pid": os.getpid()}), media_type="application/json")

    async def show_metrics(request: Request) -> Response:
        try:
            authorise(request.headers.get("authorization", ""), token)
        except Refusal as refusal:
            return Response(json_bytes({"detail": refusal.detail}), refusal.status, refusal.headers, "application/json")
        return Response(metrics.text(), media_type=metrics.media_type)

    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": request_schema(limits)}}}}
    described: dict[int | str, Row] = {200: {"content": {"application/json": {"schema": RESPONSE_SCHEMA}}}}
    described |= {status: {"description": why} for status, why in REFUSALS.items()}
    app.add_api_route("/retrieve", retrieve, methods=["POST"], openapi_extra=body, responses=described, response_class=Response)
    app.add_api_route("/health", health, methods=["GET"], response_class=Response)
    app.add_api_route("/metrics", show_metrics, methods=["GET"], response_class=Response)
    return app


async def _body(request: "Request", most: int) -> bytes:
    """Read the body, no further than it may be long."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise Refusal(413, f"the body has more than {most:,} bytes; ask for less at once", connection="close")
        parts.append(part)
    return b"".join(parts)


async def _within(search: Awaitable[list[list[Hit]]], deadline_s: float) -> list[list[Hit]]:
    try:
        async with asyncio.timeout(deadline_s):
            return await search
    except TimeoutError as error:
        raise Refusal(504, f"the search took more than {deadline_s:g} s; ask for less, or again later") from error
    except BusyError as error:
        raise Refusal(503, str(error), **{"retry-after": "1"}) from error
    except RetrievalError as error:
        raise Refusal(502, str(error)) from error
