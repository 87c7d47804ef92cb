"""Stacks of one machine keep out of each other's way."""

import sys

import pytest

from adjourn.local.ports import claim, free_ports


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is claimed")
def test_a_port_that_is_claimed_is_free_again_once_its_stack_has_ended() -> None:
    first, second = free_ports(2)
    with claim(first) or pytest.fail("nobody has it") as claimed:
        assert claim(first) is None
        with claim(second) or pytest.fail("nobody has it"):
            pass
    again = claim(first)
    assert again is not None
    again.close()
    assert claimed.fileno() == -1
