"""A training process as the agent sees it, without torch: it does what a test writes into a FIFO, line by line.

`step` shows a step in its pulse; `epoch` ends an epoch, takes a snapshot if a slot is free, and pauses if it should;
`half` goes on by half an epoch, and does the same there, where it pauses in mode STEP only;
`open` and `read` do of that only that it says that it decides, and that it reads what is wanted; `finish` and `fail`
end the training as their names say; `exit N` leaves without a word; `garble NAME` spoils a file of the attempt, `lose`
its snapshots; `print TEXT` prints it; `metrics N` has epochs bring metrics; `fill` leaves no room for snapshots until
`room`; `storm` notifies without end, until there is a file `calm`.
"""

import json
import os
import struct
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format

from adjourn import frames, snapshots
from adjourn.desired_state import DesiredState
from adjourn.internal.v1.trainer_pb2 import (
    Snapshot,
    SnapshotFailed,
    TrainingBegan,
    TrainingEvent,
    TrainingFinished,
    TrainingPaused,
    TrainingStart,
)
from adjourn.next_boundary import NextBoundary
from adjourn.pulse import Phase
from adjourn.shared_files import BoundaryFile, Control, ProgressPage, PulseFile
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.job_pb2 import Failure, Pause, PauseMode, Progress
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn_worker.host.notify import notify

ENTRY: Final = "tests.harness.emulated_training:main"
SOFTWARE: Final = "tests.harness.emulated_training:software"
STEPS: Final = 10
"""In an epoch."""
GARBAGE: Final = b"\xff" * 64


class Emulated:
    """One attempt."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.start = TrainingStart.FromString((directory / "start").read_bytes())
        self.progress = Progress()
        self.pulse: PulseFile | None = None
        self.wanted: DesiredState | None = None
        self.sequence = 0
        self.losing = False
        self.full = False
        self.values: dict[str, float] = {}
        self.verdict = Pause.VERDICT_UNSPECIFIED
        if self.start.restore_directory:
            restored = Path(self.start.restore_directory)
            json_format.ParseDict(dict(snapshots.read_state(restored).progress), self.progress)
            same = snapshots.component_digests(restored) == dict(self.start.restore_digests)
            self.verdict = Pause.EXACT if same else Pause.UNPROVEN
        self.decide_after(self.progress.epoch + 1)

    def run(self) -> int:
        self.append(TrainingEvent(began=TrainingBegan(verdict=self.verdict)))
        with Path(self.start.spec.args["commands"]).open() as commands:  # type: ignore[arg-type]  # it is a string
            for line in commands:
                name, *words = line.split()
                code = getattr(self, name)(*words)
                if code is not None:
                    return int(code)
        return 1

    def step(self) -> None:
        self.pulse = self.pulse or PulseFile(self.directory / "pulse")
        self.pulse.step(Phase.IN_EPOCH)
        notify(self.start.notify_socket)

    def half(self) -> int | None:
        self.progress.step += STEPS // 2
        self.progress.epoch_step += STEPS // 2
        self.show_progress()
        with closing(Control(self.directory / "control")) as control:
            wanted = control.read()
        pausing = (wanted.target, wanted.mode) == (Assignment.PAUSE, PauseMode.STEP)
        self.save(last=pausing)
        return self.paused() if pausing else None

    def paused(self) -> int:
        self.append(TrainingEvent(paused=TrainingPaused()))
        return 0

    def show_progress(self) -> None:
        with closing(ProgressPage(self.directory / "progress")) as board:
            board.write(self.progress)

    def epoch(self) -> int | None:
        self.progress.step += STEPS - self.progress.epoch_step
        self.progress.epoch += 1
        self.progress.epoch_step = 0
        self.show_progress()
        self.append(
            TrainingEvent(epoch=EpochMetrics(epoch=self.progress.epoch, step=self.progress.step, values=self.values))
        )
        pausing = self.decide()
        if self.full:
            if pausing:
                self.decide_after(self.progress.epoch + 1)
            failed = SnapshotFailed(reason="NO_SPACE", message="no room", last=pausing)
            self.append(TrainingEvent(snapshot_failed=failed))
            return None
        self.save(last=pausing)
        return self.paused() if pausing else None

    def open(self) -> None:
        """Says that it decides at the end of this epoch."""
        self.decide_after(self.progress.epoch + 1, deciding=True)

    def read(self) -> None:
        """Reads what the next `epoch` then does."""
        with closing(Control(self.directory / "control")) as control:
            self.wanted = control.read()

    def decide(self) -> bool:
        """Returns whether training pauses at the boundary that it has reached."""
        epoch = self.progress.epoch
        self.decide_after(epoch, deciding=True)
        if self.wanted is None:
            self.read()
        assert self.wanted
        pausing = self.wanted.target == Assignment.PAUSE
        self.wanted = None
        self.decide_after(epoch if pausing else epoch + 1)
        return pausing

    def decide_after(self, epoch: int, *, deciding: bool = False) -> None:
        with closing(BoundaryFile(self.directory / "boundary")) as boundary:
            boundary.write(NextBoundary(epoch=epoch, deciding=deciding))

    def metrics(self, count: str) -> None:
        """Has the next epochs bring so many metrics, of 60 bytes each."""
        self.values = {f"{number:040}": 1.0 for number in range(int(count))}

    def fill(self) -> None:
        """Leaves no room for snapshots."""
        self.full = True

    def room(self) -> None:
        """Makes room for snapshots again."""
        self.full = False

    def lose(self) -> None:
        """Makes snapshots vanish as soon as they are taken."""
        self.losing = True

    def finish(self) -> int:
        self.decide_after(self.start.spec.total_epochs)
        self.save(last=True)
        self.append(TrainingEvent(finished=TrainingFinished()))
        return 0

    def fail(self) -> int:
        sys.stdout.write("the whole story\n")
        self.append(TrainingEvent(failed=Failure(reason="TRAINING_RAISED", message="ValueError: no")))
        return 1

    def print(self, text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def exit(self, code: str) -> int:
        return int(code)

    def garble(self, name: str) -> None:
        with (self.directory / name).open("r+b") as file:
            file.seek(0, os.SEEK_END if name == "events" else os.SEEK_SET)
            file.write(GARBAGE)
        notify(self.start.notify_socket)

    def storm(self) -> None:
        """Rings as often as it can."""
        while not (self.directory / "calm").exists():
            notify(self.start.notify_socket)

    def append(self, event: TrainingEvent) -> None:
        event.time.GetCurrentTime()
        self.progress.report_time.GetCurrentTime()
        event.progress.CopyFrom(self.progress)
        with (self.directory / "events").open("ab") as file:
            file.write(frames.encode(event))
        notify(self.start.notify_socket)

    def save(self, *, last: bool) -> None:
        area = Path(self.start.snapshot_directory)
        free = [number for number in (0, 1) if not (area / f"slot-{number}" / snapshots.IN_USE).exists()]
        if not free and not last:
            return
        slot = area / f"slot-{free[0] if free else 2}"
        slot.mkdir(parents=True, exist_ok=True)
        (slot / snapshots.STATE).unlink(missing_ok=True)
        self.progress.report_time.GetCurrentTime()
        head, entries = snapshots.layout([("w", "I64", (1000,))])
        data = struct.pack("<q", self.progress.step) * 1000
        assert entries["w"].end == len(head) + len(data)
        (slot / snapshots.TENSORS).write_bytes(head + data)
        document: dict[str, Any] = {
            "format": snapshots.FORMAT,
            "components": {"model": {"$": "tensor", "name": "w", "dtype": "I64", "shape": [1000]}},
            "environment": {},
            "progress": json_format.MessageToDict(self.progress, preserving_proto_field_name=True),
        }
        (slot / snapshots.STATE).write_text(json.dumps(document))
        (slot / snapshots.IN_USE).touch()
        if self.losing:
            (slot / snapshots.STATE).unlink()
        self.sequence += 1
        snapshot = Snapshot(directory=str(slot), sequence=self.sequence, progress=self.progress, last=last)
        self.append(TrainingEvent(snapshot=snapshot))


def main(directory: Path) -> int:
    sys.stderr.write(f"training in {directory.name}\n")
    return Emulated(directory).run()


def software() -> dict[str, str]:
    return {"torch": "emulated"}
