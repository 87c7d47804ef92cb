"""Follows the stream of changes for WatchJobs: each job once at the start, then its newest state after changes."""

import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Final

from adjourn import errors
from adjourn.v1.job_service_pb2 import WatchJobsRequest, WatchJobsResponse
from adjourn_control_plane.api.change_tail import ChangeTail, Update
from adjourn_control_plane.job.updater import to_public
from adjourn_control_plane.store.interface import JobName, JobStore, TokenTooOld
from adjourn_control_plane.store.notifier import Notifier
from adjourn_control_plane.store.redis_codec import is_token

BATCH: Final = 500
LOOK_SECONDS: Final = 2.0
"""How often to look without a notification."""
KEEPALIVE_SECONDS: Final = 20.0
"""Silence after which an empty message tells that the stream lives, and from where to go on."""


class Watch:
    """Serves the watchers of this replica; what changed is read once for all of them."""

    def __init__(self, store: JobStore, notifier: Notifier) -> None:
        self.store = store
        self.notifier = notifier
        self.tail = ChangeTail(store)

    async def follow(self, request: WatchJobsRequest) -> AsyncGenerator[WatchJobsResponse, None]:
        """Yields matching jobs for ever; raises InvalidRequestError, and ShuttingDownError when this process drains."""
        token = request.resume_token
        if token and not is_token(token):
            raise errors.InvalidRequestError({"resume_token": "must be the last one received, or empty"})
        watcher = Watcher(self, request)
        spoken = -math.inf if token else time.monotonic()  # who comes back hears at once that it is live
        with self.notifier.subscription() as subscription:
            while True:
                starting, moved = not token, False
                try:
                    async for response in watcher.start() if starting else watcher.changed(token):
                        self.notifier.check_open()  # somebody for whom there is always more must not hold up a drain
                        token, moved = response.resume_token, True
                        if starting or response.HasField("job") or response.deleted:
                            yield response
                            spoken = time.monotonic()
                except TokenTooOld:
                    token = ""
                    yield WatchJobsResponse()
                    continue
                if moved:
                    continue
                if time.monotonic() - spoken >= KEEPALIVE_SECONDS:
                    yield WatchJobsResponse(resume_token=token)
                    spoken = time.monotonic()
                await self.notifier.wait(subscription, LOOK_SECONDS)


class Watcher:
    """One call of WatchJobs."""

    def __init__(self, watch: Watch, request: WatchJobsRequest) -> None:
        self.store = watch.store
        self.tail = watch.tail
        self.request = request
        self.names = set(request.names)
        self.generation = -1
        """Of the tail, when the store last knew the watcher's token."""

    async def start(self) -> AsyncIterator[WatchJobsResponse]:
        """Yields every matching job as it is now; what changes meanwhile comes again afterwards.

        The token comes last: a stream that breaks before it must start again, or the rest would never be seen.
        """
        token = await self.store.latest_token()
        if self.names:
            for name in dict.fromkeys(self.request.names):
                stored = await self.store.get(JobName(name))
                if stored is not None and self.matches(name, stored.record.job.labels):
                    yield WatchJobsResponse(job=to_public(stored.record))
        else:
            before: int | None = None
            labels = dict(self.request.labels)
            while True:
                page, before = await self.store.page(states=[], labels=labels, size=BATCH, before=before)
                for stored in page:
                    yield WatchJobsResponse(job=to_public(stored.record))
                if before is None:
                    break
        yield WatchJobsResponse(resume_token=token)

    async def changed(self, after: str) -> AsyncIterator[WatchJobsResponse]:
        """Yields what changed after a token, each job once and as it is now; nothing, if nothing did."""
        updates = await self.tail.after(after)
        if updates is None or self.generation != self.tail.generation:
            generation = self.tail.generation
            updates = [Update(change) for change in await self.store.changes(after, size=BATCH)]
            self.generation = generation
        newest = {update.change.job: update for update in updates}
        matched = {each.change.job for each in updates if self.matches(each.change.job, each.change.labels)}
        for update in updates:
            if newest[update.change.job] is update:  # else it changed again, and is sent with that later token
                yield await self.response(update, matched=update.change.job in matched)

    async def response(self, update: Update, *, matched: bool) -> WatchJobsResponse:
        """Returns the response for a change; it may hold no more than the token.

        `matched`: the job had labels until then that the watcher asks for, so it may know the job.
        """
        change = update.change
        response = WatchJobsResponse(resume_token=change.token)
        if change.state is None:
            if matched:
                response.deleted = change.job
        elif not self.names or change.job in self.names:
            job = await self.tail.read(update)  # None: it was deleted since, which a later change tells
            if job is not None and (matched or self.matches(change.job, job.labels)):
                response.job.CopyFrom(job)
        return response

    def matches(self, name: str, labels: Mapping[str, str]) -> bool:
        """Returns whether the watcher wants to see a job."""
        named = not self.names or name in self.names
        return named and all(labels.get(key) == value for key, value in self.request.labels.items())
