"""The folder that an engine reads a model from: the model's own, or a copy where its vocabulary grows or it is an adapter."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from project.modules.policy import AgentSettings


def engine_folder(
    model_path: str, tokenizer: PreTrainedTokenizerBase, new_ids: Sequence[int], settings: AgentSettings, into: Path
) -> str:
    """Return a folder whose vocabulary holds the dialect's tokens; a model without them is written to `into`.

    Args:
        model_path: folder or hub id.
        tokenizer: with the dialect's tokens.
        new_ids: those that the model does not know.
        settings: stored in the copy.
        into: a folder that does not exist.
    """
    if not new_ids:
        return model_path
    from project.modules.policy import Policy, export_merged

    return str(export_merged(Policy(model_path, tokenizer, new_ids, None), tokenizer, settings, into))


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter, as PEFT and `seeker export --merge false` write it."""
    return (folder / "adapter_config.json").is_file()


def merge_adapter(folder: Path, into: Path) -> Path:
    """Write the model that an adapter and its base make together, and return where.

    Args:
        folder: the adapter's, with tokenizer and settings; it names its base.
        into: a folder that does not exist.

    Raises:
        InputError: the base cannot be loaded.
    """
    from peft import AutoPeftModelForCausalLM

    from project.errors import InputError

    try:
        merged = AutoPeftModelForCausalLM.from_pretrained(folder, dtype="auto").merge_and_unload()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"the adapter {folder} cannot be put on its base ({error}); export it with --merge true") from error
    merged.save_pretrained(into)
    for file in (one for one in folder.iterdir() if one.is_file() and not one.name.startswith("adapter_")):
        shutil.copyfile(file, into / file.name)
    return into
