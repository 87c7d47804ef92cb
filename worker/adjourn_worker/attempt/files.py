"""The files of an attempt's directory that agent and launcher share; see trainer.proto for who writes what."""

import contextlib
import errno
import os
from pathlib import Path
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from adjourn import frames
from adjourn.internal.v1.trainer_pb2 import ProcessExit, TrainingEvent, TrainingProcess, TrainingStart

M = TypeVar("M", bound=Message)

START, PROCESS, EXIT, EVENTS, LOG, WORK = "start", "process", "exit", "events", "log", "work"
OUTPUT = "output"
"""Files that the run keeps with its checkpoints."""
DATA = "data"
"""Directory of requests for data, and of answers."""
VENV = "venv"
"""Link to the environment with packages that were installed for the job."""
REQUEST, ANSWER = ".request", ".answer"
CODE = "code"
"""The code once more, for a drill."""
DRILL_LOG = "drill/log"
"""What the second process of a drill prints."""


PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR})
"""Errors that say nothing of a file: the system is short of something. They are raised as they are."""


class AttemptDamaged(Exception):
    """A file of an attempt cannot be understood: training code can write there too."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path


def write_start(directory: Path, start: TrainingStart) -> None:
    """Makes the directory of an attempt, and in it the file from which its training process learns what to do."""
    directory.mkdir(mode=0o700, exist_ok=True)
    write(directory / START, start.SerializeToString())


def read_start(directory: Path) -> TrainingStart | None:
    return read(TrainingStart, directory / START)


def write_process(directory: Path, process: TrainingProcess) -> None:
    write(directory / PROCESS, process.SerializeToString())


def read_process(directory: Path) -> TrainingProcess | None:
    """Returns the process that was launched; it may long be gone. Raises AttemptDamaged, and OSError if it may pass."""
    return read(TrainingProcess, directory / PROCESS)


def write_exit(directory: Path, *, code: int, killed: bool, out_of_memory: bool = False, no_room: bool = False) -> None:
    exit_ = ProcessExit(code=code, killed=killed, out_of_memory=out_of_memory, no_room=no_room)
    exit_.time.GetCurrentTime()
    write(directory / EXIT, exit_.SerializeToString())


def read_exit(directory: Path) -> ProcessExit | None:
    return read(ProcessExit, directory / EXIT)


def read_events(directory: Path, offset: int) -> list[tuple[TrainingEvent, int]]:
    """Returns the events that are complete from a byte offset on, each with the offset after it.

    Reads 16 MiB at most: call again from the last offset until nothing comes. Raises AttemptDamaged, and OSError if it
    may pass.
    """
    path = directory / EVENTS
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(frames.LIMIT + 4)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise damage(path, error) from error
    try:
        return [(event, offset + end) for event, end in frames.decode(TrainingEvent, data)]
    except (frames.FrameTooLong, DecodeError) as error:
        raise AttemptDamaged(path, str(error)) from error


def open_requests(directory: Path) -> list[Path]:
    """Returns the requests for data that training has written and nobody has answered."""
    found = {path.name for path in (directory / DATA).glob("*")}
    requests = sorted(name for name in found if name.endswith(REQUEST))
    return [directory / DATA / name for name in requests if f"{name.removesuffix(REQUEST)}{ANSWER}" not in found]


def tail(path: Path, size: int = 4096) -> str:
    """Returns the end of a text file, whole lines of at most `size` bytes; empty if there is none."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - size))
        text = file.read().decode(errors="replace")
        return text if length <= size else text.partition("\n")[2] or text
    return ""


def read(kind: type[M], path: Path) -> M | None:
    try:
        return kind.FromString(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise damage(path, error) from error
    except DecodeError as error:
        raise AttemptDamaged(path, str(error)) from error


def damage(path: Path, error: OSError) -> Exception:
    """Returns what to raise for an error of reading."""
    return error if error.errno in PASSING else AttemptDamaged(path, str(error))


def write(path: Path, data: bytes) -> None:
    """Replaces a file as a whole, durably: a reader sees the old content or the new, also after a power failure."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync(path.parent)


def sync(directory: Path) -> None:
    """Makes what was renamed in a directory last."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
