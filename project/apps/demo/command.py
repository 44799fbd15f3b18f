"""`seeker demo`: start the page on a model and an index, the quickstart's by default."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from project.errors import InputError
from project.files import read_rows
from project.ports import listen
from project.records import Question
from project.runtime import prepare_process, quiet_transformers

if TYPE_CHECKING:
    from project.apps.demo.live import EngineName

QUESTIONS = Path("data/quickstart/facts/questions_test.jsonl")
"""Examples where none are given."""
EXAMPLES = 8
LARGEST = "100mb"
"""A document that is brought, at most."""


def demo(
    model_path: list[str] | None = None,
    index: Path | None = None,
    retrieval_url: str | None = None,
    questions: Path | None = None,
    engine: EngineName = "transformers",
    context_tokens: int = 2048,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth_file: Path | None = None,
) -> None:
    """Open a page on which people ask an agent and watch it search, until interrupted.

    Args:
        model_path: what to ask, also several: model folders, adapters, runs, trainings' folders, .ckpt files, hub ids; by
            default the quickstart's PPO model, or its SFT model. What other runs have left can be chosen on the page.
        index: the folder that `seeker index build` wrote; by default the quickstart's, and others below data/ can be chosen.
        retrieval_url: address of a running `seeker serve retrieval`, instead of an index.
        questions: a file of questions (.jsonl, .parquet), of which one of each kind and a few more are examples.
        engine: what generates: transformers (on a GPU where there is one), or vllm in process, which holds one model.
        context_tokens: tokens that an episode's context may have.
        host: address to listen on; the default is this machine only.
        port: TCP port.
        auth_file: a file with a line `user:password` for each person who may log in; by default anybody who reaches the port.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    prepare_process()
    people = _read_people(auth_file)
    listen(host, port).close()  # a port in use is told before a model is loaded
    from project.apps.demo.corpora import Corpora
    from project.apps.demo.models import Models
    from project.apps.demo.page import Demo
    from project.tracking.store import project_root

    quiet_transformers()
    is_local = host in ("127.0.0.1", "localhost", "::1")
    models = Models.find(model_path or (), engine, context_tokens)
    corpora = Corpora.find(index, retrieval_url, shared=is_local)
    default = project_root() / QUESTIONS
    examples = read_examples(questions or default) if questions or default.is_file() else []
    if not is_local and not people:
        print(f"anybody who reaches {host}:{port} may ask and bring documents; --auth_file asks for a password", flush=True)
    print(f"loading {models.names[0]} …", flush=True)
    models.borrow(models.names[0])
    models.give_back(models.names[0])
    _serve(Demo(models, corpora, examples, files=is_local), host, port, people)


def read_examples(path: Path) -> list[Question]:
    """Return a few questions of a file, each kind first.

    Raises:
        InputError: the file cannot be read, or holds no question.
    """
    found: list[Question] = []
    for line, row in read_rows(path):
        try:
            found.append(Question.from_row(row))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}, line {line}: {error}") from error
    firsts = list({one.kind: one for one in reversed(found)}.values())[::-1]
    return [*firsts, *(one for one in found if one not in firsts)][:EXAMPLES]


def _read_people(path: Path | None) -> list[tuple[str, str]]:
    if path is None:
        return []
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise InputError(f"--auth_file {path} cannot be read ({error.strerror}); give a file of lines user:password") from error
    pairs = (line.partition(":") for line in lines)
    people = [(user, password) for user, _, password in pairs if user and password]
    if not people or len(people) < len(lines):
        raise InputError(f"--auth_file {path} holds a line that is not `user:password`; write one such line a person")
    return people


def _serve(page: object, host: str, port: int, people: Sequence[tuple[str, str]]) -> None:
    import gradio as gr

    from project.apps.demo.drawing import style
    from project.apps.demo.page import KEYS, Demo

    assert isinstance(page, Demo)
    fonts = ["system-ui", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif"]
    theme = gr.themes.Default(font=fonts, font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"])
    blocks = page.page()
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            auth=list(people) or None,
            theme=theme,
            css=style(),
            head=KEYS,
            quiet=True,
            show_error=True,
            ssr_mode=False,
            prevent_thread_lock=True,
            max_file_size=LARGEST,
            footer_links=[],
        )
    except OSError as error:
        raise InputError(f"port {port} on {host} cannot be used ({error}); give another --port") from error
    print(f"demo at http://{host}:{port}; Ctrl-C ends it", flush=True)
    blocks.block_thread()
