"""A training process as the agent sees it, modelled: its state is a chain of hashes, so that a step left out, or made
twice, shows in everything that follows."""

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

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
from adjourn.pulse import Phase, Pulse
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.job_pb2 import Failure, JobSpec, Pause, PauseMode, Progress
from adjourn.v1.usage_pb2 import EpochMetrics

STEPS: Final = 2
"""In an epoch."""
SLOTS: Final = 2
"""Of snapshots, beside that of the last one."""


@lru_cache(maxsize=100_000)
def expected_state(uid: str, step: int) -> bytes:
    """Returns the state after so many steps of a run that nothing interrupts."""
    state = uid.encode()
    return hashlib.blake2b(expected_state(uid, step - 1) + b"step", digest_size=16).digest() if step else state


def expected_value(uid: str, step: int) -> float:
    """Returns the metric that an uninterrupted run tells of then."""
    return value(expected_state(uid, step))


def value(state: bytes) -> float:
    return float(int.from_bytes(state[:4], "big"))


@dataclass
class TrainingModel:
    """One training process, and the files of its attempt."""

    assignment: Assignment
    process: TrainingProcess
    desired: DesiredState
    state: bytes
    progress: Progress = field(default_factory=Progress)
    restored: bool = False
    decides_after: int = 0
    """Epoch at whose boundary it decides next whether to pause."""
    events: list[TrainingEvent] = field(default_factory=list)
    slots: dict[str, Snapshot] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)
    """State in each snapshot, by sequence."""
    sequence: int = 0
    final: bool = False
    """It has said its last word, and has yet to leave."""
    exit: ProcessExit | None = None
    gone_unseen: bool = False
    stopped: bool = False
    """By SIGSTOP."""
    hung: bool = False
    beats: int = 0
    """Signs of life."""
    steps: int = 0
    """Made in this attempt."""
    epochs: int = 0
    """Completed in this attempt."""
    idle: float = 0.0
    """Seconds in which it could have gone on, and did not."""

    @property
    def alive(self) -> bool:
        return self.exit is None and not self.gone_unseen

    @property
    def pulse(self) -> Pulse:
        if self.final:
            phase = Phase.ENDING
        elif not self.steps:
            phase = Phase.STARTING
        else:
            phase = Phase.STEPPING if self.progress.epoch_step else Phase.BOUNDARY
        return Pulse(beats=self.beats, phase=phase, steps=self.steps, epochs=self.epochs)

    @property
    def hang_is_found(self) -> bool:
        """Whether its agent finds that it hangs, and ends it."""
        spec = self.assignment.spec
        judged = self.final or self.steps > 0 or self.assignment.restore.step > 0
        return judged and spec.hang_policy != JobSpec.REPORT and spec.total_epochs > 0

    def waits(self, seconds: float) -> None:
        """Lets time pass in which it may go on, if nothing keeps it from that."""
        if self.alive and not self.stopped:
            self.idle += seconds

    def end(self, code: int, *, killed: bool = False, seen: bool = True) -> None:
        if self.alive:
            self.exit = ProcessExit(code=code, killed=killed) if seen else None
            self.gone_unseen = not seen

    def step(self, now: float) -> bool:
        """Goes on by a step, or to its end; False if it cannot."""
        if not self.alive or self.stopped or self.hung:
            return False
        self.beats += 1
        self.idle = 0.0
        if self.final:
            self.end(0)
            return True
        if not any(event.HasField("began") for event in self.events):
            verdict = Pause.EXACT if self.restored else Pause.VERDICT_UNSPECIFIED
            self.write(TrainingEvent(began=TrainingBegan(verdict=verdict)), now)
        total = self.assignment.spec.total_epochs
        if not total:
            self.write(TrainingEvent(finished=TrainingFinished()), now)
            self.final = True
            return True
        if self.progress.epoch == total:  # what it restored was the end
            self.boundary(total, now)
            return True
        self.state = hashlib.blake2b(self.state + b"step", digest_size=16).digest()
        self.progress.step += 1
        self.progress.active_duration.FromSeconds(self.progress.step)
        self.steps += 1
        self.progress.epoch_step += 1
        if self.progress.epoch_step < STEPS:
            self.amid(now)
        else:
            self.progress.epoch_step = 0
            self.epochs += 1
            self.progress.epoch += 1
            metrics = EpochMetrics(epoch=self.progress.epoch, step=self.progress.step)
            metrics.active_duration.FromSeconds(1)
            metrics.values["value"] = value(self.state)
            self.write(TrainingEvent(epoch=metrics), now)
            self.boundary(total, now)
        return True

    def amid(self, now: float) -> None:
        """Is between two steps of an epoch, where it may be cut."""
        every = self.assignment.spec.checkpoint_steps
        if self.desired.target == Assignment.PAUSE and self.desired.mode == PauseMode.STEP:
            self.pause(now)
        elif every and self.progress.step % every == 0:
            self.save(now, last=False)

    def pause(self, now: float) -> None:
        self.save(now, last=True)
        self.write(TrainingEvent(paused=TrainingPaused()), now)
        self.final = True

    def boundary(self, total: int, now: float) -> None:
        self.decides_after = min(self.progress.epoch + (self.desired.target != Assignment.PAUSE), total)
        if self.progress.epoch == total:
            self.save(now, last=True)
            self.write(TrainingEvent(finished=TrainingFinished()), now)
            self.final = True
        elif self.desired.target == Assignment.PAUSE:
            self.pause(now)
        else:
            self.save(now, last=False)

    def save(self, now: float, *, last: bool) -> None:
        free = [number for number in range(SLOTS) if f"slot-{number}" not in self.slots]
        if not free and not last:
            return
        name = f"slot-{free[0] if free else SLOTS}"
        self.sequence += 1
        snapshot = Snapshot(directory=name, sequence=self.sequence, last=last, progress=self.progress)
        self.slots[name] = snapshot
        self.contents[self.sequence] = self.state
        self.write(TrainingEvent(snapshot=snapshot), now)

    def fail(self, reason: str, now: float) -> None:
        """Raises in user code."""
        if self.alive and not self.final:
            self.write(TrainingEvent(failed=Failure(reason=reason, message="no")), now)
            self.final = True

    def write(self, event: TrainingEvent, now: float) -> None:
        event.time.FromNanoseconds(int(now * 1e9))
        event.progress.CopyFrom(self.progress)
        event.progress.report_time.FromNanoseconds(int(now * 1e9) + len(self.events))
        self.events.append(event)

    def free(self, snapshot: Snapshot) -> None:
        """Gives a slot back, unless another snapshot is there by now."""
        there = self.slots.get(snapshot.directory)
        if there is not None and there.sequence == snapshot.sequence:
            del self.slots[snapshot.directory]
