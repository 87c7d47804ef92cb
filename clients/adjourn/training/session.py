"""One attempt at a training, from the first line of user code to its end: what stands behind `Run`.

The boundary of an epoch is the moment at which the next one is asked for. Validation, scheduler and early stopping
have been done, nothing of the next epoch has: all that matters is in `State`.

Amid an epoch a run may be cut where a batch is asked for after a step (`positions`). A run that is resumed there
executes the code of that epoch anew, from its first line. What that changes is undone where the batch is asked for
again: everything is restored once more, and compared there.
"""

import contextlib
import enum
import inspect
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, SupportsFloat, TypeVar

import torch
from google.protobuf.timestamp_pb2 import Timestamp

from adjourn import failpoints, snapshots
from adjourn.internal.v1.trainer_pb2 import (
    Drilled,
    TrainingBegan,
    TrainingEvent,
    TrainingFinished,
    TrainingPaused,
    TrainingStart,
)
from adjourn.internal.v1.trainer_pb2 import SnapshotFailed as SnapshotFailedEvent
from adjourn.next_boundary import NextBoundary
from adjourn.pulse import Phase
from adjourn.shared_files import BoundaryFile, Control, ProgressPage, PulseFile
from adjourn.training.data_sources import DataSources
from adjourn.training.drill import Drill
from adjourn.training.early_stopping import EarlyStopping
from adjourn.training.errors import (
    DataChanged,
    DrillDiffers,
    EpochsNotGiven,
    NoSpace,
    SnapshotFailed,
    StateMismatch,
    StateNotEncodable,
    StateNotRestorable,
    TrainingError,
    TrainingWithoutEpochs,
)
from adjourn.training.events import EventLog, log_line
from adjourn.training.loader import Loader, Loaders, More
from adjourn.training.output_directory import OutputDirectory
from adjourn.training.positions import Record, skips_loops, tell_upcoming, uncompared
from adjourn.training.progress import ProgressTracker, copied
from adjourn.training.schedule import Schedule
from adjourn.training.snapshot.reader import SnapshotReader
from adjourn.training.snapshot.round_trip import RoundTrip
from adjourn.training.snapshot.writer import LACK_OF_SPACE, SnapshotWriter
from adjourn.training.stages import Epochs, Stages
from adjourn.training.state.detector import Detector, go_on_counting, lost
from adjourn.training.state.numerics import NondeterminismFilter, compiled
from adjourn.training.state.registry import DATA, State
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.job_pb2 import Best, Pause, PauseMode, Progress
from adjourn.v1.usage_pb2 import EpochMetrics

T = TypeVar("T")

PUBLISH_SECONDS = 0.5
RETRY_SECONDS = 10
"""Longest wait between two attempts to save the end of a run."""
END_LOOK_SECONDS = 0.1
"""Between two looks at a drill, at the end of the run."""
REFUSING_LOOKS = 2
"""Boundaries of an attempt at which untracked state ends the training: the second shows what the first epoch made. So
do as many cuts amid epochs."""
DRILL_STEPS_LIMIT = 1_000_000
"""As of `JobSpec.drill_steps`."""
ABANDONED = 75
"""Exit code of a process whose launcher is gone; EX_TEMPFAIL."""


class Place(enum.Enum):
    """Where snapshots are taken."""

    BOUNDARY = enum.auto()
    AMID = enum.auto()


@dataclass(slots=True)
class Looks:
    """What was looked for at places of one kind."""

    refusing: int = REFUSING_LOOKS
    """How many more looks end the training if they find something that certainly matters."""
    places: int = 0
    """How many places there were."""
    found: list[str] = field(default_factory=list)
    """By the newest look."""


class StopTraining(BaseException):
    """Ends user code at a boundary. Not an Exception, so that `except Exception` there does not hold it up."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code
        """Exit code of the process."""


class Session:
    """Carries a `Run` from boundary to boundary, and tells the agent."""

    def __init__(
        self,
        start: TrainingStart,
        *,
        events: EventLog,
        control: Control,
        progress_page: ProgressPage,
        pulse: PulseFile,
        boundary: BoundaryFile,
        device: torch.device,
        drill: Drill,
        output: OutputDirectory,
        restored: SnapshotReader | None = None,
        differences: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        """`differences`: (there, here) of what differs from the snapshot's environment, by name, and was allowed."""
        self.start = start
        self.device, self.output = device, output
        data = restored.value(DATA) if restored else {}
        self.tracker = ProgressTracker(restored.progress if restored else None, data)
        self._events, self._control = events, control
        self._progress_page = progress_page
        self._pulse = pulse
        self._boundary_file = boundary
        self._stepped = self._slots_prepared = self._rehearsed = False
        self._restored, self._resumed = restored, restored is not None
        self._over: int | None = data.get("over")
        """How many epochs the run was to have when its code had been executed to its end."""
        self._differences = dict(differences or {})
        self._stages = Stages(data.get("stages"))
        self._sources = DataSources(start.data_directory, events.notify, restored.sources if restored else {})
        self._state = State(
            self._data,
            restored,
            sources=self._sources.known,
            later=self._stages.later,
            late=data.get("late"),
            amid=data["epoch"] + 1 if "running" in data else None,
        )
        self._round_trip = RoundTrip(self._data)
        directories = [start.snapshot_directory, start.fallback_snapshot_directory]
        self._writer = SnapshotWriter([Path(each) for each in directories if each], device, self._round_trip, output)
        self._detector = Detector(own=(self._round_trip,), code_directory=start.code_directory)
        self._nondeterminism = NondeterminismFilter()
        self._drill, self._strict = drill, True
        self._looks = {place: Looks() for place in Place}
        """Since the stage began."""
        self._loaders = Loaders(
            start.spec.seed,
            self._batch_taken,
            steps=lambda: self.tracker.step,
            asked=self._asked,
            returned=self._returned,
            saved=data.get("loaders"),
        )
        self._cut_place: Mapping[str, Any] | None = None
        """Where the loaders go on from the cut that is being made."""
        self._going_on: Mapping[str, Any] | None = data if "running" in data else None
        """Component DATA of a run that was cut amid an epoch, until it has come back to where that was."""
        self._expected: Mapping[str, str] = {}
        """Digests of what is restored."""
        self._schedule = Schedule(start.spec)
        self._open = False
        self._stepless = False
        """No step was made in the newest epoch."""
        self._behind = False
        """User code has left the loop over epochs, and no epoch has begun since."""
        self._begun = self._announced = False
        self._left: int | None = None
        self._error: TrainingError | None = None
        self._launcher, self._desired = os.getppid(), control.word
        self._publish_time = 0.0
        self._verdict = Pause.Verdict.VERDICT_UNSPECIFIED
        self._verdict_reasons: list[str] = []
        self._remarked: set[str] = set()
        self._unsaved: tuple[str, bool] | None = None
        """Reason of the last snapshot that failed, and whether it was to be the last; None: it did not fail."""
        self._restored_epoch, self._restored_step = self.tracker.epoch, self.tracker.step
        self._decide_after(self.tracker.epoch + 1)

    # What user code calls, through `Run`.

    @property
    def epoch(self) -> int:
        """Epochs completed, one that was left by `break` too. In code that runs again: when it was executed first."""
        if (here := self._stages.here) is not None:
            return here[0]
        return self.tracker.epoch + (self._open and self._behind)

    @property
    def steps(self) -> int:
        return self.tracker.step if self._stages.here is None else self._stages.here[1]

    @property
    def catching_up(self) -> bool:
        return self._stages.passing and self._stages.number > 0

    def track(self, subjects: Mapping[str, Any]) -> None:
        if self._open and not self._behind:
            for name in subjects.keys() & self._state.tracked.keys():
                raise ValueError(
                    f"{name!r} is taken: within an epoch, run.replace({name}=...) gives the name to another object,"
                    " which begins anew; between two loops over run.epochs(n), track does"
                )
            self._track_within(subjects, replacing=False)
            return
        copied_now = not (self._stages.number or self._stages.later)  # else where the stage begins
        if copied_now:
            self._round_trip.prepare(subjects)
        try:
            with self._errors_kept():
                self._state.add(subjects, replacing=self._stages.number > 0)
        except BaseException:
            if copied_now:
                self._round_trip.discard()
            raise
        if not self._stages.passing:
            for name in subjects:
                self._state.late.pop(name, None)
        self._follow()

    def fetch(self, uri: str) -> Path:
        if not is_users_thread():
            self._pulse.beat(Phase.WAITING)
        try:
            return self._sources.path(uri, self._await_agent)
        except DataChanged as error:
            self._error = error  # such a run must not finish well, even if user code goes on
            raise
        finally:
            if not is_users_thread():
                self._pulse.beat(self._phase())

    def _await_agent(self, seconds: float) -> None:
        if self._abandoned and not is_users_thread():
            self._leave(ABANDONED)
        time.sleep(seconds)

    def replace(self, subjects: Mapping[str, Any]) -> None:
        if unknown := sorted(subjects.keys() - self._state.tracked.keys()):
            raise ValueError(f"nothing is tracked as {unknown[0]!r}: run.track({unknown[0]}=...)")
        if not self._stages.number:
            raise RuntimeError("run.replace() was called before the first epoch: track what is there")
        if self._open and not self._behind:
            self._track_within(subjects, replacing=True)
        else:
            self.track(subjects)

    def _track_within(self, subjects: Mapping[str, Any], *, replacing: bool) -> None:
        """Tracks what is made within an epoch; loads it if a run goes on that had it, unless it is `replacing`."""
        with self._errors_kept():
            self._state.add(subjects, replacing=replacing, load=False)
            self._renew_copies()
            self._state.changed.clear()
            self._writer.renew()
            awaited = set() if replacing else set(self._state.awaited)
            drawn = not replacing and self._state.load_late(subjects, self._expected)
        if drawn and self._going_on is None:
            self._lower_verdict(
                f"random numbers were drawn in epoch {self.tracker.epoch + 1} before {', '.join(subjects)} was tracked,"
                " and are taken back: build it before the loop"
            )
        self._state.late |= {name: self.tracker.epoch + 1 for name in subjects if name not in awaited}
        looks = self._looks[Place.BOUNDARY]
        looks.refusing = max(looks.refusing, 1)
        self._release()
        self._follow()

    def _lower_verdict(self, reason: str) -> None:
        self._verdict, self._verdict_reasons = Pause.Verdict.UNPROVEN, [*self._verdict_reasons, reason]
        self._state.unproven.append(reason)

    def _release(self) -> None:
        """Lets go of what is restored, once all of it is."""
        if self._begun and self._going_on is None and not self._state.awaited:
            self._state.restored()

    def _follow(self) -> None:
        for item in self._state.tracked.values():
            if isinstance(item.subject, EarlyStopping):
                item.subject.follow(lambda: self._loaders.epoch)

    def add_loader(self, **options: Any) -> Loader:
        return self._loaders.add(**options)

    def ignore(self, subject: Any, reason: str) -> None:
        if isinstance(subject, Loader):
            subject.may_be_kept = True
        self._detector.ignore(subject, reason)

    def ask_for_drill(self, steps: int) -> None:
        if not 1 <= steps <= DRILL_STEPS_LIMIT:
            raise ValueError(f"a drill of {steps} steps; it has 1 to {DRILL_STEPS_LIMIT:,}")
        if self._stages.number or self.start.spec.total_epochs == 0:
            raise RuntimeError("run.drill() is for a training with epochs, and is called before the first of them")
        self._drill.ask(steps)

    def epochs(self, count: int | None = None, *, strict: bool = True) -> Epochs:
        if count is not None and count < 0:
            raise ValueError(f"a stage of {count} epochs")
        return Epochs(lambda: self._stage(count, strict=strict))

    def _stage(self, count: int | None, *, strict: bool) -> Iterator[int]:
        if self.start.spec.total_epochs == 0:
            raise EpochsNotGiven
        if not self._enter_stage(strict=strict):
            return
        number = self._stages.number
        while self.tracker.epoch < self.start.spec.total_epochs and self._stages.left(count):
            self._open_epoch()
            try:
                yield self.tracker.epoch + 1
            except GeneratorExit:  # by `break`, or an exception
                self._leave_loop()
                raise
            if self._left is not None:  # user code caught what should have ended it
                raise StopTraining(self._left)
            if self._stages.number != number:
                raise RuntimeError("another run.epochs() was begun meanwhile: the loop over this one is over")
            self._end_epoch()
            self._stages.count_epoch()
            self._boundary()
        self._leave_loop()

    def step(self, loss: torch.Tensor | SupportsFloat | None) -> None:
        tracker = self.tracker
        tracker.step += 1
        tracker.epoch_step += 1
        if loss is not None:
            tracker.losses.append(copied(loss))
        self._stepped = True
        self._pulse.step(self._phase())
        tracker.stepped = time.monotonic()
        if (
            tracker.stepped >= self._publish_time
            or self._control.word != self._desired
            or tracker.step >= self._schedule.step
        ):
            self._publish()
        if tracker.step == self._drill.step:
            self._compare_here()

    def log(self, values: Mapping[str, SupportsFloat]) -> None:
        if not self._stages.passing:
            self.tracker.record(values, in_epoch=self._open)

    # What the process calls.

    def begin_task(self) -> None:
        """Begins what has no epochs."""
        self.tracker.start()
        self._pulse.beat(Phase.UNKNOWN)
        self.announce()

    def announce(self) -> None:
        """Says, once, that training has begun."""
        if not self._announced:
            self._announced = True
            began = TrainingBegan(
                verdict=self._verdict,
                verdict_reasons=self._verdict_reasons,
                restored_epoch=self._restored_epoch,
                restored_step=self._restored_step,
            )
            self.append(TrainingEvent(began=began))

    def finish(self) -> int:
        """Ends the attempt after user code has returned; returns the exit code.

        Waits for as long as the end of the run cannot be saved. Raises TrainingError; StopTraining if the launcher is
        gone meanwhile.
        """
        if self._left is not None:  # user code caught what should have ended it
            return self._left
        if self._error is not None:
            raise self._error
        if self.start.spec.total_epochs > 0:
            if not self._begun:
                raise self._too_few_stages()
            self._decide_after(self.start.spec.total_epochs)
            if self._open:
                self._end_epoch()
            self.announce()
            if self._drill.wanted:
                self._compare_here()
            self._over = self.start.spec.total_epochs
            self._judge_drill()
            if self._drill.open:  # if it differs, the job fails, and may be resumed
                self._state.suspected.append("a drill was not over when the end of the run was saved")
            self._save_end()
            self._await_drill()
        return self._finished()

    @property
    def over(self) -> bool:
        """The code of this run has been executed to its end: the snapshot was taken there, or is about to be.

        If it is to have more epochs since, it is not.
        """
        return self._over == self.start.spec.total_epochs

    def finish_again(self) -> int:
        """Ends the attempt if it goes on from the end of the run: all that is missing is that somebody hears of it.

        The code of the run is not executed once more: what stands behind its epochs would change the end. What was
        saved is saved again, as this attempt's. Raises RestoreDiverged; StopTraining as `finish`.
        """
        assert self._restored
        self._state.keep(self._restored)
        self._state.compare(
            self.start.restore_digests or snapshots.component_digests(Path(self.start.restore_directory))
        )
        self.tracker.values = dict(self.tracker.metrics)
        self._judge()
        self.announce()
        self._save_end()
        return self._finished()

    def _finished(self) -> int:
        failpoints.hit("training.before-finish")
        self.append(TrainingEvent(finished=TrainingFinished()))
        self._pulse.beat(Phase.ENDING)
        return 0

    def append(self, event: TrainingEvent) -> None:
        """Tells the agent, with the progress at this moment.

        Waits for as long as the disk has no room for it: what the agent is not told did not happen. Raises StopTraining
        if the launcher is gone meanwhile.
        """
        event.progress.CopyFrom(self._progress())
        if not self._appended(event):
            while not self._appended(event):
                self._wait(PUBLISH_SECONDS)
            self._pulse.beat(self._phase())

    def _appended(self, event: TrainingEvent) -> bool:
        try:
            self._events.append(event)
        except OSError as error:
            if error.errno not in LACK_OF_SPACE:
                raise
            return False
        return True

    def end_drill(self) -> None:
        """Ends what the attempt has started beside itself."""
        self._drill.stop()

    @contextlib.contextmanager
    def _errors_kept(self) -> Iterator[None]:
        """Remembers what went wrong in a restore: such a run must not finish well, even if user code goes on."""
        try:
            yield
        except StateNotEncodable:
            raise  # nothing was tracked; user code may do without
        except TrainingError as error:
            self._error = error
            raise

    # The course of stages.

    def _enter_stage(self, *, strict: bool) -> bool:
        """Begins a stage of the training; returns False if it is over in a resumed run.

        An epoch that was left by `break` ends here: its boundary belongs to this stage, for what is tracked is that of
        this stage by now, and a resumed run must not go on with the one before.
        """
        if self._left is not None:  # user code caught what should have ended it
            raise StopTraining(self._left)
        if self._error is not None:
            raise self._error
        if left_open := self._open:
            self._end_epoch()
        self._strict = strict
        going_on = self._stages.enter(self.tracker.epoch, self.tracker.step)
        self._loaders.begin_stage()
        if not going_on:
            self._loaders.positions.leave(self._stages.ended_at, passing=True)
            return False
        with self._errors_kept():
            if not self._begun:
                self._begin()
            elif self.tracker.epoch < self.start.spec.total_epochs:
                self._begin_stage()
        if left_open:
            self._boundary()
        return True

    def _leave_loop(self) -> None:
        self._behind = True
        self._loaders.positions.leave(self.epoch)

    def _begin(self) -> None:
        self._begun = True
        if self._restored is not None:
            self._restore(self._restored)
            self._restored = None
        self._round_trip.seal()
        self._state.changed.clear()
        self._nondeterminism.install()
        self._detector.begin(self._state.tracked, self._loaders, inspect.currentframe())
        self.tracker.start()
        self._schedule.begin(self.tracker.step, time.monotonic())
        self._progress_page.write(self._progress())
        if self.start.spec.total_epochs > self.tracker.epoch:
            self._check_room()

    def _restore(self, restored: SnapshotReader) -> None:
        saved = restored.value(DATA)
        self.output.put_back(Path(self.start.restore_directory))
        if self._stages.later:
            self._renew_copies()  # as they are built, before they are loaded
            self._loaders.put_back(saved["loaders"])
        if self._going_on is not None:
            self.tracker.put_back(saved["step"], saved["running"])
        else:
            self.tracker.stand_at(saved["step"])
        self._state.complete()
        self._state.groups = saved.get("groups", {})
        self._loaders.check(saved["loaders"])
        directory = Path(self.start.restore_directory)
        self._expected = self.start.restore_digests or snapshots.component_digests(directory)
        # Amid an epoch the rest is compared where the run was cut: until then user code may change it.
        self._state.compare(self._expected, lambda name: self._going_on is None or name == DATA)
        self._state.regroup(self._state.tracked)
        self._release()
        self._judge(*(self._carried_otherwise() if self._stages.later else ()))
        if self._differences:
            self._state.drilled = None  # that was in another environment

    def _carried_otherwise(self) -> list[str]:
        """Returns sentences on variables that were others when the snapshot's stage began in the run that took it."""
        changed = self._detector.carried_otherwise(
            self._state.tracked, self._loaders, inspect.currentframe(), self._stages.carried
        )
        return [
            f"the value of {place} is not that of the run before when it began stage {self._stages.number}: the code"
            " between stages runs again, and knows only what is tracked. Track it, or say run.ignore"
            for place in changed
        ]

    def _begin_stage(self) -> None:
        """Begins a later stage than the first of this attempt."""
        if self._state.changed or not self._writer.knows(self._state):
            self._renew_copies()
            self._writer.renew()
        self._state.changed.clear()
        self._state.suspected = []
        self._looks = {place: Looks() for place in Place}
        self._detector.begin(self._state.tracked, self._loaders, inspect.currentframe())
        self._stages.carried = self._detector.carried(self._state.tracked, self._loaders, inspect.currentframe())

    def _renew_copies(self) -> None:
        self._round_trip.renew(self._state.tracked, self._state.changed)

    def _too_few_stages(self) -> TrainingError:
        """Returns why user code must not end without having begun the stage that is to be trained."""
        if not self._stages.number:
            return TrainingWithoutEpochs()
        return StateMismatch(
            f"the snapshot was taken in a later run.epochs() than the {self._stages.number} that the code has come to"
        )

    # The course of an epoch.

    def _judge(self, *lost: str) -> None:
        """Says what the resume is worth; `lost`: what more than its remarks a comparison has shown."""
        self._state.unproven += lost
        self._verdict, self._verdict_reasons = verdict(
            self._state.unproven, self._differences, drilled=self._state.drilled is True
        )

    def _check_room(self) -> None:
        """Says now, and not after the first epoch, that there is no room for snapshots.

        The optimizers of a new run have no state yet: room is looked for again when they have.
        """
        try:
            self._writer.check_room(self._state)
            if self._resumed:
                self._prepare_slots()
        except NoSpace as error:
            self._say_unsaved(error, last=False)
        except StateNotEncodable:
            pass  # the first boundary says it, if it is still so

    def _prepare_slots(self) -> None:
        """Begins to make memory for snapshots ready, once it is known how much: the first shall not wait for it."""
        if not self._slots_prepared:
            self._slots_prepared = True
            self._writer.prepare(self._state)

    def _open_epoch(self) -> None:
        self._loaders.open_epoch(self.tracker.epoch + 1)
        self._open, self._behind = True, False
        self._state.note_groups()
        self._aim()
        if self._going_on is None:
            self.tracker.begin_epoch(self._learning_rate())
        else:
            self.tracker.go_on()
        if self.tracker.steps_per_epoch is None and (first := self._loaders.first) is not None:
            self.tracker.steps_per_epoch = first.length

    def _end_epoch(self) -> None:
        self._ensure_back()
        self._open = False
        self._loaders.positions.cut_wanted = False
        self._loaders.close_epoch()
        self._stepless = self.tracker.epoch_step == 0
        self.tracker.end_epoch()
        self._pulse.epoch()
        self._publish()
        best = self._best()
        metrics = EpochMetrics(
            epoch=self.tracker.epoch,
            attempt=self.start.attempt,
            step=self.tracker.step,
            values=self.tracker.values,
            best=best is not None and best.epoch == self.tracker.epoch,
        )
        metrics.active_duration.FromTimedelta(timedelta(seconds=self.tracker.epoch_seconds))
        metrics.end_duration.FromTimedelta(timedelta(seconds=self.tracker.end_seconds))
        metrics.total_active_duration.FromTimedelta(timedelta(seconds=self.tracker.active_seconds))
        metrics.time.GetCurrentTime()
        self.append(TrainingEvent(epoch=metrics))

    def _boundary(self) -> None:
        spec = self.start.spec
        if self.tracker.epoch == spec.total_epochs:
            return  # `finish` follows
        reached = Timestamp()
        reached.GetCurrentTime()
        pausing = self._decide()
        if self._stepless and self._drill.wanted:
            self._compare_here()
        if not self._behind:  # else what user code carries into the next stage is compared in a resumed run
            self._look(Place.BOUNDARY, pausing=pausing)
        self._judge_drill()
        self._leave_if(pausing=pausing, reached=reached)
        if pausing:
            return  # the pause stays pending, and training goes on to the next boundary
        due = self._schedule.due_after(self.tracker.epoch) or self._is_due()
        if due or not self._writer.proven:
            self._save(last=False, keep=due)

    def _decide(self) -> bool:
        """Returns whether training pauses at this boundary, and lets the agent know for certain: see `next_boundary`.

        What `control` says later counts at the next place.
        """
        epoch = self.tracker.epoch
        failpoints.hit("training.before-deciding")
        self._boundary_file.write(NextBoundary(epoch=epoch, deciding=True))
        failpoints.hit("training.deciding")
        pausing = self._control.read().target == Assignment.PAUSE
        failpoints.hit("training.control-read")
        self._decide_after(epoch if pausing else epoch + 1)
        failpoints.hit("training.decided")
        return pausing

    def _leave_if(self, *, pausing: bool, reached: Timestamp) -> None:
        """Ends the attempt with a snapshot if it is to pause here or its launcher is gone; returns if it goes on."""
        if self._abandoned or pausing:
            self._drill.stop()
        if self._abandoned:
            self._save(last=True)
            self._leave(ABANDONED)
        if pausing:
            if self._save(last=True):
                self.append(TrainingEvent(paused=TrainingPaused(boundary_time=reached)))
                self._pulse.beat(Phase.ENDING)
                self._leave(0)
            self._schedule.unsaved(time.monotonic())
            self._decide_after(self.tracker.epoch + 1)

    def _decide_after(self, epoch: int) -> None:
        """Tells the agent where training decides next whether it pauses; nothing is decided at the end of the run."""
        if self.start.spec.total_epochs > 0:
            self._boundary_file.write(NextBoundary(epoch=min(epoch, self.start.spec.total_epochs)))

    @property
    def _abandoned(self) -> bool:
        """Whether the launcher is gone: nobody will see this process end."""
        return os.getppid() != self._launcher

    # Cuts amid an epoch.

    def _asked(self, record: Record, more: More) -> None:
        """Cuts the run if that is due and possible: a batch is asked for, and the code behind the last step is done.

        A later loop may fail if one of the same epoch before it gets no batch any more, and so may what follows a loop
        that gets none: there a run is not cut.
        """
        if self._left is not None:
            raise StopTraining(self._left)
        if self._going_on is not None or is_users_thread():
            return
        place = self._loaders.state(record)
        if skips_loops(place["positions"]) or not more():
            return
        tell_upcoming(place["positions"], record)
        self._cut_place = place
        try:
            self._cut()
        finally:
            self._cut_place = None
            self._aim()

    def _cut(self) -> None:
        reached = Timestamp()
        reached.GetCurrentTime()
        pausing = self._decide_amid()
        due = self._is_due()
        if not (pausing or due or self._abandoned):
            return
        self._look(Place.AMID, pausing=pausing)
        self._judge_drill()
        self._state.standing = self._detector.changed(self._stands())
        self._leave_if(pausing=pausing, reached=reached)
        if due and not pausing:
            self._save(last=False)
        self._state.standing = {}

    def _decide_amid(self) -> bool:
        """Returns whether training pauses here; the agent is told of no epoch from then on."""
        self._boundary_file.write(NextBoundary(epoch=self.tracker.epoch + 1, deciding=True))
        failpoints.hit("training.deciding-amid")
        pausing = self._pause_wanted
        if not pausing:
            self._decide_after(self.tracker.epoch + 1)
        return pausing

    @property
    def _pause_wanted(self) -> bool:
        """Whether training is to pause at a step."""
        desired = self._control.read()
        return desired.target == Assignment.PAUSE and desired.mode == PauseMode.STEP

    def _is_due(self) -> bool:
        return self._schedule.due(self.tracker.step, time.monotonic())

    def _aim(self) -> None:
        """Has the run be cut where it next may be, if that is wanted."""
        wanted = self._schedule.wants_cut(self.tracker.step, time.monotonic(), pausing=self._pause_wanted)
        self._loaders.positions.cut_wanted = wanted and self._open

    def _returned(self) -> None:
        """Goes on where the run was cut: undoes what the code of the epoch, executed anew, has changed, and compares.

        Raises StateMismatch or RestoreDiverged.
        """
        if self._going_on is None or is_users_thread():
            return
        with self._errors_kept():
            self._state.put_back()
            self.output.put_back(Path(self.start.restore_directory))
            self._loaders.put_fields_back(self._going_on["loaders"])
            self._state.compare(self._expected, lambda name: name != DATA)
        self.tracker.put_back(self._going_on["step"], self._going_on["running"])
        go_on_counting(self._state.standing)
        self._judge(
            *lost(self._state.standing, self._stands()),
            *(
                f"loader {name} goes on amid a pass from the state_dict() of its dataset, and whether that is the same"
                " place was not compared: its next batch was not known where the run was cut"
                for name in uncompared(self._going_on["loaders"]["positions"])
            ),
        )
        self._going_on, self._state.standing = None, {}
        self._release()
        self._loaders.positions.back()
        self._publish_time = 0.0  # the first step says that training has begun

    def _stands(self) -> dict[str, str]:
        return self._detector.standing(self._state.tracked, self._loaders, inspect.currentframe())

    def _ensure_back(self) -> None:
        """Raises StateMismatch if the resumed epoch is over, and never came to where it was cut."""
        if self._going_on is not None:
            with self._errors_kept():
                raise StateMismatch(
                    f"the run was cut after step {self._going_on['running']['step']} of epoch {self.tracker.epoch + 1},"
                    " and the code of that epoch, executed anew, ended without asking for the batch that was next"
                )

    # What is looked for.

    def _look(self, place: "Place", *, pausing: bool) -> None:
        """Finds what decides how training goes on and is in no snapshot; raises UntrackedState at the first places.

        Later, what is found lowers the verdict of a resume: refusing then would cost more than it saves.
        """
        looks = self._looks[place]
        looks.places += 1
        if looks.refusing > 0 or pausing or looks.places.bit_count() == 1:  # the 4th, 8th, 16th: a look takes its time
            found = self._detector.findings(
                self._state.tracked, self._loaders, inspect.currentframe(), amid=place is Place.AMID
            )
            if self._strict and looks.refusing > 0:
                with self._errors_kept():
                    self._detector.refuse(found)
            looks.refusing -= 1
            looks.found = [str(finding) for finding in found]
        self._state.suspected = looks.found
        self._state.unproven = list(
            dict.fromkeys(
                [
                    *self._state.unproven,
                    *self._detector.accepted,
                    *(f"{name} is not deterministic" for name in self._nondeterminism.heard()),
                    *compiled(),
                ]
            )
        )

    def _leave(self, code: int) -> None:
        self._left = code
        raise StopTraining(code)

    # Saving.

    def _save(self, *, last: bool, keep: bool = True, end: bool = False) -> bool:
        """Takes a snapshot; returns whether there is a new one.

        `keep` is False for one that only shows, at the first boundary, that the run can be saved and resumed. `end` is
        True at the end of the run, which nobody resumes. A failure is an event, and training goes on. Two failures are
        raised: StateNotEncodable at the end of the run, and StateNotRestorable for the first state of a new run.
        """
        self._pulse.beat(Phase.SAVING)
        try:
            snapshot = self._writer.save(
                self._state, self._progress(), self.tracker.values, last=last, rehearse=not end
            )
        except (SnapshotFailed, StateNotEncodable, StateNotRestorable) as error:
            if self._is_fatal(error, end=end):
                raise
            self._say_unsaved(error, last=last)
            return False
        finally:
            self._pulse.beat(self._phase() if self._open else Phase.BOUNDARY)
            if keep:
                self._schedule.begin(self.tracker.step, time.monotonic())
        self._rehearsed |= self._writer.proven
        for remark in set(self._state.remarks) - self._remarked:
            log_line(f"a resume will be UNPROVEN: {remark}")
            self._remarked.add(remark)
        if snapshot is None:
            return False
        if keep or self._unsaved is not None:  # a snapshot is what ends the condition of an earlier failure
            failpoints.hit("training.before-snapshot-event")
            self.append(TrainingEvent(snapshot=snapshot))
            failpoints.hit("training.after-snapshot-event")
        else:
            self._writer.release(snapshot)
        self._unsaved = None
        if self._drill.due and not last:
            self._drill.begin(snapshot)
        return True

    def _is_fatal(self, error: TrainingError, *, end: bool) -> bool:
        if isinstance(error, StateNotRestorable):
            return error.damaged or not (self._resumed or self._rehearsed)
        return end and isinstance(error, StateNotEncodable)

    def _save_end(self) -> None:
        """Saves the end of the run; raises StateNotEncodable.

        Tries again for as long as there is no room: a run that was trained to its end is not trained again because its
        last snapshot failed.
        """
        seconds = PUBLISH_SECONDS
        while not self._save(last=True, end=True):
            self._wait(seconds)
            seconds = min(2 * seconds, RETRY_SECONDS)

    def _wait(self, seconds: float) -> None:
        """Waits, and goes on publishing progress; raises StopTraining if the launcher is gone."""
        self._pulse.beat(Phase.WAITING)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._abandoned:
                self._leave(ABANDONED)
            self._progress_page.write(self._progress())
            time.sleep(min(left, PUBLISH_SECONDS))

    def _say_unsaved(self, error: TrainingError, *, last: bool) -> None:
        """Tells the agent that a snapshot failed, once for each reason, and the log each time."""
        log_line(f"training goes on without a snapshot of epoch {self.tracker.epoch}. {error}")
        if self._unsaved != (error.reason, last):
            self._unsaved = (error.reason, last)
            failed = SnapshotFailedEvent(reason=error.reason, message=str(error), last=last)
            self.append(TrainingEvent(snapshot_failed=failed))

    # The drill.

    def _compare_here(self) -> None:
        """Keeps how the state stands where the drill compares."""
        self._pulse.beat(Phase.SAVING)
        try:
            self._drill.compare_with(self._standing())
        except StateNotEncodable as error:
            log_line(f"the drill ends: its state cannot be compared at step {self.tracker.step}. {error}")
            self._drill.stop(again=False)
        self._pulse.beat(self._phase())

    def _standing(self) -> Drilled:
        digests = self._state.digests()
        del digests[DATA]  # a resumed run may tell the same place in other words
        return Drilled(epoch=self.tracker.epoch, step=self.tracker.step, digests=digests)

    def _judge_drill(self, *, saved: bool = False) -> None:
        """Draws the conclusions from a drill that is over; raises DrillDiffers, once what was trained is saved.

        Operations that are known not to be deterministic come to other bits by themselves: then it lowers the verdict.
        """
        outcome = self._drill.outcome()
        if outcome is None:
            return
        self._state.drilled = not outcome.difference
        if outcome.difference:
            error = DrillDiffers(outcome.difference, [*self._state.unproven, *self._state.suspected])
            self._state.unproven.append(f"a drill did not come to the same bits: {outcome.difference}")
            if self._strict and not self._nondeterminism.heard():
                if not saved:
                    self._save(last=True, end=self.over)
                with self._errors_kept():
                    raise error
            log_line(str(error))

    def _await_drill(self) -> None:
        """Waits, at the end of the run, for the second process of a drill, and not for long."""
        deadline = time.monotonic() + self._drill.patience
        while self._drill.runs and time.monotonic() < deadline:
            self._wait(END_LOOK_SECONDS)
        if self._drill.runs:
            log_line(
                f"the drill shows nothing: {self._drill.patience:.0f} s after the end its second process is not done"
            )
        self._judge_drill(saved=True)

    # What is told.

    def _phase(self) -> Phase:
        """Returns what training does after a step, or a batch."""
        if self.start.spec.total_epochs == 0:
            return Phase.UNKNOWN
        if not self._stepped:
            return Phase.STARTING
        if not self._open:
            return Phase.BOUNDARY
        if self.tracker.steps_left:
            return Phase.STEPPING
        return Phase.BOUNDARY if self.tracker.length_known else Phase.IN_EPOCH

    def _batch_taken(self, over: bool) -> None:
        """Shows that a batch was taken of a loader; `over`: there is none left, so that validation may follow."""
        phase = self._phase()
        self._pulse.beat(Phase.BOUNDARY if over and phase in (Phase.STEPPING, Phase.IN_EPOCH) else phase)

    def _publish(self) -> None:
        if not self._begun and self.start.spec.total_epochs > 0:
            if not self._stages.number:
                raise RuntimeError("run.step() was called before run.epochs()")
            return  # it was counted when this code was executed first
        if self._going_on is None:
            with self._errors_kept():
                self._state.check_awaited()
        self._desired = self._control.word
        self._aim()
        self._publish_time = min(time.monotonic() + PUBLISH_SECONDS, self._schedule.time)
        self._progress_page.write(self._progress())
        if self._going_on is None:
            self.announce()
        if self._open:  # a step was made, and optimizers have a state
            self._prepare_slots()

    def _progress(self) -> Progress:
        return self.tracker.progress(self._best())

    def _data(self) -> dict[str, Any]:
        data = {
            "epoch": self.tracker.epoch,
            "step": self.tracker.step,
            "loaders": self._cut_place or self._loaders.state(),
            "stages": self._stages.state(),
            "late": dict(self._state.late),
        }
        if self._over is not None:
            data["over"] = self._over
        if self.tracker.epoch_step and (self._open or self._going_on is not None):
            data["running"] = self.tracker.running()
            if regrouped := self._state.regrouped(self.tracker.epoch + 1):
                data["groups"] = regrouped
        return data

    def _of_kind(self, kind: type[T]) -> T | None:
        subjects = (item.subject for item in self._state.tracked.values())
        return next((subject for subject in subjects if isinstance(subject, kind)), None)

    def _best(self) -> Best | None:
        stopping = self._of_kind(EarlyStopping)
        if stopping is None and self.over and self._restored and self._restored.progress.HasField("best"):
            return self._restored.progress.best
        if stopping is None or stopping.best is None:
            return None
        return Best(metric=stopping.metric, value=stopping.best, epoch=stopping.best_epoch, stale_epochs=stopping.stale)

    def _learning_rate(self) -> float | None:
        optimizer = self._of_kind(torch.optim.Optimizer)
        return None if optimizer is None else float(optimizer.param_groups[0]["lr"])


def is_users_thread() -> bool:
    """Tells whether a thread of user code asks for batches: where the training is, only its own knows."""
    return threading.current_thread() is not threading.main_thread()


def verdict(
    remarks: Sequence[str], differences: Mapping[str, tuple[str, str]], *, drilled: bool = False
) -> tuple[Pause.Verdict.ValueType, list[str]]:
    """Returns what can be said of a resume whose state was compared and is equal, and why it is not EXACT.

    `remarks` say what is not in the state, `differences` what the environment was and is; `drilled`: a drill of the job
    came to the same bits.
    """
    reasons = [*remarks, *(f"{name} was {there}, is {here}" for name, (there, here) in differences.items())]
    if remarks:
        return Pause.Verdict.UNPROVEN, reasons
    if differences:
        return Pause.Verdict.WITHIN_TOLERANCE, reasons
    return Pause.Verdict.EXACT_REPLAYED if drilled else Pause.Verdict.EXACT, reasons
