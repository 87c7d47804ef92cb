"""Walks TRANSITIONS: what is written there can happen, and nothing else does."""

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from datetime import timedelta

import pytest

from adjourn import errors, reasons
from adjourn.internal.v1.record_pb2 import JobRecord, LostAttempt
from adjourn.v1.agent_service_pb2 import Assignment, FencingToken
from adjourn.v1.job_pb2 import LATEST, PAUSE_MODE_UNSPECIFIED, STEP, Condition, Failure, Hold, Job, Pause
from adjourn.v1.usage_pb2 import EpochMetrics, GpuSample
from adjourn_control_plane.job import machine, pauses
from adjourn_control_plane.job.events import (
    Adopted,
    Began,
    CancelRequested,
    CheckpointDamaged,
    ConditionChanged,
    DrainRequested,
    DrainWithdrawn,
    EpochEnded,
    Event,
    Failed,
    Finished,
    Lost,
    MemoryNearlyFull,
    Observed,
    PausePhase,
    PauseRequested,
    Placed,
    Registered,
    ReleaseConfirmed,
    Requested,
    Rested,
    ResumeRequested,
    Stopped,
    Unplaced,
    UpdateRequested,
)
from adjourn_control_plane.job.machine import ENDED, HANDLERS, HELD, TRANSITIONS, State
from tests.harness.job_history import Told
from tests.harness.job_life import GONE, RAISED, START, A, Life, checkpoint

STATES = [state for state in Job.State.values() if state != Job.STATE_UNSPECIFIED]
REQUESTED: list[Requested] = [
    PauseRequested(actor="bob", mode=PAUSE_MODE_UNSPECIFIED, reason=""),
    ResumeRequested(actor="bob"),
    CancelRequested(actor="bob", reason=""),
    UpdateRequested(actor="bob", job=Job(labels={"a": "b"}), fields=("labels",)),
]
RESTING = ENDED | {Job.PAUSED}


def possible(record: JobRecord) -> Iterator[Event]:
    """Yields one of every kind of event, and several where their content decides what follows."""
    yield from REQUESTED
    yield PauseRequested(actor="ops", mode=PAUSE_MODE_UNSPECIFIED, reason="", kind=Hold.OPERATOR)
    yield ResumeRequested(actor="ops", kind=Hold.OPERATOR)
    yield CancelRequested(actor="bob", reason="", save_checkpoint=True)
    yield CancelRequested(actor="bob", reason="", save_checkpoint=True, mode=STEP)
    for mode in (STEP, LATEST):
        yield PauseRequested(actor="bob", mode=mode, reason="")
    yield DrainRequested(actor="ops", reason="")
    yield DrainWithdrawn(actor="ops")
    attempt = record.token.attempt + 1
    token = FencingToken(attempt=attempt, nonce=f"{attempt:032x}")
    yield Placed(actor="control_plane", worker=A, device_uuids=(), nonce=token.nonce)
    yield Observed(actor=A, generation=record.generation)
    yield Began(actor=A)
    yield EpochEnded(actor=A, metrics=EpochMetrics(epoch=1))
    yield MemoryNearlyFull(actor=A, gpu=GpuSample(memory_used_bytes=99, memory_total_bytes=100))
    yield Registered(actor=A, checkpoint=checkpoint(1))
    yield PausePhase(actor=A, pause=Pause(release_time=record.job.create_time))
    for on in {record.checkpoint.name, "jobs/j/checkpoints/unknown"}:
        yield Rested(actor=A, checkpoint=on)
        yield Finished(actor=A, checkpoint=on)
    yield Stopped(actor=A)
    yield Stopped(actor=A, failure=Failure(reason=reasons.WORKER_STOPPED))
    for failure in (RAISED, Failure(reason=reasons.STATE_MISMATCH), Failure(reason=reasons.ENVIRONMENT_DIFFERS)):
        yield Failed(actor=A, failure=failure)
    corrupt = Failure(reason=reasons.CHECKPOINT_CORRUPT)
    for damaged in {record.checkpoint.name, "jobs/j/checkpoints/unknown"} - {""}:
        for sound in (None, checkpoint(2)):
            yield CheckpointDamaged(actor=A, failure=corrupt, checkpoint=damaged, sound=sound, newest=sound)
    yield Lost(actor="control_plane", failure=GONE)
    yield Lost(actor="control_plane", failure=GONE, out_of_reach=True, instance="i")
    for unconfirmed in (record.token, *(entry.token for entry in record.unconfirmed_releases)):
        yield ReleaseConfirmed(actor=A, token=unconfirmed)
    for adopted in (token, record.token):
        yield Adopted(actor=A, token=adopted, worker=A, device_uuids=(), generation=1, released=False)
    yield ConditionChanged(actor=A, condition=Condition(type=Condition.STORAGE_FAILING, reason="R"), ended=False)
    yield Unplaced(actor="scheduler", reason="NO_WORKER", message="m")


def aspect(record: JobRecord) -> tuple[object, ...]:
    """Returns what decisions depend on; records that agree in it need not all be looked at."""
    job = record.job
    unconfirmed = (
        any(entry.token == record.token for entry in record.unconfirmed_releases),
        bool(record.unconfirmed_releases),
    )
    if job.state == Job.SUCCEEDED:  # nothing but labels and releases is told of it
        return (job.state, unconfirmed)
    return (
        job.state,
        tuple(sorted(hold.kind for hold in job.holds)),
        (job.spec.total_epochs > 0, bool(record.checkpoint.name), record.began, record.released),
        # What a worker has observed matters while it has the job, and no generation but the newest.
        bool(job.worker) and (record.observed_generation > 0, pauses.has_left(record)),
        (min(job.restart_count, 1), record.HasField("past_failure")),
        (job.pause.HasField("resume_request_time"), job.pause.HasField("resume_time")),
        unconfirmed,
        (record.target == Assignment.PAUSE, job.pause.cause, record.pause_mode, job.pause.mode),
        record.HasField("lost_attempt") and lost(record.lost_attempt),
    )


def lost(attempt: LostAttempt) -> tuple[object, ...]:
    return bool(attempt.holds), min(attempt.restart_count, 1), attempt.drained


@pytest.fixture(scope="module")
def seen() -> Mapping[tuple[State, type[Event]], set[State]]:
    """What came of every event in every situation that can be reached, by state and event."""
    found: dict[tuple[State, type[Event]], set[State]] = defaultdict(set)
    first = [Life(total_epochs=epochs, max_restarts=1).record for epochs in (0, 2)]
    waiting = deque(first)
    known = {aspect(record) for record in first}
    now = START
    while waiting:
        record = waiting.popleft()
        told = Told.of(record)
        for event in possible(record):
            now += timedelta(seconds=1)
            try:
                decision = machine.decide(record, event, now)
            except errors.PreconditionError:
                continue
            if decision is None:
                if (record.job.state, type(event)) in TRANSITIONS:
                    found[record.job.state, type(event)].add(record.job.state)
                continue
            after = decision.record
            assert told.after(decision.events) == Told.of(after), "the history tells of every change"
            found[record.job.state, type(event)].add(after.job.state)
            if (reached := aspect(after)) not in known:
                known.add(reached)
                waiting.append(after)
    return found


def test_every_row_is_reached_and_every_outcome_is_in_the_table(
    seen: Mapping[tuple[State, type[Event]], set[State]],
) -> None:
    assert {row: set(after) for row, after in TRANSITIONS.items()} == seen


def test_no_outcome_is_written_twice() -> None:
    assert all(len(set(after)) == len(after) for after in TRANSITIONS.values())


def test_every_event_has_a_handler_and_a_row() -> None:
    events = set(HANDLERS)
    assert {event for _, event in TRANSITIONS} == events
    assert {type(event) for event in possible(Life().record)} == events


@pytest.mark.parametrize("state", STATES, ids=Job.State.Name)
def test_every_state_has_a_way_to_every_end(state: State) -> None:
    ways: dict[State, set[State]] = defaultdict(set)
    for (before, _), after in TRANSITIONS.items():
        ways[before] |= set(after)
    reached, fresh = {state}, {state}
    while fresh:
        fresh = set().union(*(ways[each] for each in fresh)) - reached
        reached |= fresh
    assert reached >= (ENDED if state != Job.SUCCEEDED else {Job.SUCCEEDED})


@pytest.mark.parametrize("state", sorted({Job.PAUSING, Job.CANCELLING}), ids=Job.State.Name)
def test_what_resolves_by_itself_needs_nobody_to_ask(state: State) -> None:
    outcomes = {
        after
        for (before, event), all_after in TRANSITIONS.items()
        if before == state
        for after in all_after
        if not issubclass(event, Requested)
    }
    assert outcomes & RESTING


@pytest.mark.parametrize("state", sorted(HELD), ids=Job.State.Name)
def test_an_attempt_may_end_in_any_way_in_any_state_that_a_worker_has(state: State) -> None:
    for event in (Stopped, Failed, Lost, Finished):
        assert (state, event) in TRANSITIONS
        assert any(after not in HELD for after in TRANSITIONS[state, event])


def in_state(state: State) -> JobRecord:
    record = JobRecord()
    record.CopyFrom(Life().record)
    record.job.state = state
    return record


REFUSED = [(state, event) for state in STATES for event in REQUESTED if (state, type(event)) not in TRANSITIONS]


@pytest.mark.parametrize(("state", "event"), REFUSED, ids=lambda it: getattr(it, "verb", None) or Job.State.Name(it))
def test_what_may_not_be_asked_for_is_refused_with_what_may(state: State, event: Requested) -> None:
    with pytest.raises(errors.PreconditionError) as caught:
        machine.decide(in_state(state), event, START)
    error = caught.value
    assert type(error) is not errors.PreconditionError
    assert error.metadata["state"] == Job.State.Name(state)
    allowed = {Job.State.Value(name) for name in error.metadata["allowed_states"].split(", ")}
    repeated = {Job.QUEUED, Job.STARTING} if isinstance(event, ResumeRequested) else set()  # a resume under way
    assert allowed == {before for before, known in TRANSITIONS if known is type(event)} - repeated
    assert Job.State.Name(state) in error.message
    expected: dict[State, type[errors.AdjournError]] = dict.fromkeys(ENDED, errors.JobFinishedError) | {
        Job.CANCELLING: errors.JobCancellingError
    }
    assert type(error) is expected.get(state, errors.JobNotPausedError)


def test_late_news_is_ignored() -> None:
    record = in_state(Job.SUCCEEDED)
    for event in possible(record):
        if not isinstance(event, Requested):
            assert machine.decide(record, event, START) is None


def test_a_decision_leaves_the_record_alone() -> None:
    record = Life().running(1).record
    before = JobRecord()
    before.CopyFrom(record)
    for event in possible(record):
        try:
            machine.decide(record, event, START)
        except errors.PreconditionError:
            continue
        assert record == before


def test_an_outcome_beyond_the_table_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: dict[object, object] = {(Job.QUEUED, CancelRequested): (Job.PAUSED,)}
    monkeypatch.setattr(machine, "TRANSITIONS", wrong)
    with pytest.raises(AssertionError, match="CANCELLED"):
        machine.decide(Life().record, REQUESTED[2], START)
