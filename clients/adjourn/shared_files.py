"""Four small mapped files through which an agent and its training process tell each other things without waiting.

`control` is one 64-bit word that the agent writes and training reads at every step. An aligned 8-byte store is atomic,
so no lock is needed. `boundary` is another, which training writes and the agent reads: `next_boundary` says how the two
together name the epoch of a pause. `progress` is one message that training overwrites and the agent reads. It is
guarded by a sequence number that is odd while a write is under way (a seqlock). `pulse` is three words that training
writes at every step; each is right by itself, and a look that finds one of them older than another is made good by the
next. The files outlive either process. Imports no torch, no grpc.
"""

import mmap
import os
import struct
from pathlib import Path

from adjourn.desired_state import DesiredState
from adjourn.next_boundary import NextBoundary
from adjourn.pulse import WORDS, Phase, Pulse
from adjourn.v1.job_pb2 import Progress

PROGRESS_BYTES = 64 << 10
HEADER = struct.Struct("<QQ")  # sequence, length


class Control:
    """The desired state, as a mapped word. `word` is read in well under 100 ns."""

    def __init__(self, path: Path) -> None:
        self._map = mapped(path, 8)
        self._view = memoryview(self._map).cast("Q")

    @property
    def word(self) -> int:
        return self._view[0]

    def read(self) -> DesiredState:
        return DesiredState.from_word(self._view[0])

    def write(self, desired: DesiredState) -> None:
        self._view[0] = desired.word

    def close(self) -> None:
        self._view.release()
        self._map.close()


class BoundaryFile:
    """Where training decides next whether it pauses, as a mapped word."""

    def __init__(self, path: Path) -> None:
        self._map = mapped(path, 8)
        self._view = memoryview(self._map).cast("Q")

    def read(self) -> NextBoundary | None:
        """Returns None if nothing was said yet, or something that makes no sense."""
        return NextBoundary.from_word(self._view[0])

    def write(self, boundary: NextBoundary) -> None:
        self._view[0] = boundary.word

    def close(self) -> None:
        self._view.release()
        self._map.close()


class ProgressPage:
    """The newest progress of a training process."""

    def __init__(self, path: Path) -> None:
        self._map = mapped(path, PROGRESS_BYTES)

    def write(self, progress: Progress) -> None:
        """Replaces what is there; a message over 64 KiB (too many metrics) goes without its metrics."""
        body = progress.SerializeToString()
        if len(body) > PROGRESS_BYTES - HEADER.size:
            small = Progress()
            small.CopyFrom(progress)
            small.ClearField("metrics")
            body = small.SerializeToString()
        sequence, _ = HEADER.unpack_from(self._map)
        HEADER.pack_into(self._map, 0, sequence | 1, 0)
        self._map[HEADER.size : HEADER.size + len(body)] = body
        HEADER.pack_into(self._map, 0, (sequence | 1) + 1, len(body))

    def read(self) -> Progress | None:
        """Returns the newest progress; None before the first, or when a write is under way just now."""
        sequence, length = HEADER.unpack_from(self._map)
        body = bytes(self._map[HEADER.size : HEADER.size + length])
        if sequence == 0 or sequence % 2 or HEADER.unpack_from(self._map)[0] != sequence:
            return None
        return Progress.FromString(body)

    def close(self) -> None:
        self._map.close()


class PulseFile:
    """The pulse of a training process, as words. A step costs some 0.2 microseconds."""

    def __init__(self, path: Path) -> None:
        self._map = mapped(path, 8 * WORDS)
        self._view = memoryview(self._map).cast("Q")
        self._beats = 0

    def beat(self, phase: Phase) -> None:
        """Shows that training has got on, and what it is doing now."""
        self._beats += 1
        self._view[0] = self._beats << 8 | phase

    def step(self, phase: Phase) -> None:
        """Shows a step."""
        self._view[1] += 1
        self.beat(phase)

    def epoch(self) -> None:
        """Shows that an epoch is completed."""
        self._view[2] += 1
        self.beat(Phase.BOUNDARY)

    def read(self) -> Pulse | None:
        """Returns None if nothing was shown yet, or something that this version does not know."""
        try:
            pulse = Pulse.from_words(self._view[0], self._view[1], self._view[2])
        except ValueError:
            return None
        return pulse if pulse.beats else None

    def close(self) -> None:
        self._view.release()
        self._map.close()


def mapped(path: Path, size: int) -> mmap.mmap:
    """Maps a file of `size` bytes, making it, zeroed, if it is not there; raises OSError, also for want of space."""
    with path.open("a+b") as file:
        file.truncate(size)
        # Without this, a full disk would be found at the first write to the map, as a SIGBUS.
        os.posix_fallocate(file.fileno(), 0, size)
        return mmap.mmap(file.fileno(), size)
