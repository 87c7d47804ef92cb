"""What tests share: a real Valkey and a real S3 server, started when first asked for."""

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

import pytest
from hypothesis import settings

from adjourn.local import ports as local_ports
from adjourn.local import process_cleanup, s3_url, seaweed, valkey
from adjourn.local.managed_process import ManagedProcess, Program
from adjourn.local.ports import free_ports
from tests.harness.memory_store import MemoryStore
from tests.harness.process_guard import guarded

# A shell that runs the tests in the background has them ignore Ctrl-C, and whatever they start as well, until told
# otherwise; the tests send it to see what it does.
signal.signal(signal.SIGINT, signal.default_int_handler)

# An example may take as long as a busy machine lets it; Hypothesis's own limit is 0.2 s. Where CI is set, it has none.
settings.register_profile("default", deadline=None)

# Files that are tested at a time have ports of their own: what one finds free, no other takes before it listens there,
# nor does a stack in a process of its own.
_number, _count = os.environ.get("PYTEST_XDIST_WORKER", "gw0"), os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
local_ports.RANGE = range(10_000, 20_000)[int(_number.removeprefix("gw")) % int(_count) :: int(_count)]  # type: ignore[misc]

WAITING = ("system", "integration")
"""Directories whose tests wait for processes, for the most part."""
COMPUTING = ("unit/control_plane/test_machine.py", "properties", "unit/training", "unit/control_plane")
"""Directories, and a file that is to begin early, whose tests need a core."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders the files of tests so that several processes end together, and use all cores until then.

    Those that wait and those that compute take turns, and the others, which are short, come last.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    waiting, computing = (chosen(files, places) for places in (WAITING, COMPUTING))
    turns = [path for pair in zip_longest(waiting, computing) for path in pair if path is not None]
    items[:] = [item for path in dict.fromkeys([*turns, *files]) for item in files[path]]


def chosen(files: Iterable[Path], places: Iterable[str]) -> list[Path]:
    """Returns the files that are in one of the places, in the order of the places."""
    here = Path(__file__).parent
    return list(dict.fromkeys(path for place in places for path in files if path.is_relative_to(here / place)))


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for servers; what is started with it as its marker does not outlive the tests."""
    directory = tmp_path_factory.mktemp("servers")
    with guarded(directory):
        yield directory


@contextmanager
def running(program: Program) -> Iterator[None]:
    child = ManagedProcess(program)
    child.start()
    try:
        asyncio.run(child.until_ready())
        yield
    finally:
        asyncio.run(child.stop())


@pytest.fixture(scope="session")
def redis_url(servers: Path) -> Iterator[str]:
    """A Valkey that keeps what it acknowledges; shared, so use a namespace of your own."""
    (port,) = free_ports(1)
    password = secrets.token_urlsafe(24)
    program = valkey.program(
        directory=servers / "valkey",
        logs=servers,
        port=port,
        password=password,
        environment=process_cleanup.marker(servers),
    )
    with running(program):
        yield valkey.url(port=port, password=password)


@pytest.fixture(scope="session")
def s3_environment(servers: Path) -> Iterator[dict[str, str]]:
    """An S3 server, as the variables that control plane and agents read; shared, so use keys of your own."""
    ports = free_ports(seaweed.PORT_COUNT)
    settings = seaweed.access_to(ports=ports, access_key=secrets.token_hex(10), secret_key=secrets.token_urlsafe(30))
    program = seaweed.program(
        directory=servers / "s3",
        logs=servers,
        ports=ports,
        access=settings,
        environment=process_cleanup.marker(servers),
    )
    with running(program):
        yield s3_url.environment(settings)


@pytest.fixture
def memory_store() -> MemoryStore:
    """A control plane's store that needs no server; `tests.harness.memory_store` makes more of them."""
    return MemoryStore()


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Awaitable[None]]:
    """Waits until a condition holds; fails when it does not within `seconds`."""

    async def wait(condition: Callable[[], object], *, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds:g} s"
            await asyncio.sleep(0.02)

    return wait
