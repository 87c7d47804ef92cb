"""A clock that a test turns: the wall and the monotonic clock of our modules, and an event loop that runs on it."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from types import SimpleNamespace
from typing import Any, Final

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

    @contextlib.contextmanager
    def everywhere(self) -> Iterator[None]:
        """Lets all modules of control plane and worker that read `datetime` or `time` read this clock."""
        clock = self

        class Turned(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]  # of the plain class
                return clock.now.astimezone(tz)

        turned = SimpleNamespace(**{name: getattr(time, name) for name in dir(time) if not name.startswith("_")})
        turned.monotonic = lambda: clock.monotonic
        turned.time_ns = lambda: int(clock.now.timestamp() * 1e9)
        replaced: list[tuple[Any, str, Any]] = []
        for name, module in list(sys.modules.items()):
            if name.startswith(OURS):
                for attribute, real, fake in (("datetime", datetime, Turned), ("time", time, turned)):
                    if getattr(module, attribute, None) is real:
                        replaced.append((module, attribute, real))
                        setattr(module, attribute, fake)
        try:
            yield
        finally:
            for module, attribute, real in replaced:
                setattr(module, attribute, real)


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
