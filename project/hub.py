"""The Hugging Face Hub: the names that it takes, a folder pushed in one commit, and its refusals in one sentence each.

What is pushed is made elsewhere: datasets by `seeker data push`, models by `seeker export`. Nothing is read from the hub here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from project.errors import InputError, SeekerError


@dataclass(frozen=True)
class Repo:
    """Where on the hub something goes."""

    name: str
    """OWNER/NAME."""
    kind: Literal["dataset", "model"]
    option: str
    """Of the command line, that names it."""

    def __post_init__(self) -> None:
        """Refuse a name that the hub does not take."""
        word = r"\w(?:[\w.-]*\w)?"
        is_odd = re.search(r"--|\.\.|\.git$", self.name) or len(self.name) > 96
        if is_odd or not re.fullmatch(f"{word}/{word}", self.name, re.ASCII):
            raise InputError(
                f"{self.option} is {self.name}, which the hub does not take; write OWNER/NAME, of letters, digits, '-', '_' "
                "and '.'"
            )


def check_licence(licence: str) -> None:
    """Raise `InputError` where a licence is no id of the hub."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise InputError(
            f"--licence is {licence}, which is no id of the hub; take one of its list of licences, such as apache-2.0 or "
            "cc-by-sa-4.0"
        )


def push_folder(folder: Path, repo: Repo, *, private: bool, message: str, revision: str | None = None) -> str:
    """Push a folder to the hub in one commit, and return the address of the commit.

    Args:
        folder: all of it is pushed, and of a model nothing else is left there: an older push's adapter beside merged weights
            would be loaded on top of them.
        repo: made where it is not there.
        private: only its owner sees it.
        message: of the commit.
        revision: the branch, made where it is not there; the main one where None.

    Raises:
        InputError: no token is set, or its owner may not write there; it is there and is public, and `private` is set, or the
            other way round.
        SeekerError: the hub cannot be reached, or does not take the files.
    """
    from huggingface_hub import HfApi

    with _one_sentence(repo):
        api = HfApi()
        api.create_repo(repo.name, repo_type=repo.kind, private=private, exist_ok=True)
        told = api.dataset_info(repo.name) if repo.kind == "dataset" else api.model_info(repo.name)
        is_private = bool(told.private)
    if is_private != private:
        there = "private" if is_private else "public"
        raise InputError(
            f"{repo.name} is {there} on the hub, and --private is {str(private).lower()}; give "
            f"--private {str(is_private).lower()}, or change it in the settings of the {repo.kind}"
        )
    with _one_sentence(repo):
        if revision is not None:
            api.create_branch(repo.name, branch=revision, repo_type=repo.kind, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo.name,
            folder_path=folder,
            repo_type=repo.kind,
            revision=revision,
            commit_message=message,
            delete_patterns="*" if repo.kind == "model" else None,
        )
    return str(commit.commit_url)


@contextmanager
def _one_sentence(repo: Repo) -> Iterator[None]:
    """Tell what the hub, or the way to it, refuses."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:  # RuntimeError: the uploader in Rust, ValueError: the card
        raise _refusal(repo, error) from error


def _refusal(repo: Repo, error: Exception) -> SeekerError:
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    said = error.server_message if isinstance(error, HfHubHTTPError) else None
    what = f"{repo.name} cannot be pushed ({' '.join((said or str(error)).split()).rstrip('.')})"
    if isinstance(error, OfflineModeIsEnabled):
        return InputError(f"{what}; unset HF_HUB_OFFLINE, or take --dry_run true")
    if status == 401 or isinstance(error, LocalTokenNotFoundError):
        return InputError(f"{what}; log in with `hf auth login`, or set HF_TOKEN to a token that may write")
    if status in (403, 404):
        owner = repo.name.partition("/")[0]
        return InputError(
            f"{what}; take a token that may write to {owner}, with `hf auth login` or HF_TOKEN, or another {repo.option}"
        )
    if status:
        return SeekerError(f"{what}; the hub answered {status}: mend what it names, or run this again later")
    return SeekerError(
        f"{what}; check the network, HF_ENDPOINT and the token (`hf auth login` or HF_TOKEN), and run this again"
    )
