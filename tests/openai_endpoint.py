"""An OpenAI-compatible endpoint that writes down what it is asked."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class Endpoint:
    """Answers `/chat/completions` by `reply(told, requests so far)`, a text or a status to refuse with; `told` is its JSON."""

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.headers: list[str] = []
        self.together = self.most_together = 0
        self.reply: Callable[[dict, int], str | int] = lambda *_: "yes"
        self.page = ""
        """A page in place of any answer."""
        lock, endpoint = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    endpoint.together += 1
                    endpoint.most_together = max(endpoint.most_together, endpoint.together)
                    endpoint.asked.append(body)
                    endpoint.headers.append(self.headers["authorization"])
                    reply = endpoint.reply(json.loads(body["messages"][1]["content"]), len(endpoint.asked))
                threading.Event().wait(0.02)
                said = {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}]}
                said |= (
                    {"error": {"message": f"refused\nfor {self.headers['authorization']}"}} if isinstance(reply, int) else {}
                )
                data = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m"} | said).encode()
                data = endpoint.page.encode() or data
                with lock:
                    endpoint.together -= 1
                self.send_response(reply if isinstance(reply, int) else 200)
                self.send_header("content-type", "text/html" if endpoint.page else "application/json")
                self.send_header("content-length", str(len(data)))
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
