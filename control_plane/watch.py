"""Follows the stream of changes for WatchJobs: each job once at the start, then its newest state after changes."""

from collections.abc import AsyncIterator
from typing import Final

from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import WatchJobsRequest, WatchJobsResponse
from control_plane.ledger import shown
from control_plane.store import JobName, JobStore, TokenTooOld
from control_plane.wakeups import Wakeups

BATCH: Final = 500
LOOK_SECONDS: Final = 2.0
"""How often to look without a hint."""
KEEPALIVE_LOOKS: Final = 10
"""Looks without news before an empty message tells that the stream lives."""


class Watch:
    """Serves any number of watchers from the store."""

    def __init__(self, store: JobStore, wakeups: Wakeups) -> None:
        self.store = store
        self.wakeups = wakeups

    async def follow(self, request: WatchJobsRequest) -> AsyncIterator[WatchJobsResponse]:
        """Yields matching jobs for ever; raises ShuttingDownError when this process drains."""
        token = request.resume_token
        with self.wakeups.bell() as bell:
            quiet = 0
            while True:
                sent = False
                try:
                    news = self.news(request, token) if token else self.start(request)
                    async for response in news:
                        token, sent = response.resume_token, True
                        if response.HasField("job") or response.deleted:
                            yield response
                except TokenTooOld:
                    token = ""
                    continue
                if sent:
                    quiet = 0
                    continue
                quiet += not await self.wakeups.wait(bell, LOOK_SECONDS)
                if quiet >= KEEPALIVE_LOOKS:
                    yield WatchJobsResponse(resume_token=token)
                    quiet = 0

    async def start(self, request: WatchJobsRequest) -> AsyncIterator[WatchJobsResponse]:
        """Yields every matching job as it is now; what changes meanwhile comes again afterwards."""
        token = await self.store.latest_token()
        if request.names:
            for name in request.names:
                stored = await self.store.get(JobName(name))
                if stored is not None and matches(request, stored.record.job):
                    yield WatchJobsResponse(job=shown(stored.record), resume_token=token)
        else:
            before: int | None = None
            while True:
                page, before = await self.store.page(states=[], labels=dict(request.labels), size=BATCH, before=before)
                for stored in page:
                    yield WatchJobsResponse(job=shown(stored.record), resume_token=token)
                if before is None:
                    break
        yield WatchJobsResponse(resume_token=token)

    async def news(self, request: WatchJobsRequest, after: str) -> AsyncIterator[WatchJobsResponse]:
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
                response.job.CopyFrom(shown(stored.record))
            yield response


def matches(request: WatchJobsRequest, job: Job) -> bool:
    """Returns whether a watcher wants to see a job."""
    named = not request.names or job.name in request.names
    return named and all(job.labels.get(key) == value for key, value in request.labels.items())
