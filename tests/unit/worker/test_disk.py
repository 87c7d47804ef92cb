"""A worker whose disk is full, and when it no longer is."""

from pathlib import Path

from adjourn import reasons
from adjourn.v1.job_pb2 import Condition
from adjourn_worker.host.disk import REFUSED_SECONDS, Disk


class Figures:
    free = 1000
    now = 0.0

    def disk(self) -> Disk:
        return Disk(Path("/data"), 100, free=lambda _: self.free, now=lambda: self.now)


def full(disk: Disk) -> bool:
    condition = disk.condition()
    assert condition is None or (condition.type, condition.reason) == (Condition.DISK_FULL, reasons.NO_SPACE)
    return condition is not None


def test_a_disk_is_full_below_the_reserve_until_there_is_twice_as_much() -> None:
    figures = Figures()
    disk = figures.disk()
    found = []
    for figures.free in (100, 99, 100, 199, 200, 199, 100, 99):
        found.append(full(disk))
    assert found == [False, True, True, True, False, False, False, True]


def test_an_attempt_that_found_no_room_counts_for_a_while_whatever_the_figures_say() -> None:
    figures = Figures()
    disk = figures.disk()
    disk.refused()
    assert full(disk)
    figures.now = REFUSED_SECONDS - 1
    assert full(disk)
    figures.now = REFUSED_SECONDS
    assert not full(disk)
