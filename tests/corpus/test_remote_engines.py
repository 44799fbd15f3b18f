"""Engines elsewhere (web APIs, MCP servers, other /retrieve servers) against real local servers, and noise."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from project.cli import main
from project.corpus.build import write_index
from project.corpus.engines.choose import Remote, open_engine
from project.corpus.engines.http import HttpRetriever
from project.corpus.engines.mcp import McpRetriever, hits_of
from project.corpus.engines.noisy import Noise, Noisy
from project.corpus.engines.web import WebRetriever
from project.corpus.index import Index, RankingSettings
from project.corpus.serving.app import create_app
from project.corpus.serving.mcp import make_server
from project.errors import InputError, RetrievalError
from project.records import Hit, Passage
from project.writing import write_rows

PASSAGES = [
    Passage("mn", "Ulaanbaatar", "Ulaanbaatar is the capital of Mongolia."),
    Passage("mn2", "Mongolia", "The capital of Mongolia is Ulaanbaatar, in the north."),
    Passage("fj", "Suva", "Suva is the capital of Fiji."),
    Passage("he", "Helium", "Helium is a noble gas."),
]


@pytest.fixture(scope="module")
def index_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote") / "index"
    write_index(folder, PASSAGES)
    return folder


def ids(hits):
    return [hit.passage.id for hit in hits]


# --- web APIs


@contextmanager
def web_api(answer):
    """Run a server that gives `answer(path, headers, body)` as JSON; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, said = answer(self.path, self.headers, body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_tavily_and_serper_are_spoken(monkeypatch):
    monkeypatch.setenv("TAVILY_API_KEY", "tvly-key")
    monkeypatch.setenv("SERPER_API_KEY", "serper-key")

    def tavily(path, headers, body):
        assert (path, headers["authorization"]) == ("/search", "Bearer tvly-key")
        assert body == {"query": "helium", "max_results": 2}
        rows = [{"title": "T", "url": "https://a", "content": "about helium", "score": 0.9}]
        return 200, {"query": body["query"], "results": rows * 3}

    def serper(path, headers, body):
        assert (path, headers["x-api-key"]) == ("/search", "serper-key")
        assert body == {"q": "helium", "num": 2}
        return 200, {"organic": [{"title": "T", "link": "https://a", "snippet": "about helium", "position": 1}, {"title": "U"}]}

    with web_api(tavily) as url:
        first, empty = asyncio.run(WebRetriever("tavily", url).search(["helium", " "], 2))
        assert first == [Hit(Passage("https://a", "T", "about helium", "https://a"), 0.9)] * 2
        assert empty == []
    with web_api(serper) as url:
        ((hit, other),) = asyncio.run(WebRetriever("serper", url).search(["helium"], 2))
        assert hit == Hit(Passage("https://a", "T", "about helium", "https://a"), 1.0)
        assert (other.passage.title, other.passage.text, other.score) == ("U", "", 0.5)
    with web_api(lambda *_: (200, {"organic": []})) as url:
        assert asyncio.run(WebRetriever("serper", url).search(["x"], 2)) == [[]]


def test_addresses_that_are_none():
    for address in ("http://localhost:port", "http://[::1", "http://host:99999", "ftp://host", "host:8001"):
        with pytest.raises(InputError, match="is not the address of a server"):
            HttpRetriever(address)


@pytest.mark.parametrize("api", ["tavily", "serper"])
def test_a_web_api_that_fails_is_no_empty_result(monkeypatch, api):
    monkeypatch.setenv(f"{api.upper()}_API_KEY", "k")
    for status, said, expected in [
        (401, {"error": "bad key"}, "status 401"),
        (200, ["?"], f"did not answer as {api} does"),
        (200, {"results": [3], "organic": [3]}, f"did not answer as {api} does"),
        (200, {"message": "Unauthorized."}, f"did not answer as {api} does"),
    ]:
        with web_api(lambda *_, s=status, a=said: (s, a)) as url, pytest.raises(RetrievalError, match=expected):
            asyncio.run(WebRetriever(api, url).search(["x"], 2))
    monkeypatch.delenv(f"{api.upper()}_API_KEY")
    with pytest.raises(InputError, match=f"{api.upper()}_API_KEY"):
        WebRetriever(api)


# --- MCP, with the SDK's own client and server


def command(index_dir):
    return f"{sys.executable} -m project serve mcp --index {index_dir}"


def test_the_sdks_client_searches_over_pipes(index_dir):
    from mcp import Client, StdioServerParameters
    from mcp.client.stdio import stdio_client

    async def run():
        arguments = ["-m", "project", "serve", "mcp", "--index", str(index_dir)]
        parameters = StdioServerParameters(command=sys.executable, args=arguments)
        async with Client(stdio_client(parameters, sys.__stderr__)) as client:  # pytest's own was there as the SDK was imported
            (tool,) = (await client.list_tools()).tools
            assert tool.name == "search"
            assert "4 passages" in tool.description
            assert set(tool.input_schema["properties"]) == {"query", "topk"}
            found = await client.call_tool("search", {"query": "noble gas", "topk": 2})
            assert [row["id"] for row in found.structured_content["results"]] == ["he"]
            assert json.loads(found.content[0].text)["results"][0]["text"] == "Helium is a noble gas."
            assert (await client.call_tool("search", {"query": "zebra"})).structured_content == {"results": []}
            for wrong in ({"query": "x", "topk": 0}, {"query": 3}, {}):
                assert (await client.call_tool("search", wrong)).is_error

    asyncio.run(run())


@contextmanager
def mcp_server(index_dir, **variables):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*command(index_dir).split(), "--transport", "http", "--port", str(port)]
    process = subprocess.Popen(words, env=os.environ | variables)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def mcp_url(index_dir):
    with mcp_server(index_dir) as url:
        yield url


def test_an_mcp_server_over_http_may_want_a_token(index_dir, monkeypatch):
    async def asked(url):
        engine = McpRetriever(url)
        try:
            return ids((await engine.search(["helium"], 1))[0])
        finally:
            await engine.aclose()

    with mcp_server(index_dir, SEEKER_RETRIEVAL_TOKEN="secret-7") as url:
        refused = httpx.post(url, json={}, headers={"authorization": "Bearer secret-8"}, trust_env=False)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        monkeypatch.delenv("SEEKER_RETRIEVAL_TOKEN", raising=False)
        with pytest.raises(RetrievalError, match="this server wants 'Authorization: Bearer TOKEN'"):
            asyncio.run(asked(url))
        monkeypatch.setenv("SEEKER_RETRIEVAL_TOKEN", "secret-7")
        assert asyncio.run(asked(url)) == ["he"]


@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_an_mcp_server_is_an_engine(index_dir, mcp_url, transport):
    async def run():
        engine = McpRetriever(mcp_url if transport == "http" else command(index_dir))
        try:
            queries = ["noble gas", "capital of Mongolia", "zebra"]
            found = await engine.search(queries, 2)
            assert [ids(hits) for hits in found] == [["he"], ["mn2", "mn"], []]
            expected = Index.load(index_dir).find(queries, 2)
            assert [[(hit.passage.text, hit.passage.title) for hit in hits] for hits in found] == [
                [(hit.passage.text, hit.passage.title) for hit in hits] for hits in expected
            ]
            assert found[0][0].score == pytest.approx(expected[0][0].score)
            await engine.aclose()
            assert ids((await engine.search(["helium"], 1))[0]) == ["he"]  # connected anew
        finally:
            await engine.aclose()

    asyncio.run(run())


def test_an_mcp_server_is_used_from_successive_event_loops(mcp_url):
    engine = McpRetriever(mcp_url)

    async def once():
        try:
            return ids((await engine.search(["helium"], 1))[0])
        finally:
            await engine.aclose()

    assert [asyncio.run(once()) for _ in range(2)] == [["he"]] * 2


def test_an_mcp_server_that_dies_is_an_error_and_is_started_again(index_dir):
    async def run():
        engine = McpRetriever(command(index_dir), timeout_s=60)
        assert ids((await engine.search(["helium"], 1))[0]) == ["he"]
        children = {child.pid: child.cmdline() for child in psutil.Process().children()}
        (pid,) = (pid for pid, words in children.items() if "mcp" in words and "--transport" not in words)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(RetrievalError, match="the MCP server"):
            await engine.search(["helium"], 1)
        assert ids((await engine.search(["helium"], 1))[0]) == ["he"]
        await engine.aclose()

    asyncio.run(run())


def test_what_is_no_mcp_server(tmp_path):
    script = tmp_path / "other.py"
    script.write_text(
        "from mcp.server.mcpserver import MCPServer\n"
        "server = MCPServer('other')\n"
        "@server.tool()\ndef add(a: int, b: int) -> int:\n    return a + b\n"
        "@server.tool()\ndef find(q: str, limit: int = 5) -> str:\n"
        "    return 'No results.' if q == 'nothing' else f'{q} {limit}'\n"
        "@server.tool()\ndef broken(query: str) -> str:\n    raise ValueError('out of order')\n"
        "server.run('stdio')\n"
    )

    async def fails(said, address, **options):
        engine = McpRetriever(address, **options)
        with pytest.raises(RetrievalError, match=said):
            await engine.search(["x"], 1)
        await engine.aclose()

    async def run():
        await fails("the MCP server /nowhere failed", "/nowhere", timeout_s=20)
        await fails("did not answer in 0.5 s", f"{sys.executable} -c 'import time; time.sleep(60)'", timeout_s=0.5)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            await fails("failed", f"http://127.0.0.1:{free.getsockname()[1]}/mcp", timeout_s=20)
        other = f"{sys.executable} {script}"
        await fails("has no tool 'search' that takes a query, and has add, find, broken; name one", other)
        await fails("has no tool 'add'", other, tool="add")
        await fails("the tool broken of .* failed: Error executing tool broken", other, tool="broken")
        engine = McpRetriever(other, tool="find")
        found = await engine.search(["moon", "nothing"], 7)
        assert [[(hit.passage.text, hit.score) for hit in hits] for hits in found] == [[("moon 7", 1.0)], []]
        await engine.aclose()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("structured", "text", "expected"),
    [
        ({"result": [{"document": {"id": 1, "contents": "c", "title": "t"}, "score": 0.5}]}, "", [("1", "t", "c", 0.5)]),
        ({"result": [[{"url": "u", "snippet": "s"}]]}, "", [("u", "", "s", 1.0)]),
        (None, '[{"id": "a", "text": "x"}, "plain"]', [("a", "", "x", 1.0), ("", "", "plain", 0.5)]),
        (None, "just words", [("", "", "just words", 1.0)]),
        ({"results": []}, "", []),
        (None, "", []),
    ],
)
def test_answers_of_many_shapes_are_read(structured, text, expected):
    found = [(h.passage.id, h.passage.title, h.passage.text, h.score) for h in hits_of(structured, text)]
    assert found == expected


def test_a_search_that_fails_is_a_failed_call():
    from mcp import Client

    class Broken:
        async def search(self, queries, k):
            raise RetrievalError("the index is damaged")

    async def run():
        async with Client(make_server(Broken(), None)) as client:
            answer = await client.call_tool("search", {"query": "x"})
            assert answer.is_error
            assert "the index is damaged" in answer.content[0].text

    asyncio.run(run())


# --- one server on behalf of another


@contextmanager
def served(*options):
    """Run `seeker serve retrieval` with options; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "project", "serve", "retrieval", "--port", str(port), *options])
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            assert process.poll() is None
            try:
                httpx.get(f"{url}/health", trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(15)


def test_a_server_passes_on_what_another_finds(index_dir, mcp_url):
    with served("--index", str(index_dir)) as first, served("--engine", "http", "--remote.address", first) as second:
        assert ids(asyncio.run(HttpRetriever(second).search(["noble gas"], 3))[0]) == ["he"]
        assert httpx.get(f"{second}/health", trust_env=False).json()["engine"] == "http"
    with served("--engine", "mcp", "--remote.address", mcp_url) as third:
        assert ids(asyncio.run(HttpRetriever(third).search(["noble gas"], 3))[0]) == ["he"]


def test_engines_elsewhere_need_an_address(capsys):
    for options, said in [
        (["--engine", "http"], "the engine http needs --remote.address"),
        ([], "--index is missing"),
        (["--engine", "nosuch"], "--engine is nosuch, which is none of bm25"),
        (["--engine", "tavily"], "TAVILY_API_KEY"),
        (["--engine", "http", "--ranking.expand", "true"], "--ranking.* is for an index"),
        (["--engine", "http", "--host", "a..b"], "cannot listen on a..b"),
    ]:
        assert main(["serve", "retrieval", "--port", "18999", *options]) == 2
        assert said in capsys.readouterr().err


# --- noise


class Fixed:
    """Ten passages for every query, and for a passage's own text first itself and then its neighbour."""

    def __init__(self):
        self.asked = []

    async def search(self, queries, k):
        self.asked.append((list(queries), k))
        return [[Hit(Passage(f"p{i}", f"t{i}", f"text {i}"), 1 / (i + 1)) for i in range(min(k, 10))] for _ in queries]

    async def aclose(self):
        pass


def noisy(**settings):
    return Noisy([Fixed()], Noise(**settings))


def found(engine, query="q", k=4, seed=""):
    return asyncio.run(engine.search([query], k, seed))[0]


def test_each_noise_alone():
    assert ids(found(noisy())) == ["p0", "p1", "p2", "p3"]
    assert ids(found(noisy(drop_best=1))) == ["p1", "p2", "p3", "p4"]  # still as many
    orders = {tuple(ids(found(noisy(shuffle=1, seed=seed)))) for seed in range(20)}
    assert len(orders) > 5
    assert {frozenset(order) for order in orders} == {frozenset(["p0", "p1", "p2", "p3"])}
    swapped = found(noisy(swap=1))  # the likest other passage of each: p1 for p0, and p0 for the others
    assert ids(swapped) == ["p1", "p0", "p0", "p0"]
    assert [hit.score for hit in swapped] == [1, 1 / 2, 1 / 3, 1 / 4]
    cut = found(noisy(truncate=1, seed=3))
    assert all("text 0123".startswith(hit.passage.text[:5]) and len(hit.passage.text) <= 6 for hit in cut)
    assert any(len(hit.passage.text) < 6 for hit in cut)
    with pytest.raises(RetrievalError, match=r"noise\.fail"):
        found(noisy(fail=1))
    start = time.monotonic()
    found(noisy(delay_s=0.2, seed=1))
    assert time.monotonic() - start > 0.01


def test_paraphrases_stand_in_place_of_passages(tmp_path):
    write_rows(tmp_path / "other.jsonl", [{"id": "p0", "text": "worded otherwise"}, {"id": "p0", "text": "and again"}])
    texts = {found(noisy(swap=1, seed=seed, paraphrases=tmp_path / "other.jsonl"))[0].passage.text for seed in range(10)}
    assert texts == {"worded otherwise", "and again"}
    (tmp_path / "bad.jsonl").write_text('{"id": "p0"}\n')
    with pytest.raises(InputError, match="line 1: a paraphrase needs `id` and `text`"):
        noisy(paraphrases=tmp_path / "bad.jsonl")


NOISE = {"drop_best": 0.5, "shuffle": 0.5, "swap": 0.5, "truncate": 0.5}


def test_the_same_request_gets_the_same_noise_and_others_get_other_noise():
    again = [[found(noisy(**NOISE), f"q{i}", seed="question/2") for i in range(30)] for _ in range(2)]
    assert again[0] == again[1]
    other = [found(noisy(**NOISE), f"q{i}", seed="question/3") for i in range(30)]
    assert sum(a != b for a, b in zip(again[0], other, strict=True)) > 20
    engine = noisy(**NOISE)  # without a seed: drawn anew each time the query comes
    assert len({str(found(engine, "q")) for _ in range(10)}) > 5
    twin = noisy(**NOISE)
    engine = noisy(**NOISE)
    assert [found(engine, "q") for _ in range(5)] == [found(twin, "q") for _ in range(5)]


@given(drop=st.floats(0, 1), fail=st.floats(0, 1))
def test_shares_are_shares(drop, fail):
    engine, counts = noisy(drop_best=drop, fail=fail), Counter()

    async def run():
        for i in range(200):
            try:
                (hits,) = await engine.search(["q"], 3, f"{i}")
            except RetrievalError:
                counts["failed"] += 1
            else:
                counts["dropped"] += hits[0].passage.id == "p1"

    asyncio.run(run())
    assert counts["failed"] / 200 == pytest.approx(fail, abs=0.18)  # 5 standard errors of a half
    answered = 200 - counts["failed"]
    assert counts["dropped"] == pytest.approx(drop * answered, abs=0.5 + 2.6 * answered**0.5)


def test_seed_zero_is_a_seed_and_no_noise_keeps_nothing():
    async def run(noise):
        app = create_app([Fixed()], {}, noise=noise)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            body = {"queries": ["q"], "topk": 8, "seed": 0}
            return [(await client.post("/retrieve", json=body)).text for _ in range(4)]

    assert len(set(asyncio.run(run(Noise(shuffle=1))))) == 1
    plain = noisy()
    for i in range(50):
        found(plain, f"q{i}")
    assert len(plain._asked) == 0


def test_engines_are_drawn():
    engines = [Fixed(), Fixed(), Fixed()]
    mixed = Noisy(engines, Noise())
    for i in range(60):
        found(mixed, seed=str(i))
    assert [len(engine.asked) > 8 for engine in engines] == [True] * 3


@pytest.mark.parametrize("name", ["drop_best", "shuffle", "swap", "truncate", "fail", "delay_s"])
def test_noise_that_cannot_be(name):
    with pytest.raises(InputError, match=f"noise.{name} is -0.1"):
        Noise(**{name: -0.1}).check()


def test_a_server_with_noise_says_so_and_takes_the_clients_seed(index_dir):
    with served("--index", str(index_dir), "--noise.drop_best", "0.5", "--noise.seed", "7") as url:
        assert httpx.get(f"{url}/health", trust_env=False).json()["noise"] == {"seed": 7, "drop_best": 0.5}

        async def run():
            async with HttpRetriever(url) as client:
                return [ids((await client.search(["capital Mongolia"], 1, f"question{i}/1"))[0]) for i in range(40)]

        first, second = asyncio.run(run()), asyncio.run(run())
        assert first == second
        assert Counter(map(tuple, first)).keys() == {("mn",), ("mn2",)}


def test_an_engine_is_named_by_its_index(index_dir):
    opened, about = open_engine(Path(index_dir), None, RankingSettings(), Remote())
    assert about == {"engine": "bm25", "passages": 4, "digest": Index.load(index_dir).digest}
    assert ids(asyncio.run(opened.search(["gas"], 1))[0]) == ["he"]
