"""LanceDB as an engine: in a folder and in an object store, words, vectors and both, builds that fail."""

import asyncio
import json
import shutil

import pytest
from stores import moto_store

from project.cli import main
from project.corpus.engines.choose import Remote, open_engine
from project.corpus.engines.http import HttpRetriever
from project.corpus.engines.lance import Lance, connect
from project.corpus.index import RankingSettings
from project.corpus.serving.handle import ServerHandle
from project.errors import InputError, RetrievalError
from project.records import Passage
from project.writing import write_records, write_rows

PASSAGES = [
    Passage("mn", "Ulaanbaatar", "Ulaanbaatar is the capital of Mongolia.", "guide.md", 3, 42, "Asia > North"),
    Passage("he", "Helium", "Helium is a noble gas, lighter than air."),
    Passage("car", "Automobile", "A motor vehicle with four wheels for the road."),
    Passage("dog", "Dog", "A domesticated animal that barks and guards the house. Tögrög."),
]


def build(passages, uri, *options):
    return main(["index", "build", f"--passages={passages}", f"--output_dir={uri}", "--engine=lance", *options])


def find(engine, query, k=4):
    return asyncio.run(engine.search([query], k))[0]


def ids(hits):
    return [hit.passage.id for hit in hits]


@pytest.fixture(scope="module")
def passages(tmp_path_factory):
    path = tmp_path_factory.mktemp("passages") / "p.jsonl"
    write_records(path, PASSAGES)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory, passages):
    folder = tmp_path_factory.mktemp("lance") / "index"
    assert build(passages, folder, "--lance.vectors=true") == 0
    return folder


def test_words_vectors_and_both(folder):
    text, vector, both = Lance(str(folder), "text"), Lance(str(folder), "vector"), Lance(str(folder))
    assert ids(find(text, "noble gases")) == ["he"]  # stemmed
    assert ids(find(text, "togrog")) == ["dog"]  # without accents
    assert ids(find(text, "mongolia capital")) == ["mn"]
    assert find(text, "Mongolia")[0].passage == PASSAGES[0]
    assert ids(find(text, "zebra")) == ids(find(text, "")) == ids(find(text, "the of which")) == []
    assert ids(find(text, "automobile")) == ["car"]  # the title counts too
    assert ids(find(vector, "puppy"))[0] == "dog"
    assert find(vector, "Helium\nHelium is a noble gas, lighter than air.")[0].score == pytest.approx(1, abs=1e-3)
    assert ids(find(both, "puppy"))[0] == "dog"
    assert ids(find(both, "noble gas"))[0] == "he"
    assert all(hit.score > 0 for hit in find(both, "noble gas"))


@pytest.mark.parametrize("odd", ['"unclosed', "a AND (b OR", "text:x*", "\x00", "\ud83d", "zebra" * 2000, "+-^~"])
def test_odd_queries_are_searched_as_words(folder, odd):
    assert ids(find(Lance(str(folder), "text"), f"noble {odd}"))[0] == "he"
    assert ids(find(Lance(str(folder), "text"), odd)) == []
    assert "he" in ids(find(Lance(str(folder)), f"noble {odd}"))


def test_many_at_once_each_get_their_own(folder):
    engine, wanted = Lance(str(folder)), {"helium": "he", "automobile": "car", "Mongolia": "mn"}
    queries = list(wanted) * 30
    found = asyncio.run(engine.search(queries, 1))
    assert [ids(hits) for hits in found] == [[wanted[query]] for query in queries]
    assert asyncio.run(engine.search([], 1)) == []


def test_building_again_changes_only_what_changed(tmp_path, passages, capsys):
    assert build(passages, tmp_path / "index") == 0
    old = Lance(str(tmp_path / "index"))
    capsys.readouterr()
    assert build(passages, tmp_path / "index") == 0
    assert "is up to date" in capsys.readouterr().out
    write_records(tmp_path / "fewer.jsonl", PASSAGES[:2])
    assert build(tmp_path / "fewer.jsonl", tmp_path / "index") == 0
    assert ids(find(old, "automobile")) == ["car"]  # an open one goes on with its table
    assert ids(find(Lance(str(tmp_path / "index")), "automobile")) == []
    assert build(tmp_path / "fewer.jsonl", tmp_path / "index", "--force=true") == 0
    assert ids(find(Lance(str(tmp_path / "index")), "helium")) == ["he"]
    names = asyncio.run(_tables(str(tmp_path / "index")))
    assert len(names) == 3  # this one, the one before, and what names them
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "mlflow.db") == ["fewer.jsonl", "index"]


async def _tables(uri):
    import lancedb

    return (await (await lancedb.connect_async(uri)).list_tables()).tables


def test_a_build_that_fails_leaves_the_old_index(tmp_path, passages, monkeypatch, capsys):
    assert build(passages, tmp_path / "index") == 0
    write_rows(tmp_path / "bad.jsonl", [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}])
    assert build(tmp_path / "bad.jsonl", tmp_path / "index") == 2
    assert "ids must differ" in capsys.readouterr().err
    write_records(tmp_path / "fewer.jsonl", PASSAGES[:2])

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("project.corpus.engines.lance._batches", full)
    assert build(tmp_path / "fewer.jsonl", tmp_path / "index") == 2
    assert "cannot be written by LanceDB" in capsys.readouterr().err
    assert ids(find(Lance(str(tmp_path / "index")), "automobile")) == ["car"]


def test_what_is_no_lance_index(tmp_path, passages, folder, capsys):
    with pytest.raises(InputError, match="holds no complete index"):
        Lance(str(tmp_path / "none"))
    assert build(passages, tmp_path / "words") == 0
    with pytest.raises(InputError, match=r"holds no vectors; build it again with --lance\.vectors true"):
        open_engine(str(tmp_path / "words"), "lance_vector", RankingSettings(), Remote())
    assert main(["index", "build", f"--passages={passages}", "--output_dir=s3://bucket/x"]) == 2
    assert "only --engine lance writes there" in capsys.readouterr().err
    assert build(passages, tmp_path / "x", "--lance.stemmer=klingon") == 2
    assert "LanceDB has no stemmer 'klingon'" in capsys.readouterr().err
    broken = shutil.copytree(folder, tmp_path / "broken")
    for path in broken.rglob("*.lance"):
        if path.is_file():
            path.write_bytes(b"#" * path.stat().st_size)
    with pytest.raises((RetrievalError, InputError)):
        find(Lance(str(broken)), "helium")


def test_the_server_searches_it(folder, capsys):
    with ServerHandle(folder) as server:
        found = asyncio.run(HttpRetriever(server.url).search(["puppy", "helium"], 1))
    assert [ids(hits) for hits in found] == [["dog"], ["he"]]
    assert main(["index", "search", f"--index={folder}", "--engine=lance_text", "--query=noble"]) == 0
    assert "Helium" in capsys.readouterr().out


def test_many_vectors_are_indexed_and_found(tmp_path, passages):
    rows = [
        {"id": str(i), "text": f"passage about {word} {i}"} for i, word in enumerate(["cats", "steel", "music", "rain"] * 100)
    ]
    write_rows(tmp_path / "p.jsonl", rows)
    assert build(tmp_path / "p.jsonl", tmp_path / "index", "--lance.vectors=true", "--lance.index_from=300") == 0
    engine = Lance(str(tmp_path / "index"), "vector")
    assert engine.about["vectors_indexed"]
    assert {int(hit.passage.id) % 4 for hit in find(engine, "kitten", 5)} == {0}


def test_the_first_hits_do_not_depend_on_k(tmp_path):
    about = ["rocket market window", "window seat", "market garden rocket", "rocket salad"] * 60
    write_rows(tmp_path / "p.jsonl", [{"id": str(i), "text": f"{text} {i % 7}"} for i, text in enumerate(about)])
    assert build(tmp_path / "p.jsonl", tmp_path / "index", "--lance.vectors=true") == 0
    for mode in ("text", "vector", "hybrid"):
        engine = Lance(str(tmp_path / "index"), mode)
        deep = ids(find(engine, "rocket market window", 200))
        assert len(set(deep)) == len(deep) > 100
        for k in (1, 3, 50, 100, 150):
            assert ids(find(engine, "rocket market window", k))[:100] == deep[: min(k, 100)]


def test_a_build_that_did_not_end_is_gone_on_with(tmp_path, passages, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lancedb.index.FTS", interrupted)
        assert build(passages, tmp_path / "index") == 1
    assert build(passages, tmp_path / "index") == 0
    assert ids(find(Lance(str(tmp_path / "index")), "helium")) == ["he"]
    assert main(["index", "search", f"--index={tmp_path}/index", "--query=x", "--ranking.expand=true"]) == 2
    assert "--ranking.* is for an index of bm25" in capsys.readouterr().err


@pytest.fixture
def bucket(monkeypatch):
    """An S3 store of one's own, with one bucket."""
    with moto_store("seeker-test") as url:
        settings = {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}
        for name, value in (settings | {"ENDPOINT_URL": url, "ALLOW_HTTP": "true"}).items():
            monkeypatch.setenv(f"AWS_{name}", value)
        yield "s3://seeker-test/corpus"


def test_an_object_store_is_shared_by_servers_that_keep_nothing(bucket, passages, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SEEKER_TEST", "1")
    assert build(passages, bucket, "--lance.vectors=true") == 0
    assert build(passages, bucket, "--lance.vectors=true") == 0
    assert "is up to date" in capsys.readouterr().out
    first, second = Lance(bucket), Lance(bucket)
    for engine in (first, second):
        assert ids(find(engine, "puppy"))[0] == "dog"
        assert ids(find(engine, "noble gas"))[0] == "he"
    opened, about = open_engine(bucket, None, RankingSettings(), Remote())
    assert about["engine"] == "lance"
    assert ids(find(opened, "noble gas"))[0] == "he"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"cannot be (read|opened) by LanceDB"):
        Lance(bucket)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_cluster_needs_its_key(monkeypatch):
    monkeypatch.delenv("LANCEDB_API_KEY", raising=False)
    with pytest.raises(InputError, match=r"db://corpus cannot be opened by LanceDB"):
        connect("db://corpus")


def test_the_manifest_names_engine_and_source(folder, passages):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["engine"], manifest["passages"], manifest["source"]["file"]) == ("lance", 4, str(passages))
