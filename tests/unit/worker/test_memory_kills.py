"""What the launcher knows of the kernel's out-of-memory killer."""

from dataclasses import dataclass, field

import pytest

from adjourn_worker.launcher.memory_kills import RECENT_SECONDS, MemoryKills


@dataclass
class Kernel:
    count: int | None = 3
    time: float = 1000.0
    kills: MemoryKills = field(init=False)

    def __post_init__(self) -> None:
        self.kills = MemoryKills(lambda: self.count, lambda: self.time)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def test_a_kill_is_known_for_as_long_as_it_may_take_to_end_somebody(kernel: Kernel) -> None:
    assert not kernel.kills.lately()
    kernel.count = 4
    assert kernel.kills.lately()
    kernel.time += RECENT_SECONDS - 1
    assert kernel.kills.lately()
    kernel.time += 2
    assert not kernel.kills.lately()


def test_what_was_killed_before_is_nobodys_end(kernel: Kernel) -> None:
    kernel.count = 4
    kernel.kills.forget()
    assert not kernel.kills.lately()


@pytest.mark.parametrize(("before", "after"), [(None, None), (None, 4), (4, None), (4, 0)])
def test_counts_that_cannot_be_compared_say_nothing(before: int | None, after: int | None) -> None:
    """Another group has another count: somebody has moved the launcher."""
    kernel = Kernel(count=before)
    kernel.count = after
    assert not kernel.kills.lately()
