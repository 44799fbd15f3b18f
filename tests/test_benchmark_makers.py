"""The makers' benchmark: that a command kept nothing is a finding of it; any other failure ends it."""

import json
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts/benchmarks/makers.py"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "q"}, "no row of the file could be used"),
        (
            {"id": "a", "question": "q", "answers": ["x"], "steps": [{"type": "search", "queries": ["s"]}]},
            "nothing is left for",
        ),
    ],
    ids=["no row used", "nothing left"],
)
def test_what_kept_nothing_is_a_finding(tmp_path, row, words):
    (tmp_path / "given.jsonl").write_text(json.dumps(row) + "\n")
    makers = runpy.run_path(str(SCRIPT))["Makers"](tmp_path, (), (), 1)
    command = "traces" if words.startswith("no row") else "multiturn"
    found = makers.make(command, "out.jsonl", "--input_file", "given.jsonl")
    assert found["maker"] == command
    assert words in found["nothing"]


def test_another_failure_ends_it(tmp_path):
    makers = runpy.run_path(str(SCRIPT))["Makers"](tmp_path, (), (), 1)
    with pytest.raises(SystemExit, match=r"given\.jsonl"):
        makers.make("traces", "out.jsonl", "--input_file", "given.jsonl")
