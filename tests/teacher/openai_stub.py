"""An OpenAI-compatible endpoint with a latency and faults of its own, and what it was asked."""

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

from aiohttp import web

Reply = Callable[[dict, int], Any]


def completion(text: str, finish: str = "stop", **message: Any) -> dict:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "stub", "choices": [choice], "usage": usage}


class Stub:
    """Answers a request by `reply(its JSON, how often the same was asked before)`: JSON, a status, text, or None to hang up."""

    def __init__(self, reply: Reply | None = None, latency: float = 0.0, port: int = 0) -> None:
        self.reply: Reply = reply or (lambda asked, _: completion(f"said {asked['messages'][-1]['content']}"))
        self.latency, self.port = latency, port
        self.asked: list[dict] = []
        self.probe: Any = completion("Yes.")
        """The answer to the question of no consequence by which a job learns whether an endpoint is up."""
        self.probed = 0
        self.keys: list[str] = []
        self.headers: dict[str, str] = {}
        """Sent with every answer."""
        self.counts: Counter[str] = Counter()
        self.together = self.most_together = 0
        self.passages: dict[str, str] = {}
        """By id, for `/retrieve`: a query finds those that hold it."""
        self.searched: list[str] = []
        self.search_fails = False
        self.jitter = random.Random(0)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body["messages"][-1]["content"] == "Say yes.":
            self.probed += 1
            if isinstance(self.probe, int):
                return web.json_response({"error": {"message": "down"}}, status=self.probe, headers=self.headers)
            return web.json_response(self.probe)
        self.asked.append(body)
        self.keys.append(request.headers["authorization"])
        name = json.dumps(body["messages"])
        before, self.counts[name] = self.counts[name], self.counts[name] + 1
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        try:
            await asyncio.sleep(self.latency * (0.5 + self.jitter.random()))
            said = self.reply(body, before)
        finally:
            self.together -= 1
        if said is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if isinstance(said, int):
            error = {"error": {"message": f"refused for {request.headers['authorization']}"}}
            return web.json_response(error, status=said, headers=self.headers)
        text = said if isinstance(said, str) else json.dumps(said)
        return web.Response(text=text, content_type="application/json", headers=self.headers)

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response(
            {"object": "list", "data": [{"id": "stub", "object": "model", "created": 0, "owned_by": "us"}]}
        )

    async def _retrieve(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.searched += body["queries"]
        if self.search_fails:
            return web.json_response({"error": "down"}, status=503)
        found = [
            [{"document": {"id": i, "title": i, "text": t}, "score": 1.0} for i, t in self.passages.items() if query in t]
            for query in body["queries"]
        ]
        return web.json_response({"result": [hits[: body["topk"]] for hits in found]})

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_post("/retrieve", self._retrieve)
        app.router.add_get("/v1/models", self._models)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        await self._ended.wait()
        await runner.cleanup()

    def __enter__(self) -> Self:
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._started.wait(10)
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
