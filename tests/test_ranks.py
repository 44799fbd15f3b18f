"""Which ranks share a machine."""

import pytest

from project import ranks


@pytest.mark.parametrize(("machine", "first"), [("a", 0), ("b", 1)])
def test_the_first_rank_of_a_machine(machine: str, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "gathered", lambda _: ["a", "b", "b", "a"])
    monkeypatch.setattr(ranks.platform, "node", lambda: machine)
    assert ranks.first_here() == first
