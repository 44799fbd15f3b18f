"""The small data that the debug configs name, made by the same commands that their comments show."""

import shutil
from pathlib import Path

import pytest

from project.cli import main
from project.writing import write_rows

SIZES = ["--train_questions", "24", "--validation_questions", "8", "--test_questions", "8", "--train_conversations", "24"]
SHARE = ["--validation_share", "0.3"]
CAPITALS = {"Mongolia": "Ulaanbaatar", "Japan": "Tokyo", "Peru": "Lima", "Kenya": "Nairobi", "Norway": "Oslo", "Cuba": "Havana"}


@pytest.fixture(scope="session")
def facts_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`facts/` and `index/`, made once."""
    folder = tmp_path_factory.mktemp("debug")
    assert main(["data", "facts", "--output_dir", str(folder / "facts"), *SIZES]) == 0
    assert main(["index", "build", "--passages", str(folder / "facts/passages.jsonl"), "--output_dir", f"{folder}/index"]) == 0
    return folder


@pytest.fixture
def with_facts(facts_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder of its own in which `data/debug/facts` and `data/debug/index` are."""
    shutil.copytree(facts_folder, tmp_path / "data" / "debug")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def with_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder of its own in which `data/debug/sets` is, made of six made-up traces."""
    monkeypatch.chdir(tmp_path)
    write_rows("raw.jsonl", (_trace(country, capital) for country, capital in CAPITALS.items()))
    assert main(["data", "prepare", "--input_file", "raw.jsonl", "--output_dir", "data/debug", *SHARE]) == 0
    return tmp_path


def _trace(country: str, capital: str) -> dict[str, object]:
    found = [{"title": country, "content": f"The capital of {country} is {capital}. It is a city."}]
    steps = [
        {"type": "reasoning", "content": f"I look up the capital of {country}."},
        {"type": "search", "tool": "search", "queries": [f"capital of {country}"]},
        {"type": "search_result", "documents": found},
        {"type": "reasoning", "content": f"The passage says {capital}."},
        {"type": "answer", "content": capital},
    ]
    question = f"What is the capital of {country}?"
    return {"id": country, "question": question, "answers": [capital], "steps": steps, "correct": True}
