"""The machine of one attempt as tests drive it: event by event, with all its reports kept."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from adjourn.desired_state import DesiredState
from adjourn.internal.v1.trainer_pb2 import (
    ProcessExit,
    Snapshot,
    TrainingBegan,
    TrainingEvent,
    TrainingFinished,
    TrainingPaused,
    TrainingProcess,
)
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, Exit, FencingToken, Report
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Failure, Pause, PauseMode, Progress
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn_worker.attempt import machine
from adjourn_worker.attempt.events import (
    AssignmentChanged,
    Effect,
    Ended,
    Event,
    EventRead,
    Launched,
    Persisted,
    Prepared,
)

NOW: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
JOB: Final = "jobs/a"
TOKEN: Final = FencingToken(attempt=3, nonce="f" * 32)
PROCESS: Final = TrainingProcess(directory="/data/attempts/a", pid=4711, nonce=TOKEN.nonce)
RUN, PAUSE, STOP = Assignment.RUN, Assignment.PAUSE, Assignment.STOP


class AttemptDriver:
    """One attempt; call it with an event, get the effects."""

    def __init__(self, given: Assignment | None = None) -> None:
        outcome = machine.take_on(given or assigned(), "/data/attempts/a", NOW)
        self.held = outcome.held
        self.reports: list[Report] = list(outcome.reports)
        self.offset = 0

    def __call__(self, event: Event) -> Sequence[Effect]:
        before = self.held.SerializeToString(deterministic=True)
        outcome = machine.handle(self.held, event, NOW)
        assert self.held.SerializeToString(deterministic=True) == before, "what is journaled was changed in place"
        self.held = outcome.held
        self.reports += outcome.reports
        return outcome.effects

    def tell(self, at: tuple[int, int] | None = None, **what: Any) -> Sequence[Effect]:
        """Feeds an event of the training process, with progress (epoch, step)."""
        self.offset += 10
        event = TrainingEvent(progress=progress(*at) if at else None, **what)
        event.time.FromDatetime(NOW + timedelta(seconds=self.offset))
        return self(EventRead(event=event, offset=self.offset))

    def end(
        self, code: int = 0, *, killed: bool = False, out_of_memory: bool = False, no_room: bool = False
    ) -> Sequence[Effect]:
        exit_ = ProcessExit(code=code, killed=killed, out_of_memory=out_of_memory, no_room=no_room)
        exit_.time.FromDatetime(NOW + timedelta(seconds=99))
        return self(Ended(exit=exit_))

    def order(
        self,
        target: Assignment.Target.ValueType,
        generation: int,
        mode: PauseMode.ValueType = PauseMode.PAUSE_MODE_UNSPECIFIED,
    ) -> Sequence[Effect]:
        return self(AssignmentChanged(assignment=assigned(target, generation, mode)))

    @property
    def phase(self) -> AssignmentStatus.Phase.ValueType:
        return self.held.status.phase

    @property
    def kinds(self) -> list[str | None]:
        return [report.WhichOneof("report") for report in self.reports]

    @property
    def exit(self) -> Exit:
        """How it ended, which was said once and last."""
        assert self.kinds.count("exit") == 1
        assert self.kinds[-1] == "exit"
        return self.reports[-1].exit

    def recover(self) -> Sequence[Effect]:
        """Returns what a successor of the agent would do."""
        return machine.recover(self.held)


def running(given: Assignment | None = None) -> AttemptDriver:
    """Returns a machine whose training process has taken its first step."""
    machine = AttemptDriver(given)
    machine(Prepared())
    machine(Launched(process=PROCESS))
    machine.tell(began=TrainingBegan())
    return machine


def pausing(*, persist: bool = False) -> AttemptDriver:
    """Returns a machine whose training process has paused, and made it known, and is about to end."""
    machine = running()
    machine.order(PAUSE, 2)
    machine.tell((1, 10), snapshot=snapshot(1, last=True))
    machine.tell((1, 10), paused=paused())
    if persist:
        machine(Persisted(checkpoint=checkpoint(1)))
    return machine


def assigned(
    target: Assignment.Target.ValueType = RUN,
    generation: int = 1,
    mode: PauseMode.ValueType = PauseMode.PAUSE_MODE_UNSPECIFIED,
    **fields: Any,
) -> Assignment:
    """`mode`: of a pause; left out: EPOCH."""
    if target == PAUSE:
        mode = mode or PauseMode.EPOCH
    return Assignment(job=JOB, token=TOKEN, generation=generation, target=target, pause_mode=mode, **fields)


def order(target: Assignment.Target.ValueType = RUN, generation: int = 1) -> DesiredState:
    given = assigned(target, generation)
    return DesiredState(generation=generation, target=target, mode=given.pause_mode)


def progress(epoch: int, step: int) -> Progress:
    return Progress(epoch=epoch, step=step)


def snapshot(sequence: int, *, slot: int | None = None, last: bool = False) -> Snapshot:
    """Slots are used in turn, as training does when all is well; the last snapshot has a third."""
    slot = 2 if last else sequence % 2 if slot is None else slot
    return Snapshot(directory=f"/shm/slot-{slot}", sequence=sequence, last=last, progress=progress(sequence, sequence))


def checkpoint(sequence: int) -> Checkpoint:
    return Checkpoint(name=f"{JOB}/checkpoints/3-ffffffff-{sequence}", epoch=sequence)


def epoch(number: int) -> EpochMetrics:
    return EpochMetrics(epoch=number)


def paused() -> TrainingPaused:
    word = TrainingPaused()
    word.boundary_time.FromDatetime(NOW + timedelta(seconds=5))
    return word


def finished() -> TrainingFinished:
    return TrainingFinished()


def failure(reason: str = "TRAINING_RAISED", message: str = "ValueError: no") -> Failure:
    return Failure(reason=reason, message=message)


EXACT: Final = Pause.EXACT
