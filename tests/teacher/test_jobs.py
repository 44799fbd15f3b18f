"""Jobs against an endpoint with faults (DESIGN §8.3, §8.6): no row is lost and none doubled, proven by counting."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from echo_job import ECHO, job
from openai_stub import Stub, completion

from project.errors import InputError
from project.files import file_digest, read_rows
from project.teacher.client import Sampling, TeacherError
from project.teacher.jobs import do, journal_path
from project.teacher.maker import Maker
from project.teacher.work import Interrupted
from project.tracking.store import all_runs


def rows_of(path):
    return [row for _, row in read_rows(path)]


def expected(count):
    return [{"id": f"q{i}", "said": f"said again said row {i}"} for i in range(count)]


def test_rows_come_in_the_inputs_order_with_as_many_requests_in_flight_as_may_be(given, tmp_path):
    path, out = given(60), tmp_path / "out.jsonl"
    with Stub(latency=0.05) as stub:
        counts = do(ECHO, job(stub.url, path, out))
        assert rows_of(out) == expected(60)
        assert stub.most_together == 8
        assert counts == {
            "rows read": 60, "rows written": 60, "echoes": 60, "requests": 120, "prompt tokens": 1200, "reply tokens": 600,
        }  # fmt: skip
        assert do(ECHO, job(stub.url, path, out)) is None
        assert len(stub.asked) == 120
    manifest = json.loads(out.with_name("out.jsonl.manifest.json").read_text())
    assert manifest["parameters"] == {"words": "any", "maker": 1, "teacher": "stub", "seed": 0}
    assert manifest["counts"]["rows written"] == 60
    [tracked] = all_runs()
    assert (tracked.info.run_name, tracked.info.status) == ("echo", "FINISHED")
    assert tracked.data.params == {"words": "any", "maker": "1", "teacher": "stub", "seed": "0"}
    assert tracked.data.metrics["rows written"] == 60
    [made] = tracked.inputs.dataset_inputs
    assert (made.dataset.name, made.dataset.digest) == ("out.jsonl", file_digest(out))


def test_trap_10_the_next_request_goes_out_when_one_ends_and_not_when_all_have(given, tmp_path):
    """One request takes as long as twenty others: with barriers of 4 the job would take five such times and more."""
    path, out = given(40), tmp_path / "out.jsonl"
    slow, times = {"row 0", "row 8", "row 16", "row 24", "row 32"}, list[float]()

    def reply(asked, _):
        return completion(f"said {asked['messages'][-1]['content']}")

    async def sleepy(row, asker, made):
        await asker.ask([{"role": "user", "content": row["text"]}], Sampling())
        made.put("rows", {"id": row["id"]})

    class Uneven(Stub):
        async def _answer(self, request):
            body = await request.json()
            self.latency = 1.0 if body["messages"][-1]["content"] in slow else 0.02
            times.append(time.perf_counter())
            answer = await super()._answer(request)
            times.append(time.perf_counter())
            return answer

    with Uneven(reply) as stub:
        stub.jitter = type("Even", (), {"random": staticmethod(lambda: 0.5)})()
        do(Maker("sleepy", 1, sleepy, {}), job(stub.url, path, out, concurrent=8))
    assert max(times) - min(times) < 3.0, "from the first request to the last reply; imports and MLflow are beside the point"


def test_trap_10_killed_at_any_moment_it_goes_on_and_repeats_no_request_that_was_kept(given, tmp_path):
    path, out, whole = given(150), tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    script, draw = Path(__file__).with_name("echo_job.py"), random.Random(0)
    with Stub(latency=0.02) as stub:
        command = [sys.executable, str(script), stub.url, str(path), str(out), "8"]
        for _ in range(3):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            asked = len(stub.asked)
            while len(stub.asked) < asked + draw.randrange(20, 60):
                time.sleep(0.005)
            process.kill()
            process.wait()
            assert not out.exists()
        subprocess.run(command, check=True, stdout=subprocess.PIPE)
        assert rows_of(out) == expected(150)
        assert len(stub.counts) == 300, "no request was left out"
        assert len(stub.asked) <= 300 + 3 * 8, "only what was in flight is asked again"
        do(ECHO, job(stub.url, path, whole))
    assert whole.read_bytes() == out.read_bytes()
    lines = [json.loads(line) for line in journal_path(out).read_text().splitlines()]
    assert max(Counter(line["key"] for line in lines).values()) == 1


def test_a_full_disk_stops_the_job_and_with_room_it_goes_on(given, tmp_path):
    """As `ulimit -f` fills it, in the midst of the job: only what was in flight is asked twice."""
    path, out = given(150), tmp_path / "out.jsonl"
    command = [sys.executable, str(Path(__file__).with_name("echo_job.py")), "", str(path), str(out), "8"]
    with Stub() as stub:
        command[2] = stub.url
        limited = ["bash", "-c", 'ulimit -f 20; exec "$0" "$@"', *command]  # 20 KB, of 60
        full = subprocess.run(limited, capture_output=True, text=True, check=False)
        assert full.returncode == 2, full.stderr
        assert full.stderr.splitlines()[-1].startswith(f"{journal_path(out)} cannot be written")
        assert not out.exists()
        assert 50 < len(stub.asked) < 200
        subprocess.run(command, check=True, stdout=subprocess.PIPE)
        assert rows_of(out) == expected(150)
        assert len(stub.counts) == 300, "no request was left out"
        assert len(stub.asked) <= 300 + 8


def test_two_jobs_on_one_output_the_second_is_refused_and_the_first_loses_nothing(given, tmp_path):
    path, out = given(60), tmp_path / "out.jsonl"
    command = [sys.executable, str(Path(__file__).with_name("echo_job.py")), "", str(path), str(out), "8"]
    with Stub(latency=0.1) as stub:
        command[2] = stub.url
        first = subprocess.Popen(command, stdout=subprocess.PIPE)
        while len(stub.asked) < 10:
            time.sleep(0.005)
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert first.poll() is None, "the second ended while the first was at work"
        assert second.returncode == 2
        assert "another job writes" in second.stderr
        first.communicate()
        assert first.returncode == 0
        assert rows_of(out) == expected(60)
        assert (len(stub.counts), len(stub.asked)) == (120, 120)


def test_faults_of_the_endpoint_lose_no_row(given, tmp_path):
    """Connections lost, 429 and 503 in storms, cut JSON, nothing said, pages of HTML: each passes."""
    path, out, draw = given(200), tmp_path / "out.jsonl", random.Random(1)
    faults = [None, 429, 503, '{"id": "1", "choices": [{"mess', "<html>busy</html>", completion(""), {"choices": []}]

    def reply(asked, before):
        wrong = before == 0 and draw.random() < 0.3
        return draw.choice(faults) if wrong else completion(f"said {asked['messages'][-1]['content']}")

    with Stub(reply) as stub:
        stub.headers = {"retry-after-ms": "5"}
        counts = do(ECHO, job(stub.url, path, out))
        assert rows_of(out) == expected(200)
        assert len(stub.asked) > 400
    assert counts["rows written"] == 200
    assert not out.with_name("out.jsonl.rejected.jsonl").exists()


def test_the_pause_that_the_endpoint_asks_for_is_made(given, tmp_path):
    path, out, times = given(1), tmp_path / "out.jsonl", []

    def reply(asked, before):
        times.append(time.perf_counter())
        return 429 if len(times) == 1 else completion("x")

    with Stub(reply) as stub:
        stub.headers = {"retry-after": "2"}
        do(ECHO, job(stub.url, path, out))
    assert 1.9 < times[1] - times[0] < 3.5


def test_an_endpoint_that_is_killed_and_started_again_in_the_midst_of_a_job(given, tmp_path):
    path, out = given(80), tmp_path / "out.jsonl"
    first = Stub(latency=0.05).__enter__()
    done = {}
    thread = threading.Thread(target=lambda: done.update(counts=do(ECHO, job(first.url, path, out))))
    thread.start()
    while len(first.asked) < 40:
        time.sleep(0.005)
    first.__exit__()
    time.sleep(1)
    with Stub(latency=0.01, port=first.port):
        thread.join()
    assert rows_of(out) == expected(80)
    assert done["counts"]["rows written"] == 80


def test_an_endpoint_that_stays_down_stops_the_job_and_the_same_command_goes_on(given, tmp_path, monkeypatch):
    monkeypatch.setattr("project.teacher.client.RETRIES", 1)
    path, out = given(80), tmp_path / "out.jsonl"

    def reply(asked, _):
        return 503 if len(stub.asked) > 50 else completion(f"said {asked['messages'][-1]['content']}")

    with Stub(reply) as stub:
        stub.headers, stub.probe = {"retry-after-ms": "1"}, 503
        with pytest.raises(TeacherError, match=r"^one row after the other fails \(.*503.* is down .*run the same command"):
            do(ECHO, job(stub.url, path, out))
        assert not out.exists()
        kept = journal_path(out).read_text().count('"reply":')
        assert 30 < kept <= 50
        stub.reply = lambda asked, _: completion(f"said {asked['messages'][-1]['content']}")
        before = len(stub.asked)
        do(ECHO, job(stub.url, path, out))
        assert len(stub.asked) - before == 160 - kept
    assert rows_of(out) == expected(80)


def test_rows_that_fail_one_after_the_other_do_not_stop_a_teacher_that_answers(given, tmp_path, monkeypatch):
    """Eight poisoned rows: all others are made, and these are rejected, in this run and in one that begins with them alone."""
    monkeypatch.setattr("project.teacher.client.RETRIES", 0)
    path, out = given(40), tmp_path / "out.jsonl"
    poisoned = {f"row {i}" for i in range(10, 18)}

    def reply(asked, _):
        text = asked["messages"][-1]["content"]
        return 500 if text in poisoned else completion(f"said {text}")

    with Stub(reply) as stub:
        counts = do(ECHO, job(stub.url, path, out, concurrent=4))
        assert stub.probed >= 8
    assert counts["rows written"] == 32
    rejected = rows_of(out.with_name("out.jsonl.rejected.jsonl"))
    assert {row["row"]["text"] for row in rejected} == poisoned


def test_an_endpoint_that_dies_while_failed_rows_are_tried_again_rejects_none(given, tmp_path, monkeypatch):
    monkeypatch.setattr("project.teacher.client.RETRIES", 0)
    path, out = given(10), tmp_path / "out.jsonl"

    def reply(asked, _):
        text = asked["messages"][-1]["content"]
        if text in ("row 3", "row 4"):
            stub.probe = 503
            return 500
        return completion(f"said {text}")

    with Stub(reply) as stub:
        with pytest.raises(TeacherError, match=r"is down"):
            do(ECHO, job(stub.url, path, out, concurrent=4))
        stub.probe, stub.reply = completion("Yes."), lambda asked, _: completion(f"said {asked['messages'][-1]['content']}")
        do(ECHO, job(stub.url, path, out, concurrent=4))
    assert rows_of(out) == expected(10)


def test_where_the_first_requests_are_all_refused_the_job_stops_and_none_is_taken_for_the_rows_fault(given, tmp_path):
    path, out = given(100), tmp_path / "out.jsonl"
    with Stub(lambda *_: 400) as stub:
        with pytest.raises(TeacherError, match=r"^the first 5 requests were all refused \(.*400.*run this again$"):
            do(ECHO, job(stub.url, path, out, concurrent=4))
        assert len(stub.asked) < 20
        stub.reply = lambda asked, _: completion(f"said {asked['messages'][-1]['content']}")
        do(ECHO, job(stub.url, path, out, concurrent=4))
    assert rows_of(out) == expected(100)


def test_a_defect_of_a_program_ends_what_is_in_flight_first(given, tmp_path):
    path, out = given(50), tmp_path / "out.jsonl"

    async def breaks(row, asker, made):
        await asker.ask([{"role": "user", "content": row["text"]}], Sampling())
        if row["id"] == "q7":
            raise RuntimeError("a defect")
        made.put("rows", {"id": row["id"]})

    with Stub(latency=0.05) as stub:
        with pytest.raises(RuntimeError, match="a defect"):
            do(Maker("breaks", 1, breaks, {}), job(stub.url, path, out))
        assert journal_path(out).read_text().count('"reply":') == len(stub.asked)


def test_a_job_that_comes_to_cost_too_much_stops(given, tmp_path):
    """Each row asks twice, of which the estimate sees the first: 5 tokens a reply, at 1 a token."""
    path, out, priced = given(20), tmp_path / "out.jsonl", {"output_price": 1e6, "most_price": 102.0}

    async def brief(row, asker, made):
        for turn in range(2):
            await asker.ask([{"role": "user", "content": f"{row['text']} {turn}"}], Sampling(max_tokens=5), turn=turn)
        made.put("rows", {"id": row["id"]})

    maker = Maker("brief", 1, brief, {})
    with Stub() as stub:
        with pytest.raises(InputError, match=r"^this run has cost 105\.00, over teacher\.most_price=102; .* --yes true$"):
            do(maker, job(stub.url, path, out, concurrent=1, **priced))
        assert len(stub.asked) <= 22
        do(maker, job(stub.url, path, out, yes=True, **priced))
        assert len(stub.asked) == 40


def test_strict_stops_at_the_first_row_that_gives_nothing(given, tmp_path):
    with Stub(lambda asked, _: completion("" if "row 3" in asked["messages"][-1]["content"] else "x")) as stub:
        with pytest.raises(InputError, match=r"^row 'q3': the teacher says nothing$"):
            do(ECHO, job(stub.url, given(100), tmp_path / "out.jsonl", concurrent=2, strict=True))
        assert len(stub.asked) < 40


def test_a_request_that_takes_too_long_fails_and_the_pause_of_minutes_is_made(given, tmp_path, monkeypatch):
    monkeypatch.setattr("project.teacher.client.LONGEST_PAUSE", 0.5)
    path, out, times = given(1), tmp_path / "out.jsonl", []

    def reply(asked, _):
        times.append(time.perf_counter())
        return 429 if len(times) == 1 else completion("x")

    with Stub(reply) as stub:
        monkeypatch.setattr("openai._base_client.MAX_RETRY_AFTER_DELAY", 0.5)
        stub.headers = {"retry-after": "1"}
        do(ECHO, job(stub.url, path, out))
        assert times[1] - times[0] >= 1.0
    with Stub(latency=30.0) as stub:
        stub.probe = 503
        with pytest.raises(TeacherError, match=r"a request took over teacher\.request_seconds=0\.3"):
            do(ECHO, job(stub.url, path, tmp_path / "late.jsonl", request_seconds=0.3))


def test_a_teacher_that_is_down_at_the_start_is_one_sentence(given, tmp_path):
    with Stub() as stub:
        pass
    with pytest.raises(
        TeacherError, match=r"^the teacher at http://127.0.0.1:\d+/v1 does not list its models \(.*start it, or"
    ):
        do(ECHO, job(stub.url, given(1), tmp_path / "out.jsonl"))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".db", ".jsonl"]


def test_trap_09_rows_that_fail_are_listed_with_the_reason_and_are_not_in_the_data(given, tmp_path, monkeypatch):
    monkeypatch.setattr("project.teacher.client.RETRIES", 1)
    path, out = given(30), tmp_path / "out.jsonl"
    wrong = {"row 3": 400, "row 7": 500, "row 11": completion("  "), "row 13": 422}

    def reply(asked, _):
        text = asked["messages"][-1]["content"]
        return wrong.get(text) or completion(f"said {text}")

    with Stub(reply) as stub:
        stub.headers = {"retry-after-ms": "1"}
        counts = do(ECHO, job(stub.url, path, out, concurrent=2))
        assert rows_of(out) == [row for row in expected(30) if row["id"] not in ("q3", "q7", "q11", "q13")]
        rejected = rows_of(out.with_name("out.jsonl.rejected.jsonl"))
    assert [(row["row"]["id"], row["line"]) for row in rejected] == [("q3", 4), ("q7", 8), ("q11", 12), ("q13", 14)]
    for row, reason in zip(
        rejected, ("refuses the request: Bad", "InternalServerError", "says nothing", "refuses"), strict=True
    ):
        assert reason in row["reason"]
    assert counts["rows read"] == counts["rows written"] + 4
    assert stub.counts[json.dumps([{"role": "user", "content": "row 7"}])] == 4, "twice, each with a repetition"


def test_a_key_that_is_wrong_stops_at_once_and_is_never_shown(given, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-key")
    with Stub(lambda *_: 401) as stub:
        with pytest.raises(TeacherError, match=r"refuses all requests .*and the key in MY_KEY$") as error:
            do(ECHO, job(stub.url, given(50), tmp_path / "out.jsonl", concurrent=1, key_variable="MY_KEY"))
        assert set(stub.keys) == {"Bearer secret-key"}
        assert len(stub.asked) == 1
    assert "secret" not in str(error.value)
    assert "secret" not in journal_path(tmp_path / "out.jsonl").read_text()


def test_ctrl_c_ends_what_is_in_flight_and_says_how_to_go_on(given, tmp_path):
    path, out = given(400), tmp_path / "out.jsonl"
    script = Path(__file__).with_name("echo_job.py")
    with Stub(latency=0.1) as stub:
        command = [sys.executable, str(script), stub.url, str(path), str(out), "8"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while len(stub.asked) < 40:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 1
        assert "holds what is done: run the same command again to go on" in said
        assert not out.exists()
        replies = [line for line in journal_path(out).read_text().splitlines() if '"reply"' in line]
        assert len(replies) == len(stub.asked), "each request that was in flight was waited for and kept"
        subprocess.run(command, check=True, stdout=subprocess.PIPE)
        assert len(stub.asked) == 800, "none was asked twice"
    assert rows_of(out) == expected(400)


def test_a_rate_of_tokens_is_kept(given, tmp_path):
    """20 requests of 1,000 tokens at 60,000 a minute, of which the first minute's may come at once: 20 more take 1 s each."""
    path, out = given(63), tmp_path / "out.jsonl"

    async def once(row, asker, made):
        await asker.ask([{"role": "user", "content": row["text"]}], Sampling(max_tokens=990))
        made.put("rows", {"id": row["id"]})

    with Stub() as stub:
        started = time.perf_counter()
        do(Maker("once", 1, once, {}), job(stub.url, path, out, tokens_per_minute=60_000, concurrent=64))
        assert 2.0 < time.perf_counter() - started < 8.0


def test_a_row_that_takes_too_long_is_rejected(given, tmp_path):
    async def wait(row, asker, made):
        await asker.ask([{"role": "user", "content": row["text"]}], Sampling())
        await asyncio.sleep(5 if row["id"] == "q1" else 0)
        made.put("rows", {"id": row["id"]})

    with Stub() as stub:
        do(Maker("wait", 1, wait, {}), job(stub.url, given(3), tmp_path / "out.jsonl", row_seconds=0.5))
    assert [row["id"] for row in rows_of(tmp_path / "out.jsonl")] == ["q0", "q2"]
    [rejected] = rows_of(tmp_path / "out.jsonl.rejected.jsonl")
    assert rejected["reason"] == "took over teacher.row_seconds=0.5"


def test_a_dry_run_asks_nothing_and_shows_the_first_request(given, tmp_path, capsys):
    options = {"input_price": 2.0, "output_price": 12.0}
    assert do(ECHO, job("http://127.0.0.1:1/v1", given(10), tmp_path / "out.jsonl", dry_run=True, **options)) is None
    said = capsys.readouterr().out
    assert "row 0" in said
    # [[{"role":"user","content":"row 0"}],[]] has 41 letters: 10 tokens; 10 * (10 * 2 + 2048 * 12) / 1e6
    assert "10 rows; their first requests have about 100 tokens of prompts and at most 20,480 of replies" in said
    assert "about 0.25" in said
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".db", ".jsonl"]


def test_a_job_over_the_price_wants_yes(given, tmp_path):
    path, out, priced = given(10), tmp_path / "out.jsonl", {"output_price": 10.0, "most_price": 0.1}
    with Stub() as stub:
        with pytest.raises(InputError, match=r"may cost 0\.20, over teacher\.most_price=0\.1; raise that, or give --yes true$"):
            do(ECHO, job(stub.url, path, out, **priced))
        assert not stub.asked
        do(ECHO, job(stub.url, path, out, yes=True, **priced))
    assert rows_of(out) == expected(10)


def test_what_decides_a_reply_is_asked_anew_when_it_changes(given, tmp_path):
    path, out = given(5), tmp_path / "out.jsonl"
    with Stub() as stub:
        do(ECHO, job(stub.url, path, out))
        with pytest.raises(
            InputError, match=r"was made with seed=0, now 1; give another name, or replace it with --force true$"
        ):
            do(ECHO, job(stub.url, path, out, seed=1))
        do(ECHO, job(stub.url, path, out, seed=1, force=True))
        assert len(stub.asked) == 20
        assert len({asked["seed"] for asked in stub.asked}) == 20
        other = Maker("echo", 1, ECHO.make, {"words": "some"})
        do(other, job(stub.url, path, out, seed=1, force=True))  # made otherwise of the same replies
        assert len(stub.asked) == 20
        do(Maker("echo", 2, ECHO.make, {}), job(stub.url, path, out, seed=1, force=True))
        assert len(stub.asked) == 30


def test_an_interrupted_job_in_this_process(given, tmp_path, monkeypatch):
    """The second Ctrl-C ends it at once."""
    path, out = given(10), tmp_path / "out.jsonl"
    with Stub(latency=30.0) as stub:

        def interrupt():
            while stub.together < 8:
                time.sleep(0.005)
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
                time.sleep(0.3)

        threading.Thread(target=interrupt).start()
        started = time.perf_counter()
        with pytest.raises(Interrupted):
            do(ECHO, job(stub.url, path, out))
        assert time.perf_counter() - started < 10
    assert journal_path(out).exists()
