"""PURE. Compares what a worker holds with what it should hold.

Both sides speak in whole states. From a message of the worker follow events, in this order, so that the end of an
attempt finds its last progress: `reconcile` (what is so by now), the reports (what happened before),
`lost_attempts` (what the worker no longer has). `desired_assignments` is the answer: what the worker should have.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from adjourn import reasons
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, FencingToken, SeriesPart
from adjourn.v1.job_pb2 import Failure, Job, PauseMode, Progress
from adjourn.v1.worker_pb2 import Drain
from adjourn_control_plane.job import anomalies, drains, releases
from adjourn_control_plane.job.events import (
    Adopted,
    Began,
    DrainRequested,
    DrainWithdrawn,
    Event,
    Lost,
    MemoryNearlyFull,
    Observed,
    ReleaseConfirmed,
)
from adjourn_control_plane.job.machine import ENDED, HELD
from adjourn_control_plane.store.interface import Unconfirmed

ACTOR: Final = "control_plane"
OVER: Final = frozenset(
    {AssignmentStatus.PAUSED, AssignmentStatus.STOPPED, AssignmentStatus.SUCCEEDED, AssignmentStatus.FAILED}
)
"""Phases after which the worker does nothing more for the assignment."""
TokenKey: TypeAlias = tuple[int, str, str]
"""A fencing token, to look things up by."""
AttemptKey: TypeAlias = tuple[str, TokenKey]
"""A job's name, and the token of one of its attempts."""
BEGUN: Final = frozenset(
    {
        AssignmentStatus.RUNNING,
        AssignmentStatus.PAUSING,
        AssignmentStatus.PERSISTING,
        AssignmentStatus.PAUSED,
        AssignmentStatus.SUCCEEDED,
    }
)
"""Phases that only training which has begun comes to. It may be over before a message shows it under way."""
PROGRESS_INTERVAL: Final = timedelta(seconds=2)
"""Time between two commits of progress within an epoch: training tells of it twice a second."""
CLOCK_SLACK: Final = timedelta(days=1)
"""By which a worker's clock may be wrong for its samples to be kept."""


def reconcile(
    worker: str,
    held: Sequence[JobRecord],
    reported: Sequence[AssignmentStatus],
    others: Mapping[str, JobRecord],
    *,
    instance: str = "",
    earlier: Sequence[AssignmentStatus] = (),
) -> list[tuple[str, Event]]:
    """Returns the events, by job, that follow from what a worker holds.

    `held`: the jobs that it should hold. `others`: the records, by name, of further jobs that it reports.
    `instance`: of the worker's agent. `earlier`: what its message before this one reported.
    """
    events: list[tuple[str, Event]] = []
    mine = {record.job.name: record for record in held}
    by_token, before = by_attempt(reported), by_attempt(earlier)
    for record in held:
        attempt = (record.job.name, token_key(record.token))
        if status := by_token.get(attempt):
            found = progress_events(worker, record, status, before.get(attempt))
            events.extend((record.job.name, event) for event in found)
    for status in reported:
        known = mine.get(status.job) or others.get(status.job)
        if known is not None and adoptable(known, status, held, worker, instance):
            adopted = Adopted(
                actor=worker,
                token=status.token,
                worker=worker,
                device_uuids=tuple(status.held_device_uuids),
                generation=status.observed_generation,
                released=status.phase == AssignmentStatus.PERSISTING,
            )
            events.append((status.job, adopted))
    return events


def lost_attempts(
    worker: str, held: Sequence[JobRecord], reported: Sequence[AssignmentStatus], *, reports_pending: bool
) -> list[tuple[str, Event]]:
    """Returns the loss of each attempt that a worker had, and cannot account for any more.

    Either it no longer knows the attempt. Or the attempt is over, though its exit was never applied, and will not be:
    there are no reports left (`reports_pending`: the message had some, so there may be more).
    """
    events: list[tuple[str, Event]] = []
    known = by_attempt(reported)
    for record in held:
        status = known.get((record.job.name, token_key(record.token)))
        if status is None and record.observed_generation:
            message = f"{worker} no longer knows the attempt"
        elif status is not None and status.phase in OVER and not reports_pending:
            message = f"the attempt is over, and {worker} has no report of how it ended"
        else:
            continue
        failure = Failure(reason=reasons.ATTEMPT_UNKNOWN, message=message)
        events.append((record.job.name, Lost(actor=worker, failure=failure)))
    return events


def confirmed_releases(
    worker: str,
    instance: str,
    unconfirmed: Sequence[Unconfirmed],
    reported: Sequence[AssignmentStatus],
    *,
    on_the_way: AbstractSet[AttemptKey] = frozenset(),
) -> list[tuple[str, Event]]:
    """Returns the end of each attempt that was left on a worker out of reach, and is not alive there.

    `unconfirmed`: all such attempts. A message is whole: what it does not hold is gone, unless it was said before the
    worker received it. `on_the_way`: attempts handed out over this stream that may not have arrived yet.
    """
    known = by_attempt(reported)
    events: list[tuple[str, Event]] = []
    for each in unconfirmed:
        attempt = (each.job, token_key(each.entry.token))
        status = known.get(attempt)
        left = attempt not in on_the_way if status is None else has_left(status)
        if left and releases.is_of(each.entry, worker, instance):
            events.append((each.job, ReleaseConfirmed(actor=worker, token=each.entry.token)))
    return events


def has_left(status: AssignmentStatus) -> bool:
    """Returns whether the process of an attempt is gone and its GPUs free."""
    return status.phase in OVER or (status.phase == AssignmentStatus.PERSISTING and not status.held_device_uuids)


def drain_events(
    worker: str, held: Sequence[JobRecord], *, drain: Drain | None, draining: bool
) -> list[tuple[str, Event]]:
    """Returns what follows for a worker's jobs from an order to drain it, or from its being taken back.

    `draining`: the agent itself wants no new work. What is so already is not told again.
    """
    if drain is None and not draining:
        back = DrainWithdrawn(actor=ACTOR)
        under_way = (record for record in held if drains.under_way(record.job))
        return [(record.job.name, back) for record in under_way if record.job.holds or not record.released]
    actor, reason = (drain.actor, drain.reason) if drain is not None else (worker, "its agent wants no new work")
    event = DrainRequested(actor=actor, reason=reason)
    trains = (Job.STARTING, Job.RUNNING)
    return [(record.job.name, event) for record in held if record.job.state in trains and record.job.spec.total_epochs]


def by_attempt(reported: Sequence[AssignmentStatus]) -> dict[AttemptKey, AssignmentStatus]:
    return {(status.job, token_key(status.token)): status for status in reported}


def token_key(token: FencingToken) -> TokenKey:
    return token.attempt, token.nonce, token.job_uid


def progress_events(
    worker: str, record: JobRecord, status: AssignmentStatus, earlier: AssignmentStatus | None = None
) -> Iterable[Event]:
    """Yields what the status of the job's own attempt says that the record does not have. `earlier`: the one before."""
    progress = status.progress if status.HasField("progress") else None
    goes_on = status.phase == AssignmentStatus.RUNNING and (earlier is None or earlier.progress != progress)
    fresh = progress is not None and is_worth_a_commit(progress, record.job.progress, goes_on=goes_on)
    fraction = persisted_fraction(record, status)
    boundary = boundary_epoch(record, status)
    released = status.phase == AssignmentStatus.PERSISTING and has_left(status) and not record.released
    told = fresh or released or fraction is not None or boundary is not None
    if told or status.observed_generation > record.observed_generation:
        yield Observed(
            actor=worker,
            generation=status.observed_generation,
            progress=progress if fresh else None,
            progress_age=max(status.progress_age.ToTimedelta(), timedelta()),
            persisted_fraction=fraction,
            released=released,
            boundary_epoch=boundary,
        )
    if not record.began and status.phase in BEGUN:
        yield Began(actor=worker)


def is_worth_a_commit(new: Progress, known: Progress, *, goes_on: bool) -> bool:
    """Returns whether progress goes into the record now: training that goes on is worth a commit now and then only.

    At an epoch's end, and once training does not simply go on, the record has to be exact: a step that takes long is
    not to hide the one before it.
    """
    if new.report_time == known.report_time:
        return False
    since = new.report_time.ToDatetime() - known.report_time.ToDatetime()
    return not goes_on or new.epoch != known.epoch or not timedelta() <= since < PROGRESS_INTERVAL


def own_series(records: Iterable[JobRecord], parts: Iterable[SeriesPart], now: datetime) -> list[SeriesPart]:
    """Returns what a worker has told of the attempts that these records have.

    Left out are samples that were taken long before their job was made, or will be: that clock says nothing.
    """
    mine = {(record.job.name, token_key(record.token)): record for record in records}
    found = []
    for part in parts:
        record = mine.get((part.job, token_key(part.token)))
        if record is None:
            continue
        first, last = record.job.create_time.ToDatetime(UTC) - CLOCK_SLACK, now + CLOCK_SLACK
        between = range(int(first.timestamp()), int(last.timestamp()))
        samples = [sample for sample in part.samples if sample.time.seconds in between]
        found.append(SeriesPart(job=part.job, token=part.token, samples=samples, steps=part.steps))
    return found


def memory_events(worker: str, held: Iterable[JobRecord], parts: Iterable[SeriesPart]) -> Iterator[tuple[str, Event]]:
    """Yields each job of the worker that has a GPU whose memory is nearly full, if it was not told in this attempt."""
    untold = {record.job.name for record in held if record.memory_told_attempt != record.token.attempt}
    for part in parts:
        if part.job in untold and (gpu := anomalies.nearly_full(part.samples)) is not None:
            yield part.job, MemoryNearlyFull(actor=worker, gpu=gpu)


def persisted_fraction(record: JobRecord, status: AssignmentStatus) -> float | None:
    """Returns the share of a pause's checkpoint that is durable, in whole per cent; None if the record has it."""
    if record.job.state != Job.PAUSING or not status.HasField("persisted_fraction"):
        return None
    fraction = int(status.persisted_fraction * 100) / 100
    pause = record.job.pause
    return None if pause.HasField("persisted_fraction") and pause.persisted_fraction == fraction else fraction


def boundary_epoch(record: JobRecord, status: AssignmentStatus) -> int | None:
    """Returns the epoch at which the job pauses, 0 if that is not known any more; None if the record has it.

    What the worker has said of an earlier order says nothing of this one. In other modes than EPOCH nothing is claimed.
    """
    if record.job.state != Job.PAUSING or status.observed_generation != record.generation:
        return None
    if record.pause_mode != PauseMode.EPOCH:
        return None
    return None if status.pause_epoch == record.job.pause.boundary_epoch else status.pause_epoch


def adoptable(
    record: JobRecord, status: AssignmentStatus, held: Sequence[JobRecord], worker: str, instance: str
) -> bool:
    """Returns whether a job takes over a live attempt that its record does not give to a worker.

    It does if the attempt had counted as lost and has not been replaced, unless its GPUs have been given to another of
    the worker's jobs since, or the agent is not the one that had it: a copied data directory holds a copy of the
    attempt's journal. And it does if the attempt is a later one than the record's: the record is older. An attempt of
    another uid belongs to another job.
    """
    if status.phase in OVER:
        return False
    if status.token == record.token:
        if record.job.state == Job.CANCELLED:  # it was to save a last checkpoint: see `saves_the_last`
            return False
        left = releases.unconfirmed(record, status.token)
        its_own = left is None or releases.is_of(left, worker, instance)
        free = taken_devices(held).isdisjoint(status.held_device_uuids)
        return record.HasField("lost_attempt") and its_own and free
    later = status.token.job_uid == record.job.uid and status.token.attempt > record.token.attempt
    return later and record.job.state not in ENDED


def taken_devices(held: Iterable[JobRecord]) -> set[str]:
    """Returns the GPUs that a worker's jobs have and have not released."""
    return {uuid for record in held if not record.released for uuid in record.device_uuids}


def strangers(
    held: Sequence[JobRecord], reported: Sequence[AssignmentStatus], others: Mapping[str, JobRecord]
) -> set[str]:
    """Returns the uids of attempts whose jobs are unknown: deleted, or of another store; names may be used again."""
    known = {record.job.name: record.job.uid for record in (*others.values(), *held)}
    return {status.token.job_uid for status in reported if known.get(status.job) != status.token.job_uid}


def desired_assignments(
    held: Sequence[JobRecord],
    reported: Sequence[AssignmentStatus],
    others: Mapping[str, JobRecord],
    *,
    worker: str,
    instance: str = "",
    deleted: AbstractSet[str] = frozenset(),
    earlier: Sequence[Assignment] = (),
) -> list[Assignment]:
    """Returns every assignment meant for a worker: the jobs it holds, and orders to end what it should not run.

    An attempt that is over is left out, so the worker forgets it. So is one that is about to be adopted: the worker
    leaves it alone. An attempt of a job that nobody knows is paused, which loses nothing, unless its uid is one of
    `deleted`. `earlier`: what was desired the last time on this stream.
    """
    known_there = by_attempt(reported)
    assignments = [
        assignment(record, is_held=(record.job.name, token_key(record.token)) in known_there)
        for record in held
        if record.job.state in HELD
    ]
    current = {(each.job, token_key(each.token)) for each in assignments}
    mine = {record.job.name: record for record in held}
    unknown = strangers(held, reported, others)
    for status in reported:
        if status.phase in OVER or (status.job, token_key(status.token)) in current:
            continue
        uid = status.token.job_uid
        if uid in unknown:
            target = Assignment.STOP if uid in deleted else Assignment.PAUSE
        else:
            known = mine.get(status.job) or others[status.job]
            if adoptable(known, status, held, worker, instance) or saves_the_last(known, status):
                continue
            target = Assignment.STOP
        assignments.append(ordered(status, target, earlier))
    return assignments


def saves_the_last(record: JobRecord, status: AssignmentStatus) -> bool:
    """Returns whether an attempt that was lost makes the last checkpoint of a cancelled job durable.

    Its process is gone, so it is left to finish. One that trains still is stopped: the job is CANCELLED.
    """
    mine = status.token == record.token and record.HasField("lost_attempt")
    return mine and record.job.state == Job.CANCELLED and status.phase == AssignmentStatus.PERSISTING


def assignment(record: JobRecord, *, is_held: bool) -> Assignment:
    """Returns the assignment that a record stands for; without what a worker that holds it has got already."""
    made = Assignment(
        job=record.job.name,
        token=record.token,
        generation=record.generation,
        target=record.target,
        pause_mode=record.pause_mode,
    )
    if not is_held:
        made.spec.CopyFrom(record.job.spec)
        made.device_uuids.extend(record.device_uuids)
        made.allow_inexact = record.allow_inexact
        if record.checkpoint.name:
            made.restore.CopyFrom(record.checkpoint)
            made.base.CopyFrom(record.checkpoint)
    return made


def that_fit(assignments: Sequence[Assignment], size: int) -> list[Assignment]:
    """Returns all assignments that the worker holds, and of the others as many as fit into `size` bytes: one at least.

    The worker does not miss one that it never had. It reports those that it was sent; they are small from then on, and
    the others fit.
    """
    known = [each for each in assignments if not each.HasField("spec")]
    left = size - sum(each.ByteSize() for each in known)
    fitting = list(known)
    for new in (each for each in assignments if each.HasField("spec")):
        left -= new.ByteSize()
        if left < 0 and len(fitting) > len(known):
            break
        fitting.append(new)
    return fitting


def ordered(status: AssignmentStatus, target: Assignment.Target.ValueType, earlier: Sequence[Assignment]) -> Assignment:
    """Returns the order to end an attempt that no job has.

    There is no record that numbers it: it is above what the worker has acknowledged, and stays the same until the
    target changes. Else each acknowledgement would bring the next order.
    """
    order = Assignment(job=status.job, token=status.token, target=target)
    if target == Assignment.PAUSE:
        order.pause_mode = PauseMode.EPOCH
    order.generation = status.observed_generation + 1
    before = next((each for each in earlier if (each.job, each.token) == (status.job, status.token)), None)
    if before is not None and before.target == target and before.generation >= status.observed_generation:
        order.generation = before.generation
    return order
