"""Places at which a test has a process die, stand still or fail. Inert unless ADJOURN_FAILPOINT was set at its start.

The variable is `name:action[,name:action]`, or the absolute path of a directory: a file there that is named as a
failpoint and holds an action arms it, in whichever process comes there first. That one renames it to `{name}.hit`, so
it acts once, and the test sees that it did.

Actions: `kill` (SIGKILL), `exit` (at once, with status 1), `stop` (SIGSTOP), `sleep=SECONDS` (the whole process stands
still), `error` (raises FailpointError). `@N` after an action: at the N-th time that a process comes there.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

VARIABLE: Final = "ADJOURN_FAILPOINT"
NAMES: Final = frozenset(
    {
        "control-plane.before-commit",
        "control-plane.after-commit",
        "control-plane.before-reply",
        "worker.before-journal",
        "worker.after-journal",
        "worker.launched-before-journal",
        "worker.part-uploaded",
        "worker.before-manifest",
        "worker.after-manifest",
        "worker.manifest-read",
        "worker.exited-before-journal",
        "worker.snapshot-kept",
        "worker.snapshot-claimed",
        "worker.log-stored",
        "launcher.forked",
        "launcher.ended-before-record",
        "training.before-deciding",
        "training.deciding",
        "training.control-read",
        "training.decided",
        "training.deciding-amid",
        "training.snapshot-written",
        "training.before-snapshot-event",
        "training.after-snapshot-event",
        "training.before-finish",
    }
)
"""docs/settings.md says where each is."""
ACTIONS: Final = frozenset({"kill", "exit", "stop", "sleep", "error"})


class FailpointError(Exception):
    """The error that a test wanted here."""


class _Action:
    """What happens, and at which time."""

    def __init__(self, text: str) -> None:
        """Raises ValueError."""
        rest, _, at = text.strip().partition("@")
        self.kind, _, seconds = rest.partition("=")
        self.at = int(at or 1)
        if self.kind not in ACTIONS or bool(seconds) != (self.kind == "sleep") or self.at < 1:
            raise ValueError(
                f"{text!r} is no action of {VARIABLE}: kill, exit, stop, sleep=SECONDS, error; @N after it"
            )
        self.seconds = float(seconds or 0)

    def act(self, name: str) -> None:
        match self.kind:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(1)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "sleep":
                time.sleep(self.seconds)
            case _:
                raise FailpointError(f"failpoint {name}")


def parse(text: str) -> Mapping[str, _Action] | Path:
    """Reads the variable; raises ValueError."""
    if text.startswith("/"):
        return Path(text)
    armed = {}
    for each in filter(None, text.split(",")):
        name, _, action = each.partition(":")
        if name not in NAMES:
            raise ValueError(f"{VARIABLE}: there is no failpoint {name!r}")
        armed[name] = _Action(action)
    return armed


# Read once: code that a process runs later cannot arm anything in it.
_armed = parse(os.environ.get(VARIABLE, ""))
_hits: Counter[str] = Counter()


def hit(name: str) -> None:
    """Does what was armed here, if something was."""
    if _armed:
        _hit(name)


def _hit(name: str) -> None:
    assert name in NAMES, name
    if isinstance(_armed, Path):
        file = _armed / name
        try:
            action = _Action(file.read_text())
        except FileNotFoundError:
            return
    elif name in _armed:
        action = _armed[name]
    else:
        return
    _hits[name] += 1
    if _hits[name] != action.at:
        return
    if isinstance(_armed, Path):
        del _hits[name]  # it may be armed again
        try:
            file.rename(file.with_name(f"{name}.hit"))
        except FileNotFoundError:
            return  # another process came first
    action.act(name)
