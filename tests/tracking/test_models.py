"""A trained model in MLflow's registry, in a real store: found by its alias, loaded and asked."""

from pathlib import Path

import mlflow
import pytest
from tiny import tiny_model_folder
from transformers import AutoTokenizer

from project.cli import main
from project.errors import InputError
from project.files import file_digest
from project.tracking import sending
from project.tracking.logger import SeekerLogger
from project.tracking.models import name_and_alias
from project.tracking.store import all_runs, client, find_run
from project.writing import write_rows

DEBUG = Path(__file__).resolve().parents[2] / "experiments" / "debug"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tiny_model_folder(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_is_registered_once_however_often_its_line_is_sent(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver, lost = sending.deliver, []

    def answers_lost(store: object, run_id: str, lines: list[dict[str, object]]) -> None:
        deliver(store, run_id, lines)
        if "model" in lines[0] and len(lost) < 2:
            lost.append(lines)
            raise ConnectionError("the answer was lost")

    monkeypatch.setattr(sending, "deliver", answers_lost)
    logger = SeekerLogger(run_name="trained", register="seeker-agent@best")
    logger.start(tmp_path / "run")
    logger.keep_model(model)
    logger.finalize()
    store, run = client(), find_run("trained")
    (version,) = store.search_model_versions("name = 'seeker-agent'")
    assert store.get_model_version_by_alias("seeker-agent", "best").version == version.version
    assert version.run_id == run.info.run_id
    (logged,) = store.search_logged_models([run.info.experiment_id])
    assert (logged.source_run_id, str(logged.status), len(lost)) == (run.info.run_id, "READY", 2)
    assert list((tmp_path / "run").iterdir()) == []  # its files are in the store
    mlflow.set_tracking_uri(store.tracking_uri)
    loaded = mlflow.pyfunc.load_model("models:/seeker-agent@best")
    assert "messages" in loaded.metadata.signature.inputs.input_names()
    (answer,) = loaded.predict({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5})
    assert answer["choices"][0]["message"]["role"] == "assistant"
    held = Path(mlflow.artifacts.download_artifacts("models:/seeker-agent@best"), "model", "model.safetensors")
    assert file_digest(held) == file_digest(model / "model.safetensors")


def test_without_the_option_no_file_is_copied(model: Path, tmp_path: Path) -> None:
    logger = SeekerLogger(run_name="trained")
    logger.start(tmp_path / "run")
    logger.keep_model(model)
    logger.finalize()
    assert client().search_logged_models([find_run("trained").info.experiment_id]) == []


@pytest.mark.parametrize("register", ["", "@best", "a/b", "a:b@best", "a@", "a@latest", "a@v1", "a@two words"])
def test_a_name_that_mlflow_would_refuse_is_refused_before_the_training(register: str) -> None:
    with pytest.raises(InputError, match="register is"):
        SeekerLogger(register=register)
    assert all_runs() == []


def test_names_with_and_without_an_alias() -> None:
    assert name_and_alias("agent") == ("agent", "")
    assert name_and_alias("my agent@in-use") == ("my agent", "in-use")


def conversation(n: int) -> dict[str, object]:
    said = [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"<answer>\n{n}\n</answer>"}]
    return {"id": str(n), "messages": said}


@pytest.mark.slow
def test_sft_registers_what_it_hands_on(tmp_path: Path) -> None:
    for name, start in {"train": 0, "validation": 8}.items():
        write_rows(tmp_path / f"{name}.jsonl", (conversation(n) for n in range(start, start + 8)))
    words = [f"--data.{name}_file={tmp_path / name}.jsonl" for name in ("train", "validation")]
    words += [f"--trainer.default_root_dir={tmp_path / 'run'}", "--trainer.logger.register=tiny@new"]
    assert main(["fit", "--config", str(DEBUG / "sft.yaml"), *words]) == 0
    store = client()
    store_folder = mlflow.artifacts.download_artifacts("models:/tiny@new", tracking_uri=store.tracking_uri)
    held = Path(store_folder, "model", "model.safetensors")
    assert file_digest(held) == file_digest(tmp_path / "run" / "merged" / "model.safetensors")
