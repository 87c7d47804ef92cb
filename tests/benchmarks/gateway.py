"""How soon a change is on every open page, and whether the gateway's memory stays: 1,000 jobs, 50 pages.

`make bench-gateway` runs it, for ten minutes; MINUTES=1 is enough for the first figure. The gateway is a process of its
own. The control plane is in this one, with its store in memory, and so are the pages, which read what a browser does.
"""

import argparse
import asyncio
import logging
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
import structlog

from adjourn.client import AsyncClient
from adjourn.local.ports import HOST, free_ports
from adjourn.local.services import answers
from adjourn.v1.job_pb2 import JobSpec
from tests.harness.control_planes import replica
from tests.harness.memory_store import MemoryStore

JOBS, PAGES = 1_000, 50
CHANGES_PER_SECOND = 30
"""So many that what the gateway keeps for those who come back is as much as it may be, after two minutes."""
LIMIT_SECONDS = 1.0
GROWTH_LIMIT = 0.05
"""Of the memory, from the end of the first quarter of the time to the end."""
CHANGE = re.compile(rb'"change": "(\d+)"')
SAMPLE_SECONDS = 2.0


@dataclass(slots=True)
class Page:
    """An open page: the newest change that it has, and how many jobs it was told of."""

    newest: int = -1
    jobs: int = 0
    bytes: int = 0
    listed: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET /v1/jobs:watch HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
        try:
            while line := await reader.readline():
                self.bytes += len(line)
                if line.startswith(b'data: {"resumeToken"'):
                    self.listed.set()
                elif line.startswith(b"data: "):
                    self.jobs += 1
                    if found := CHANGE.search(line):
                        self.newest = max(self.newest, int(found[1]))
                        self.changed.set()
                assert not line.startswith(b"event: error"), await reader.readline()
        finally:
            writer.close()

    async def has(self, change: int) -> None:
        while self.newest < change:
            self.changed.clear()
            await self.changed.wait()


async def measure(minutes: float) -> bool:
    """Returns whether all limits were kept."""
    (port,) = free_ports(1)
    address = f"{HOST}:{port}"
    async with replica(MemoryStore(), controllers=False) as plane, AsyncClient(plane.address) as client:
        for number in range(JOBS):
            await client.create_job(JobSpec(entry_point="train:main", total_epochs=100), job_id=f"job-{number}")
        environment = {**os.environ, "ADJOURN_WEB_LISTEN": address, "ADJOURN_ADDRESS": plane.address}
        gateway = subprocess.Popen([sys.executable, "-m", "adjourn.web"], env=environment)  # noqa: ASYNC220 - only starts
        try:
            while not await answers(address):  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.05)
            return await pages_open(minutes, address, client, psutil.Process(gateway.pid))
        finally:
            gateway.terminate()
            gateway.wait(30)


async def pages_open(minutes: float, address: str, client: AsyncClient, gateway: psutil.Process) -> bool:
    pages = [Page() for _ in range(PAGES)]
    began = time.perf_counter()
    following = [asyncio.create_task(page.follow(address)) for page in pages]
    await asyncio.gather(*(page.listed.wait() for page in pages))
    say(f"{PAGES} pages have {JOBS} jobs each", time.perf_counter() - began)
    assert {page.jobs for page in pages} == {JOBS}
    memory: list[int] = []
    sampling = asyncio.create_task(every(SAMPLE_SECONDS, lambda: memory.append(gateway.memory_info().rss)))
    before = gateway.cpu_times()
    delays = await changes(minutes, client, pages)
    after = gateway.cpu_times()
    for task in (sampling, *following):
        assert not task.done(), task.exception()
        task.cancel()
    cpu = after.user + after.system - before.user - before.system
    say("a change is on all pages after, median", statistics.median(delays))
    say("99 of 100 changes within", statistics.quantiles(delays, n=100)[-1])
    say("the slowest", max(delays))
    settled, last = (max(part) for part in (memory[: len(memory) // 4], memory[-len(memory) // 4 :]))
    growth = last / settled - 1
    print(f"CPU of the gateway: {100 * cpu / (60 * minutes):.0f} % of a core, {CHANGES_PER_SECOND} changes a second")
    print(f"memory: {settled >> 20} MiB in the first quarter, {last >> 20} MiB in the last, {growth:+.1%}")
    return max(delays) <= LIMIT_SECONDS and growth <= GROWTH_LIMIT


async def changes(minutes: float, client: AsyncClient, pages: list[Page]) -> list[float]:
    """Changes jobs for a while; returns after how long each change was on all pages, in seconds."""
    delays: list[float] = []
    ends = time.monotonic() + 60 * minutes
    number = 0
    while time.monotonic() < ends:
        began = time.perf_counter()
        name = f"job-{random.randrange(JOBS)}"
        await client.update_job(name, labels={"change": str(number), "team": "x" * 20})
        await asyncio.gather(*(page.has(number) for page in pages))
        delays.append(time.perf_counter() - began)
        number += 1
        await asyncio.sleep(max(0.0, 1 / CHANGES_PER_SECOND - delays[-1]))
    return delays


async def every(seconds: float, look: Callable[[], object]) -> None:
    while True:
        look()
        await asyncio.sleep(seconds)


def say(what: str, seconds: float) -> None:
    print(f"{what}: {seconds:.3f} s")


def main() -> int:
    """Returns the exit status: 1 if a limit was not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    return int(not asyncio.run(measure(parser.parse_args().minutes)))


if __name__ == "__main__":
    raise SystemExit(main())
