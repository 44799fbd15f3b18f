"""An exported model as a tool-calling model: vLLM's chat endpoint, Seeker's MCP server, and the script that joins them.

The model has learnt one conversation by heart, with the tool's schema of training; it is served with that of the MCP server.
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from test_vllm_servers import start, stop, wait

from project.cli import main
from project.files import read_rows
from project.writing import write_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # on two busy cores it has taken ten minutes
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "serve_tools.py"
SIZES = ["--train_questions", "24", "--validation_questions", "8", "--test_questions", "8", "--train_conversations", "24"]


@pytest.fixture
def agent(default_model_dir, tmp_path, monkeypatch):
    """The exported folder of a model that knows one conversation of `seeker data facts` by heart, and that conversation."""
    if importlib.util.find_spec("vllm") is None:
        reason = "vLLM is not installed"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    assert main(["data", "facts", "--output_dir", "facts", "--dialect", "tools", *SIZES]) == 0
    assert main(["index", "build", "--passages", "facts/passages.jsonl", "--output_dir", "index"]) == 0
    rows = [row for _, row in read_rows("facts/conversations_train.jsonl")]
    learnt = next(row for row in rows if sum("tool_calls" in message for message in row["messages"]) == 1)
    write_rows("one.jsonl", [learnt])
    model = {"lora": {"rank": 16, "alpha": 32}, "learning_rate": 2e-3, "model_path": str(default_model_dir)}
    model |= {"settings": {"dialect": "tools"}, "precision": "float32"}
    config = {
        "model": {"class_path": "SFT", "init_args": model},
        "data": {
            "class_path": "ConversationDataModule",
            "init_args": {"train_file": "one.jsonl", "validation_file": "facts/conversations_validation.jsonl"},
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 8, "limit_val_batches": 0, "default_root_dir": "sft"},
    }
    Path("sft.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "sft.yaml"]) == 0
    assert main(["export", "sft", "--to", "agent"]) == 0
    return learnt


@pytest.fixture
def mcp_url(agent):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", "mcp", "--index", "index", "--transport", "http", "--port", str(port)]
    process = subprocess.Popen([sys.executable, "-m", "project", *words], start_new_session=True)
    try:
        for _ in range(120):
            assert process.poll() is None
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def test_a_tool_calling_model(agent, mcp_url, tmp_path):
    options = ["--served-model-name", "agent", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    server = start(tmp_path / "agent", *options)
    try:
        wait(*server)
        words = ["--question", agent["question"], "--model_url", f"{server[1]}/v1", "--mcp_url", mcp_url]
        done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=300, check=False)
    finally:
        stop(server[0])
    print(done.stdout, done.stderr[-2000:])
    assert done.returncode == 0
    (call,) = next(message["tool_calls"] for message in agent["messages"] if "tool_calls" in message)
    assert f"-> search {call['function']['arguments']}" in done.stdout, "the call came through vLLM's parser as an object"
    assert "<tool_call>" not in done.stdout
    evidence = next(message["content"] for message in agent["messages"] if message["role"] == "tool")
    title = evidence.partition("(Title: ")[2].partition(")")[0]
    assert f"   {title}: " in done.stdout, "the search was run"
    assert any(f"answer: {right}\n" in done.stdout for right in agent["answers"])


def test_servers_that_are_not_there_are_told_in_one_sentence():
    words = ["--question", "Who?", "--model_url", "http://127.0.0.1:9/v1", "--mcp_url", "http://127.0.0.1:9/mcp"]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "are the servers at http://127.0.0.1:9/v1 and http://127.0.0.1:9/mcp there?" in done.stderr
