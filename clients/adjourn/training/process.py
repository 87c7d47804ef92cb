"""A training process, from its start file to its exit code."""

import faulthandler
import importlib
import io
import os
import site
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import torch._dynamo  # noqa: F401  (two seconds that any optimizer's constructor takes; here they precede the fork)
from google.protobuf.struct_pb2 import ListValue, Struct

from adjourn.bundles import PRELOADED
from adjourn.environments import differences
from adjourn.internal.v1.trainer_pb2 import TrainingEvent, TrainingStart
from adjourn.pulse import STACKS_SIGNAL, Phase
from adjourn.requirements import unmet
from adjourn.shared_files import BoundaryFile, Control, ProgressPage, PulseFile
from adjourn.training import failure_text
from adjourn.training.drill import Drill
from adjourn.training.errors import (
    EntryPointNotFound,
    EntryPointNotImportable,
    EnvironmentDiffers,
    RequirementsUnmet,
    TrainingError,
)
from adjourn.training.events import EventLog, log_line
from adjourn.training.interpreter_end import InterpreterEnd, files_in, say_what_is_removed
from adjourn.training.output_directory import OutputDirectory
from adjourn.training.run import Run
from adjourn.training.session import Session, StopTraining
from adjourn.training.snapshot.reader import SnapshotReader
from adjourn.training.state.environment import fingerprint, note_packages, prepare, software_environment
from adjourn.training.state.generators import seed_generators
from adjourn.v1.job_pb2 import Failure

EntryPoint = Callable[[Run], object]

KEPT = sys.stdlib_module_names | PRELOADED | {"__main__", "adjourn_control_plane", "adjourn_worker", "google"}
"""Modules that a job's code does not replace: they are in use by the time it is imported."""
WORK = "work"
"""Working directory, below the attempt's; the code lies there."""
NO_FILE = (
    "The working directory has what went along with the script (`adjourn submit --include PATH` takes a file along),"
    " and nothing that an earlier attempt wrote."
)
OUTPUT = "output"
"""Directory, below the attempt's, of files that the run keeps with its checkpoints."""
DRILL = "drill"
"""Directory of the second process of a drill, below the attempt's."""
FAILED = 1


def main(directory: Path, kind: type[Session] = Session) -> int:
    """Trains as file `start` of the attempt's directory says; returns the exit code, 0 if paused or finished.

    Everything that can go wrong is told in file `events` as a Failure before it returns. What user code left for the
    end of the interpreter is done when it returns: the caller ends the process by `os._exit`.
    """
    end = InterpreterEnd()
    found = files_in(directory / WORK)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    faulthandler.enable(sys.__stderr__ or 2)
    # The handler is C code: it runs while C code holds the interpreter's lock too. It has a descriptor of its own, for
    # user code may turn stderr elsewhere.
    faulthandler.register(STACKS_SIGNAL, os.dup(2), all_threads=True, chain=False)
    code = run_attempt(directory, kind)
    end.run(code)
    say_what_is_removed(directory / WORK, found)
    return code


def run_attempt(directory: Path, kind: type[Session] = Session) -> int:
    """Trains, and tells how it ends; returns the exit code."""
    start = TrainingStart.FromString((directory / "start").read_bytes())
    with (
        EventLog(directory / "events", start.notify_socket) as events,
        closing(Control(directory / "control")) as control,
        closing(ProgressPage(directory / "progress")) as progress_page,
        closing(PulseFile(directory / "pulse")) as pulse,
        closing(BoundaryFile(directory / "boundary")) as boundary,
    ):
        pulse.beat(Phase.STARTING)
        session = None
        try:
            session = prepared(kind, start, directory, events, control, progress_page, pulse, boundary)
            return trained(session)
        except StopTraining as leaving:
            traceback.clear_frames(leaving.__traceback__)  # ends the workers of a loader that is still iterated over
            return leaving.code
        except BaseException as error:  # noqa: BLE001  (user code may raise anything; the job's owner is told)
            traceback.print_exc()
            if session:
                session.tracker.losses.clear()  # those on a GPU that failed can no longer be read
            (session or events).append(TrainingEvent(failed=failure(start, error)))
            pulse.beat(Phase.ENDING)
            traceback.clear_frames(error.__traceback__)
            return FAILED
        finally:
            if session:
                session.end_drill()


def prepared(
    kind: type[Session],
    start: TrainingStart,
    directory: Path,
    events: EventLog,
    control: Control,
    progress_page: ProgressPage,
    pulse: PulseFile,
    boundary: BoundaryFile,
) -> Session:
    """Sets up device, threads and seeds; raises EnvironmentDiffers or SnapshotUnreadable."""
    inherited = set_variables(start.spec.environment)
    if start.site_packages:
        use_packages(Path(start.site_packages))
    if start.spec.requirements:
        note_packages(start.spec.requirements)
    device = prepare(start.device_uuids, start.threads)
    restored = SnapshotReader(Path(start.restore_directory), device) if start.restore_directory else None
    different: dict[str, tuple[str, str]] = {}
    if restored:
        restored.take_digests()
        # The bits of a sum depend on the number of threads: a resumed run keeps the one that it began with.
        prepare(start.device_uuids, int(restored.environment.get("threads", 0)))
        different = differences(restored.environment, fingerprint(device, imported=lambda _: True))
        if different and not start.allow_inexact:
            raise EnvironmentDiffers(different)
    seed_generators(start.spec.seed)
    return kind(
        start,
        events=events,
        control=control,
        progress_page=progress_page,
        pulse=pulse,
        boundary=boundary,
        device=device,
        drill=Drill(
            start,
            directory / DRILL,
            inherited,
            known=restored is not None and restored.drilled is not None and not different,
        ),
        output=OutputDirectory(directory / OUTPUT, start.output_bytes),
        restored=restored,
        differences=different,
    )


def set_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Sets a job's environment variables; returns what was set before.

    What the libraries here have read is remembered first: a job's variables do not make one machine another.
    """
    software_environment()
    inherited = dict(os.environ)
    os.environ.update(variables)
    time.tzset()
    return inherited


def use_packages(site_packages: Path) -> None:
    """Has what is installed for this job come before the worker's own packages, behind Python's library.

    The process was forked from one that has loaded torch: only here can the path be another. As in a virtual
    environment, lines of `.pth` files there count too.
    """
    before = list(sys.path)
    site.addsitedir(str(site_packages))
    added = [place for place in sys.path if place not in before]
    own = sysconfig.get_path("purelib")
    where = before.index(own) if own in before else len(before)
    sys.path[:] = [*before[:where], *added, *before[where:]]
    forget(top_level(site_packages))
    importlib.invalidate_caches()
    programs = site_packages.parents[2] / "bin"
    os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


def trained(session: Session) -> int:
    """Runs user code to its end, or to the boundary where it is paused; returns the exit code."""
    if session.over:
        return session.finish_again()
    start = session.start
    if missing := list(unmet(start.spec.requirements)):
        raise RequirementsUnmet(missing)
    entry_point = imported(start.spec.entry_point, start.code_directory)
    if start.spec.total_epochs == 0:
        session.begin_task()
    call(entry_point, Run(session, arguments(start.spec.args)))
    return session.finish()


def call(entry_point: EntryPoint, run: Run) -> None:
    try:
        entry_point(run)
    except SystemExit as leaving:
        if leaving.code not in (None, 0):
            raise


def imported(entry_point: str, code_directory: str) -> EntryPoint:
    """Returns the function named `package.module:function`; raises EntryPointNotImportable, EntryPointNotFound.

    What the module itself lacks while it is imported (a file, a server, memory) may be there the next time: OSError and
    MemoryError are raised as they are.
    """
    module_name, _, name = entry_point.partition(":")
    if code_directory:
        names = top_level(Path(code_directory))
        for kept in sorted(names & KEPT):
            log_line(f"{kept} in the code of this job is not imported: the name belongs to Python or to what trains it")
        forget(names)
        sys.path.insert(0, code_directory)
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (OSError, MemoryError):
        raise
    except BaseException as error:
        raise EntryPointNotImportable(
            f"{module_name} cannot be imported\n{failure_text.of(error, code_directory)}"
        ) from error
    function: Any = module
    for part in name.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise EntryPointNotFound(f"{module_name} has no function {name!r}")
    return cast("EntryPoint", function)


def top_level(directory: Path) -> set[str]:
    """Returns the names of the modules and packages in a directory."""
    names = {path.stem for path in directory.glob("*.py")}
    return names | {path.name for path in directory.iterdir() if path.is_dir() and any(path.rglob("*.py"))}


def forget(names: AbstractSet[str]) -> None:
    """Lets modules of the job's come before those of the same names that this process was forked with."""
    for name in list(sys.modules):
        if name.partition(".")[0] in names - KEPT:
            del sys.modules[name]


def arguments(args: Struct) -> dict[str, Any]:
    """Returns the arguments as Python values; a Struct knows doubles only, so whole numbers become ints."""
    return {name: plain(value) for name, value in args.items()}


def plain(value: Any) -> Any:
    match value:
        case Struct():
            return arguments(value)
        case ListValue():
            return [plain(item) for item in value]
        case float() if value.is_integer() and abs(value) < 2**53:
            return int(value)
        case _:
            return value


def failure(start: TrainingStart, error: BaseException) -> Failure:
    if isinstance(error, TrainingError):
        reason, message = error.reason, failure_text.printable(str(error))
    else:
        reason, message = TrainingError.reason, failure_text.of(error, start.code_directory)
    if start.code_directory:
        # Each attempt has a copy of the code: the same failure has the same words, whichever copy it comes from.
        message = message.replace(f"{start.code_directory}/", "")
    if isinstance(error, FileNotFoundError) and error.filename and not Path(os.fsdecode(error.filename)).is_absolute():
        message += f". {NO_FILE}"
    told = Failure(reason=reason, message=message, attempt=start.attempt)
    told.time.GetCurrentTime()
    return told
