"""The server as its clients see it, its life as a child process, and what the client makes of failures."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from project.cli import main
from project.corpus.build import write_index
from project.corpus.engines.http import HttpRetriever
from project.corpus.index import Index
from project.corpus.serving.app import create_app
from project.corpus.serving.handle import ServerHandle
from project.environment.search import RetrieverTool
from project.errors import InputError, RetrievalError
from project.records import Document, Hit, Passage

PASSAGES = [
    Passage("mn", "Ulaanbaatar", "Ulaanbaatar is the capital of Mongolia."),
    Passage("fj", "Suva", "Suva is the capital of Fiji."),
    Passage("he", "Helium", "Helium is a noble gas."),
    Passage("odd", "Odd", "A lone \ud800 surrogate."),
]


@pytest.fixture(scope="module")
def index_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    write_index(folder, PASSAGES)
    return folder


@pytest.fixture(scope="module")
def server(index_dir) -> Iterator[ServerHandle]:
    with ServerHandle(index_dir) as handle:
        yield handle


def post(server: ServerHandle, **body):
    return httpx.post(f"{server.url}/retrieve", json=body, trust_env=False)


def document(passage: Passage) -> dict[str, str]:
    contents = f'"{passage.title}"\n{passage.text}'
    return {"id": passage.id, "contents": contents, "title": passage.title, "text": passage.text}


def test_wire_format_with_scores(server):
    answer = post(server, queries=["noble gas", "zebra"], topk=3, return_scores=True).json()
    assert set(answer) == {"result"}
    ((hit,), nothing) = answer["result"]
    assert hit["document"] == document(PASSAGES[2])
    assert hit["score"] > 0
    assert nothing == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_trap_11_return_scores_false_and_two_queries(server, count):
    queries = ["capital of Mongolia", "helium", "Suva"][:count]
    expected = [[document(PASSAGES[i])] for i in (0, 2, 1)[:count]]
    assert post(server, queries=queries, topk=1, return_scores=False).json() == {"result": expected}
    scored = post(server, queries=queries, topk=1, return_scores=True).json()["result"]
    assert [[hit["document"] for hit in hits] for hits in scored] == expected


def read_as_search_r1(hits) -> list[tuple[str, str]]:
    """Read hits as Search-R1's rollouts do: the first line of `contents` is the title, the rest is the text."""
    lines = [hit["document"]["contents"].split("\n") for hit in hits]
    return [(first, "\n".join(rest)) for first, *rest in lines]


def test_search_r1s_client_works_unchanged(server):
    results = post(server, queries=["Fiji", "helium"], topk=3, return_scores=True).json()["result"]
    assert [read_as_search_r1(hits) for hits in results] == [
        [('"Suva"', "Suva is the capital of Fiji.")],
        [('"Helium"', "Helium is a noble gas.")],
    ]


@pytest.mark.parametrize(
    "body",
    [{"query": "helium", "top_k": 1}, {"query": ["helium"], "k": 1}, {"query_list": ["helium"], "topk": 1}],
)
def test_the_other_clients_names(server, body):
    answer = post(server, **body).json()
    assert [(hit["title"], hit["content"]) for hit in answer["results"][0]] == [("Helium", "Helium is a noble gas.")]
    assert answer["result"] == [[document(PASSAGES[2])]]


def test_topk_is_three_by_default_and_may_exceed_the_corpus(server):
    many = {"queries": ["capital gas surrogate"]}
    assert len(post(server, **many).json()["result"][0]) == 3
    assert len(post(server, **many, topk=1000).json()["result"][0]) == 4
    assert post(server, queries=[]).json() == {"result": []}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{bad", "not JSON"),
        (b"[1]", "object"),
        (b"{}", "give one of queries, query, query_list, not none"),
        (b'{"queries": ["a"], "query": "b"}', "not queries, query"),
        (b'{"queries": "a"}', "field 'queries'"),
        (b'{"queries": [1]}', "field 'queries.0'"),
        (b'{"queries": ["a"], "topk": 0}', "field 'topk'"),
        (b'{"queries": ["a"], "topk": "3"}', "field 'topk'"),
        (b'{"queries": ["a"], "topk": true}', "field 'topk'"),
        (b'{"queries": ["a"], "topk": 3, "k": 4}', "not topk, k"),
        (b'{"queries": ["a"], "topk": 1000000}', "1,000,000 hits are asked for, at most 1,000 a query are given"),
        (b'{"queries": ["a"], "topk": ' + b"9" * 5000 + b"}", "the body is not JSON"),
        (json.dumps({"queries": ["a"] * 10_000}).encode(), "field 'queries' holds 10,000 queries, at most 256 are answered"),
        (
            json.dumps({"query": "a" * 1_000_000}).encode(),
            "field 'query' holds a query of 1,000,000 characters, at most 10,000",
        ),
        (b'{"queries": ["\xff"]}', "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b"", "the body is not JSON"),
        (b'{"queries": ["a"], "return_scores": "no"}', "field 'return_scores'"),
    ],
)
def test_bad_requests_get_one_sentence(server, content, said):
    response = httpx.post(f"{server.url}/retrieve", content=content, trust_env=False)
    assert response.status_code == 422
    detail = response.json()["detail"]
    assert said in detail
    assert "\n" not in detail


def test_odd_characters_pass(server):
    body = json.dumps({"queries": ["\ud800 surrogate \x00"]})
    response = httpx.post(f"{server.url}/retrieve", content=body, trust_env=False)
    assert json.loads(response.text)["result"][0][0]["text"] == "A lone \ud800 surrogate."


def test_health_names_the_index(server, index_dir):
    health = httpx.get(f"{server.url}/health", trust_env=False).json()
    assert health["status"] == "ok"
    assert health["passages"] == 4
    assert health["digest"] == Index.load(index_dir).digest


def test_many_clients_at_once_each_get_their_own(server):
    wanted = {"Mongolia": "mn", "Fiji": "fj", "helium": "he", "zebra": None}

    async def run() -> None:
        async with HttpRetriever(server.url, concurrency=16) as client:
            queries = list(wanted) * 25
            answers = await asyncio.gather(*(client.search([query, "helium"], 1) for query in queries))
            for query, (own, other) in zip(queries, answers, strict=True):
                assert [hit.passage.id for hit in own] == ([wanted[query]] if wanted[query] else [])
                assert [hit.passage.id for hit in other] == ["he"]

    asyncio.run(run())


class SlowRetriever:
    """Takes half a second for a search, as a large index would."""

    async def aclose(self) -> None:
        pass

    async def search(self, queries, k) -> list[list[Hit]]:
        await asyncio.to_thread(time.sleep, 0.5)
        return [[Hit(PASSAGES[0], 1.0)][:k] for _ in queries]


def test_a_search_does_not_block_the_event_loop():
    async def run() -> tuple[float, float]:
        transport = httpx.ASGITransport(create_app([SlowRetriever()], {}))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            start = time.monotonic()
            searches = [asyncio.create_task(client.post("/retrieve", json={"queries": ["x"]})) for _ in range(2)]
            await asyncio.sleep(0.05)
            assert (await client.get("/health")).status_code == 200
            healthy = time.monotonic() - start
            await asyncio.gather(*searches)
            return healthy, time.monotonic() - start

    healthy, both = asyncio.run(run())
    assert healthy < 0.4
    assert both < 0.95  # side by side, not one after the other


def test_port_in_use_is_said_before_anything_is_loaded(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "retrieval", "--index", "/nowhere", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"port {port} on 127.0.0.1 is in use" in error
    assert "--port" in error


def test_wrong_ports_hosts_and_folders(capsys, tmp_path):
    assert main(["serve", "retrieval", "--index", str(tmp_path), "--port", "99999"]) == 2
    assert "--port is 99999" in capsys.readouterr().err
    assert main(["serve", "retrieval", "--index", str(tmp_path), "--host", "no.such.host.invalid"]) == 2
    assert "no.such.host.invalid" in capsys.readouterr().err
    with pytest.raises(InputError, match="is not an index"):
        ServerHandle(tmp_path).start()


def test_a_server_that_cannot_start_shows_its_log(tmp_path):
    write_index(tmp_path, PASSAGES)
    (tmp_path / "passages.jsonl").write_text("")
    log = tmp_path / "logs" / "server.log"
    with pytest.raises(RetrievalError, match="is a damaged index") as caught:
        ServerHandle(tmp_path, log_file=log).start()
    assert "ended with status 2" in str(caught.value)
    assert str(log) in str(caught.value)


def test_handle_stops_its_server_and_starts_again(index_dir):
    handle = ServerHandle(index_dir)
    with handle as first:
        assert first.is_alive
        pid = httpx.get(f"{first.url}/health", trust_env=False).json()["pid"]
        assert os.getpgid(pid) == pid  # its own group: Ctrl-C in the terminal is the run's
    assert not handle.is_alive
    handle.close()  # again: nothing to do
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with handle as again:
        assert again.is_alive


def test_server_ends_when_its_run_is_killed(index_dir):
    script = (
        "import os, signal; from pathlib import Path; from project.corpus.serving.handle import ServerHandle\n"
        f"handle = ServerHandle(Path({str(index_dir)!r})).start(); print(handle.url, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == -signal.SIGKILL
    url = run.stdout.strip()
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            httpx.get(f"{url}/health", trust_env=False, timeout=1)
        except httpx.TransportError:
            return
        time.sleep(0.1)
    pytest.fail(f"{url} still answers")


def test_client_returns_documents_in_successive_event_loops(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # loopback never goes through a proxy
    client = HttpRetriever(f"{server.url}/retrieve")
    tool = RetrieverTool(client, 1)
    for _ in range(3):
        assert asyncio.run(tool.search(["helium", "zebra"], "q1/1")) == [
            [Document("Helium is a noble gas.", "Helium", "he")],
            [],
        ]
    assert asyncio.run(client.search([], 1)) == []
    assert asyncio.run(client.search(["\ud800"], 1)) == [[]]
    assert asyncio.run(client.health())["status"] == "ok"


def test_a_dead_server_is_an_error_not_an_empty_result(index_dir):
    handle = ServerHandle(index_dir).start()
    client = HttpRetriever(handle.url)

    async def run() -> None:
        assert len((await client.search(["helium"], 1))[0]) == 1
        handle.close()
        with pytest.raises(RetrievalError, match=r"cannot be reached .*4 attempts.*seeker serve retrieval"):
            await client.search(["helium"], 1)

    asyncio.run(run())


@contextmanager
def answering(*answers: tuple[int, bytes], delay_s: float = 0.0) -> Iterator[tuple[str, list[int]]]:
    """Run a server that gives these (status, body) in turn, the last one for ever; yields its URL and the statuses sent."""
    sent: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            time.sleep(delay_s)
            status, body = answers[min(len(sent), len(answers) - 1)]
            sent.append(status)
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    class Web(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that gave up is what one test is about: no stack trace."""

    web = Web(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{web.server_port}", sent
    finally:
        web.shutdown()
        web.server_close()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"oops", "not JSON"),
        (b'"Error: busy"', "list of lists"),
        (b'{"result": null}', "list of lists"),
        (b'{"result": []}', "holds 0 lists for 1 queries"),
        (b'{"result": [["text"]]}', "a hit is a JSON str"),
        (b'{"result": [[{"document": {"title": "no text"}}]]}', "field 'text' is missing"),
    ],
)
def test_malformed_answers_are_errors(body, said):
    with answering((200, body)) as (url, _), pytest.raises(RetrievalError, match=said):
        asyncio.run(HttpRetriever(url).search(["x"], 3))


def test_both_shapes_of_hits_are_read():
    hits = (
        b'{"result": [[{"document": {"contents": "\\"T\\"\\nbody"}, "score": 1.0}, {"id": 7, "title": "T", "text": "body"}]]}'
    )
    with answering((200, hits)) as (url, _):
        found = asyncio.run(HttpRetriever(url).search(["x"], 3))
    assert found == [[Hit(Passage("", "T", "body"), 1.0), Hit(Passage("7", "T", "body"), 0.5)]]


def test_busy_servers_are_asked_again_and_refusals_are_not():
    good = (200, b'{"result": [[]]}')
    with answering((503, b""), (500, b""), good) as (url, sent):
        assert asyncio.run(HttpRetriever(url).search(["x"], 3)) == [[]]
        assert sent == [503, 500, 200]
    with answering((500, b"broken")) as (url, sent):
        with pytest.raises(RetrievalError, match="status 500: broken"):
            asyncio.run(HttpRetriever(url).search(["x"], 3))
        assert sent == [500] * 4
    with answering((422, b"no"), good) as (url, sent):
        with pytest.raises(RetrievalError, match="status 422: no"):
            asyncio.run(HttpRetriever(url).search(["x"], 3))
        assert sent == [422]


def test_one_deadline_covers_all_attempts():
    with answering((500, b""), delay_s=0.2) as (url, _):
        start = time.monotonic()
        with pytest.raises(RetrievalError, match=r"did not answer in 0\.3 s"):
            asyncio.run(HttpRetriever(url, timeout_s=0.3).search(["x"], 3))
        assert time.monotonic() - start < 0.8


def test_wrong_arguments_of_the_client():
    with pytest.raises(InputError, match="'localhost:8001' is not the address"):
        HttpRetriever("localhost:8001")
    with pytest.raises(InputError, match="concurrency=0"):
        HttpRetriever("http://localhost:8001", concurrency=0)
