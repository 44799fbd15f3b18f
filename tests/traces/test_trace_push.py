"""Pushing data files: the tree and its card, what is refused, what the hub is asked, and the round trip through `datasets`."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import DatasetCard
from trace_samples import answer, result, search, think, trace

from project.cli import main
from project.files import file_digest, local_file, read_rows
from project.manifests import manifest_path, plan, write_outputs
from project.traces.card import without_folders
from project.writing import write_records

REPO = ("--repo", "me/searches", "--licence", "cc-by-sa-4.0")


def many(n=40):
    return [
        trace(think("Look."), search(f"q {i}"), result(f"Fact {i}."), answer(f"a {i}"), question=f"Q {i}?", ident=f"{i}")
        for i in range(n)
    ]


def run(verb, *args):
    return main(["data", verb, *map(str, args)])


def push(files, *args):
    return run("push", "--input_file", f"[{', '.join(map(str, files))}]", *REPO, *args)


def dry(files, folder, *args):
    return push(files, "--dry_run", "true", "--output_dir", folder, *args)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The folder of sets made by the verbs: multiturn and summary_only, train and validation, and the trace table."""
    root = tmp_path_factory.mktemp("home") / "someone"
    write_records(root / "raw.jsonl", many())
    assert run("prepare", "--input_file", root / "raw.jsonl", "--output_dir", root, "--dialect", "tools") == 0
    return root / "sets"


@pytest.fixture
def files(sets):
    return [sets / f"{phase}_{part}.parquet" for phase in ("multiturn", "summary_only") for part in ("train", "validation")]


def made(path, rows, **changed):
    """Write rows with the manifest of a program."""
    assert write_outputs(plan("seeker data test", {}, []) | changed, {path: rows}, {"rows read": len(rows)})
    return path


def asked(number, **fields):
    return {"id": str(number), "question": f"Question {number}?", "answers": [f"answer {number}"], **fields}


def without_nulls(rows):
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def loaded(folder, config, cache):
    import datasets

    return datasets.load_dataset(str(folder), config, cache_dir=str(cache))


def test_datasets_gives_the_rows_back(tmp_path, files, sets):
    """Whole objects, not JSON strings: `messages`, `tools` and `extra_info` are decoded."""
    assert dry([*files, sets.parent / "traces.parquet"], tmp_path / "hub") == 0
    for config, parts in (("multiturn", ("train", "validation")), ("summary_only", ("train", "validation"))):
        given = loaded(tmp_path / "hub", config, tmp_path / "cache")
        assert set(given) == set(parts)
        for part in parts:
            rows = [row for _, row in read_rows(sets / f"{config}_{part}.parquet")]
            assert without_nulls(given[part]) == rows
            assert rows[0]["messages"][0]["role"] == "system"
    traces = loaded(tmp_path / "hub", "traces", tmp_path / "cache")["train"]
    assert without_nulls(traces) == without_nulls(row for _, row in read_rows(sets.parent / "traces.parquet"))


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_datasets_gives_json_lines_back_whatever_the_keys(tmp_path, suffix):
    """Splits of other keys, columns and types: what `datasets` cannot find out from the first split stands in the card."""
    train = [
        asked(1, extra_info={"a": 1}, context=[{"role": "user", "content": "x", "weight": 0.0}], hops=2, steps="3", seen=None)
    ]
    test = [asked(2, extra_info={"b": [None, {}]}, names=["m"], hops=2.5, steps="{"), asked(3, context=[], seen=1)]
    paths = [made(tmp_path / f"q_{part}.{suffix}", rows) for part, rows in (("train", train), ("test", test))]
    assert dry(paths, tmp_path / "hub") == 0
    given = loaded(tmp_path / "hub", "q", tmp_path / "cache")
    assert [without_nulls(given[part]) for part in ("train", "test")] == [without_nulls(train), test]


def test_the_tree_and_its_card(tmp_path, files, sets, capsys):
    options = ("--sources", '["HotpotQA, CC BY-SA 4.0"]', "--title", "Searches | of agents", "--revision", "v1")
    assert dry(files, tmp_path / "hub", *options) == 0
    assert "written, not pushed" in capsys.readouterr().out
    names = [f"{phase}{{}}{part}.parquet" for phase in ("multiturn", "summary_only") for part in ("train", "validation")]
    wanted = {
        "README.md",
        *(f"data/{n.format('-')}" for n in names),
        *(f"manifests/{n.format('_')}.manifest.json" for n in names),
    }
    assert {str(p.relative_to(tmp_path / "hub")) for p in (tmp_path / "hub").rglob("*") if p.is_file()} == wanted
    assert (tmp_path / "hub/data/multiturn-train.parquet").read_bytes() == files[0].read_bytes()
    card = DatasetCard.load(tmp_path / "hub" / "README.md")
    told = card.data.to_dict()
    assert told["license"] == "cc-by-sa-4.0"
    assert (told["language"], told["task_categories"], told["tags"]) == (["en"], ["text-generation"], ["seeker"])
    assert told["size_categories"] == ["n<1K"]  # 40 + 80 rows
    assert told["configs"][0] == {
        "config_name": "multiturn",
        "data_files": [{"split": part, "path": f"data/multiturn-{part}.parquet"} for part in ("train", "validation")],
    }
    rows = {path: len(list(read_rows(path))) for path in files}
    lines = card.text.splitlines()
    assert f"| `multiturn` | train | {rows[files[0]]} | `data/multiturn-train.parquet` | `{file_digest(files[0])}` |" in lines
    assert "# Searches \\| of agents" in lines
    assert [line for line in lines if line.startswith("### ")] == [
        "### 1. seeker data traces",
        "### 2. seeker data phases",
        "### 3. seeker data split",
        "### 4. seeker data split",
    ]
    assert '| dialect | "tools" |' in lines
    assert "| summary_only written | 80 |" in lines
    assert f"| raw.jsonl | `{file_digest(sets.parent / 'raw.jsonl')}` |" in lines
    assert "- HotpotQA, CC BY-SA 4.0" in lines
    assert 'rows = datasets.load_dataset("me/searches", "multiturn", split="train", revision="v1")' in lines
    assert "hf://datasets/me/searches@v1/data/multiturn-validation.parquet" in card.text


def test_the_addresses_in_the_card_are_what_the_datamodule_reads(tmp_path, files, monkeypatch):
    assert dry(files, tmp_path / "hub") == 0
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file, **_: str(tmp_path / "hub" / file))
    text = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    addresses = [word for word in text.split() if word.startswith("hf://")]
    assert [local_file(address).read_bytes() for address in addresses] == [path.read_bytes() for path in files[:2]]


def test_the_same_files_give_the_same_tree_without_folders(tmp_path, files):
    assert dry(files, tmp_path / "one") == 0
    assert dry(files[::-1], tmp_path / "two") == 0
    one, two = (
        {str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("one", "two")
    )
    assert one == two
    assert b"someone" in manifest_path(files[0]).read_bytes(), "the manifest that lies here names the folders"
    assert not [name for name, data in one.items() if not name.endswith(".parquet") and b"someone" in data]
    assert not list(tmp_path.glob(".*")), "and nothing half written is left"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ({"file": "data/me/raw.jsonl", "digest": "1f"}, {"file": "raw.jsonl", "digest": "1f"}),
        (["/home/me/a.txt and ~/b/c.txt, (~me/d.txt)"], ["a.txt and c.txt, (d.txt)"]),
        ({"rows rejected: /home/me/x.jsonl is odd": 2}, {"rows rejected: x.jsonl is odd": 2}),
        ("turns / 2 <= 6 and words/turns > 1", "turns / 2 <= 6 and words/turns > 1"),
        ("</think></answer> of https://example.org/a/b", "</think></answer> of https://example.org/a/b"),
        (None, None),
    ],
)
def test_folders_are_taken_out(value, wanted):
    assert without_folders(value) == wanted


def test_a_file_without_a_side_and_one_without_a_name(tmp_path):
    other = made(tmp_path / "questions.jsonl", [asked(1)])
    sides = [made(tmp_path / f"{side}.jsonl", [asked(side)]) for side in ("train", "test")]
    assert dry([other, *sides], tmp_path / "hub") == 0
    assert {p.name for p in (tmp_path / "hub/data").iterdir()} == {
        "questions-train.jsonl",
        "default-train.jsonl",
        "default-test.jsonl",
    }
    assert loaded(tmp_path / "hub", "questions", tmp_path / "cache")["train"].num_rows == 1


def refused(capsys, status, words):
    """Show that the verb ended so, and with one sentence."""
    assert status == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert said.startswith("seeker: ")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--repo", "searches"), "--repo is searches, which the hub does not take; write OWNER/NAME"),
        (("--repo", "me/a/b"), "write OWNER/NAME"),
        (("--repo", "me/a--b"), "write OWNER/NAME"),
        (
            ("--licence", "Apache 2.0"),
            "--licence is Apache 2.0, which is no id of the hub; take one of its list of licences, such as apache-2.0",
        ),
        (("--revision", "a/b"), "--revision is a/b; name a branch"),
        (("--dry_run", "true"), "--output_dir is missing"),
        (("--output_dir", "out"), "only a dry run writes there; add --dry_run true"),
        (("--dry_run", "true", "--output_dir", "full"), "is there and not an empty folder"),
    ],
)
def test_wrong_options(tmp_path, monkeypatch, capsys, args, words):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/note").touch()
    refused(capsys, push([made(tmp_path / "a.jsonl", [asked(1)])], *args), words)
    assert not Path("out").exists()


def changed(path):
    with path.open("ab") as file:
        file.write(b"\n")
    return path


def bare(path):
    manifest_path(path).unlink()
    return path


def renamed(path):
    manifest_path(path).rename(manifest_path(path.with_name("new.jsonl")))
    return path.rename(path.with_name("new.jsonl"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda d: [changed(made(d / "a.jsonl", [asked(1)]))],
            "was changed since it was made; make it anew with seeker data test",
        ),
        (lambda d: [bare(made(d / "a.jsonl", [asked(1)]))], "has no manifest that says how it was made; push what a seeker"),
        (
            lambda d: [renamed(made(d / "a.jsonl", [asked(1)]))],
            "does not tell of new.jsonl; give the file the name it was made",
        ),
        (lambda d: [made(d / "a.jsonl", [])], "holds no rows; leave it out"),
        (lambda d: [d / "none.jsonl"], "none.jsonl does not exist"),
        (lambda d: [made(d / "a b.jsonl", [asked(1)])], "would be the config 'a b'; give it a name of letters"),
        (lambda d: [made(d / f"{n}/a.jsonl", [asked(1)]) for n in "xy"], "would both be the train split of 'a'; give one"),
        (lambda d: [made(d / "a.jsonl", [asked(1)]), made(d / "b.parquet", [asked(1)])], "are of two formats"),
        (
            lambda d: [made(d / f"a_{p}.parquet", [asked(p, hops=h)]) for p, h in (("train", 2), ("test", "x"))],
            "column 'hops' of",
        ),
        (lambda d: [made(d / "a.jsonl", [asked(1, x=1), asked(2, x="x")])], "a column of"),
        (lambda d: [made(d / "a.jsonl", [asked(1, target=[]), asked(2, target="x")])], "column 'target' of"),
        (
            lambda d: [made(d / f"a_{p}.jsonl", [asked(p, hops=h)]) for p, h in (("train", 2), ("test", "x"))],
            "column 'hops' of",
        ),
        (
            lambda d: [made(d / "a.jsonl", [asked(1)], inputs=[{"file": "b", "digest": "", "made_by": {"program": "x"}}])],
            "lacks code, counts, inputs, outputs, parameters, version; make the file anew",
        ),
        (
            lambda d: [made(d / f"a_{part}.jsonl", [asked(part, group="g")]) for part in ("train", "test")],
            "train and test share the group 'g'",
        ),
    ],
)
def test_wrong_files(tmp_path, capsys, make, words):
    refused(capsys, dry(make(tmp_path), tmp_path / "hub"), words)
    assert not (tmp_path / "hub").exists()


class Api:
    """Stands in for the hub: notes what it is asked, and keeps what is pushed."""

    calls: list
    public = False

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", repo_id, options))

    def dataset_info(self, repo_id):
        return SimpleNamespace(private=not self.public)

    def create_branch(self, repo_id, **options):
        self.calls.append(("create_branch", repo_id, options))

    def upload_folder(self, *, folder_path, **options):
        tree = {str(p.relative_to(folder_path)): p.read_bytes() for p in Path(folder_path).rglob("*") if p.is_file()}
        self.calls.append(("upload_folder", tree, options))
        return SimpleNamespace(commit_url="https://hub/me/searches/commit/1")


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(Api, "calls", [], raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    return Api


@pytest.mark.parametrize("revision", [None, "v1"])
def test_one_commit_of_the_tree_of_the_dry_run(tmp_path, files, api, capsys, revision):
    options = ("--revision", revision) if revision else ()
    assert dry(files, tmp_path / "hub", *options) == 0
    assert not api.calls
    assert push(files, *options) == 0
    (_, repo, made_with), *branches, (_, tree, pushed_with) = api.calls
    assert (repo, made_with) == ("me/searches", {"repo_type": "dataset", "private": True, "exist_ok": True})
    branch = ("create_branch", "me/searches", {"branch": revision, "repo_type": "dataset", "exist_ok": True})
    assert branches == ([branch] if revision else [])
    assert tree == {str(p.relative_to(tmp_path / "hub")): p.read_bytes() for p in (tmp_path / "hub").rglob("*") if p.is_file()}
    assert (pushed_with["repo_id"], pushed_with["repo_type"], pushed_with["revision"]) == ("me/searches", "dataset", revision)
    assert "https://hub/me/searches/commit/1" in capsys.readouterr().out


def test_nothing_is_pushed_to_a_public_dataset_as_private(files, api, capsys, monkeypatch):
    monkeypatch.setattr(api, "public", True)
    refused(capsys, push(files), "me/searches is public on the hub, and --private is true; give --private false, or change it")
    assert [name for name, *_ in api.calls] == ["create_repo"]
    assert push(files, "--private", "false") == 0


@contextmanager
def hub_that_answers(status, text):
    """Serve one answer to everything, as the hub words it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            body = json.dumps({"error": text}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "text", "exit_status", "words"),
    [
        (
            401,
            "Invalid username or password.",
            2,
            "(Invalid username or password); log in with `hf auth login`, or set HF_TOKEN",
        ),
        (403, "You have no rights.", 2, "(You have no rights); take a token that may write to me, with `hf auth login` or HF_"),
        (400, "Bad name.", 1, "(Bad name); the hub answered 400: mend what it names, or run this again later"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(files, monkeypatch, capsys, status, text, exit_status, words):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with hub_that_answers(status, text) as address:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        assert push(files) == exit_status
    said = capsys.readouterr().err
    assert said.startswith("seeker: me/searches cannot be pushed ")
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("offline", "exit_status", "words"),
    [("0", 1, "check the network, HF_ENDPOINT and the token (`hf auth login` or HF_TOKEN)"), ("1", 2, "unset HF_HUB_OFFLINE")],
)
def test_no_network_is_one_sentence_at_once(tmp_path, files, offline, exit_status, words):
    """The real library, in a process of its own, which reads the address when it starts."""
    hub = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_OFFLINE": offline, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_test"}
    command = [sys.executable, "-m", "project", "data", "push", "--input_file", str(files[0]), *REPO]
    start = time.monotonic()
    done = subprocess.run(command, env=os.environ | hub, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == exit_status, done.stderr
    assert done.stderr.startswith("seeker: me/searches cannot be pushed (")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - start < 60
