"""The control plane's process: settings, store, services, serve, drain."""

import asyncio
import os
import signal
import sys

import structlog

from adjourn.errors import AdjournError
from adjourn.logs import configure
from adjourn.objects import S3Objects
from adjourn.settings_reader import InvalidSettings
from adjourn_control_plane.aio import end
from adjourn_control_plane.fleet.collector import Collector
from adjourn_control_plane.fleet.lease_monitor import LeaseMonitor
from adjourn_control_plane.fleet.scheduler import Scheduler
from adjourn_control_plane.job.updater import JobUpdater
from adjourn_control_plane.server import AddressTaken, Server
from adjourn_control_plane.settings import Settings
from adjourn_control_plane.store.notifier import Notifier
from adjourn_control_plane.store.redis import RedisStore
from adjourn_control_plane.webhooks.delivery import deliver

log = structlog.get_logger()


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then drains."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    connected = RedisStore.connect(settings.redis_url, settings.namespace)
    async with connected as store, S3Objects(settings.s3) as objects:
        for weakness in await store.durability():
            log.warning("store_not_durable", problem=weakness)
        await objects.ensure_bucket()
        updater = JobUpdater(store)
        notifier = Notifier(store)
        controllers = (
            Scheduler(store, updater, notifier, settings).run(),
            LeaseMonitor(store, updater, settings).run(),
            Collector(store, objects, settings).run(),
            deliver(settings, store, notifier),
        )
        async with asyncio.TaskGroup() as group:
            listener = group.create_task(notifier.run())
            loops = [group.create_task(controller) for controller in controllers]
            try:
                async with Server(settings, store, objects, updater, notifier) as server:
                    log.info("serving", listen=settings.listen, port=server.port, namespace=settings.namespace)
                    await stop.wait()
                    await end(*loops)  # before agents are sent away: that they are silent then is our doing
            finally:
                await end(listener, *loops)
    log.info("drained")


def main() -> int:
    """Returns the exit status."""
    try:
        settings = Settings.from_environment(os.environ)
    except InvalidSettings as error:
        for name, why in error.problems.items():
            print(f"{name} {why}", file=sys.stderr)  # noqa: T201  # there is no log yet
        return 2
    configure(settings.log_format, service="control_plane")
    status = 0
    try:
        asyncio.run(serve(settings))
    except* (AdjournError, AddressTaken) as group:
        log.critical("cannot_serve", errors=[str(error) for error in group.exceptions])
        status = 1
    return status
