"""Whatever happens to an assignment, in whatever order, and whenever its agent dies: the machine keeps its promises."""

from collections import Counter
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from adjourn.desired_state import DesiredState
from adjourn.internal.v1.trainer_pb2 import (
    HeldAssignment,
    ProcessExit,
    Snapshot,
    SnapshotFailed,
    TrainingBegan,
    TrainingEvent,
)
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, Exit
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import EPOCH, LATEST, PAUSE_MODE_UNSPECIFIED, STEP, PauseMode
from adjourn_worker.attempt import events, machine
from adjourn_worker.attempt.transition import OVER
from tests.harness.attempt_driver import (
    NOW,
    PAUSE,
    PROCESS,
    RUN,
    STOP,
    AttemptDriver,
    assigned,
    checkpoint,
    epoch,
    failure,
    finished,
    paused,
    progress,
)

Order = tuple[Assignment.Target.ValueType, PauseMode.ValueType]
ORDERS = st.sampled_from(
    [(RUN, PAUSE_MODE_UNSPECIFIED)] * 5
    + [(PAUSE, EPOCH)] * 3
    + [(PAUSE, STEP)] * 2
    + [(PAUSE, LATEST)]
    + [(STOP, PAUSE_MODE_UNSPECIFIED)]
)
REGULAR_SLOTS = 2
SAID = ["epoch"] * 6 + ["began", "snapshot_failed", "paused", "finished", "failed"]
"""By training, and how often."""


class World(RuleBasedStateMachine):
    """One assignment, a training process that behaves as ours do, and an agent that may die before it does anything."""

    def __init__(self) -> None:
        super().__init__()
        self.preparing = False
        self.persisting: Snapshot | None = None
        self.confirming = False
        """GPUs of the ended process are being waited for."""
        self.process = False
        """There is a training process; `ended` says how it ended."""
        self.ended: ProcessExit | None = None
        self.seen = True
        self.control: DesiredState | None = None
        self.slots: dict[int, int] = {}
        """Sequence of the snapshot in each taken slot."""
        self.given_back: Counter[int] = Counter()
        self.sequence = 0
        self.read: set[int] = set()
        """Snapshots that the agent knows of."""
        self.unsaved: set[int] = set()
        """Those that could not be made durable, once at least."""
        self.final = False
        self.written: list[TrainingEvent] = []
        self.dying = False
        """The agent dies between the journal and the next thing it does."""
        self.dying_at_launch = False
        """The agent dies between the launch and the journal."""

    @initialize(
        wanted=ORDERS, restored=st.booleans(), launched=st.sampled_from([True, True, True, False]), gpus=st.booleans()
    )
    def begin(self, wanted: Order, restored: bool, launched: bool, gpus: bool) -> None:
        restore = Checkpoint(name="c") if restored else None
        target, mode = wanted
        self.machine = AttemptDriver(assigned(target, 5, mode, restore=restore, device_uuids=["GPU-1"] if gpus else []))
        self.carry_out(self.machine.recover())
        if launched and not self.over:
            self.preparing = False
            self.feed(events.Prepared())

    # The agent.

    def feed(self, event: events.Event) -> None:
        before, reports, over = self.held, len(self.machine.reports), self.over
        read = HeldAssignment.FromString(before.SerializeToString())
        assert machine.handle(read, event, NOW) == machine.handle(before, event, NOW)
        effects = self.machine(event)
        if over:
            assert (self.held, len(self.machine.reports), tuple(effects)) == (before, reports, ())
        if self.dying:
            self.die()
        else:
            self.carry_out(effects)

    def carry_out(self, effects: Any) -> None:
        for effect in effects:
            self.do(effect)

    def do(self, effect: events.Effect) -> None:
        match effect:
            case events.Prepare():
                assert not self.preparing
                self.preparing = True
            case events.Launch(desired=given):
                self.control = given
                self.process = True
                if self.dying_at_launch:
                    self.die()
                else:
                    self.feed(events.Launched(process=PROCESS))
            case events.SetDesired(desired=given):
                assert self.process
                self.control = given
            case events.Kill():
                self.end(-9, killed=True)
            case events.ConfirmRelease():
                assert self.ended
                assert not self.confirming
                self.confirming = True
            case events.Persist(snapshot=snapshot):
                assert self.persisting is None, "two at a time"
                assert self.slots[slot(snapshot)] == snapshot.sequence, "it may have been written over"
                self.persisting = snapshot
            case events.Drop(snapshot=snapshot):
                if self.slots.get(slot(snapshot)) == snapshot.sequence:
                    del self.slots[slot(snapshot)]
                    self.given_back[snapshot.sequence] += 1

    def die(self) -> None:
        """The agent dies; its successor reads the journal."""
        self.dying = self.dying_at_launch = False
        self.preparing, self.persisting, self.confirming = False, None, False
        if self.over:
            self.slots.clear()  # put away, with all that was not given back
        self.machine.held = HeldAssignment.FromString(self.held.SerializeToString())
        if self.process and not self.over and not self.held.HasField("process"):
            self.machine(events.Launched(process=PROCESS))
        self.carry_out(self.machine.recover())

    @property
    def held(self) -> HeldAssignment:
        return self.machine.held

    @property
    def over(self) -> bool:
        return self.held.status.phase in OVER

    @precondition(lambda self: not self.over)
    @rule(when=st.sampled_from(["now", "next", "next", "launching"]))
    def agent_dies(self, when: str) -> None:
        self.dying = self.dying or when == "next"
        self.dying_at_launch = self.dying_at_launch or when == "launching"
        if when == "now":
            self.die()

    @rule(wanted=ORDERS, step=st.integers(-2, 3))
    def ordered(self, wanted: Order, step: int) -> None:
        before = self.held
        generation = before.status.observed_generation + step
        target, mode = wanted
        self.feed(events.AssignmentChanged(assignment=assigned(target, generation, mode)))
        if step <= 0:
            assert self.held == before

    @precondition(lambda self: self.preparing)
    @rule(well=st.sampled_from([True] * 9 + [False]))
    def preparation_ends(self, well: bool) -> None:
        self.preparing = False
        self.feed(events.Prepared() if well else events.CannotGoOn(failure=failure()))

    @precondition(lambda self: self.confirming)
    @rule()
    def gpus_are_released(self) -> None:
        self.confirming = False
        self.feed(events.GpusReleased(time=NOW, memory_bytes=None))

    @precondition(lambda self: self.persisting)
    @rule(how=st.sampled_from(["well", "well", "lost", "fault"]))
    def persisting_ends(self, how: str) -> None:
        assert self.persisting
        sequence, self.persisting = self.persisting.sequence, None
        if how == "well":
            self.feed(events.Persisted(checkpoint=checkpoint(sequence)))
        else:
            self.unsaved.add(sequence)
            self.feed(events.PersistFailed(failure=failure(), lost=how == "lost"))

    @precondition(lambda self: self.persisting)
    @rule()
    def persisting_advances(self) -> None:
        self.feed(events.Advanced(fraction=0.5))

    @rule(number=st.integers(0, 9))
    def measures(self, number: int) -> None:
        if self.alive:
            self.feed(events.Measured(progress=progress(number, number), usage=None))

    @precondition(lambda self: self.alive)
    @rule(most=st.sampled_from([1, 2, 99]))
    def reads(self, most: int) -> None:
        """As the runner does: what was written, then the end."""
        while self.alive and self.written and most:
            most -= 1
            self.machine.offset += 10
            written = self.written.pop(0)
            self.read.add(written.snapshot.sequence)
            self.feed(events.EventRead(event=written, offset=self.machine.offset))
        if self.alive and self.ended and not self.written:
            self.feed(events.Ended(exit=self.ended if self.seen else None))

    @property
    def alive(self) -> bool:
        return self.held.HasField("process") and not self.held.HasField("exit") and not self.over

    # Training.

    def end(self, code: int, *, killed: bool = False, seen: bool = True) -> None:
        if self.process and self.ended is None:
            self.ended = ProcessExit(code=code, killed=killed)
            self.seen = seen

    def save(self, *, last: bool) -> bool:
        free = next((number for number in range(REGULAR_SLOTS) if number not in self.slots), None)
        number = REGULAR_SLOTS if free is None and last else free
        if number is None:
            return False
        self.sequence += 1
        self.slots[number] = self.sequence
        at = progress(self.sequence, self.sequence)
        snapshot = Snapshot(directory=f"/shm/slot-{number}", sequence=self.sequence, last=last, progress=at)
        self.written.append(TrainingEvent(snapshot=snapshot, progress=at))
        return True

    @precondition(lambda self: self.process and self.ended is None and not self.final)
    @rule(
        what=st.sampled_from(["epoch"] * 6 + ["began", "snapshot_failed", "paused", "finished", "failed"]),
        read_at_once=st.booleans(),
    )
    def trains(self, what: str, read_at_once: bool) -> None:
        if what in ("paused", "finished"):
            assert self.save(last=True)
        said = {
            "began": TrainingEvent(began=TrainingBegan()),
            "epoch": TrainingEvent(epoch=epoch(self.sequence)),
            "paused": TrainingEvent(paused=paused()),
            "finished": TrainingEvent(finished=finished()),
            "failed": TrainingEvent(failed=failure()),
            "snapshot_failed": TrainingEvent(snapshot_failed=SnapshotFailed(reason="NO_SPACE")),
        }
        self.written.append(said[what])
        if what == "epoch":
            self.save(last=False)
        self.final = what not in ("epoch", "began", "snapshot_failed")
        if read_at_once:
            self.reads(99)

    @precondition(lambda self: self.final)
    @rule(code=st.sampled_from([0, 1]))
    def process_ends(self, code: int) -> None:
        self.end(code)

    @precondition(lambda self: not self.over)
    @rule(what=st.sampled_from(["nothing"] * 12 + ["crash", "crash unseen", "worker stops"]))
    def something_grave(self, what: str) -> None:
        if what == "worker stops":
            self.feed(events.WorkerStopping())
        elif what != "nothing":
            self.end(-11, seen=what == "crash")

    @precondition(lambda self: self.alive and self.ended is None)
    @rule()
    def silence_is_noticed(self) -> None:
        """As the runner does: first the condition, then the end, or a sign of life."""
        if not machine.is_hanging(self.held):
            self.feed(events.FoundHanging(message="no step"))
        elif machine.hang_ends_attempt(self.held):
            self.feed(events.StillHanging(message="no step"))

    @precondition(lambda self: self.alive and machine.is_hanging(self.held))
    @rule()
    def moves_on(self) -> None:
        self.feed(events.MovedOn())

    # What must hold.

    @invariant()
    def gpus_are_held_until_they_are_released(self) -> None:
        """What a persisting, or ended, attempt has let go of is free; until then someone is waiting for it."""
        status = self.held.status
        if self.over or status.phase == AssignmentStatus.PERSISTING:
            assert not status.held_device_uuids
        elif self.held.HasField("exit"):
            assert self.confirming

    @invariant()
    def conditions_begin_and_end_in_turn(self) -> None:
        began: dict[int, str] = {}
        for change in (report.condition for report in self.machine.reports if report.HasField("condition")):
            kind = change.condition.type
            assert change.ended == (kind in began and not change.condition.reason)
            assert change.ended or began.get(kind) != change.condition.reason
            if change.ended:
                del began[kind]
            else:
                began[kind] = change.condition.reason
        if not self.over:
            assert began == {each.type: each.reason for each in self.held.conditions}

    @invariant()
    def the_exit_is_told_once_and_last(self) -> None:
        kinds = self.machine.kinds
        assert kinds.count("exit") == self.over
        assert not self.over or kinds[-1] == "exit"

    @invariant()
    def what_is_wanted_is_under_way(self) -> None:
        """Nothing is forgotten, whenever the agent died."""
        if self.over:
            return
        held = self.held
        assert self.preparing == (not held.HasField("process"))
        assert (self.persisting.sequence if self.persisting else 0) == next((s.sequence for s in held.snapshots), 0)
        assert len(held.snapshots) <= 2, "of those that wait only the newest is kept"
        if held.HasField("process") and self.ended is None:
            given = held.assignment
            assert given.target != STOP
            assert not held.given_up, "it is killed at once, also by the next agent"
            assert self.control == DesiredState(generation=given.generation, target=given.target, mode=given.pause_mode)

    @invariant()
    def slots_are_given_back_exactly_once(self) -> None:
        assert all(count == 1 for count in self.given_back.values())
        on_their_way = {snapshot.sequence for snapshot in self.held.snapshots}
        on_their_way |= {event.snapshot.sequence for event in self.written if event.HasField("snapshot")}
        if not self.over:
            assert set(self.slots.values()) == on_their_way

    @invariant()
    def a_rest_rests_on_its_own_snapshot(self) -> None:
        if self.held.status.phase in (AssignmentStatus.PAUSED, AssignmentStatus.SUCCEEDED):
            how = self.machine.exit
            if self.held.given_up and self.held.final_event.WhichOneof("event") is None:
                self.what_is_given_up_is_newer_than_all_that_was_saved(how)
                return
            assert how.checkpoint == checkpoint(self.sequence).name
            assert [r.checkpoint.name for r in self.machine.reports if r.HasField("checkpoint")][-1] == how.checkpoint

    def what_is_given_up_is_newer_than_all_that_was_saved(self, how: Exit) -> None:
        told = [report.checkpoint.name for report in self.machine.reports if report.HasField("checkpoint")]
        assert how.checkpoint == (told[-1] if told else "c"), "or it rests on what it began with"
        saved = max(self.read - self.unsaved - {0}, default=0)
        assert not saved or int(how.checkpoint.rpartition("-")[2]) >= saved

    def teardown(self) -> None:
        """Everything that is under way ends; then so has the assignment."""
        if not hasattr(self, "machine"):
            return
        self.die()
        if self.preparing:
            self.preparing = False
            self.feed(events.Prepared())
        self.end(0)
        self.reads(99)
        if self.confirming:
            self.gpus_are_released()
        while self.persisting:
            self.persisting_ends("well")
        assert self.over
        self.the_exit_is_told_once_and_last()
        self.a_rest_rests_on_its_own_snapshot()


def slot(snapshot: Snapshot) -> int:
    return int(snapshot.directory.rpartition("-")[2])


World.TestCase.settings = settings(
    max_examples=400, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestWorld = World.TestCase
