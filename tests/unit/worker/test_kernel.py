"""System calls."""

import time

import pytest

from adjourn_worker.host import kernel


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def test_the_kernel_orders_what_processes_write_and_read(slept: list[float]) -> None:
    kernel.order_memory()
    assert not slept


@pytest.mark.parametrize("number", [None, 999_999])
def test_a_wait_stands_in_for_a_kernel_that_does_not(
    slept: list[float], monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    monkeypatch.setattr(kernel, "MEMBARRIER", number)
    kernel.order_memory()
    assert slept == [kernel.STORE_SECONDS]
