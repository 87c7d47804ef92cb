"""A clock that a test turns: the wall and the monotonic clock of our modules, and an event loop that runs on it.

And chance, of which a test says where it begins.
"""

import asyncio
import contextlib
import random
import secrets
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from types import SimpleNamespace
from typing import Any, Final
from uuid import UUID, uuid4

OURS: Final = ("adjourn_control_plane.", "adjourn_worker.")


class FakeClock:
    """Two clocks: `monotonic` only goes on; `now` may be set to anything."""

    def __init__(self) -> None:
        self.monotonic = 1000.0
        """Seconds."""
        self.now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def advance(self, seconds: float) -> None:
        self.monotonic += seconds
        self.now += timedelta(seconds=seconds)

    def set_wall(self, by: timedelta) -> None:
        """Sets the wall clock, as somebody does who corrects it."""
        self.now += by

    def everywhere(self) -> contextlib.AbstractContextManager[None]:
        """Lets all modules of control plane and worker that read `datetime` or `time` read this clock."""
        clock = self

        class Turned(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]  # of the plain class
                return clock.now.astimezone(tz)

        turned = SimpleNamespace(**{name: getattr(time, name) for name in dir(time) if not name.startswith("_")})
        turned.monotonic = lambda: clock.monotonic
        turned.clock_gettime = lambda _which: clock.monotonic
        turned.time_ns = lambda: int(clock.now.timestamp() * 1e9)
        return standing_in(datetime=(datetime, Turned), time=(time, turned))


def drawn_from(chance: random.Random) -> contextlib.AbstractContextManager[None]:
    """Lets all modules of control plane and worker draw their random numbers from `chance`."""

    def token_hex(size: int) -> str:
        return chance.randbytes(size).hex()

    def drawn() -> UUID:
        return UUID(bytes=chance.randbytes(16), version=4)

    return standing_in(uuid4=(uuid4, drawn), secrets=(secrets, SimpleNamespace(token_hex=token_hex)))


@contextlib.contextmanager
def standing_in(**names: tuple[Any, Any]) -> Iterator[None]:
    """Puts something else in the place of what our modules know by these names: what it is, what it shall be."""
    replaced: list[tuple[Any, str, Any]] = []
    for module in [module for name, module in sys.modules.items() if name.startswith(OURS)]:
        for name, (real, fake) in names.items():
            if getattr(module, name, None) is real:
                replaced.append((module, name, real))
                setattr(module, name, fake)
    try:
        yield
    finally:
        for module, name, real in replaced:
            setattr(module, name, real)


class FakeLoop(asyncio.SelectorEventLoop):
    """An event loop on a FakeClock. It never waits: who waits for a time waits until a test has turned the clock."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock
        selector: Any = self._selector  # type: ignore[attr-defined]
        select = selector.select
        selector.select = lambda *_: select(0)

    def time(self) -> float:
        return self.clock.monotonic

    async def run_out(self) -> None:
        """Returns once nothing can go on any more without another event or time."""
        await asyncio.sleep(0)
        while self._ready:  # type: ignore[attr-defined]  # noqa: ASYNC110  # others', one by one
            await asyncio.sleep(0)
