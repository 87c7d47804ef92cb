"""Follows the stream of changes for WatchJobs: each job once at the start, then its newest state after changes."""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from adjourn import errors
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import WatchJobsRequest, WatchJobsResponse
from adjourn_control_plane.job.updater import to_public
from adjourn_control_plane.store.interface import JobName, JobStore, TokenTooOld
from adjourn_control_plane.store.notifier import Notifier
from adjourn_control_plane.store.redis_codec import is_token

BATCH: Final = 500
LOOK_SECONDS: Final = 2.0
"""How often to look without a hint."""
KEEPALIVE_SECONDS: Final = 20.0
"""Silence after which an empty message tells that the stream lives, and from where to go on."""


class Watch:
    """Serves any number of watchers from the store."""

    def __init__(self, store: JobStore, notifier: Notifier) -> None:
        self.store = store
        self.notifier = notifier

    async def follow(self, request: WatchJobsRequest) -> AsyncGenerator[WatchJobsResponse, None]:
        """Yields matching jobs for ever; raises InvalidRequestError, and ShuttingDownError when this process drains."""
        token = request.resume_token
        if token and not is_token(token):
            raise errors.InvalidRequestError({"resume_token": "must be the last one received, or empty"})
        spoken = time.monotonic()
        with self.notifier.subscription() as subscription:
            while True:
                starting, moved = not token, False
                try:
                    async for response in self.start(request) if starting else self.progress_events(request, token):
                        token, moved = response.resume_token, True
                        if starting or response.HasField("job") or response.deleted:
                            yield response
                            spoken = time.monotonic()
                except TokenTooOld:
                    token = ""
                    continue
                if moved:
                    continue
                await self.notifier.wait(subscription, LOOK_SECONDS)
                if time.monotonic() - spoken >= KEEPALIVE_SECONDS:
                    yield WatchJobsResponse(resume_token=token)
                    spoken = time.monotonic()

    async def start(self, request: WatchJobsRequest) -> AsyncIterator[WatchJobsResponse]:
        """Yields every matching job as it is now; what changes meanwhile comes again afterwards.

        The token comes last: a stream that breaks before it must start again, or the rest would never be seen.
        """
        token = await self.store.latest_token()
        if request.names:
            for name in dict.fromkeys(request.names):
                stored = await self.store.get(JobName(name))
                if stored is not None and matches(request, stored.record.job):
                    yield WatchJobsResponse(job=to_public(stored.record))
        else:
            before: int | None = None
            while True:
                page, before = await self.store.page(states=[], labels=dict(request.labels), size=BATCH, before=before)
                for stored in page:
                    yield WatchJobsResponse(job=to_public(stored.record))
                if before is None:
                    break
        yield WatchJobsResponse(resume_token=token)

    async def progress_events(self, request: WatchJobsRequest, after: str) -> AsyncIterator[WatchJobsResponse]:
        """Yields what changed after a token, each job once and as it is now; nothing, if nothing did."""
        changes = await self.store.changes(after, size=BATCH)
        newest = {change.job: change.token for change in changes}
        for change in changes:
            if newest[change.job] != change.token:
                continue  # it changed again: sent with that later token
            stored = await self.store.get(change.job)
            response = WatchJobsResponse(resume_token=change.token)
            if stored is None:
                if not request.names or change.job in request.names:
                    response.deleted = change.job
            elif matches(request, stored.record.job):
                response.job.CopyFrom(to_public(stored.record))
            yield response


def matches(request: WatchJobsRequest, job: Job) -> bool:
    """Returns whether a watcher wants to see a job."""
    named = not request.names or job.name in request.names
    return named and all(job.labels.get(key) == value for key, value in request.labels.items())
