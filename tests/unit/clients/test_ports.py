"""Stacks of one machine keep out of each other's way."""

import os
import sys

import pytest

from adjourn.local import ports
from adjourn.local.ports import claim, free_ports


def test_a_port_that_was_found_free_is_not_found_again_before_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "RANGE", range(20_000, 20_040))
    monkeypatch.setattr(ports, "_left", [])
    monkeypatch.setattr(ports, "is_free", lambda _: True)
    assert sorted([*free_ports(20), *free_ports(20)]) == list(ports.RANGE)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is claimed")
def test_a_port_that_is_claimed_is_free_again_once_its_stack_has_ended() -> None:
    first, second = (-each - 2 * os.getpid() for each in range(2))  # no ports: no other stack claims them
    with claim(first) or pytest.fail("nobody has it") as claimed:
        assert claim(first) is None
        with claim(second) or pytest.fail("nobody has it"):
            pass
    again = claim(first)
    assert again is not None
    again.close()
    assert claimed.fileno() == -1
