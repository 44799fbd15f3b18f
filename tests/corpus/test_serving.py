"""What the server does under load and with bad clients: batches, cache, limits, token, metrics, deadlines, stopping."""

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from project.corpus.build import write_index
from project.corpus.engines.http import TOKEN, HttpRetriever
from project.corpus.engines.json_api import DOWN_S, FAILURES, Breaker
from project.corpus.serving.app import create_app
from project.corpus.serving.batching import Batcher
from project.corpus.serving.cache import Cached
from project.corpus.serving.handle import ServerHandle
from project.corpus.serving.limits import Limits
from project.errors import BusyError, InputError, RetrievalError
from project.records import Hit, Passage

PASSAGES = [Passage(str(i), f"Title {i}", f"red text number {i}") for i in range(20)]


class Slow:
    """An engine that takes some time, notes what it is asked, and fails for the query `bad`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.calls = seconds, []

    async def search(self, queries, k):
        self.calls.append((list(queries), k))
        await asyncio.sleep(self.seconds)
        if "bad" in queries:
            raise RetrievalError("the engine is damaged")
        return [[Hit(Passage(f"{query}-{i}", "", query), 1 / (i + 1)) for i in range(min(k, len(query)))] for query in queries]

    async def aclose(self):
        self.calls.append("closed")


def ids(hits):
    return [hit.passage.id for hit in hits]


# --- batches


def test_what_comes_meanwhile_is_searched_together():
    async def run():
        engine = Slow(0.05)
        batcher = Batcher(engine, at_once=1)
        answers = await asyncio.gather(*(batcher.search([f"query{i}", "same"], 1 + i % 3) for i in range(9)))
        assert [len(queries) for queries, _ in engine.calls] == [2, 9]  # the first alone, then the eight others: "same" once
        assert engine.calls[1][1] == 3
        for i, (own, same) in enumerate(answers):
            assert ids(own) == [f"query{i}-{j}" for j in range(1 + i % 3)]
            assert ids(same) == [f"same-{j}" for j in range(1 + i % 3)]

    asyncio.run(run())


def test_a_batch_is_bounded_and_a_large_request_goes_alone():
    async def run():
        engine = Slow(0.01)
        batcher = Batcher(engine, most_queries=4, at_once=1)
        sizes = [1, 3, 2, 9, 1]
        await asyncio.gather(*(batcher.search([f"{i}-{j}" for j in range(size)], 1) for i, size in enumerate(sizes)))
        assert [len(queries) for queries, _ in engine.calls] == [1, 3, 2, 9, 1]

    asyncio.run(run())


def test_a_query_that_fails_hurts_nobody_else():
    async def run():
        batcher = Batcher(Slow(0.01), at_once=1)
        found = await asyncio.gather(*(batcher.search([q], 1) for q in ("first", "a", "bad", "b")), return_exceptions=True)
        assert [ids(one[0]) for one in (found[0], found[1], found[3])] == [["first-0"], ["a-0"], ["b-0"]]
        assert isinstance(found[2], RetrievalError)

    asyncio.run(run())


def test_too_much_waiting_is_refused_and_one_that_gave_up_is_not_searched():
    async def run():
        engine = Slow(0.1)
        batcher = Batcher(engine, at_once=1, most_waiting=3)
        running = asyncio.create_task(batcher.search(["a"], 1))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(batcher.search(["b", "c"], 1))
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="2 queries wait already"):
            await batcher.search(["d", "e"], 1)
        waiting.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        assert await batcher.search(["f"], 1)
        assert [queries for queries, _ in engine.calls] == [["a"], ["f"]]
        await batcher.aclose()
        assert engine.calls[-1] == "closed"

    asyncio.run(run())


REQUESTS = st.lists(
    st.tuples(st.lists(st.sampled_from(["a", "bb", "ccc", "dddd"]), max_size=4), st.integers(1, 5)), max_size=12
)


@given(requests=REQUESTS, most=st.integers(1, 6), at_once=st.integers(1, 3), kept=st.integers(1, 12))
def test_batched_and_cached_answers_are_those_of_the_engine(requests, most, at_once, kept):
    async def run():
        search = Cached(Batcher(Slow(), most_queries=most, at_once=at_once), kept)
        found = await asyncio.gather(*(search.search(queries, k) for queries, k in requests))
        again = [await search.search(queries, k) for queries, k in requests]
        plain = [await Slow().search(queries, k) for queries, k in requests]
        assert found == again == plain

    asyncio.run(run())


def test_clients_that_left_are_not_searched_for_and_do_not_fill_the_queue():
    async def run():
        engine = Slow(0.05)
        batcher = Batcher(engine, at_once=1, most_waiting=4)
        running = asyncio.create_task(batcher.search(["a"], 1))
        await asyncio.sleep(0)
        gone = [asyncio.create_task(batcher.search([query], 1)) for query in ("b", "bad", "c", "d")]
        await asyncio.sleep(0.07)  # the second batch runs, and will fail
        for task in gone:
            task.cancel()
        await asyncio.gather(running, *gone, return_exceptions=True)
        while batcher._running:
            await asyncio.sleep(0.01)
        assert len(engine.calls) == 2  # nobody is left to search for again
        busy = asyncio.create_task(batcher.search(["e"], 1))
        await asyncio.sleep(0)
        left = [asyncio.create_task(batcher.search([query], 1)) for query in "fghi"]
        await asyncio.sleep(0)
        for task in left:
            task.cancel()
        await asyncio.sleep(0)
        assert batcher.waiting == 0
        assert await batcher.search(["j"], 1)
        await busy

    asyncio.run(run())


# --- the cache


def test_a_deeper_answer_serves_and_the_oldest_goes():
    async def run():
        engine, seen = Slow(), Counter()
        cached = Cached(engine, 8, lambda known, new: seen.update(known=known, new=new))
        assert ids((await cached.search(["abcd"], 3))[0]) == ["abcd-0", "abcd-1", "abcd-2"]
        assert ids((await cached.search(["abcd"], 2))[0]) == ["abcd-0", "abcd-1"]
        assert len(engine.calls) == 1
        await cached.search(["abcd"], 4)  # deeper than what is kept
        assert len(engine.calls) == 2
        await cached.search(["xyz"], 3)  # 4 + 5 are more than 8: "abcd" goes
        await cached.search(["xyz", "abcd"], 1)
        assert engine.calls[-1] == (["abcd"], 1)
        assert seen == {"known": 2, "new": 4}
        with pytest.raises(RetrievalError):
            await cached.search(["bad"], 1)
        with pytest.raises(RetrievalError):  # failures are asked again
            await cached.search(["bad"], 1)

    asyncio.run(run())


# --- the application


@asynccontextmanager
async def client_of(engine, limits=None, token=None, about=None):
    app = create_app([engine], about or {}, limits, token)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


def test_deadline_queue_and_failures_have_their_status():
    async def run():
        async with client_of(Slow(0.3), Limits(deadline_s=0.05)) as client:
            late = await client.post("/retrieve", json={"queries": ["x"]})
            assert late.status_code == 504
            assert late.json()["detail"] == "the search took more than 0.05 s; ask for less, or again later"
        async with client_of(Slow()) as client:
            broken = await client.post("/retrieve", json={"queries": ["bad"]})
            assert (broken.status_code, broken.json()["detail"]) == (502, "the engine is damaged")
        async with client_of(Slow(0.2), Limits(max_waiting=1, batch=1)) as client:
            posts = [client.post("/retrieve", json={"queries": [f"q{i}"]}) for i in range(5)]
            answers = await asyncio.gather(*posts)
            statuses = Counter(answer.status_code for answer in answers)
            assert statuses == {200: 3, 503: 2}  # two run, one waits
            assert {answer.headers.get("retry-after") for answer in answers if answer.status_code == 503} == {"1"}

    asyncio.run(run())


def test_an_engine_that_breaks_unforeseen_is_a_counted_500():
    class Broken(Slow):
        async def search(self, queries, k):
            raise ZeroDivisionError

    async def run():
        async with client_of(Broken()) as client:
            answer = await client.post("/retrieve", json={"queries": ["x"]})
            assert (answer.status_code, answer.json()["detail"]) == (500, "the server failed; its log says why")
            assert 'requests_total{status="500"} 1.0' in (await client.get("/metrics")).text

    asyncio.run(run())


def test_a_body_that_is_too_large_is_refused_before_it_is_read():
    async def run():
        async with client_of(Slow(), Limits(max_body_bytes=100)) as client:
            refused = await client.post("/retrieve", content=b" " * 101)
            assert refused.status_code == 413
            assert "more than 100 bytes" in refused.json()["detail"]
            assert (await client.post("/retrieve", content=b'{"queries": ["x"]}' + b" " * 82)).status_code == 200

    asyncio.run(run())


def test_a_token_is_asked_for(monkeypatch, tmp_path):
    async def run():
        async with client_of(Slow(), token="secret") as client:
            for header in (
                {},
                {"authorization": "Bearer wrong"},
                {"authorization": "secret"},
                {"authorization": "Bearer sécret"},
            ):
                refused = await client.post(
                    "/retrieve", json={"queries": ["x"]}, headers={k: v.encode() for k, v in header.items()}
                )
                assert refused.status_code == 401
                assert "secret" not in refused.text
            assert (await client.get("/metrics")).status_code == 401
            assert (await client.get("/openapi.json")).status_code == (await client.get("/docs")).status_code == 404
            good = await client.post("/retrieve", json={"queries": ["x"]}, headers={"authorization": "Bearer secret"})
            assert good.status_code == 200
            assert (await client.get("/health")).status_code == 200

    asyncio.run(run())
    write_index(tmp_path / "index", PASSAGES)
    monkeypatch.setenv(TOKEN, "of the environment")
    with ServerHandle(tmp_path / "index") as server:  # server and client take it from the environment
        assert asyncio.run(HttpRetriever(server.url).search(["number 3"], 1))[0][0].passage.id == "3"
        with pytest.raises(RetrievalError, match="status 401"):
            asyncio.run(HttpRetriever(server.url, token="another").search(["x"], 1))


def test_metrics_count_requests_batches_and_the_cache():
    async def run():
        async with client_of(Slow()) as client:
            for body in ({"queries": ["a", "b"]}, {"queries": ["b", "c"]}, {"queries": 3}):
                await client.post("/retrieve", json=body)
            text = (await client.get("/metrics")).text
            for line in (
                'seeker_retrieval_requests_total{status="200"} 2.0',
                'seeker_retrieval_requests_total{status="422"} 1.0',
                "seeker_retrieval_seconds_count 3.0",
                "seeker_retrieval_batch_queries_sum 3.0",  # a, b, then c alone
                'seeker_retrieval_cache_total{found="yes"} 1.0',
                'seeker_retrieval_cache_total{found="no"} 3.0',
                "seeker_retrieval_waiting_queries 0.0",
            ):
                assert line in text

    asyncio.run(run())


@pytest.mark.parametrize("name", ["batch", "deadline_s", "max_topk", "cache_hits"])
def test_limits_that_cannot_be(name):
    with pytest.raises(InputError, match=f"limits.{name} is -1"):
        Limits(**{name: -1}).check()


def test_the_openapi_description_is_true():
    """Schemathesis makes requests that fit the description, and others that do not, and checks the answers against it."""
    app = create_app([Slow()], {"passages": 1}, Limits(max_queries=8, max_query_chars=50))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)

    @given(case=schema["/retrieve"]["POST"].as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE))
    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    def fits(case):
        asked = json.dumps(case.body, ensure_ascii=False, default=str)  # as repr an unprintable letter may read \\U0001bad0
        assert case.call_and_validate().status_code == (502 if "bad" in asked else 200)

    @given(case=schema["/retrieve"]["POST"].as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    def does_not_fit(case):
        response = case.call()
        assert response.status_code in (200, 422)  # 200: null stands for absent
        case.validate_response(response, excluded_checks=[schemathesis.checks.negative_data_rejection])

    fits()
    does_not_fit()


# --- the process


@pytest.fixture(scope="module")
def index_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving") / "index"
    write_index(folder, PASSAGES)
    return folder


def test_a_stopped_server_answers_what_it_has(index_dir):
    with ServerHandle(index_dir) as server:
        body = json.dumps({"queries": ["red text"], "topk": 20}).encode()
        head = f"POST /retrieve HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(head + body[:10])
            time.sleep(0.3)  # the request has begun
            pid = httpx.get(f"{server.url}/health", trust_env=False).json()["pid"]
            os.kill(pid, signal.SIGTERM)
            time.sleep(0.3)
            with pytest.raises(OSError):  # nobody new is let in
                socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
            connection.sendall(body[10:])
            received = b"".join(iter(lambda: connection.recv(65536), b""))
        assert received.startswith(b"HTTP/1.1 200")
        assert len(json.loads(received.partition(b"\r\n\r\n")[2])["result"][0]) == 20


def test_killed_between_and_during_requests_is_an_error_each_time(index_dir):
    server = ServerHandle(index_dir).start()
    pid = httpx.get(f"{server.url}/health", trust_env=False).json()["pid"]

    async def run():
        client = HttpRetriever(server.url)
        assert len((await client.search(["red"], 3))[0]) == 3
        os.kill(pid, signal.SIGSTOP)  # the next request is taken, and never answered
        searching = asyncio.create_task(client.search(["blue"], 3))
        await asyncio.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(RetrievalError, match="cannot be reached"):
            await searching
        with pytest.raises(RetrievalError, match="cannot be reached"):
            await client.search(["red"], 3)

    asyncio.run(run())
    server.close()


def test_many_clients_lose_nothing(index_dir):
    async def one(client, number):
        found = await client.search([f"number {number % 20}"], 1)
        return found[0][0].passage.id == str(number % 20)

    async def run(url):
        async with HttpRetriever(url, concurrency=64) as client:
            return await asyncio.gather(*(one(client, number) for number in range(500)))

    with ServerHandle(index_dir) as server:
        right: list[bool] = []
        threads = [threading.Thread(target=lambda: right.extend(asyncio.run(run(server.url)))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert right == [True] * 1500


# --- the breaker


def test_the_breaker_opens_lets_one_through_and_closes(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("project.corpus.engines.json_api.time.monotonic", lambda: now[0])
    breaker = Breaker("http://server")

    def call(error=None):
        with breaker:
            if error:
                raise error

    for _ in range(FAILURES):
        with pytest.raises(RetrievalError, match="down"):
            call(RetrievalError("down"))
    with pytest.raises(RetrievalError, match=f"failed {FAILURES} times in a row and is not asked again"):
        call()
    now[0] += DOWN_S + 1
    with pytest.raises(RetrievalError, match="down"):  # one tries, and finds it down
        call(RetrievalError("down"))
    with pytest.raises(RetrievalError, match="not asked again"):
        call()
    now[0] += DOWN_S + 1
    call()  # one tries, and it is up
    call()


def test_a_server_that_is_down_is_not_waited_for_by_every_episode(monkeypatch):
    monkeypatch.setattr("project.corpus.engines.json_api.PAUSE_S", 0.001)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"

    async def run():
        client, said = HttpRetriever(url, concurrency=1), Counter()
        for _ in range(50):
            with pytest.raises(RetrievalError) as caught:
                await client.search(["x"], 1)
            said["not asked again" in str(caught.value)] += 1
        return said

    assert asyncio.run(run()) == {False: FAILURES, True: 50 - FAILURES}


def test_a_refused_query_does_not_open_the_breaker(index_dir):
    async def run(url):
        client = HttpRetriever(url)
        for _ in range(FAILURES + 2):
            with pytest.raises(RetrievalError, match="status 422"):
                await client.search(["x" * 20_000], 1)
        assert len((await client.search(["red"], 1))[0]) == 1

    with ServerHandle(index_dir) as server:
        asyncio.run(run(server.url))
