"""What a job requires, installed by a real pip from a directory of tiny wheels."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import pytest

from adjourn import reasons
from adjourn.environments import PACKAGES
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn_worker.attempt.files import VENV
from adjourn_worker.storage import venvs
from adjourn_worker.storage.venvs import VenvFailed, VenvMaker, Venvs
from tests.harness.wheels import wheel, without_index


@dataclass
class World:
    """Attempts of a worker, and wheels for them."""

    directory: Path
    kind: Venvs = Venvs.WHEELS
    limit: int = 1 << 30
    variables: dict[str, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    attempts: int = 0

    @property
    def wheels(self) -> Path:
        return self.directory / "wheels"

    def maker(self) -> VenvMaker:
        """Returns what a new agent has."""
        environment = {**os.environ, **without_index(self.wheels), **self.variables}
        maker = VenvMaker(
            self.directory / "venvs", self.directory / "attempts", environment, kind=self.kind, limit=self.limit
        )
        maker.open()
        return maker

    async def provide(
        self, *wanted: str, maker: VenvMaker | None = None, packages: str = "", allow_inexact: bool = False
    ) -> Path | None:
        """Returns where a new attempt's packages are."""
        self.attempts += 1
        attempt = self.directory / "attempts" / str(self.attempts)
        attempt.mkdir(parents=True)
        assignment = Assignment(allow_inexact=allow_inexact)
        assignment.spec.requirements.extend(wanted)
        if packages:
            assignment.restore.environment[PACKAGES] = packages
        found = await (maker or self.maker()).provide(assignment, attempt, lambda reason, _: self.told.append(reason))
        assert bool(found) == (attempt / VENV).exists()
        return Path(found) if found else None

    async def refused(self, *wanted: str) -> VenvFailed:
        with pytest.raises(VenvFailed) as raised:
            await self.provide(*wanted)
        assert self.made() == [], "what could not be filled is removed"
        return raised.value

    def made(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "venvs").iterdir())


@pytest.fixture
def world(tmp_path: Path) -> World:
    wheel(tmp_path / "wheels", "tinyone", "1.0", requires=["tinytwo>=1", "numpy"])
    wheel(tmp_path / "wheels", "tinytwo", "1.0")
    wheel(tmp_path / "wheels", "greedy", "1.0", requires=["numpy<1"])
    return World(tmp_path)


def names(site_packages: Path | None) -> set[str]:
    assert site_packages
    return {path.stem for path in site_packages.glob("*.py")}


async def test_what_the_worker_lacks_is_installed_once_and_nothing_else(world: World) -> None:
    maker = world.maker()
    both = await asyncio.gather(world.provide("tinyone", maker=maker), world.provide("tinyone", maker=maker))
    assert both[0] == both[1]
    assert names(both[0]) == {"tinyone", "tinytwo"}, "numpy is the worker's"
    assert len(world.made()) == 1
    assert world.told == [reasons.INSTALLING_REQUIREMENTS] * 2, "both wait for it"
    assert await world.provide("tinyone") == both[0], "the next agent has it still"
    assert both[0]
    python = both[0].parents[2] / "bin" / "python"
    script = "import numpy, tinyone, tinytwo; print(numpy.__version__, tinyone.version)"
    ran = await asyncio.to_thread(subprocess.run, (python, "-c", script), capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [metadata.version("numpy"), "1.0"], "programs of the environment have all of it"


async def test_what_the_worker_has_takes_no_environment(world: World) -> None:
    assert await world.provide("numpy>=1", "packaging", "no-such-thing; python_version < '3'") is None
    assert (world.made(), world.told) == ([], [])


async def test_a_run_that_goes_on_gets_the_versions_that_it_had(world: World) -> None:
    wheel(world.wheels, "tinytwo", "2.0")
    first = await world.provide("tinytwo")
    again = await world.provide("tinytwo", packages="tinytwo==1.0")
    lenient = await world.provide("tinytwo", packages="tinytwo==1.0", allow_inexact=True)
    assert first == lenient != again
    assert first
    assert again
    assert "'2.0'" in (first / "tinytwo.py").read_text()
    assert "'1.0'" in (again / "tinytwo.py").read_text()


@pytest.mark.parametrize(
    ("wanted", "reason", "words"),
    [
        ("torch<1", reasons.REQUIREMENTS_UNMET, "torch<1: training runs with the worker's own torch"),
        ("NumPy==1.0", reasons.REQUIREMENTS_UNMET, "which a job cannot change"),
        ("greedy", reasons.REQUIREMENTS_NOT_INSTALLED, "greedy 1.0 depends on numpy<1; The user requested"),
        ("no-such-thing", reasons.REQUIREMENTS_NOT_INSTALLED, "No matching distribution found for no-such-thing"),
    ],
)
async def test_what_cannot_be_installed_says_why(world: World, wanted: str, reason: str, words: str) -> None:
    error = await world.refused(wanted)
    assert error.reason == reason
    assert words in str(error)


async def test_what_has_to_be_built_is_installed_only_if_the_settings_say_so(world: World) -> None:
    source = world.directory / "source"
    source.mkdir()
    (source / "builtone.py").write_text("version = '1.0'\n")
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "builtone"\nversion = "1.0"\n'
    )
    pack = "import os, sys; os.chdir(sys.argv[1]); from hatchling.build import build_sdist; build_sdist(sys.argv[2])"
    python = (sys.executable, "-c", pack, source, world.wheels)
    await asyncio.to_thread(subprocess.run, python, check=True, capture_output=True)
    error = await world.refused("builtone")
    assert error.reason == reasons.REQUIREMENTS_NOT_INSTALLED
    world.kind = Venvs.SOURCES
    world.variables = {"PIP_NO_BUILD_ISOLATION": "0"}  # there is nothing to isolate it with
    assert names(await world.provide("builtone")) == {"builtone"}


async def test_an_index_that_is_away_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(venvs, "AGAIN_SECONDS", 0.05)
    nowhere = {"PIP_NO_INDEX": "0", "PIP_FIND_LINKS": "", "PIP_INDEX_URL": "http://127.0.0.1:1/simple"}
    world.variables = {**nowhere, "PIP_RETRIES": "1"}
    maker = world.maker()
    asking = asyncio.create_task(world.provide("tinyone", maker=maker))
    async with asyncio.timeout(30):
        while reasons.PACKAGE_INDEX_UNAVAILABLE not in world.told:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    maker._environment = {**os.environ, **without_index(world.wheels)}
    assert names(await asking) == {"tinyone", "tinytwo"}
    assert world.told[:2] == [reasons.INSTALLING_REQUIREMENTS, reasons.PACKAGE_INDEX_UNAVAILABLE]


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device\n", reasons.NO_SPACE, "no room"),
        ("  Read timed out.\nERROR: x\n", "", "Read timed out"),
        ("Traceback\nMemoryError\n", reasons.REQUIREMENTS_NOT_INSTALLED, "MemoryError"),
        ("", reasons.REQUIREMENTS_NOT_INSTALLED, "exit code 7"),
    ],
)
def test_words_of_pip(text: str, kind: str, words: str) -> None:
    error = venvs.explained(text, 7)
    assert getattr(error, "reason", "") == kind
    assert words in str(error)


async def test_a_job_that_is_cancelled_ends_pip_and_leaves_nothing(
    world: World, eventually: Callable[..., Awaitable[None]]
) -> None:
    pids = world.directory / "pids"
    hang = world.directory / "hanging"
    hang.mkdir()
    (hang / "sitecustomize.py").write_text(
        f"import os, sys, time\nif 'pip' in sys.orig_argv:\n    open({str(pids)!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
    )
    world.variables = {"PYTHONPATH": str(hang)}
    asking = asyncio.create_task(world.provide("tinyone"))
    await eventually(lambda: pids.exists() and pids.read_text())
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert not Path(f"/proc/{pids.read_text()}").exists()
    assert world.made() == []


async def test_what_nothing_uses_goes_when_there_is_too_much(world: World) -> None:
    world.limit = 1
    first = await world.provide("tinyone")
    second = await world.provide("tinytwo")
    assert len(world.made()) == 2, "both are in use"
    (world.directory / "attempts" / "1" / VENV).unlink()
    (world.directory / "venvs" / "half-made").mkdir()
    wheel(world.wheels, "three", "3.0")
    third = await world.provide("three")
    assert first
    assert second
    assert third
    assert [path.exists() for path in (first, second, third)] == [False, True, True]
    assert len(world.made()) == 2, "what was half made is gone, too"
