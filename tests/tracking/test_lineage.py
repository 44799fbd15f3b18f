"""What was made from what, in both directions, and commands rebuilt from manifests that make the same bytes again."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest import CaptureFixture
from trace_samples import TWO_HOPS, answer, result, search, think, trace

from project.cli import main
from project.files import file_digest
from project.manifests import plan, read_manifest, write_outputs
from project.tracking.commands import data_command, index_manifest
from project.tracking.datasets import log_datasets, log_made
from project.tracking.store import client
from project.writing import write_records, write_rows


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    client().create_experiment("seeker", artifact_location=(tmp_path / "artifacts").as_uri())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_of(name: str, verb: str = "fit", parent: str = "", files: dict[str, Path] | None = None, **tags: str) -> str:
    tags = {"seeker.verb": verb, **tags} | ({"seeker.parent": parent} if parent else {})
    run_id = str(client().create_run("1", run_name=name, tags=tags).info.run_id)
    log_datasets(client(), run_id, files or {})
    client().log_text(run_id, "seed_everything: 0\n", "config.yaml")
    client().set_terminated(run_id)
    return run_id


@pytest.fixture
def chain(folder: Path) -> dict[str, str]:
    """raw -> table -> (train, validation); sft trained on train, ppo from sft, a test of each; another run used nothing."""
    raw, table, train, held = (Path("data", f"{name}.jsonl") for name in ("raw", "table", "train", "held"))
    write_rows(raw, [{"id": "1"}])
    write_outputs(plan("seeker data traces", {"reader": "auto", "filters": ["correct"]}, [raw]), {table: [{"id": "2"}]})
    write_outputs(
        plan("seeker data split", {"validation": 0.5, "seed": 7}, [table]), {train: [{"id": "3"}], held: [{"id": "4"}]}
    )
    sft = run_of("sft", files={"train": train, "validation": held}, **{"seeker.command": "seeker fit --config 'my sft.yaml'"})
    ppo = run_of("ppo", parent=sft)
    ids = {"sft": sft, "ppo": ppo, "of sft": run_of("of sft", "test", sft), "of ppo": run_of("of ppo", "test", ppo)}
    return ids | {"other": run_of("other")}


def described(word: str) -> dict:
    assert main(["lineage", word, "--output_file", "out.json"]) == 0
    return json.loads(Path("out.json").read_text())


def names(rows: list[dict]) -> dict:
    return {row["name"]: names(row["children"]) for row in rows}


def test_a_run_stands_on_its_data_and_the_runs_before_it(chain: dict[str, str], capsys: CaptureFixture[str]) -> None:
    found = described("of ppo")
    assert (found["id"], found["parent"]["id"], found["parent"]["parent"]["id"]) == (
        chain["of ppo"],
        chain["ppo"],
        chain["sft"],
    )
    sft = found["parent"]["parent"]
    assert sft["command"] == "seeker fit --config 'my sft.yaml'"
    assert found["command"].startswith("seeker test --config /")
    assert found["command"].endswith(f"{chain['of ppo']}/artifacts/config.yaml")
    train, held = sft["datasets"]
    assert (train["role"], train["file"], held["role"]) == ("train", "data/train.jsonl", "validation")
    assert train["command"] == (
        "seeker data split --input_file data/table.jsonl --output_dir data --validation_share 0.5 --seed 7 --file_format jsonl"
    )
    assert train["inputs"][0]["command"] == (
        "seeker data traces --input_file data/raw.jsonl --output_file data/table.jsonl --filters '[\"correct\"]'"
    )
    assert train["inputs"][0]["inputs"] == [
        {"kind": "file", "file": "data/raw.jsonl", "digest": file_digest(Path("data/raw.jsonl"))}
    ]
    shown = capsys.readouterr().out
    words = ["of ppo", "parent", chain["ppo"], "parent", chain["sft"], "$ seeker fit", "dataset train", "$ seeker data split"]
    places = [0]
    for word in [*words, "from data/table.jsonl", "$ seeker data traces", "from data/raw.jsonl"]:
        places.append(shown.index(word, places[-1]))


def test_a_run_is_followed_to_what_came_from_it(chain: dict[str, str], capsys: CaptureFixture[str]) -> None:
    assert names(described("sft")["children"]) == {"ppo": {"of ppo": {}}, "of sft": {}}
    assert "measured by, or trained from it" in capsys.readouterr().out
    assert names(described(chain["of ppo"][:8])["children"]) == {}


def test_a_file_is_followed_to_the_runs_that_used_what_came_from_it(chain: dict[str, str], capsys: CaptureFixture[str]) -> None:
    found = described("data/raw.jsonl")
    [table] = found["made_into"]
    assert (table["file"], found["used_by"]) == ("data/table.jsonl", [])
    made = {file["file"]: file for file in table["made_into"]}
    assert set(made) == {"data/train.jsonl", "data/held.jsonl"}
    [user] = made["data/train.jsonl"]["used_by"]
    assert (user["role"], user["name"], names(user["children"])) == ("train", "sft", {"ppo": {"of ppo": {}}, "of sft": {}})
    shown = capsys.readouterr().out
    places = [0]
    for word in ("made into data/table.jsonl", "made into data/", "used for ", "sft", "ppo", "of ppo"):
        places.append(shown.index(word, places[-1]))
    assert "other" not in shown


def test_a_file_of_other_bytes_was_used_for_nothing(chain: dict[str, str]) -> None:
    Path("data/train.jsonl").write_text('{"id": "changed"}\n')
    found = described("data/train.jsonl")
    assert (found["used_by"], found["made_into"], "program" in found) == ([], [], False)


def test_made_by_a_teacher_in_a_run_of_its_own(folder: Path) -> None:
    source, made = folder / "questions.jsonl", folder / "rows.jsonl"
    write_rows(source, [{"id": "q"}])
    told = {"label": "teacher", "balanced": True, "grid": {}, "prompts": [], "maker": 3, "teacher": "m@1", "seed": 4}
    write_outputs(plan("seeker data qas", told, [source]), {made: [{"id": "r"}]})
    run_id = log_made("seeker data qas", {"rows": made}, told, {"rows read": 1}, 2.0)
    run_of("sft", files={"train": made})
    [train] = described("sft")["datasets"]
    words = shlex.split(train["command"])
    assert words[:3] == ["seeker", "data", "qas"]
    assert (
        dict(zip(words[3::2], words[4::2], strict=True)).items()
        >= {
            "--balanced": "true",
            "--teacher.model": "m@1",
            "--seed": "4",
            "--input_file": str(source),
            "--output_file": str(made),
        }.items()
    )
    assert train["notes"] == ["the address of the teacher is not recorded; give --teacher.base_url or --teacher.engine"]
    client().set_tag(run_id, "seeker.command", "seeker data qas --teacher.base_url here")
    assert described("sft")["datasets"][0]["command"] == "seeker data qas --teacher.base_url here"
    assert [user["name"] for user in described(str(made))["used_by"]] == ["sft"]  # its maker did not use it


def test_a_circle_ends(folder: Path) -> None:
    a, b = folder / "a.jsonl", folder / "b.jsonl"
    write_rows(a, [{"id": "1"}])
    write_outputs(plan("seeker data traces", {}, [a]), {b: [{"id": "1"}]})  # the same bytes
    first = run_of("first", files={"train": b})
    second = run_of("second", parent=first)
    client().set_tag(first, "seeker.parent", second)
    assert names(described("first")["children"]) == {"second": {}}
    assert [user["name"] for user in described(str(a))["used_by"]] == ["first"]


def test_what_is_neither_run_nor_file_is_refused(chain: dict[str, str], capsys: CaptureFixture[str]) -> None:
    assert main(["lineage", "data/nothing.jsonl"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    gone = run_of("gone", parent="0123456789abcdef0123456789abcdef")
    assert described(gone)["parent"] == {"kind": "run", "id": "0123456789abcdef0123456789abcdef", "name": None}
    assert "which the store does not have" in capsys.readouterr().out


# --- rebuilt commands ---------------------------------------------------------------------------------------------------------


def rebuilt(path: Path, into: Path) -> list[str]:
    manifest = read_manifest(path)
    assert manifest is not None
    command = data_command(manifest, into)
    assert command is not None
    assert command.notes == ()
    return list(command.words[1:])


def makers(folder: Path) -> Iterator[tuple[list[str], str]]:
    """Yield commands, each with one of the files it makes."""
    yield ["data", "traces", "--input_file", "raw.jsonl", "--output_file", "made/t.jsonl", "--filters", "correct"], "t.jsonl"
    yield (
        ["data", "steps", "--input_file", "made/t.jsonl", "--output_file", "made/s.parquet", "--include_first", "false"],
        "s.parquet",
    )
    yield (
        ["data", "summaries", "--input_file", "made/s.parquet", "--output_file", "made/u.jsonl.gz", "--max_words", "20"],
        "u.jsonl.gz",
    )
    yield (
        ["data", "multiturn", "--input_file", "made/t.jsonl", "--output_file", "made/m.jsonl", "--dialect", "tools"],
        "m.jsonl",
    )
    yield (
        ["data", "phases", "--input_file", '["made/t.jsonl", "raw.jsonl"]', "--output_dir", "made", "--max_words", "30"],
        "summary_only.jsonl",
    )
    yield (
        ["data", "split", "--input_file", "made/m.jsonl", "--output_dir", "made", "--validation_share", "0.4", "--seed", "3"],
        "m_train.parquet",
    )
    yield (
        ["data", "corpus", "--input_file", "a page.md", "--output_file", "made/p.jsonl", "--strategy", "fixed", "--size", "40"],
        "p.jsonl",
    )
    yield ["data", "corpus", "--input_file", "made/p.jsonl", "--output_file", "made/q.jsonl"], "q.jsonl"


def test_rebuilt_commands_make_the_same_bytes(folder: Path) -> None:
    other = trace(think("?"), search("x"), result("Of y."), answer("z"), question="What of y?", ident="t2", answers=("z",))
    more = [trace(answer(str(n)), question=f"What is {n}?", ident=f"n{n}", answers=(str(n),)) for n in range(12)]
    write_records(folder / "raw.jsonl", [TWO_HOPS, other, *more])
    (folder / "a page.md").write_text("# Title\n\n" + "Some words of a page. " * 10)
    for command, name in makers(folder):
        assert main(command) == 0, command
        again = folder / "again" / name
        assert main(rebuilt(folder / "made" / name, again.parent)) == 0
        assert again.read_bytes() == (folder / "made" / name).read_bytes(), command
        held, new = read_manifest(folder / "made" / name), read_manifest(again)
        assert held == new


def test_a_rebuilt_command_names_only_what_is_not_the_default(folder: Path) -> None:
    write_records(folder / "raw.jsonl", [TWO_HOPS])
    assert main(["data", "traces", "--input_file", "raw.jsonl", "--output_file", "t.jsonl", "--reader", "auto"]) == 0
    assert rebuilt(folder / "t.jsonl", Path("x")) == [
        "data",
        "traces",
        "--input_file",
        "raw.jsonl",
        "--output_file",
        "x/t.jsonl",
    ]


def test_a_rebuilt_index_has_the_same_passages(folder: Path) -> None:
    write_rows(
        folder / "p.jsonl", [{"id": "1", "title": "A", "text": "words of one"}, {"id": "2", "title": "B", "text": "two"}]
    )
    assert main(["index", "build", "--passages", "p.jsonl", "--output_dir", "ix", "--bm25.k1", "2.0"]) == 0
    held = json.loads((folder / "ix/manifest.json").read_text())
    command = data_command(index_manifest(held, file_digest(folder / "ix/manifest.json")), Path("new ix"))
    assert str(command) == "seeker index build --passages p.jsonl --output_dir 'new ix' --bm25.k1 2.0"
    assert command is not None
    assert main(list(command.words[1:])) == 0
    assert json.loads((folder / "new ix/manifest.json").read_text()) == held
    run_of("test", "test", files={"index": folder / "ix/manifest.json"})
    [index] = described("test")["datasets"]
    assert index["inputs"][0]["file"] == "p.jsonl"
    assert [user["role"] for user in described("p.jsonl")["made_into"][0]["used_by"]] == ["index"]
    assert [user["role"] for user in described("ix")["used_by"]] == ["index"]


@pytest.mark.parametrize(
    ("program", "told", "words", "notes"),
    [
        ("seeker data tarot", {}, None, 0),
        ("seeker data steps", {"include_first": True, "moon": 3}, [], 1),  # what no option says is said
        ("seeker data traces", {"tokenizer": "0123"}, [], 1),
        ("seeker data squad", {"hub_id": "a/b", "digest": "0123", "label": "answerability"}, ["--input_file", "a/b"], 0),
        (
            "seeker data distill",
            {"retrieval": "ix@0123", "max_turns": 5, "judge": ["m", None, 100, 8, "0123"], "keep": "judge", "teacher": "t"},
            ["--index", "ix", "--max_assistant_turns", "5", "--keep", "judge", "--judge.model", "m"],
            1,
        ),
        (
            "seeker data summaries",
            {"maker": 1, "temperature": 0.5},
            ["--summariser", "teacher", "--sampling.temperature", "0.5"],
            0,
        ),
        ("seeker data split", {"near_duplicates": 0.8, "joined": "0123"}, ["--near_duplicates", "0.8"], 1),
        ("seeker data facts", {"sizes": {"train": 9, "test": 200}, "packages": {}}, ["--train_questions", "9"], 0),
    ],
)
def test_manifests_as_command_lines(program: str, told: dict, words: list[str] | None, notes: int) -> None:
    manifest = {"program": program, "parameters": told, "inputs": [], "outputs": {"o.parquet": {}}}
    command = data_command(manifest, Path("made"))
    if words is None:
        assert command is None
        return
    assert command is not None
    said = " ".join(command.words)
    assert " ".join(words) in said
    assert len(command.notes) == notes
    assert "0123" not in said
