"""A tiny model, an index and its server, and a question file, for the tests of PPO."""

import pytest
from metals import PASSAGES, QUESTIONS
from tiny import tiny_model_folder

from project.corpus.build import write_index
from project.corpus.serving.handle import ServerHandle
from project.writing import write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    path = tmp_path_factory.mktemp("index")
    write_index(path, PASSAGES)
    return path


@pytest.fixture(scope="module")
def server(index):
    with ServerHandle(index) as handle:
        yield handle


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    write_rows(path, (q.to_row() for q in QUESTIONS))
    return path
