"""The folder that an engine reads a model from: the model's own, or where its vocabulary must grow, a copy."""

from __future__ import annotations

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
