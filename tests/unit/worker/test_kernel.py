"""System calls."""

import subprocess
import sys
import time
from types import SimpleNamespace

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


HEAPS = """
import ctypes, threading
from adjourn_worker.host import kernel
kernel.share_heap()
def take():
    kernel.libc.free(kernel.libc.malloc(100_000))
kernel.libc.malloc.restype = ctypes.c_void_p
kernel.libc.free.argtypes = (ctypes.c_void_p,)
for _ in range(4):
    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
kernel.libc.malloc_stats()
"""


def test_threads_share_a_heap() -> None:
    said = subprocess.run((sys.executable, "-c", HEAPS), capture_output=True, text=True, check=True).stderr
    assert "Arena 0" in said
    assert "Arena 1" not in said


def test_a_c_library_without_heaps_of_threads_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "libc", SimpleNamespace())
    kernel.share_heap()
