"""A trained model in MLflow's registry: its files, what it takes and gives, and the alias by which a server finds it.

A model folder becomes MLflow's `transformers` flavour: messages in, an answer of OpenAI's form out. Its files are copied, once
into the run's folder and from there to the store; without the option `register` of the logger nothing here is done.
"""

from __future__ import annotations

import logging
import re
import shutil
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from project.errors import InputError
from project.records import Row

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.tracking import MlflowClient

MADE = "seeker.made"
"""The tag by which a model that was sent before, but whose answer was lost, is found."""
NEEDED = ("transformers", "torch")
ALIAS = re.compile(r"[\w-]+")
OWN_ALIAS = re.compile(r"latest|[vV]\d+")
"""Aliases that MLflow keeps for itself."""


def name_and_alias(register: str) -> tuple[str, str]:
    """Return the two parts of `name@alias`, the second empty where there is none.

    Raises:
        InputError: MLflow takes no such name or alias.
    """
    name, at, alias = register.partition("@")
    if not name or set(name) & set("/:") or (at and (not ALIAS.fullmatch(alias) or OWN_ALIAS.fullmatch(alias))):
        raise InputError(
            f"register is '{register}'; give the name of a model without '/' and ':', or name@alias with an alias of letters, "
            "digits, '_' and '-' that is neither 'latest' nor of the form 'v1'"
        )
    return name, alias


def packed(folder: Path, into: Path) -> None:
    """Write a model folder as MLflow's transformers flavour.

    Args:
        folder: of the model and its tokenizer.
        into: the folder to make; one that is there is replaced.
    """
    import mlflow.transformers

    logging.getLogger("mlflow.transformers").setLevel(logging.ERROR)  # it misses a card on the hub
    shutil.rmtree(into, ignore_errors=True)
    needs = [f"{package}=={version(package)}" for package in NEEDED]
    mlflow.transformers.save_model(str(folder), str(into), task="llm/v1/chat", pip_requirements=needs)


def line_of(register: str, folder: Path) -> Row:
    """Return the line of a spool by which a packed model is registered."""
    name, alias = name_and_alias(register)
    return {"name": name, "alias": alias, "folder": str(folder), "made": uuid.uuid4().hex}


def store_model(store: MlflowClient, run_id: str, model: Row) -> None:
    """Store a packed model, make it a version of the registered model and remove the folder; what is done is not done again.

    Args:
        store: MLflow's client.
        run_id: of the run that trained it.
        model: made by `line_of`.
    """
    held, folder = _logged(store, run_id, model), Path(model["folder"])
    if folder.is_dir():
        store.log_model_artifacts(held.model_id, str(folder))
        store.finalize_logged_model(held.model_id, "READY")
    number = _version(store, run_id, model["name"], held.model_id)
    if model["alias"]:
        store.set_registered_model_alias(model["name"], model["alias"], number)
    shutil.rmtree(folder, ignore_errors=True)


def _logged(store: MlflowClient, run_id: str, model: Row) -> LoggedModel:
    experiment = store.get_run(run_id).info.experiment_id
    found = store.search_logged_models([experiment], filter_string=f"tags.`{MADE}` = '{model['made']}'")
    tags = {MADE: model["made"]}
    return found[0] if found else store.create_logged_model(experiment, model["name"], run_id, tags, model_type="chat")


def _version(store: MlflowClient, run_id: str, name: str, model_id: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        store.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{model_id}"
    for one in store.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
        if one.source == source:
            return str(one.version)
    return str(store.create_model_version(name, source, run_id, model_id=model_id).version)
