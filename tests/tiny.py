"""A byte tokenizer and a two-layer random model: real classes of transformers, made in under a second, no file needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SPECIALS = ("<|im_start|>", "<|im_end|>")
VOCAB_SIZE = 256 + len(SPECIALS)


def byte_tokenizer(chat_template: str | None = None, merges: Sequence[tuple[str, str]] = ()) -> Any:
    """Return a `PreTrainedTokenizerFast` with one token per UTF-8 byte (its id is the byte), then the two specials.

    `<|im_start|>` is 256, `<|im_end|>` 257: end of sequence and padding. Without `chat_template` it has none, so that
    `prepare_tokenizer` sets Seeker's. Each pair of ASCII strings in `merges` becomes one more token (from 258 on), with
    GPT-2's letter for a newline: `("Ċ", "<")`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # GPT-2 writes a printable byte as its own character and the 68 others, in order, as chr(256), chr(257), …
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    vocab = {chr(byte if byte in printable else 256 + others.index(byte)): byte for byte in range(256)}
    vocab |= {token: 256 + i for i, token in enumerate(SPECIALS)}
    vocab |= {"".join(pair): VOCAB_SIZE + i for i, pair in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    fast.add_special_tokens({"additional_special_tokens": [SPECIALS[0]], "eos_token": SPECIALS[1], "pad_token": SPECIALS[1]})
    fast.chat_template = chat_template
    return fast


def tiny_model_folder(path: Path, *, seed: int = 0) -> Path:
    """Save a random two-layer Llama (hidden size 32, tied embeddings, float32) and its byte tokenizer; return the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.convert_tokens_to_ids(SPECIALS[0]),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
