"""The agent's process: puts its parts together, and turns what ends it into an exit status."""

import asyncio
import os
import signal
import sys
from typing import Final

import structlog

from adjourn.logs import configure
from adjourn.objects import S3Objects
from adjourn.settings_reader import InvalidSettings
from adjourn_worker.agent import Agent
from adjourn_worker.host.gpus import find_gpus
from adjourn_worker.host.kernel import hide_memory, share_heap, yield_to_others
from adjourn_worker.journal import Journal, JournalDamaged, JournalTaken, JournalUnwritable
from adjourn_worker.launcher.client import LauncherClient, LauncherFailed
from adjourn_worker.paths import UnsafePath, WorkerPaths
from adjourn_worker.settings import Settings
from adjourn_worker.sync import NameTaken, Superseded

log: structlog.stdlib.BoundLogger = structlog.get_logger()

UNUSABLE = (JournalTaken, JournalDamaged, JournalUnwritable, LauncherFailed, UnsafePath)

SECRETS: Final = tuple(f"ADJOURN_{each}_{key}" for each in ("S3", "DATA_S3") for key in ("ACCESS_KEY", "SECRET_KEY"))
"""Variables that nothing started from here must inherit."""


async def serve(settings: Settings) -> None:
    """Works until SIGTERM or SIGINT; the second one ends at once what the first has begun."""
    stop, at_once = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (at_once if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signalled)
    paths = WorkerPaths.prepare(settings.data, settings.shared_memory)
    with Journal(paths) as journal:
        for place in await asyncio.to_thread(paths.collect_abandoned, settings.kept.snapshot_days):
            log.warning("abandoned_snapshots_removed", directory=str(place))
        async with (
            S3Objects(settings.s3) as objects,
            S3Objects(settings.s3, begin_thread=yield_to_others) as background,
            S3Objects(settings.data_s3) as data,
            LauncherClient(paths, os.environ, log_bytes=settings.log_bytes) as launcher,
        ):
            gpus = await asyncio.to_thread(find_gpus, settings.gpus)
            await Agent(settings, paths, journal, launcher, objects, gpus, background, data).run(stop, at_once)


def main() -> int:
    """Returns the exit status: 3 if a newer agent speaks for this worker, 4 if one of another data directory does."""
    share_heap()
    hide_memory()  # training code runs as the same user, and credentials are in here
    try:
        settings = Settings.from_environment(os.environ)
    except InvalidSettings as error:
        for name, why in error.problems.items():
            sys.stderr.write(f"{name} {why}\n")
        return 2
    for name in SECRETS:
        os.environ.pop(name, None)
    configure(settings.log_format, service="worker")
    status = 0
    try:
        asyncio.run(serve(settings))
    except* UNUSABLE as group:
        log.critical("cannot_work", errors=[str(error) for error in group.exceptions])
        status = 1
    except* Superseded as group:
        log.critical("superseded", errors=[str(error) for error in group.exceptions])
        status = 3
    except* NameTaken as group:
        log.critical("name_taken", errors=[str(error) for error in group.exceptions])
        status = 4
    return status
