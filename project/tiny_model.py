"""`tiny-random`: a random two-layer Llama with a byte tokenizer, for runs that check the machinery and learn nothing.

Any config may name it (`model_path: tiny-random`). It is made on first use beside the default model, in under a second,
from a seed alone: nothing is downloaded. It has no chat template and no decision tokens, so that a run on it also takes the
paths that a foreign model takes: Seeker's template is set and embedding rows are added.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from project.model_cache import model_folder
from project.runtime import quiet_transformers

TINY_NAME = "tiny-random"
RECEIPT = "tiny.json"
"""Written into the folder: what it was made from. A folder with another receipt is replaced."""
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CONTEXT = 8192
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
}


def tiny_model(seed: int = 0) -> Path:
    """Make the model unless it is there, and return its folder: float32 weights, 256 bytes and three special tokens.

    Safe to run several times at once: each makes a folder of its own and the first to finish is kept.

    Args:
        seed: of the weights; each seed has a folder of its own.
    """
    folder = model_folder().parent / (f"{TINY_NAME}-{seed}" if seed else TINY_NAME)
    receipt = {"format": 1, "seed": seed, "shape": SHAPE, "special_tokens": list(SPECIAL_TOKENS)}
    if _is_made(folder, receipt):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        fresh = Path(scratch) / "model"
        _write(fresh, seed)
        (fresh / RECEIPT).write_text(json.dumps(receipt, indent=1), encoding="utf-8")
        if folder.exists() and not _is_made(folder, receipt):
            shutil.rmtree(folder)
        try:
            fresh.rename(folder)
        except OSError:
            if not _is_made(folder, receipt):  # else another process was first
                raise
    return folder


def _is_made(folder: Path, receipt: dict[str, Any]) -> bool:
    try:
        return bool(json.loads((folder / RECEIPT).read_text(encoding="utf-8")) == receipt)
    except (OSError, ValueError):
        return False


def _write(folder: Path, seed: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    quiet_transformers()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    tokenizer = byte_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SHAPE, **ids))  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # transformers leaves the weights readable by their owner only


def byte_tokenizer() -> Any:  # noqa: ANN401 - a tokenizer of transformers
    """Return a tokenizer whose tokens are the 256 bytes and `SPECIAL_TOKENS`; it has no chat template."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
