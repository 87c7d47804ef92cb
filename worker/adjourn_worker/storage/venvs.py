"""Virtual environments for jobs that require what the worker's own environment has not.

    {digest}-{token}/           made by `venv`, and filled by pip
    {digest}-{token}/whole      written last: without it nobody uses the environment

The digest is of all that decides what is in it: the requirements, the versions that a run which goes on has had, and
the Python and the packages of the worker that it is layered upon. A `.pth` file has pip find those, so that what is
there already is not installed again. What the launcher has loaded when it forks a training process (torch, numpy,
adjourn, and all that they need) cannot be another version in the fork: pip is given these versions as constraints.

An attempt's directory has a link to its environment, as long as the attempt does: it says what is in use. An agent that
dies leaves pip at work in a directory of its own; the next one makes another, and removes that.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import secrets
import signal
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol
from venv import EnvBuilder

import structlog
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from adjourn import reasons, requirements
from adjourn.environments import PACKAGES, unlisted
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn_worker.attempt.files import VENV
from adjourn_worker.host.kernel import sync_file_system
from adjourn_worker.paths import remove, used_bytes

log: structlog.stdlib.BoundLogger = structlog.get_logger()

WHOLE: Final = "whole"
PIP_LOG: Final = "pip.log"
AGAIN_SECONDS: Final = 5.0
"""Between two tries with an index that is away."""
AWAY: Final = (
    "after connection broken by",
    "Max retries exceeded",
    "Read timed out",
    "ConnectionError",
    "HTTPError: 5",
)
CONFLICT: Final = "The conflict is caused by:"
NO_ROOM: Final = "No space left on device"
WORDS: Final = 1000
"""Characters of pip's that a failure has at most."""


class Venvs(StrEnum):
    """Whether a worker makes environments for jobs."""

    OFF = "off"
    WHEELS = "wheels"
    """From wheels alone: nothing of what is installed is executed for it."""
    SOURCES = "sources"
    """Also what has to be built, by code of its own."""


class VenvFailed(Exception):
    """An environment cannot be made; trying again on this worker would not help."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class IndexUnavailable(Exception):
    """Where pip installs from is away."""


class Telling(Protocol):
    """Hears what an attempt waits for."""

    def __call__(self, reason: str, message: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What an environment is to have."""

    requirements: tuple[str, ...]
    pins: Mapping[str, str] = field(default_factory=dict)
    """Versions that a run which goes on has had."""
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Versions of the worker that no job changes."""

    @property
    def digest(self) -> str:
        parts = [sorted(self.requirements), dict(self.pins), dict(self.fixed), sys.version, sys.prefix]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class VenvMaker:
    """Makes environments, each once, however many attempts want it. Lives as long as the agent."""

    def __init__(
        self,
        directory: Path,
        attempts: Path,
        environment: Mapping[str, str],
        *,
        kind: Venvs = Venvs.WHEELS,
        limit: int,
    ) -> None:
        """`environment`: variables that pip gets, with those of its own; `limit`: most bytes of what nothing uses."""
        self._directory = directory
        self._attempts = attempts
        self._environment = environment
        self._kind = kind
        self._limit = limit
        self._making: dict[str, asyncio.Lock] = {}
        self._room = asyncio.Lock()
        """Taken by whoever gives an environment to an attempt, or removes some."""

    def open(self) -> None:
        """Removes what was never whole."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        for path in self._directory.iterdir():
            if not (path / WHOLE).exists():
                remove(path)

    async def provide(self, assignment: Assignment, attempt: Path, tell: Telling) -> str:
        """Returns the directory to import an attempt's packages from; empty: the worker's own environment has them.

        Raises VenvFailed, OSError.
        """
        wanted = await asyncio.to_thread(self._wanted, assignment)
        if wanted is None:
            return ""
        if not await self._given(wanted, attempt):
            tell(reasons.INSTALLING_REQUIREMENTS, f"its worker installs {', '.join(wanted.requirements)}")
        async with self._making.setdefault(wanted.digest, asyncio.Lock()):
            while not await self._given(wanted, attempt):
                try:
                    await self._make(wanted)
                except IndexUnavailable as error:
                    log.warning("package_index_unavailable", error=str(error))
                    tell(reasons.PACKAGE_INDEX_UNAVAILABLE, str(error))
                    await asyncio.sleep(AGAIN_SECONDS)
        return str(site_packages((attempt / VENV).resolve()))

    def _wanted(self, assignment: Assignment) -> Wanted | None:
        """Returns None if the worker's own environment has all of it; raises VenvFailed if it can never have it."""
        asked = tuple(assignment.spec.requirements)
        had = unlisted(assignment.restore.environment.get(PACKAGES, ""))
        pins = {} if assignment.allow_inexact else had
        here = requirements.pins(asked)
        if not list(requirements.unmet(asked)) and all(here.get(name) == version for name, version in pins.items()):
            return None
        fixed = requirements.ours()
        check(asked, fixed)
        return Wanted(requirements=asked, pins=pins, fixed=fixed)

    async def _given(self, wanted: Wanted, attempt: Path) -> bool:
        """Gives an attempt the environment if it is there."""
        async with self._room:
            return await asyncio.to_thread(self._give, wanted, attempt)

    def _give(self, wanted: Wanted, attempt: Path) -> bool:
        for path in self._directory.glob(f"{wanted.digest}-*"):
            if (path / WHOLE).exists():
                (attempt / VENV).unlink(missing_ok=True)
                (attempt / VENV).symlink_to(path)
                os.utime(path / WHOLE)
                return True
        return False

    async def _make(self, wanted: Wanted) -> None:
        """Raises VenvFailed, IndexUnavailable, OSError."""
        path = self._directory / f"{wanted.digest}-{secrets.token_hex(4)}"
        try:
            await asyncio.to_thread(lay_out, path, wanted)
            code = await self._run_pip(path)
            await asyncio.to_thread(finish, path, code)
            log.info("venv_made", path=str(path), requirements=list(wanted.requirements))
        except BaseException:
            await asyncio.shield(asyncio.to_thread(remove, path))
            raise
        await self.make_room(self._limit)

    async def make_room(self, limit: int = 0) -> None:
        """Removes what nothing uses, but for the newest, until the rest has so many bytes at most."""
        async with self._room:
            await asyncio.to_thread(self._bound, limit)

    async def _run_pip(self, path: Path) -> int:
        words = ["install", "--no-input", "--disable-pip-version-check", "--no-warn-script-location"]
        words.append("--progress-bar=off")
        if self._kind is Venvs.WHEELS:
            words.append("--only-binary=:all:")
        with (path / PIP_LOG).open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(str(path / "bin" / "python"), "-m", "pip", *words),
                *("--constraint", str(path / "constraints.txt"), "--requirement", str(path / "requirements.txt")),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                cwd=path,
                env=dict(self._environment),
                start_new_session=True,
            )
        try:
            return await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):  # of all that it has started, too
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    def _bound(self, limit: int) -> None:
        """Removes what was not used for longest, and is not in use, until the rest is within the limit."""
        used = {path.resolve() for path in self._attempts.glob(f"*/{VENV}")}
        found = sorted(self._directory.glob(f"*/{WHOLE}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        newest, total = True, 0
        for whole in found:
            total += int(whole.read_text())
            if total > limit and not newest and whole.parent.resolve() not in used:
                total -= int(whole.read_text())
                remove(whole.parent)
                log.info("venv_removed", path=str(whole.parent))
            newest = False  # it was just made, and is about to be given


def check(asked: Sequence[str], fixed: Mapping[str, str]) -> None:
    """Raises VenvFailed if requirements would change what the launcher has loaded."""
    for text in asked:
        requirement = Requirement(text)
        version = fixed.get(canonicalize_name(requirement.name))
        applies = requirement.marker is None or requirement.marker.evaluate()
        if version and applies and not requirement.specifier.contains(version, prereleases=True):
            raise VenvFailed(
                reasons.REQUIREMENTS_UNMET,
                f"{text}: training runs with the worker's own {requirement.name} {version}, which a job cannot change",
            )


def lay_out(path: Path, wanted: Wanted) -> None:
    """Makes an environment with nothing in it but the way to the worker's own packages."""
    EnvBuilder(with_pip=False, symlinks=True).create(path)
    own = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    # Not in a training process, which has them already: there the prefix is the worker's own.
    lines = [f"import site, sys; sys.prefix == {str(path)!r} and site.addsitedir({place!r})\n" for place in own]
    (site_packages(path) / "zz-worker.pth").write_text("".join(lines))  # read last: what is installed here comes first
    (path / "requirements.txt").write_text("".join(f"{text}\n" for text in wanted.requirements))
    constraints = {**wanted.pins, **wanted.fixed}
    (path / "constraints.txt").write_text("".join(f"{name}=={version}\n" for name, version in constraints.items()))


def finish(path: Path, code: int) -> None:
    """Makes an environment usable that pip has filled, and left with an exit code; raises VenvFailed, IndexUnavailable.

    Others may then see it: what is written is synced first.
    """
    if code != 0:
        raise explained((path / PIP_LOG).read_text(errors="replace"), code)
    fresh = path / f".{WHOLE}"
    fresh.write_text(str(used_bytes(path)))
    sync_file_system(path)
    fresh.replace(path / WHOLE)


def site_packages(path: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return path / "lib" / version / "site-packages"


def explained(text: str, code: int) -> Exception:
    """Returns what pip's words on its failure mean."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines[-1:]
    if CONFLICT in lines:
        told = [line for line in lines[lines.index(CONFLICT) + 1 :] if " depends on " in line or " requested " in line]
    words = "; ".join(dict.fromkeys(told))[:WORDS] or f"it left with exit code {code}"
    if NO_ROOM in text:
        return VenvFailed(reasons.NO_SPACE, f"the disk has no room for what the job requires: {words}")
    if away := [line for line in lines if any(sign in line for sign in AWAY)]:
        kinds = re.findall(r"[A-Z]\w+Error|Read timed out", away[-1])
        return IndexUnavailable(f"pip cannot reach what it installs from ({', '.join(kinds) or 'no answer'})")
    return VenvFailed(reasons.REQUIREMENTS_NOT_INSTALLED, f"pip cannot install what the job requires: {words}")
