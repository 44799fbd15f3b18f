"""The user's proof of resume, as a process that is really killed; and that it sees a difference where there is one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "verify_resume.py"
sys.path.insert(0, str(SCRIPT.parent))

import verify_resume  # noqa: E402


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "strategy", "by"),
    [
        ("lora", "", "KILL"),
        ("full", "", "KILL"),
        ("lora", "ddp", "KILL"),
        ("lora", "fsdp2", "INT"),
    ],
)
def test_a_stopped_run_ends_as_one_that_was_not(with_facts: Path, adapter: str, strategy: str, by: str) -> None:
    """Stopped by Ctrl-C or SIGTERM it saves where it stands, two ranks at the same step."""
    config = [str(ROOT / "experiments" / "debug" / "sft.yaml"), "--data.micro_tokens", "2200"]
    words = [*config, *(["--model.lora", "null"] if adapter == "full" else ["--model.lora.dropout", "0.1"])]
    if strategy:
        words += ["--config", str(ROOT / "experiments" / "strategies" / f"{strategy}.yaml"), "--trainer.devices", "2"]
    command = [sys.executable, str(SCRIPT), "--steps", "24", "--signal", by]
    command += ["--every", "1" if by == "KILL" else "5", "--", "--config", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=with_facts, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"stopped by SIG{by} after step " in done.stdout
    assert "resumed to step 24" in done.stdout
    step = done.stdout.split("after step ")[1].split(",")[0]
    saved = f"seeker: stopped after step {step}; go on with the same command and --ckpt_path "
    assert (saved in done.stderr) == (by != "KILL")
    assert "logged metrics compared, 0 differ" in done.stdout


def test_differences_are_found_wherever_they_are() -> None:
    one = {"a": [torch.tensor([1.0, 2.0]), {"b": 3}], "c": "x", "d": torch.tensor([1])}
    assert list(verify_resume.differences(one, one)) == []
    other = {"a": [torch.tensor([1.0, 2.0 + 1e-6]), {"b": 4}], "c": "x", "d": torch.tensor([1.0]), "e": 0}
    assert list(verify_resume.differences(one, other)) == ["/a/0 (by 9.5e-07)", "/a/1/b", "/d", "/e"]
    assert list(verify_resume.differences({"m": {3: 0.5}}, {"m": {3: 0.25}})) == ["/m/3 (0.5 to 0.25)"]
    assert list(verify_resume.differences({"a": [1, 2]}, {"a": [1]})) == ["/a"]
    assert verify_resume.leaves(one) == 4
