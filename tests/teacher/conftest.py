"""What the tests of jobs share."""

import pytest

from project.writing import write_rows


@pytest.fixture
def given(tmp_path):
    """A function that writes so many rows and returns their file."""

    def write(count):
        path = tmp_path / "in.jsonl"
        write_rows(path, ({"id": f"q{i}", "text": f"row {i}"} for i in range(count)))
        return path

    return write
