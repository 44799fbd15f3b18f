"""What was trained on is refused as a test: by marks, by digests, through parents; questions of other files are not."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from pytest import CaptureFixture

from project.files import file_digest
from project.overlap import marks
from project.records import Conversation, Message, Question
from project.tracking.guard import MARKS, keep_marks, trained_on
from project.tracking.store import client


@pytest.fixture(autouse=True)
def _artifacts_in_tmp(tmp_path: Path, store: Path) -> None:
    client().create_experiment("seeker", artifact_location=(tmp_path / "artifacts").as_uri())


def _run(name: str, trained: list[Question | Conversation] | None = None, **tags: str) -> str:
    experiment = client().get_experiment_by_name("seeker")
    run_id = str(client().create_run(experiment.experiment_id, run_name=name, tags=tags).info.run_id)
    if trained is not None:
        with TemporaryDirectory() as folder:
            keep_marks(Path(folder), set().union(*map(marks, trained)))
            client().log_artifact(run_id, f"{folder}/{MARKS}")
    return run_id


ASKED = Question("1", "Which metal is liquid?", ("Mercury",))
OTHER = Question("1", "Which gas is light?", ("Hydrogen",), group="g")


def _file(tmp_path: Path) -> Path:
    path = tmp_path / "test.jsonl"
    path.write_text("{}\n")
    return path


def test_trap_08_a_question_of_the_training_is_found_through_parents(tmp_path: Path) -> None:
    said = (Message("user", "Question: which METAL is liquid"), Message("assistant", "x"))
    sft = _run("sft", [Conversation("c", said, question="which METAL is liquid", answers=("mercury",))])
    ppo = _run("ppo", [OTHER], **{"seeker.parent": sft})
    found = trained_on(ppo, marks(ASKED), _file(tmp_path))
    assert "the answer to 'which metal is liquid', 'mercury'" in found
    assert found.endswith("was trained on by the run 'sft'")
    assert "by the run 'ppo'" in trained_on(ppo, marks(OTHER), _file(tmp_path))


def test_ids_and_groups_of_other_files_are_no_overlap(tmp_path: Path) -> None:
    ppo = _run("ppo", [ASKED, OTHER])
    assert trained_on(ppo, marks(Question("1", "Which metal is blue?", ("Mercury",), group="g")), _file(tmp_path)) == ""


def test_a_trace_is_found(tmp_path: Path) -> None:
    one, other = (
        Conversation(name, (Message("user", f"Question: {name}"),), question=name, extra_info={"trace_id": "t7"})
        for name in "ab"
    )
    found = trained_on(_run("sft", [one]), marks(other), _file(tmp_path))
    assert "the trace 't7'" in found


def test_a_file_is_known_by_its_digest(tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    """Also of runs that kept no marks, and where the training data were made from the file."""
    file = _file(tmp_path)
    old = _run("old", **{"dataset.train": file_digest(file)})
    assert "is a file that the run 'old' was trained on" in trained_on(old, marks(ASKED), file)
    assert "the run 'old' kept no marks" in capsys.readouterr().err
    made = _run("made", [OTHER])
    source = {"file": "x", "digest": "0", "made_by": {"inputs": [{"file": str(file), "digest": file_digest(file)}]}}
    client().log_text(made, json.dumps({"inputs": [source]}), "datasets/train.json")
    assert "the run 'made'" in trained_on(made, marks(ASKED), file)
    assert trained_on(_run("new", [OTHER]), marks(ASKED), file) == ""


def test_a_run_that_is_gone_is_said(tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    assert trained_on("0" * 32, marks(ASKED), _file(tmp_path)) == ""
    assert "the store has no run 00000000" in capsys.readouterr().err


def test_a_question_without_an_answer_is_found(tmp_path: Path) -> None:
    nobody = Question("7", "Who lives on Mars?", ())
    assert "which has none" in trained_on(_run("sft", [nobody]), marks(replace(nobody, id="8")), _file(tmp_path))
    passage = replace(nobody, extra_info={"passage": "Mars is red."})
    assert trained_on(_run("other", [nobody]), marks(passage), _file(tmp_path)) == "", "of a passage of its own"


def test_marks_of_before_a_resume_stay(tmp_path: Path) -> None:
    keep_marks(tmp_path, marks(ASKED))
    keep_marks(tmp_path, marks(OTHER), goes_on=True)
    held = np.load(tmp_path / MARKS)
    assert len(held) == 2
    assert (np.diff(held) > 0).all()
    keep_marks(tmp_path, marks(OTHER))
    assert len(np.load(tmp_path / MARKS)) == 1, "a training that starts over in the folder has not seen what an earlier one did"
