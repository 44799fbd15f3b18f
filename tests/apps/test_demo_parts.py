"""Models and corpora behind the demo's page: who may use them, who makes room, and whose documents are whose."""

import pytest
from demo_parts import ANSWER, scripted, small_index, tags_folder

from project.apps.demo import corpora as corpora_module
from project.apps.demo.corpora import Corpora
from project.apps.demo.live import Controls, Ended
from project.apps.demo.models import Models
from project.cli import main
from project.errors import InputError
from project.records import Question
from project.writing import write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tags_folder(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def models(folder):
    found = Models(dict.fromkeys("abc", str(folder)), "transformers", 2048)
    yield found
    for model in found._loaded.values():
        model.close()


def test_a_model_that_is_asked_is_not_unloaded(models):
    a, b = models.borrow("a"), models.borrow("b")
    with pytest.raises(InputError, match="a and b are being asked by others"):
        models.borrow("c")
    models.give_back("a")
    models.borrow("c")  # in the place of a
    assert list(models._loaded) == ["b", "c"] and models.borrow("b") is b
    for name in "bbc":
        models.give_back(name)
    assert models.borrow("a") is not a


def test_the_one_that_was_idle_longest_makes_room(models):
    for name in ("a", "b", "a"):
        models.borrow(name)
        models.give_back(name)
    models.borrow("c")
    assert list(models._loaded) == ["a", "c"]


def test_without_a_model_the_quickstarts_ppo_is_opened_and_other_runs_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr("project.apps.demo.models.runs_folder", lambda: tmp_path)
    for run in ("quickstart-sft", "quickstart-ppo", "pipeline/1-multiturn"):
        (tmp_path / run / "merged").mkdir(parents=True)
        (tmp_path / run / "merged" / "config.json").write_text("{}")
    found = Models.find((), "transformers", 2048)
    assert found.names == ["quickstart-ppo", "pipeline/1-multiturn", "quickstart-sft", "SmolLM2-135M-Instruct, untrained"]
    assert found.paths["quickstart-ppo"] == str(tmp_path / "quickstart-ppo" / "merged")


def test_models_of_one_name_are_both_there(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("project.apps.demo.models.runs_folder", lambda: tmp_path)
    given = ["runs/x/merged", "runs/x/merged_best"]
    found = Models.find(given, "transformers", 2048)
    assert list(found.paths.items())[:2] == [("x", given[0]), (given[1], given[1])]
    with pytest.raises(InputError, match="vllm holds one model, and 2 are given"):
        Models.find(given, "vllm", 2048)
    assert Models.find(given[:1], "vllm", 2048).names == ["x"]


def test_an_episode_that_runs_as_the_model_closes_is_over(folder):
    live = scripted(folder, [ANSWER], pause_s=0.05)
    asking = live.ask(Question("q", "Which?", ()), Controls(), small_index())
    asking.news(5)
    live.close()
    moments = []
    while not moments or type(moments[-1]).__name__ not in ("Stopped", "Ended", "Failed"):
        new = asking.news(5)
        assert new, "never over"
        moments += new
    assert not isinstance(moments[-1], Ended)


@pytest.fixture
def documents(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora_module, "brought_folder", lambda: tmp_path / "demo")
    monkeypatch.setattr(corpora_module, "project_root", lambda: tmp_path)
    paths = [tmp_path / "notes.md", tmp_path / "other.md"]
    for path in paths:
        path.write_text(f"# {path.stem}\nThe boiler in {path.stem} is serviced by Frau Kessler every March.\n")
    return paths


def found(corpora, name, session):
    return [hit.passage.text for hit in corpora.search(name, session, "boiler", 3)]


def test_nobodys_corpus_is_replaced(documents):
    corpora = Corpora({"quickstart": "elsewhere"})
    assert corpora.add(documents[:1], "quickstart", "anna") == ("quickstart-2", 1)
    assert corpora.places["quickstart"] == "elsewhere"
    assert corpora.add(documents[:1], "", "anna")[0] == "notes"
    assert corpora.add(documents[1:], "notes", "bert")[0] == "notes-2"
    assert "in notes is" in found(corpora, "notes", "bert")[0]
    assert "in other is" in found(corpora, "notes-2", "anna")[0]  # all is shared on one's own machine
    assert len(corpora.add(documents[:1], "x" * 400, "anna")[0]) == 60
    assert {*Corpora.find(None, None).names("")} >= {"notes", "notes-2", "quickstart-2"}  # they are there the next time


def test_on_an_open_page_documents_are_seen_by_who_brought_them(documents):
    corpora = Corpora({"facts": "elsewhere"}, shared=False)
    corpora.add(documents[:1], "private", "anna")
    assert (corpora.names("anna"), corpora.names("bert")) == (["facts", "private"], ["facts"])
    with pytest.raises(InputError, match="there is no corpus 'private'; choose one of facts"):
        corpora.get("private", "bert")
    assert found(corpora, "private", "anna")


def test_what_cannot_be_indexed_leaves_nothing(documents, tmp_path):
    empty = tmp_path / "empty.md"
    empty.write_text("")
    corpora = Corpora({"facts": "elsewhere"})
    with pytest.raises(InputError):
        corpora.add([empty], "empty", "anna")
    assert corpora.names("anna") == ["facts"]
    assert list((tmp_path / "demo").iterdir()) == []


def test_a_table_of_lancedb_is_searched_again_and_again(tmp_path):
    write_rows(tmp_path / "passages.jsonl", [{"id": "a", "title": "Oslo", "text": "Oslo is the capital of Norway."}])
    words = ["--passages", str(tmp_path / "passages.jsonl"), "--output_dir", str(tmp_path / "table"), "--engine", "lance"]
    assert main(["index", "build", *words, "--lance.vectors", "false"]) == 0
    corpora = Corpora({"table": str(tmp_path / "table")})
    for _ in range(2):
        assert [hit.passage.id for hit in corpora.search("table", "anna", "capital", 3)] == ["a"]


def test_without_an_index_the_quickstarts_comes_first(documents, tmp_path):
    for name in ("a", "quickstart", "z"):
        folder = tmp_path / "data" / name / "index"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    assert Corpora.find(None, None).names("") == ["quickstart", "a", "z"]
    assert Corpora.find(None, "http://127.0.0.1:1").names("")[:2] == ["http://127.0.0.1:1", "quickstart"]
