"""`seeker export RUN --to DIR`: a trained model as a Hugging Face folder, with a model card from its lineage.

Merged, the folder is a plain causal LM that transformers and vLLM load; with `--merge false` it is a PEFT adapter, in the
float32 that it was trained in, which loads on the base that it names. Tokenizer, chat template, the dialect's settings and the
end-of-turn token are in both. `--push` puts the folder on the Hugging Face Hub.

No GGUF is written: the package `gguf` writes files and names tensors, but converts no model and no tokenizer.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from project.apps.export_source import Source, Which, find_source, load_trained
from project.errors import InputError, SeekerError
from project.hub import Repo, check_licence, push_folder
from project.writing import is_taken, new_folder

if TYPE_CHECKING:
    from project.modules.policy import Policy
    from project.modules.sft import SFT

MADE_HERE = ("README.md", "generation_config.json")
"""Files of a merged folder that are written anew."""


def export(
    run: str,
    to: Path,
    merge: bool = True,
    weights: Which | None = None,
    push: str | None = None,
    private: bool = True,
    licence: str | None = None,
    dry_run: bool = False,
) -> None:
    """Write a trained model as a Hugging Face folder with its model card, and push it where asked.

    Args:
        run: name or id of a training (8 characters of an id are enough), its folder, a checkpoint of it, or a merged folder.
        to: the new folder.
        merge: write whole weights; false writes the adapter alone, which needs its base.
        weights: best or last of the training; by default the best where it has such, by the metric that a checkpoint monitors.
        push: the model on the Hugging Face Hub, OWNER/NAME; it is made where it is not there, else what it holds is replaced.
        private: with push, only its owner sees it.
        licence: the hub's id of the model's licence, such as apache-2.0; by default that of the base, where it is known.
        dry_run: with push, write the folder and push nothing.

    Raises:
        InputError: there are no such weights, another training wrote over them, the folder holds something, or an adapter's
            base is not what it was trained on.
        TrackingError: there is no such run, or the store does not answer.
    """
    repo = Repo(push, "model", "--push") if push is not None else None
    if licence is not None:
        check_licence(licence)
    to = to.expanduser().absolute()
    if is_taken(to):
        raise InputError(f"{to} is there and not an empty folder; give another --to")
    source = find_source(run, weights)
    with new_folder(to) as folder:
        write_model(source, folder, merge=merge, is_public=repo is not None)
        _write_card(source, folder, repo.name if repo else to.name, licence)
    print(f"{'merged model' if merge else 'adapter'} of {source.name}, {source.which} weights: {to}")
    if repo is not None and not dry_run:
        print(_push(to, repo, private=private))


def _push(folder: Path, repo: Repo, *, private: bool) -> str:
    """Push the folder; where that fails, say that it is there, as it is in the way of a second try."""
    try:
        return push_folder(folder, repo, private=private, message="Push with seeker export")
    except SeekerError as error:
        raise type(error)(f"{error} ({folder} is written: remove it first, or give another --to)") from error


def write_model(source: Source, folder: Path, *, merge: bool, is_public: bool = False) -> None:
    """Write weights, tokenizer and settings into an empty folder.

    Args:
        source: which.
        folder: an empty one.
        merge: whole weights; false: the adapter.
        is_public: whether others are to load it, who have no folder of this machine.

    Raises:
        InputError: as `export`.
        TrackingError: as `export`.
    """
    if merge and source.model is not None:
        for file in (one for one in source.model.iterdir() if one.is_file() and one.name not in MADE_HERE):
            shutil.copyfile(file, folder / file.name)
    else:
        module = load_trained(source)
        if merge:
            _write_merged(module, folder)
        else:
            _write_adapter(module, source, folder, is_public=is_public)
    _note_run(source, folder)
    _write_generation_config(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors leaves weights readable by their owner only


def _write_merged(module: SFT, folder: Path) -> None:
    from project.modules.policy import export_merged

    assert module.policy is not None
    export_merged(module.policy, module.tokenizer, module.settings, folder)


def _write_adapter(module: SFT, source: Source, folder: Path, *, is_public: bool) -> None:
    """Write the adapter as PEFT does, with the rows of new tokens."""
    from project.modules.policy import write_settings

    policy = module.policy
    assert policy is not None
    if not policy.has_adapter:
        raise InputError(f"{source.name} trained all weights and has no adapter; export it with --merge true")
    is_folder = Path(module.model_path).is_dir()
    if is_public and is_folder:
        raise InputError(
            f"the base of {source.name}'s adapter is the folder {module.model_path}, which nobody else has; push it with "
            "--merge true"
        )
    _save_adapter(policy, str(Path(module.model_path).resolve()) if is_folder else module.model_path, folder)
    module.tokenizer.save_pretrained(folder)
    write_settings(module.settings, folder)


def _save_adapter(policy: Policy, base: str, folder: Path) -> None:
    """Save the adapter and its config; the embedding, which grew for new tokens, is left out: their rows are in the adapter."""
    model: Any = policy.model
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = base, True
    config.target_modules = sorted(config.target_modules)  # of a set, whose order is another each time
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's own card


def _note_run(source: Source, folder: Path) -> None:
    from project.tracking.store import RUN_ID_FILE
    from project.writing import write_text

    if source.run is not None:
        write_text(folder / RUN_ID_FILE, f"{source.run.info.run_id}\n")


def _write_generation_config(folder: Path) -> None:
    """Have whoever generates stop at the end of a turn, where rollouts stop, and draw from the whole distribution."""
    from transformers import GenerationConfig

    from project.apps.model_card import end_of_turn, tokenizer_of

    tokenizer, settings = tokenizer_of(folder)
    end = end_of_turn(tokenizer, settings)
    options = {"eos_token_id": end, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    GenerationConfig(**options).save_pretrained(folder)  # type: ignore[no-untyped-call]


def _write_card(source: Source, folder: Path, name: str, licence: str | None) -> None:
    from project.apps.model_card import write_card
    from project.writing import write_text

    write_text(folder / "README.md", write_card(source, folder, name, licence))
