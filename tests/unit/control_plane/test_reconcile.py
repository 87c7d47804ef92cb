"""The reconcile table of docs/architecture.md, row by row."""

from collections.abc import Collection, Sequence
from datetime import timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from adjourn import reasons
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, FencingToken, SeriesPart
from adjourn.v1.job_pb2 import Failure, Job, PauseMode, Progress
from adjourn.v1.usage_pb2 import ResourceSample, StepMetrics
from adjourn_control_plane.fleet import reconcile
from adjourn_control_plane.job.events import (
    Adopted,
    Began,
    Event,
    Lost,
    Observed,
)
from tests.harness.job_life import NAME, START, UID, A, B, Life, checkpoint_name, paused, status

FAILURE = Failure(reason=reasons.PROCESS_KILLED, message="ended by SIGKILL")
OVER = [AssignmentStatus.PAUSED, AssignmentStatus.STOPPED, AssignmentStatus.SUCCEEDED, AssignmentStatus.FAILED]


def seventh() -> Life:
    """A job in its attempt 7, after an epoch."""
    life = Life(max_restarts=100)
    for step in range(6):
        life.running().at(step).fails()
    return life.running(1)


def events(
    held: Sequence[JobRecord],
    *reported: AssignmentStatus,
    others: Sequence[JobRecord] = (),
    reports_pending: bool = False,
) -> list[tuple[str, Event]]:
    known = {record.job.name: record for record in others}
    lost = reconcile.lost_attempts(A, held, reported, reports_pending=reports_pending)
    return [*reconcile.reconcile(A, held, reported, known), *lost]


def desired(
    held: Sequence[JobRecord],
    *reported: AssignmentStatus,
    others: Sequence[JobRecord] = (),
    deleted: Collection[str] = (),
    earlier: Sequence[Assignment] = (),
    instance: str = "",
) -> list[Assignment]:
    known = {record.job.name: record for record in others}
    return reconcile.desired_assignments(
        held, reported, known, worker=A, instance=instance, deleted=frozenset(deleted), earlier=earlier
    )


def is_stop(assignment: Assignment, stopped: AssignmentStatus) -> bool:
    return (
        assignment.target == Assignment.STOP
        and assignment.token == stopped.token
        and assignment.generation > stopped.observed_generation
        and not assignment.HasField("spec")
    )


def test_running_and_reported_running_is_kept() -> None:
    record = seventh().record
    running = status(record)
    assert events([record], running) == []
    (assignment,) = desired([record], running)
    assert (assignment.target, assignment.token, assignment.generation) == (Assignment.RUN, record.token, 1)
    assert not assignment.HasField("spec"), "the worker has got it"
    assert not assignment.HasField("restore")
    (assignment,) = desired([record])
    assert assignment.spec == record.job.spec
    assert assignment.restore == assignment.base == record.checkpoint


def test_an_older_attempt_is_stopped_and_the_newer_untouched() -> None:
    record = seventh().record
    old = status(record, attempt=6)
    mine = status(record)
    assert events([record], mine, old) == []
    kept, stop = desired([record], mine, old)
    assert kept.token == record.token
    assert is_stop(stop, old)


def test_an_attempt_of_the_same_number_and_another_nonce_is_stopped() -> None:
    record = seventh().record
    foreign = status(record, nonce="f" * 32)
    assert [type(event) for _, event in events([record], foreign)] == [Lost]
    assert is_stop(desired([record], foreign)[1], foreign)


@pytest.mark.parametrize("worker", [A, B])
def test_a_later_attempt_is_adopted_and_the_one_we_knew_not_counted_as_lost(worker: str) -> None:
    life = seventh()
    later = status(life.record, attempt=8, generation=3, devices=("GPU-1",))
    held, others = ([life.record], []) if worker == A else ([], [life.record])
    ((job, event),) = reconcile.reconcile(A, held, [later], {record.job.name: record for record in others})
    assert (job, event) == (
        NAME,
        Adopted(actor=A, token=later.token, worker=A, device_uuids=("GPU-1",), generation=3, released=False),
    )
    assert desired(held, later, others=others)[len(held) :] == [], "it is not told to stop before it is adopted"
    life.tell(event)
    assert (life.state, life.job.restart_count) == ("STARTING", 6)
    (assignment,) = desired([life.record], later)
    assert (assignment.token, assignment.target) == (later.token, Assignment.RUN)


@pytest.mark.parametrize("attempt", [6, 7, 8])
def test_an_attempt_of_a_deleted_job_whose_name_is_used_again_is_stopped(attempt: int) -> None:
    """Its worker was out of reach while its job was deleted (C1)."""
    life = seventh()
    gone = "uid of the deleted job"
    foreign = status(life.record, attempt=attempt, uid=gone)
    mine = status(life.record)
    for held, others in (([life.record], []), ([], [life.record])):
        assert not [event for _, event in events(held, mine, foreign, others=others) if isinstance(event, Adopted)]
        assert is_stop(desired(held, mine, foreign, others=others, deleted=[gone])[-1], foreign)
    fresh = Life()
    assert events([], foreign, others=[fresh.record]) == []
    assert is_stop(desired([], foreign, others=[fresh.record], deleted=[gone])[0], foreign)
    (pause,) = desired([], foreign, others=[fresh.record])
    assert pause.target == Assignment.PAUSE, "nobody knows that its job was deleted: the store is younger than it"


def test_an_acknowledged_attempt_that_is_gone_is_lost() -> None:
    life = seventh()
    ((job, event),) = events([life.record])
    assert isinstance(event, Lost)
    assert (job, event.failure.reason) == (NAME, reasons.ATTEMPT_UNKNOWN)
    life.tell(event)
    assert (life.state, life.job.restart_count, life.record.checkpoint.name) == ("QUEUED", 7, checkpoint_name(1))


def test_an_attempt_that_was_never_acknowledged_is_handed_out_again() -> None:
    record = Life().placed().record
    assert events([record]) == []
    (assignment,) = desired([record])
    assert (assignment.target, assignment.token) == (Assignment.RUN, record.token)
    assert not assignment.HasField("restore")


def test_a_pause_that_was_not_seen_is_said_again() -> None:
    record = seventh().pause().record
    behind = status(record, generation=record.generation - 1)
    assert events([record], behind) == []
    (assignment,) = desired([record], behind)
    assert (assignment.target, assignment.generation) == (Assignment.PAUSE, record.generation)


def test_persisting_is_kept_however_long_it_takes() -> None:
    record = seventh().pause().released().record
    persisting = status(record, AssignmentStatus.PERSISTING)
    assert [type(event) for _, event in events([record], persisting)] == [Observed]
    (assignment,) = desired([record], persisting)
    assert (assignment.target, assignment.generation) == (Assignment.PAUSE, record.generation)


def test_a_finished_run_has_released_its_gpus_once_it_holds_none() -> None:
    life = Life(gpu_count=1).placed(A, "GPU-1").acknowledged().began()
    waiting = status(life.record, AssignmentStatus.RUNNING, devices=("GPU-1",))
    assert events([life.record], waiting) == []
    persisting = status(life.record, AssignmentStatus.PERSISTING)
    ((_, event),) = events([life.record], persisting)
    life.tell(event)
    assert (life.state, life.record.released, list(life.record.device_uuids)) == ("RUNNING", True, ["GPU-1"])
    assert events([life.record], persisting) == []


@pytest.mark.parametrize("state", ["QUEUED", "PAUSED", "FAILED"])
def test_a_lost_attempt_that_is_back_is_adopted_and_not_stopped(state: str) -> None:
    life = Life(max_restarts=0 if state == "FAILED" else 3).running(1)
    life = (life.pause() if state == "PAUSED" else life).is_lost()
    assert life.state == state
    running = status(life.record, devices=("GPU-1",))
    assert desired([], running, others=[life.record]) == [], "it is not told to stop before it is adopted"
    ((_, event),) = events([], running, others=[life.record])
    assert event == Adopted(
        actor=A,
        token=life.record.token,
        worker=A,
        device_uuids=("GPU-1",),
        generation=running.observed_generation,
        released=False,
    )
    life.tell(event)
    (assignment,) = desired([life.record], running)
    assert (life.state, assignment.target) == (
        ("PAUSING", Assignment.PAUSE) if state == "PAUSED" else ("RUNNING", Assignment.RUN)
    )
    assert assignment.generation > running.observed_generation


def test_an_attempt_that_only_persists_is_adopted_without_its_slot() -> None:
    life = seventh().pause().released().is_lost()
    ((_, event),) = events([], status(life.record, AssignmentStatus.PERSISTING), others=[life.record])
    assert isinstance(event, Adopted)
    assert event.released


def test_a_lost_attempt_whose_gpus_were_given_away_is_stopped() -> None:
    life = Life(gpu_count=1).placed(A, "GPU-1").acknowledged().began().is_lost()
    running = status(life.record, devices=("GPU-1",))
    other = Life(gpu_count=1).placed(A, "GPU-1").record
    other.job.name = "jobs/other"
    assert reconcile.reconcile(A, [other], [running], {NAME: life.record}) == []
    assert is_stop(desired([other], running, others=[life.record])[1], running)


@pytest.mark.parametrize("phase", OVER)
def test_an_attempt_that_is_over_and_never_said_how_is_lost(phase: AssignmentStatus.Phase.ValueType) -> None:
    """Whatever happened to its exit report, the job does not hang (C11)."""
    life = seventh().pause().acknowledged()
    over = status(life.record, phase)
    ((job, event),) = events([life.record], over)
    assert isinstance(event, Lost)
    assert (job, event.failure.reason) == (NAME, reasons.ATTEMPT_UNKNOWN)
    assert life.tell(event).state == "PAUSED"
    assert desired([], over, others=[life.record]) == []


@pytest.mark.parametrize("phase", OVER)
def test_an_attempt_that_is_over_is_not_lost_while_reports_are_on_their_way(
    phase: AssignmentStatus.Phase.ValueType,
) -> None:
    record = seventh().record
    assert events([record], status(record, phase), reports_pending=True) == []


@pytest.mark.parametrize("phase", OVER)
def test_paused_and_over_is_forgotten(phase: AssignmentStatus.Phase.ValueType) -> None:
    record = paused().record
    over = status(record, phase)
    assert events([], over, others=[record]) == []
    assert desired([], over, others=[record]) == []


def test_an_attempt_that_went_elsewhere_stops_without_a_trace() -> None:
    life = seventh()
    old = status(life.record)
    life.is_lost().placed(B)
    assert events([], old, others=[life.record]) == []
    (stop,) = desired([], old, others=[life.record])
    assert is_stop(stop, old)


@pytest.mark.parametrize("state", ["QUEUED", "SUCCEEDED", "FAILED", "CANCELLED"])
def test_an_attempt_of_a_job_that_is_not_at_work_is_stopped(state: str) -> None:
    life = seventh()
    old = status(life.record)
    record = JobRecord()
    record.CopyFrom(life.fails().record)
    record.job.state = Job.State.Value(state)
    assert events([], old, others=[record]) == []
    assert is_stop(desired([], old, others=[record])[0], old)


def test_an_attempt_that_no_store_knows_is_paused_which_loses_nothing() -> None:
    orphan = status(Life().placed().record, generation=4)
    assert events([], orphan) == []
    (order,) = desired([], orphan)
    assert (order.target, order.pause_mode, order.token) == (Assignment.PAUSE, PauseMode.EPOCH, orphan.token)
    assert order.generation == 5
    assert not order.HasField("spec")
    assert desired([], status(Life().placed().record, AssignmentStatus.PAUSED)) == [], "it is over: to be forgotten"


def test_an_attempt_of_a_deleted_job_is_stopped() -> None:
    record = Life().placed().record
    orphan = status(record)
    (order,) = desired([], orphan, deleted=[record.job.uid])
    assert is_stop(order, orphan)


@pytest.mark.parametrize("deleted", [[], [UID]])
def test_an_order_that_no_record_numbers_is_given_once(deleted: list[str]) -> None:
    """Each acknowledgement brought the next generation, and that the next acknowledgement."""
    record = Life().placed().record
    first = desired([], status(record, generation=4), deleted=deleted)
    for seen in (4, 5):
        assert desired([], status(record, generation=seen), deleted=deleted, earlier=first) == first
    (changed,) = desired([], status(record, generation=5), deleted=[] if deleted else [UID], earlier=first)
    assert changed.generation == 6


def test_an_attempt_is_adopted_from_the_agent_alone_that_had_it() -> None:
    """A copied data directory holds a copy of the journal."""
    life = seventh().goes_out_of_reach("i")
    running = status(life.record)
    known = {NAME: life.record}
    assert reconcile.reconcile(A, [], [running], known, instance="k") == []
    assert is_stop(desired([], running, others=[life.record], instance="k")[0], running)
    assert reconcile.reconcile(B, [], [running], known, instance="i") == []
    ((_, event),) = reconcile.reconcile(A, [], [running], known, instance="i")
    assert isinstance(event, Adopted)
    assert desired([], running, others=[life.record], instance="i") == []


def test_each_worker_hears_of_its_own_jobs_only() -> None:
    assert desired([paused().record]) == []


def test_the_first_step_is_noticed_once() -> None:
    life = Life().placed()
    for phase in set(AssignmentStatus.Phase.values()) - {AssignmentStatus.PHASE_UNSPECIFIED}:
        found = [type(event) for _, event in reconcile.reconcile(A, [life.record], [status(life.record, phase)], {})]
        assert found == ([Observed, Began] if phase in reconcile.BEGUN else [Observed])
    assert reconcile.BEGUN.isdisjoint({AssignmentStatus.STARTING, AssignmentStatus.STOPPED, AssignmentStatus.FAILED})
    assert events([life.acknowledged().began().record], status(life.record)) == []


def test_the_share_that_is_durable_is_taken_over_in_whole_per_cent() -> None:
    record = seventh().pause().acknowledged().released().record
    persisting = status(record, AssignmentStatus.PERSISTING)
    persisting.persisted_fraction = 0.129
    ((_, event),) = events([record], persisting)
    assert isinstance(event, Observed)
    assert event.persisted_fraction == 0.12
    record.job.pause.persisted_fraction = 0.12
    assert events([record], persisting) == []


def test_progress_is_taken_over_when_it_is_new() -> None:
    life = seventh().at(130)
    assert events([life.record], status(life.record, progress=life.job.progress)) == []
    newer = Progress(step=140)
    newer.report_time.FromDatetime(START + timedelta(days=1))
    told = status(life.record, progress=newer)
    told.progress_age.FromSeconds(3)
    ((_, event),) = events([life.record], told)
    assert isinstance(event, Observed)
    assert (event.progress, event.progress_age) == (newer, timedelta(seconds=3))


def named(number: int) -> JobRecord:
    """Returns the record of one of several running jobs."""
    record = JobRecord.FromString(Life().running().record.SerializeToString())
    record.job.name = f"jobs/{number}"
    return record


def test_what_does_not_fit_into_a_message_follows_once_the_worker_holds_the_rest() -> None:
    """62 assignments with large arguments made a response that could never be sent (C13)."""
    records = []
    for number in range(64):
        record = named(number)
        record.job.spec.args["data"] = "x" * (256 << 10)
        records.append(record)
    known: list[AssignmentStatus] = []
    rounds = 0
    while len(known) < 64:
        rounds += 1
        sent = reconcile.that_fit(desired(records, *known), 8 << 20)
        assert sum(each.ByteSize() for each in sent) <= 8 << 20
        assert {each.job for each in sent} >= {each.job for each in known}, "what the worker holds is never left out"
        held = {each.job for each in sent}
        known = [status(record) for record in records if record.job.name in held]
    assert rounds == 3
    assert len(reconcile.that_fit(desired(records, *known), 8 << 20)) == 64


def test_one_assignment_is_sent_however_large_it_is() -> None:
    records = [named(number) for number in range(2)]
    assert len(reconcile.that_fit(desired(records), 1)) == 1


@pytest.mark.parametrize(
    ("seconds", "phase", "epoch", "is_taken"),
    [
        (0.5, AssignmentStatus.RUNNING, 1, False),
        (2.0, AssignmentStatus.RUNNING, 1, True),
        (0.5, AssignmentStatus.RUNNING, 2, True),
        (0.5, AssignmentStatus.PAUSING, 1, True),
        (0.5, AssignmentStatus.FAILED, 1, True),
        (-60.0, AssignmentStatus.RUNNING, 1, True),  # of another worker, whose clock is behind
    ],
)
def test_progress_within_an_epoch_costs_a_commit_now_and_then(
    seconds: float, phase: AssignmentStatus.Phase.ValueType, epoch: int, is_taken: bool
) -> None:
    """Training tells of its progress twice a second; each time the whole record was written (section 5.2)."""
    life = Life().running().at(10)
    known = life.job.progress
    new = Progress(epoch=epoch if known.epoch == 1 else known.epoch + epoch - 1, step=11)
    new.report_time.FromDatetime(known.report_time.ToDatetime() + timedelta(seconds=seconds))
    found = reconcile.progress_events(A, life.record, status(life.record, phase=phase, progress=new))
    assert any(isinstance(event, Observed) for event in found) == is_taken


def test_progress_of_training_that_stands_is_kept() -> None:
    """What came within two seconds of the last commit was never kept if no further step followed."""
    life = Life().running().at(10)
    known = life.job.progress
    new = Progress(epoch=known.epoch, step=11)
    new.report_time.FromDatetime(known.report_time.ToDatetime() + timedelta(seconds=0.5))
    before, now = status(life.record), status(life.record, progress=new)
    assert not reconcile.reconcile(A, [life.record], [now], {}, earlier=[before])
    ((_, event),) = reconcile.reconcile(A, [life.record], [now], {}, earlier=[now])
    assert isinstance(event, Observed)
    life.tell(event)
    assert life.job.progress.step == 11
    assert not reconcile.reconcile(A, [life.record], [now], {}, earlier=[now])


def test_where_a_job_pauses_is_news_once() -> None:
    life = Life().running(1).pause().acknowledged()
    pausing = status(life.record, AssignmentStatus.PAUSING)
    pausing.pause_epoch = 2
    ((_, event),) = events([life.record], pausing)
    assert isinstance(event, Observed)
    assert event.boundary_epoch == 2
    life.tell(event)
    assert life.job.pause.boundary_epoch == 2
    assert life.last
    assert not life.last.events, "no part of the history"
    assert not events([life.record], pausing)
    pausing.pause_epoch = 0
    ((_, event),) = events([life.record], pausing)
    assert life.tell(event).job.pause.boundary_epoch == 0


def test_where_it_would_have_paused_by_an_earlier_order_is_no_news() -> None:
    life = Life().running(1).pause().acknowledged()
    before = status(life.record, AssignmentStatus.PAUSING)
    before.pause_epoch = 2
    assert not events([life.resume().record], before), "it does not pause"
    assert not events([life.pause().record], before)


def test_figures_of_the_jobs_own_attempt_are_kept() -> None:
    life = Life().running(1)
    record, now = life.record, START + timedelta(hours=1)
    token, other = record.token, FencingToken(attempt=9, job_uid=UID)
    sample, step = ResourceSample(time=Timestamp(seconds=int(START.timestamp()))), StepMetrics(step=1)
    own = SeriesPart(job=NAME, token=token, samples=[sample], steps=[step])
    foreign = [SeriesPart(job=NAME, token=other, steps=[step]), SeriesPart(job="jobs/none", token=token, steps=[step])]
    assert reconcile.own_series([record], [own, *foreign], now) == [own]
    wrong = [Timestamp(), Timestamp(seconds=1 << 40), Timestamp(seconds=-(1 << 62))]
    odd = SeriesPart(job=NAME, token=token, samples=[*(ResourceSample(time=time) for time in wrong), sample])
    assert [list(part.samples) for part in reconcile.own_series([record], [odd], now)] == [[sample]]
