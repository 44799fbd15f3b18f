"""As much of MLflow's server as a run's lines need, in a thread of the test; it can refuse, lose its answers, and go away."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FakeServer:
    """What it has taken is in `metrics` (counted by name, step, time and value), `tags`, `statuses` and the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics: Counter[tuple[str, int, int, float]] = Counter()
        self.tags: dict[str, str] = {}
        self.statuses: list[str] = []
        self.batches: list[tuple[int, int]] = []
        self.mode = "up"
        self.stage = "active"
        self.hang = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                info = {"run_id": "r", "experiment_id": "1", "artifact_uri": fake.folder.as_uri(), "status": "RUNNING"}
                info["lifecycle_stage"] = fake.stage
                self.answer(200, {"run": {"info": info, "data": {}}})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if fake.mode == "hangs":
                    fake.hang.wait(20)
                if fake.mode == "503":
                    self.answer(503, {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "restarting"})
                elif fake.stage == "deleted":
                    self.answer(400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "must be in the 'active' state"})
                elif fake.mode.isdigit():
                    self.answer(int(fake.mode), {"error_code": "INTERNAL_ERROR", "message": "no"})
                elif any("broken" in row["key"] for row in body.get("metrics", [])):
                    self.answer(500, {"error_code": "INTERNAL_ERROR", "message": "Python int too large"})
                elif any("bad" in row["key"] for row in body.get("metrics", [])):
                    self.answer(400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "a bad name"})
                else:
                    fake.take(self.path, body)
                    if fake.mode == "loses answers":
                        fake.mode = "up"
                        self.close_connection = True
                    else:
                        self.answer(200, {"run_info": {"run_id": "r"}})

            def answer(self, code: int, body: dict[str, object]) -> None:
                text = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def take(self, path: str, body: dict[str, list[dict[str, object]]]) -> None:
        if path.endswith("log-batch"):
            self.batches.append((len(body.get("metrics", [])), len(body.get("tags", []))))
            for row in body.get("metrics", []):
                self.metrics[row["key"], int(row.get("step", 0)), int(row["timestamp"]), float(row["value"])] += 1
            self.tags |= {row["key"]: row["value"] for row in body.get("tags", [])}
        elif path.endswith("runs/update"):
            self.statuses.append(body["status"])

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
