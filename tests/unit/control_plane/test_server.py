"""Whether an address can be listened at, in the system's own words."""

import socket

import pytest

from adjourn_control_plane.server import AddressTaken, try_address


def test_a_free_port_of_each_kind_of_address() -> None:
    for address in ("127.0.0.1:0", "localhost:0", "0.0.0.0:0"):
        try_address(address)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(AddressTaken, match=r"cannot listen at 192\.0\.2\.1:7400: Cannot assign"):
        try_address("192.0.2.1:7400")


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(AddressTaken, match=f"cannot listen at {address}: Address already in use"):
            try_address(address)
