"""Servers of vLLM as an engine, against fake ones on free ports: who is asked, what is retried, and who holds which weights."""

import asyncio
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model_folder

from project.errors import EngineError, InputError
from project.modules.agent import SearchAgent
from project.rollouts.engines import Sampling, fleet, make_engine, servers
from project.rollouts.engines.servers import VLLMServers

SAMPLING = Sampling(0.7, 5, (257,), 11)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(None)

    def do_POST(self):
        self.answer(json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "null"))

    def answer(self, body):
        path, fake = self.path.partition("?")[0], self.server.fake
        fake.log.append((path, body))
        status, content = fake.respond(path, body)
        if status is None:  # dies: the connection closes without a word
            self.close_connection = True
            return
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "text/plain" if isinstance(content, str) else "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class FakeServer:
    """Answers as vLLM 0.32 does; what a test wants otherwise goes into `answers`, a status and a content by path."""

    def __init__(self):
        self.log, self.answers, self.held = [], {}, []
        self.logprob, self.birth, self.delay = -1.0, "1.5e+09", 0.0
        self.finish, self.gate, self.config, self.device = "stop", threading.Event(), {}, "cuda"
        self.gate.set()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.socket.listen(100)
        self.http.fake, self.http.daemon_threads = self, True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def asked(self, path):
        return [body for at, body in self.log if at == path]

    def respond(self, path, body):
        if path in self.answers:
            return self.answers[path]
        if path == "/v1/completions":
            self.gate.wait(10)
            return self.answers.get("after the gate", (200, {"choices": [self.choice(body)]}))
        if path == "/collective_rpc":
            folder = Path(body["kwargs"]["weights_path"])
            self.held.append((folder, load_file(folder / "model.safetensors"), (folder / "config.json").is_file()))
            return 200, {"results": [None]}
        return 200, {
            "/metrics": f"# HELP\nprocess_start_time_seconds {self.birth}\n",
            "/server_info": {"vllm_config": self.info()},
            "/reset_prefix_cache": {"success": True},
        }.get(path, "Success")

    def info(self):
        model = {"logprobs_mode": "processed_logprobs", "max_model_len": 128, "dtype": "torch.float32"} | self.config
        return {
            "model_config": model,
            "scheduler_config": {"enable_chunked_prefill": False},
            "device_config": {"device": self.device},
        }

    def choice(self, body):
        logprob = {str(token): {"logprob": self.logprob * token, "rank": 1} for token in body["prompt"]}
        return {
            "token_ids": [7, 8, 257],
            "prompt_token_ids": list(body["prompt"]),
            "logprobs": {"token_logprobs": [-0.5, -0.25, -0.125]},
            "finish_reason": self.finish,
            "prompt_logprobs": [None, *({str(t): logprob[str(t)]} for t in body["prompt"][1:])],
        }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("servers") / "model")


@pytest.fixture
def fakes():
    made = [FakeServer(), FakeServer()]
    yield made
    for fake in made:
        fake.gate.set()
        fake.close()


@pytest.fixture
def engine(fakes, model, monkeypatch):
    monkeypatch.setattr(fleet, "PAUSE_S", 0.01)
    return make_engine("servers", model, 128, servers=[fake.url for fake in fakes])


def generate(engine, count=1):
    async def all_of_them():
        return await asyncio.gather(*(engine.generate([1, 2, 3], SAMPLING) for _ in range(count)))

    return asyncio.run(all_of_them())


def test_ids_logprobs_finish_and_version_come_through(fakes, engine):
    [generation] = generate(engine)
    assert (generation.ids, generation.logprobs) == ((7, 8, 257), (-0.5, -0.25, -0.125))
    assert (generation.finish, generation.version) == ("stop", 0)
    fakes[0].finish = "length"
    assert generate(engine)[0].finish == "length"


def test_a_request_holds_token_ids_and_nothing_that_bends_the_distribution(fakes, engine):
    generate(engine)
    [body] = fakes[0].asked("/v1/completions")
    assert body["prompt"] == [1, 2, 3]
    assert (body["temperature"], body["max_tokens"], body["stop_token_ids"], body["seed"]) == (0.7, 5, [257], 11)
    assert (body["return_token_ids"], body["logprobs"]) == (True, 0)
    # Left out, the server would take them from the model's generation_config.json.
    assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1.0, 0, 0.0, 1.0)
    assert (body["presence_penalty"], body["frequency_penalty"]) == (0.0, 0.0)
    assert "model" not in body


def test_the_least_busy_server_is_asked(fakes, engine):
    slow, fast = fakes
    slow.gate.clear()

    async def run():
        held = asyncio.create_task(engine.generate([1], SAMPLING))  # the first server's
        while not slow.asked("/v1/completions"):
            await asyncio.sleep(0.005)
        for _ in range(3):  # one is under way at the first server, none at the second
            await engine.generate([1], SAMPLING)
        slow.gate.set()
        await held

    asyncio.run(run())
    assert (len(slow.asked("/v1/completions")), len(fast.asked("/v1/completions"))) == (1, 3)


def test_many_requests_are_shared_out_evenly(fakes, engine):
    for fake in fakes:
        fake.gate.clear()
    threading.Timer(0.4, lambda: [fake.gate.set() for fake in fakes]).start()
    assert len(generate(engine, 40)) == 40
    assert [len(fake.asked("/v1/completions")) for fake in fakes] == [20, 20]


def test_a_server_that_dies_with_requests_under_way_loses_none(fakes, engine):
    dying, living = fakes
    dying.gate.clear()
    dying.answers["after the gate"] = (None, None)

    def kill():
        while len(dying.asked("/v1/completions")) < 10:  # half of them
            time.sleep(0.005)
        dying.close()
        dying.gate.set()

    threading.Thread(target=kill, daemon=True).start()
    assert len(generate(engine, 20)) == 20
    assert len(dying.asked("/v1/completions")) == 10
    assert len(living.asked("/v1/completions")) == 20
    before = len(dying.log)
    assert len(generate(engine, 1)) == 1
    assert len(dying.log) == before, "a server that failed is avoided"


@pytest.mark.parametrize(
    "answer",
    [(500, {"error": "dead"}), (503, "loading"), (429, "full"), (200, {"choices": [{"finish_reason": "abort"}]})],
    ids=["500", "503", "429", "abort"],
)
def test_what_may_work_elsewhere_is_tried_elsewhere(fakes, engine, answer):
    fakes[0].answers["/v1/completions"] = answer
    assert generate(engine)[0].ids == (7, 8, 257)
    assert [len(fake.asked("/v1/completions")) for fake in fakes] == [1, 1]


def test_a_server_that_is_too_slow_is_left_for_another(fakes, model):
    engine = VLLMServers([fake.url for fake in fakes], str(model), 128, timeout_s=0.3)
    fakes[0].gate.clear()
    assert generate(engine)[0].ids == (7, 8, 257)
    assert [len(fake.asked("/v1/completions")) for fake in fakes] == [1, 1]


def test_a_refusal_is_not_tried_elsewhere(fakes, engine):
    fakes[0].answers["/v1/completions"] = (400, {"error": {"message": "prompt is too long"}})
    with pytest.raises(EngineError, match=r"status 400: .*prompt is too long"):
        generate(engine)
    assert not fakes[1].asked("/v1/completions")


def test_no_server_left_is_one_sentence(fakes, engine):
    fakes[0].close()
    fakes[1].answers["/v1/completions"] = (500, "dead")
    said = (
        rf"none of the 2 servers is left to generate \({fakes[0].url}.*; {fakes[1].url}.* status 500: dead\); start them again"
    )
    with pytest.raises(EngineError, match=said):
        generate(engine)


def test_a_server_that_was_only_full_is_asked_again(fakes, engine):
    full = iter([(429, "full"), (503, "full"), (200, {"choices": [fakes[0].choice({"prompt": [1]})]})])
    fakes[0].close()
    fakes[1].respond = lambda path, body, real=fakes[1].respond: next(full) if path == "/v1/completions" else real(path, body)
    with pytest.raises(EngineError):
        generate(engine)
    assert generate(engine)[0].ids == (7, 8, 257)


def test_a_restarted_server_is_not_asked_again_until_it_has_the_weights(fakes, engine, monkeypatch):
    monkeypatch.setattr(fleet, "TRUST_S", -1.0)  # as if it was not heard of for long
    generate(engine)
    fakes[0].birth = "1.6e+09"
    generate(engine, 3)
    assert [len(fake.asked("/v1/completions")) for fake in fakes] == [1, 3]
    engine.sync([])
    generate(engine)
    assert len(fakes[0].asked("/v1/completions")) == 2


def test_scores_are_the_given_tokens(fakes, engine):
    assert engine.score([1, 2], [3, 4]) == [-3.0, -4.0]  # the fake's: minus the id
    assert fakes[0].asked("/v1/completions")[0]["prompt"] == [1, 2, 3, 4]
    assert len(fakes[1].asked("/v1/completions")) == 1


def test_servers_whose_scores_differ_are_an_error(fakes, engine):
    fakes[1].logprob = -1.1
    # (0.1 * 3 + 0.1 * 4) / 2 = 0.35 nats a token
    with pytest.raises(EngineError, match=rf"{fakes[1].url} differs from {fakes[0].url} by 0.350 nats a token"):
        engine.score([1, 2], [3, 4])


def test_at_the_start_all_servers_take_the_models_own_weights(fakes, engine, model):
    own = load_file(model / "model.safetensors")
    for fake in fakes:
        [(folder, weights, _)] = fake.held
        assert folder == model
        assert weights.keys() == own.keys()
        assert fake.asked("/reset_prefix_cache")


def test_a_sync_reaches_all_servers_and_raises_the_version(fakes, engine, model):
    weights = load_file(model / "model.safetensors")
    name = "model.norm.weight"
    total = sum(tensor.numel() for tensor in weights.values())
    changed = engine.sync((n, tensor + 1 if n == name else tensor) for n, tensor in weights.items())
    assert changed == pytest.approx(weights[name].numel() / total)
    for fake in fakes:
        folder, held, has_config = fake.held[-1]
        torch.testing.assert_close(held[name], weights[name] + 1)
        assert has_config
        assert not folder.exists(), "the weights' folder must not stay"
        assert [path for path, _ in fake.log][-2:] == ["/collective_rpc", "/reset_prefix_cache"]
    assert engine.version == 1
    assert generate(engine)[0].version == 1
    assert engine.sync(weights.items()) == pytest.approx(weights[name].numel() / total), "since the last sync"


def test_a_head_that_servers_on_cpus_would_not_take_is_an_error(fakes, model):
    weights = load_file(model / "model.safetensors")  # tied: the embedding is the head
    moved = weights | {"model.embed_tokens.weight": weights["model.embed_tokens.weight"] + 1}
    for fake in fakes:
        fake.device = "cpu"
    engine = VLLMServers([fake.url for fake in fakes], str(model), 128)
    engine.sync((name, tensor + ("norm" in name)) for name, tensor in weights.items())
    with pytest.raises(EngineError, match=r"^model\.embed_tokens\.weight has changed, which is the model's head too"):
        engine.sync(moved.items())
    assert engine.version == 1
    fakes[1].device = "cuda"
    with pytest.raises(EngineError, match=r"in torch\.float32 on cpu and in torch\.float32 on cuda"):
        VLLMServers([fake.url for fake in fakes], str(model), 128)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/collective_rpc", (500, "bad file")),
        ("/reset_prefix_cache", (200, {"success": False})),
        ("/metrics", (200, "nothing")),
    ],
)
def test_a_server_that_does_not_take_the_weights_is_an_error_and_nobody_generates(fakes, engine, model, path, answer):
    fakes[1].answers[path] = answer
    with pytest.raises(EngineError, match=fakes[1].url):
        engine.sync(load_file(model / "model.safetensors").items())
    assert engine.version == 0
    with pytest.raises(EngineError, match="not loaded everywhere"):
        generate(engine)
    del fakes[1].answers[path]
    engine.sync(load_file(model / "model.safetensors").items())
    assert generate(engine)[0].version == 1


def test_the_version_is_that_of_the_time_when_the_request_was_sent(fakes, engine):
    fakes[0].gate.clear()

    async def run():
        held = asyncio.create_task(engine.generate([1], SAMPLING))
        while not fakes[0].asked("/v1/completions"):
            await asyncio.sleep(0.005)
        engine.version = 9
        fakes[0].gate.set()
        return await held

    assert asyncio.run(run()).version == 0


def test_weights_go_through_the_given_folder(fakes, model, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    engine = VLLMServers([fake.url for fake in fakes], str(model), 128, shared)
    engine.sync(load_file(model / "model.safetensors").items())
    assert [folder.parent for folder, _, _ in fakes[0].held] == [shared, shared]
    assert not list(shared.iterdir())


def test_an_adapter_is_loaded_under_a_new_name_and_asked_for_by_it(fakes, model, tmp_path):
    shared, adapter = tmp_path / "shared", tmp_path / "adapter"
    shared.mkdir(), adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    engine = VLLMServers([fake.url for fake in fakes], str(model), 128, shared)
    engine.sync_adapter(adapter)
    engine.sync_adapter(adapter)
    for fake in fakes:
        first, second = fake.asked("/v1/load_lora_adapter")
        assert first["lora_name"] != second["lora_name"]
        assert fake.asked("/v1/unload_lora_adapter") == [{"lora_name": first["lora_name"]}]
    assert [path.name for path in shared.iterdir()] == [Path(second["lora_path"]).name], "the copy before is removed"
    assert generate(engine)[0].version == 2
    assert fakes[0].asked("/v1/completions")[0]["model"] == second["lora_name"]
    engine.sync(load_file(model / "model.safetensors").items())
    assert not list(shared.iterdir())
    generate(engine)
    assert "model" not in fakes[0].asked("/v1/completions")[-1]


def test_a_server_that_does_not_take_the_adapter_is_an_error(fakes, engine, tmp_path):
    fakes[1].answers["/v1/load_lora_adapter"] = (404, "no adapter")
    with pytest.raises(EngineError, match=rf"{fakes[1].url} did not take the adapter .* --enable-lora"):
        engine.sync_adapter(tmp_path)
    assert engine.version == 0


@pytest.mark.parametrize(
    ("config", "said"),
    [({"logprobs_mode": "raw_logprobs"}, "--logprobs-mode raw_logprobs"), ({"max_model_len": 100}, "--max-model-len 100")],
)
def test_a_server_with_other_options_is_refused_with_the_right_command(fakes, model, config, said):
    fakes[1].config = config
    command = rf"VLLM_SERVER_DEV_MODE=1 .*{model} --max-model-len 128 --logprobs-mode processed_logprobs"
    with pytest.raises(EngineError, match=rf"{fakes[1].url} runs with {said}; start it with: {command}"):
        VLLMServers([fake.url for fake in fakes], str(model), 128)
    assert not fakes[0].held, "no server takes weights before all are right"


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        (True, "VLLM_SERVER_DEV_MODE=1 vllm serve m --max-model-len 9 --logprobs-mode processed_logprobs"),
        (
            False,
            "VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model m --max-model-len 9 "
            "--logprobs-mode processed_logprobs --no-enable-chunked-prefill",
        ),
    ],
)
def test_the_command_is_that_of_the_installed_vllm(monkeypatch, installed, said):
    monkeypatch.setattr(servers.importlib.util, "find_spec", lambda name: name == "vllm")
    monkeypatch.setattr(servers, "_is_installed", lambda package: installed and package == "vllm")
    assert servers.command("m", 9) == said


def test_a_server_that_would_cut_prompts_on_a_cpu_is_refused(fakes, model):
    cut = fakes[0].info() | {"scheduler_config": {"enable_chunked_prefill": True}}
    fakes[0].info = lambda: cut | {"device_config": {"device": "cpu"}}
    with pytest.raises(EngineError, match="runs with --enable-chunked-prefill; start it with"):
        VLLMServers([fakes[0].url], str(model), 128)
    fakes[0].info = lambda: cut
    VLLMServers([fakes[0].url], str(model), 128)


def test_a_server_without_development_mode_is_refused_with_the_right_command(fakes, model):
    fakes[0].answers["/server_info"] = (404, {"detail": "Not Found"})
    with pytest.raises(EngineError, match="does not run in vLLM's development mode; start it with: VLLM_SERVER_DEV_MODE=1 "):
        VLLMServers([fakes[0].url], str(model), 128)


def test_a_server_that_is_not_there_is_refused_with_the_right_command(fakes, model):
    fakes[0].close()
    with pytest.raises(
        EngineError, match=rf"^{fakes[0].url}/server_info\S* cannot be reached \(.*\); start it with: VLLM_SERVER"
    ):
        VLLMServers([fakes[0].url], str(model), 128)


@pytest.mark.parametrize("urls", [[], ["localhost:8000"], ["http://a:99999"], ["http://a:1", "http://a:1/v1/"]])
def test_bad_addresses_are_refused(urls, model):
    with pytest.raises(InputError):
        VLLMServers(urls, str(model), 128)


def test_connections_do_not_outlive_their_loop(engine):
    generate(engine, 4)
    assert not engine._fleet._by_loop


def test_a_cancelled_request_leaves_its_server_idle(fakes, engine):
    fakes[0].gate.clear()

    async def run():
        task = asyncio.create_task(engine.generate([1], SAMPLING))
        while not fakes[0].asked("/v1/completions"):
            await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert [server.busy for server in engine._fleet.servers] == [0, 0]


@pytest.mark.parametrize(("engine_name", "urls"), [("servers", None), ("vllm", ["http://127.0.0.1:8000"])])
def test_addresses_and_engine_go_together(model, engine_name, urls):
    with pytest.raises(InputError, match=r"^model\.servers .* addresses go with engine: servers, and only there$"):
        SearchAgent(str(model), retrieval_url="http://127.0.0.1:1", engine=engine_name, servers=urls)


def ranked(rank, urls, model, port, queue):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    engine = VLLMServers(urls, model, 128)
    weights = load_file(Path(model) / "model.safetensors")
    engine.sync((name, tensor + 1) for name, tensor in weights.items())
    [generation] = generate(engine)
    try:
        engine.sync(weights.items())
        failed = ""
    except EngineError as error:
        failed = str(error)
    queue.put((rank, engine.version, generation.version, failed))
    dist.destroy_process_group()


@pytest.mark.slow
def test_of_several_ranks_one_sends_weights_and_all_agree(fakes, model):
    real, sent = fakes[1].respond, []

    def third_fails(path, body):
        sent.extend([1] if path == "/collective_rpc" else [])
        return (500, "bad file") if path == "/collective_rpc" and len(sent) == 3 else real(path, body)

    fakes[1].respond = third_fails  # the model's own weights and one sync go well
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue, urls = context.Queue(), [fake.url for fake in fakes]
    processes = [context.Process(target=ranked, args=(rank, urls, str(model), port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=30)
    assert [rank for rank, *_ in found] == [0, 1]
    for _, version, generated, failed in found:
        assert (version, generated) == (1, 1)
        assert f"{fakes[1].url} did not take the weights" in failed
    assert [len(fake.held) for fake in fakes] == [3, 2]
    assert [len(fake.asked("/v1/completions")) for fake in fakes] == [1, 1], "ranks begin at different servers"
