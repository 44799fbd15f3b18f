"""A run made again: which commands, in which order, what is there already, and that they really make the same."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from pytest import CaptureFixture
from trace_samples import TWO_HOPS

from project.cli import main
from project.files import file_digest
from project.manifests import plan, write_outputs
from project.tracking.datasets import log_datasets, log_made
from project.tracking.reproduce import _differences
from project.tracking.store import all_runs, client, find_run, run_metrics, run_params
from project.writing import write_records, write_rows

DEBUG = Path(__file__).resolve().parents[2] / "experiments" / "debug"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tracked(name: str, verb: str, config: dict, parent: str = "", files: dict[str, Path] | None = None, **tags: str) -> str:
    """Write a run as a training leaves it, its folder too."""
    found = client().get_experiment_by_name("seeker")
    artifacts = (Path.cwd() / "artifacts").as_uri()
    experiment = found.experiment_id if found else client().create_experiment("seeker", artifact_location=artifacts)
    home = Path.cwd() / "runs" / name
    home.mkdir(parents=True)
    tags = {"seeker.verb": verb, "seeker.folder": str(home), **tags} | ({"seeker.parent": parent} if parent else {})
    run_id = str(client().create_run(experiment, run_name=name, tags=tags).info.run_id)
    trainer = {"default_root_dir": str(home), "logger": {"class_path": "SeekerLogger", "init_args": {"run_name": name}}}
    client().log_text(run_id, yaml.safe_dump({"trainer": trainer, **config}), "config.yaml")
    log_datasets(client(), run_id, files or {})
    client().set_terminated(run_id)
    return run_id


@pytest.fixture
def chain(folder: Path) -> str:
    """raw -> table -> (train, validation); sft on these, ppo from sft's model, a test of ppo's; returns the test's id."""
    raw, table, train, held = (Path("data", f"{name}.jsonl") for name in ("raw", "table", "train", "held"))
    write_rows(raw, [{"id": "1"}])
    write_outputs(plan("seeker data traces", {"reader": "auto"}, [raw]), {table: [{"id": "2"}]})
    write_outputs(plan("seeker data split", {"validation": 0.5}, [table]), {train: [{"id": "3"}], held: [{"id": "4"}]})
    data = {"init_args": {"train_file": {str(train): 1.0}, "validation_file": str(held)}}
    files = {"train": train, "validation": held}
    sft = tracked(
        "sft", "fit", {"model": {"init_args": {"model_path": "tiny"}}, "data": data, "ckpt_path": "last"}, files=files
    )
    of_sft = {"init_args": {"model_path": str(folder / "runs/sft/merged"), "index": "ix"}}
    ppo = tracked("ppo", "fit", {"model": of_sft, "data": {"init_args": {"train_file": str(train)}}}, sft, {"train": train})
    of_ppo = {"init_args": {"model_path": str(folder / "runs/ppo/merged")}}
    for name in ("sft", "ppo"):
        (folder / "runs" / name / "merged").mkdir()
    return tracked("measured", "test", {"model": of_ppo, "data": {"init_args": {"test_file": str(held)}}}, ppo, {"test": held})


def planned(capsys: CaptureFixture[str], *words: str) -> list[tuple[str, str]]:
    """Return (state, command without the recorded config's path, or else the title) of each step of a dry run."""
    capsys.readouterr()
    assert main(["reproduce", *words, "--dry_run", "--output_dir", "new"]) == 0
    lines = capsys.readouterr().out.splitlines()
    steps = []
    for number, line in enumerate(lines):
        if not line.startswith(" "):
            state, _, title = line.partition(":")
            command = (
                lines[number + 1].strip() if number + 1 < len(lines) and lines[number + 1].startswith(" ") else title.strip()
            )
            steps.append((state, command))
    return steps


def test_what_is_there_is_not_made_again(chain: str, folder: Path, capsys: CaptureFixture[str]) -> None:
    steps = planned(capsys, "measured")
    config = f"{folder}/artifacts/{chain}/artifacts/config.yaml"
    assert steps == [
        ("there", "seeker data traces --input_file data/raw.jsonl --output_file data/table.jsonl"),
        (
            "there",
            "seeker data split --input_file data/table.jsonl --output_dir data --validation_share 0.5 --file_format jsonl",
        ),
        ("there", f"sft ({find_run('sft').info.run_id})"),
        ("there", f"ppo ({find_run('ppo').info.run_id})"),
        (
            "would run",
            f"seeker test --config {config} --trainer.default_root_dir={folder}/new/measured "
            "--trainer.logger.init_args.run_name=measured-again",
        ),
    ]
    assert not (folder / "new").exists()


def test_what_is_gone_is_made_first_and_led_to(chain: str, folder: Path, capsys: CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "runs" / "ppo")
    for name in ("table", "train"):
        Path(f"data/{name}.jsonl").unlink()
    traces, split, sft, ppo, test = planned(capsys, "measured")
    new = f"{folder}/new"
    assert traces == (
        "would run",
        f"seeker data traces --input_file data/raw.jsonl --output_file {new}/data/1-traces/table.jsonl",
    )
    assert split[0] == "would run"
    assert f"--input_file {new}/data/1-traces/table.jsonl --output_dir {new}/data/2-split " in split[1]
    assert sft[0] == "there"  # its model is
    assert ppo[0] == test[0] == "would run"
    assert f"--data.init_args.train_file={new}/data/2-split/train.jsonl" in ppo[1]
    assert "model_path" not in ppo[1]
    assert f"--model.init_args.model_path={new}/ppo/merged" in test[1]
    assert f"--data.init_args.test_file={new}/data/2-split/held.jsonl" in test[1]


def test_what_only_leads_to_something_there_is_not_needed(chain: str, folder: Path, capsys: CaptureFixture[str]) -> None:
    for name in ("raw", "table"):
        Path(f"data/{name}.jsonl").unlink()
    shutil.rmtree(folder / "runs" / "sft")
    assert [state for state, _ in planned(capsys, "measured")] == [
        "not needed",  # the raw file, which nothing could make
        "not needed",
        "there",
        "not needed",
        "there",
        "would run",
    ]


def test_a_resumed_training_is_made_from_its_start(chain: str, folder: Path, capsys: CaptureFixture[str]) -> None:
    Path("data/train.jsonl").write_text("changed\n")
    (state, sft) = planned(capsys, "sft")[-1]
    assert state == "would run"
    assert "--ckpt_path=null" in sft
    assert f'--data.init_args.train_file={{"{folder}/new/data/1-split/train.jsonl": 1.0}}' in sft.replace("'", "")
    assert "/runs/sft" not in sft


def test_what_nothing_can_make_is_refused(chain: str, folder: Path, capsys: CaptureFixture[str]) -> None:
    for name in ("raw", "table", "train"):
        Path(f"data/{name}.jsonl").unlink()
    assert planned(capsys, "sft")[0][0] == "missing"
    assert main(["reproduce", "sft", "--output_dir", "new"]) == 2
    assert "data/raw.jsonl is gone, and nothing says how it was made; put it back" in capsys.readouterr().err
    assert not (folder / "new").exists()
    (folder / "full").mkdir()
    (folder / "full" / "file").touch()
    assert main(["reproduce", "measured", "--output_dir", "full"]) == 2
    assert "full holds something" in capsys.readouterr().err


def test_another_commit_is_said_in_one_line(chain: str, capsys: CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("project.tracking.reproduce.git_tags", lambda: {"git.commit": "a" * 40, "git.dirty": "false"})
    planned(capsys, "measured")
    assert capsys.readouterr().err == ""
    client().set_tag(chain, "git.commit", "a" * 40)
    client().set_tag(chain, "git.dirty", "false")
    assert main(["reproduce", "measured", "--dry_run"]) == 0
    assert capsys.readouterr().err == ""
    client().set_tag(chain, "git.commit", "b" * 40)
    client().set_tag(chain, "git.dirty", "true")
    client().log_text(chain, "diff", "git.diff")
    assert main(["reproduce", "measured", "--dry_run"]) == 0
    said = capsys.readouterr().err
    assert said.startswith(
        "seeker: measured was made by commit bbbbbbbbbbbb with changes, kept as its artifact git.diff: file://"
    )
    assert said.endswith("here is aaaaaaaaaaaa\n")
    assert said.count("\n") == 1


def test_a_run_without_a_config_cannot_be_made_again(folder: Path, capsys: CaptureFixture[str]) -> None:
    client().create_run("0", run_name="bare", tags={"seeker.verb": "fit"})
    assert main(["reproduce", "bare", "--dry_run"]) == 1
    assert "kept no config.yaml" in capsys.readouterr().err


def test_differences_of_configs_by_hand() -> None:
    old = {"a": {"b": 1, "c": [1, {"d": 2}]}, "e": "x", "f": {"one.jsonl": 1}}
    new = {"a": {"b": 1, "c": [1, {"d": 3}]}, "e": None, "f": {"two.jsonl": 1}}
    assert dict(_differences(old, new)) == {"a.c": '[1, {"d": 3}]', "e": "null", "f": '{"two.jsonl": 1}'}
    assert list(_differences(old, old)) == []


def made_by_steps(folder: Path, told: dict) -> str:
    """Make step samples, and write a run that says that they were made as it is told."""
    write_records(folder / "traces.jsonl", [TWO_HOPS])
    assert main(["data", "steps", "--input_file", "traces.jsonl", "--output_file", "steps.jsonl"]) == 0
    manifest = json.loads((folder / "steps.jsonl.manifest.json").read_text()) | {"parameters": told}
    (folder / "steps.jsonl.manifest.json").write_text(json.dumps(manifest))
    return log_made("seeker data steps", {"steps": folder / "steps.jsonl"}, told, {}, 1.0)


def test_data_is_really_made_again_and_compared(folder: Path, capfd: CaptureFixture[str]) -> None:
    run_id = made_by_steps(folder, {"include_first": True})
    assert main(["reproduce", run_id, "--output_dir", "new"]) == 0  # though it is there: it is what is to be made
    assert (folder / "new/data/1-steps/steps.jsonl").read_bytes() == (folder / "steps.jsonl").read_bytes()
    assert f"{folder}/new/data/1-steps/steps.jsonl: as recorded" in capfd.readouterr().out


def test_data_that_comes_out_otherwise_is_a_failure(folder: Path, capfd: CaptureFixture[str]) -> None:
    run_id = made_by_steps(folder, {"include_first": False})  # which it was not
    assert main(["reproduce", run_id, "--output_dir", "new"]) == 1
    assert "1 of 1 files came out otherwise" in capfd.readouterr().err


def test_the_first_failure_ends_it_with_its_status(folder: Path, capfd: CaptureFixture[str]) -> None:
    run_id = made_by_steps(folder, {"include_first": True})
    (folder / "traces.jsonl").write_text('{"id": 1}\n')
    manifest = json.loads((folder / "steps.jsonl.manifest.json").read_text())
    manifest["inputs"][0]["digest"] = file_digest(folder / "traces.jsonl")
    client().log_text(run_id, json.dumps(manifest), "datasets/steps.json")
    assert main(["reproduce", run_id, "--output_dir", "new"]) == 2
    assert "`seeker data steps …` for " in capfd.readouterr().err


@pytest.mark.slow
def test_a_whole_chain_is_made_again(folder: Path, capfd: CaptureFixture[str]) -> None:
    """facts -> index, SFT -> test, with the debug configs; then all but the index is removed and made again."""
    facts = ["--train_questions", "24", "--validation_questions", "8", "--test_questions", "8", "--train_conversations", "24"]
    assert main(["data", "facts", "--output_dir", "data/debug/facts", *facts]) == 0
    assert main(["index", "build", "--passages", "data/debug/facts/passages.jsonl", "--output_dir", "data/debug/index"]) == 0
    assert main(["fit", "--config", str(DEBUG / "sft.yaml"), "--trainer.logger.init_args.run_name", "sft"]) == 0
    merged = str(folder / "runs" / "sft" / "merged")
    words = ["--model.model_path", merged, "--trainer.logger.init_args.run_name", "measured"]
    assert main(["test", "--config", str(DEBUG / "test.yaml"), *words]) == 0
    sft, measured = find_run("sft"), find_run("measured")
    assert main(["lineage", "data/debug/facts/conversations_train.jsonl"]) == 0
    shown = capfd.readouterr().out
    assert shown.index("used for train by") < shown.index(sft.info.run_id) < shown.index(measured.info.run_id)
    kept = file_digest(folder / "data/debug/facts/conversations_train.jsonl")
    shutil.rmtree(folder / "data/debug/facts")
    shutil.rmtree(folder / "runs" / "sft")
    assert main(["reproduce", "measured", "--output_dir", "new"]) == 0
    assert file_digest(folder / "new/data/1-facts/conversations_train.jsonl") == kept
    assert not (folder / "runs" / "sft").exists()
    again, sft_again = find_run("measured-again"), find_run("sft-again")
    assert len(all_runs()) == 4
    assert again.data.tags["seeker.parent"] == sft_again.info.run_id
    assert again.data.tags["seeker.folder"] == str(folder / "new" / "measured")
    assert sft_again.data.tags["dataset.train"] == kept
    assert run_params(sft_again)["model.lora.rank"] == run_params(sft)["model.lora.rank"] == "2"
    for new, old in ((sft_again, sft), (again, measured)):
        values = {name: value for name, value in run_metrics(old).items() if name.startswith(("train/loss", "val/", "test/em"))}
        assert values
        assert {name: run_metrics(new)[name] for name in values} == values
    out = capfd.readouterr().out
    assert f"seeker compare {measured.info.run_id} {again.info.run_id}" in out
    assert out.count(": as recorded") == 6
