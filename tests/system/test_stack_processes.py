"""The parts of the stack that deal with processes and files, with small programs in place of servers."""

import asyncio
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from adjourn.local import managed_process, process_cleanup
from adjourn.local.data_directory import DataDirectory, DirectoryInUseError
from adjourn.local.managed_process import ManagedProcess, Program, ProgramError
from adjourn.local.ports import HOST, free_ports, is_free
from adjourn.local.process_cleanup import Role
from adjourn.local.supervisor import ProcessSupervisor, together

TALKATIVE = """
import time
print("up", flush=True)
while True:
    print("so " * 100, flush=True)
    time.sleep(0.01)
"""
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Program]:
    def make(code: str, name: str = "probe", *, patience: float = 20, grace: float = 20) -> Program:
        log = tmp_path / f"{name}.log"

        async def ready() -> bool:
            return log.exists() and "up" in log.read_text()

        return Program(
            name=name,
            argv=(sys.executable, "-c", code),
            environment=process_cleanup.marker(tmp_path),
            directory=tmp_path,
            log=log,
            ready=ready,
            patience=patience,
            grace=grace,
        )

    return make


def hurried() -> asyncio.Event:
    hurry = asyncio.Event()
    hurry.set()
    return hurry


@pytest.fixture(autouse=True)
async def nothing_left(tmp_path: Path) -> AsyncIterator[None]:
    yield
    await process_cleanup.end(tmp_path)


@pytest.fixture
def marked(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str = STUBBORN, *more: str, stack: Path = tmp_path, **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *more],
            env={**os.environ, **process_cleanup.marker(stack), **environment},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


async def test_a_child_that_ends_before_it_is_ready_tells_its_last_words(program: Callable[..., Program]) -> None:
    child = ManagedProcess(program("print('one'); print('two'); raise SystemExit(3)"))
    child.program.log.write_text("of an earlier start\n")
    child.start()
    with pytest.raises(ProgramError, match=r"(?s)probe ended with status 3.*\| one\n.*\| two") as caught:
        await child.until_ready()
    assert "earlier" not in str(caught.value)


async def test_a_child_that_is_never_ready_is_given_up(program: Callable[..., Program]) -> None:
    child = ManagedProcess(program("import time; time.sleep(600)", patience=0.3))
    child.start()
    with pytest.raises(ProgramError, match="not ready after"):
        await child.until_ready()
    await child.stop()
    assert child.pid is None


async def test_another_that_answers_on_the_port_is_not_the_child(program: Callable[..., Program]) -> None:
    """Two stacks that begin at once take the same port, and one of them took the other's control plane for its own."""
    (port,) = free_ports(1)
    code = f"import socket; print('up', flush=True); socket.create_server(('{HOST}', {port}))"
    child = ManagedProcess(replace(program(code), port=port))
    with socket.create_server((HOST, port)):
        child.start()
        with pytest.raises(ProgramError, match="Address already in use"):
            await child.until_ready()
    child = ManagedProcess(replace(program(f"{code}.accept()"), port=port))
    child.start()
    await child.until_ready()
    assert child.listens()
    await child.stop()
    assert not child.listens()


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(program: Callable[..., Program]) -> None:
    child = ManagedProcess(program(STUBBORN, grace=0.2))
    child.start()
    await child.until_ready()
    await child.stop()
    assert child.ending() == "was ended by SIGKILL"


async def test_a_hurry_takes_the_grace_away(program: Callable[..., Program]) -> None:
    child = ManagedProcess(program(STUBBORN, grace=600))
    child.start()
    await child.until_ready()
    async with asyncio.timeout(10):
        await child.stop(hurried())
    assert child.ending() == "was ended by SIGKILL"


async def test_a_child_does_not_get_our_settings(
    program: Callable[..., Program], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ADJOURN_ADDRESS", "elsewhere:1")
    child = ManagedProcess(program("import os; print([n for n in os.environ if n.startswith('ADJOURN')], 'up')"))
    child.start()
    assert child.process
    child.process.wait()
    assert child.program.log.read_text() == f"['{process_cleanup.MARKER}'] up\n"


async def test_a_child_that_ends_is_started_again_and_said_so(
    program: Callable[..., Program], eventually: Callable[..., Awaitable[None]]
) -> None:
    said: list[str] = []
    supervisor = ProcessSupervisor(said.append)
    await supervisor.start(program(STUBBORN))
    first = supervisor.processes["probe"].pid
    assert first
    watch = asyncio.create_task(supervisor.watch())
    try:
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: supervisor.processes["probe"].pid not in (None, first))
        again = supervisor.processes["probe"].pid
        assert again
        await eventually(lambda: len(said) == 2)
        assert said[0] == "probe was ended by SIGKILL, starts again in 0.5 s"
        assert re.fullmatch(r"probe works again, \d+\.\d s after its start", said[1])
        supervisor.release("probe")
        os.kill(again, signal.SIGKILL)
        await eventually(lambda: supervisor.processes["probe"].pid is None)
        assert len(said) == 2, "what was released may end"
        supervisor.revive("probe")
        await eventually(lambda: supervisor.processes["probe"].pid)
    finally:
        watch.cancel()
        await supervisor.stop({"probe"}, hurried())


async def test_a_log_does_not_grow_for_ever(
    program: Callable[..., Program], monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Awaitable[None]]
) -> None:
    monkeypatch.setattr(managed_process, "LOG_BYTES", 1000)
    supervisor = ProcessSupervisor(lambda _: None)
    await supervisor.start(program(TALKATIVE))
    log = supervisor.processes["probe"].program.log
    watch = asyncio.create_task(supervisor.watch())
    try:
        aside = log.with_name(f"{log.name}.1")
        await eventually(aside.exists)
        await eventually(lambda: log.stat().st_size > 0)  # it goes on in the emptied one
        assert log.stat().st_blocks * 512 < 1 << 20, "no hole, no growth"
    finally:
        watch.cancel()
        await supervisor.stop({"probe"}, hurried())


async def test_of_several_starts_the_first_error_is_raised_as_it_is(program: Callable[..., Program]) -> None:
    supervisor = ProcessSupervisor(print)
    slow = program("import time; time.sleep(600)", "slow", patience=600)
    with pytest.raises(ProgramError, match="broken ended with status 1"):
        await together(supervisor.start(slow), supervisor.start(program("raise SystemExit(1)", "broken")))
    await supervisor.stop({"slow", "broken"}, asyncio.Event())
    assert supervisor.processes["slow"].pid is None


@pytest.mark.parametrize(
    ("argv", "role"),
    [
        (["python", "-P", "-m", "adjourn_worker"], Role.AGENT),
        (["python", "-m", "adjourn_worker.supervisor", "/data"], Role.TRAINING),
        (["python", "-P", *process_cleanup.agent_options("0", "w"), "-m", "adjourn_worker"], Role.AGENT),
        (["python", "-m", "adjourn_control_plane"], Role.CONTROL_PLANE),
        (["/venv/bin/weed", "server", "-dir=/m"], Role.S3),
        (["/x/valkey-server", "/data/valkey.conf"], Role.VALKEY),
        (["sh", "-c", "true"], Role.TRAINING),
        ([], Role.TRAINING),
    ],
)
def test_a_process_is_known_by_its_command_line(argv: list[str], role: Role) -> None:
    assert process_cleanup.role(argv) is role


async def test_leftovers_are_those_with_exactly_our_marker(
    tmp_path: Path, marked: Callable[..., subprocess.Popen[bytes]]
) -> None:
    ours, other = marked(), marked(stack=tmp_path / "other")
    assert [process.pid for _, process in process_cleanup.find(tmp_path)] == [ours.pid]
    assert await process_cleanup.end(tmp_path, hurry=hurried()) == 1
    assert ours.wait() == -signal.SIGKILL
    assert other.poll() is None


async def test_an_agent_is_found_though_its_environment_cannot_be_read(
    tmp_path: Path, marked: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = process_cleanup.agent_options(process_cleanup.stack_id(tmp_path), "worker-1")
    agent = marked(STUBBORN, *options)
    other = marked(STUBBORN, *process_cleanup.agent_options("other", "worker-1"))

    def refuse(process: psutil.Process) -> dict[str, str]:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "environ", refuse)
    assert [process.pid for _, process in process_cleanup.find(tmp_path)] == [agent.pid]
    assert await process_cleanup.kill(tmp_path, "worker-2", tmp_path / "worker-2") == []
    assert await process_cleanup.kill(tmp_path, "worker-1", tmp_path / "worker-1") == [agent.pid]
    assert other.poll() is None


def test_we_and_our_ancestors_are_no_leftovers(tmp_path: Path) -> None:
    code = (
        "import pathlib, subprocess, sys; from adjourn.local import process_cleanup\n"
        "if sys.argv[1] == 'parent': sys.exit(subprocess.call([sys.executable, *sys.orig_argv[1:3], 'child']))\n"
        f"sys.exit(len(list(process_cleanup.find(pathlib.Path({str(tmp_path)!r})))))"
    )
    environment = {**os.environ, **process_cleanup.marker(tmp_path)}
    assert subprocess.run([sys.executable, "-c", code, "parent"], env=environment, check=False).returncode == 0


async def test_one_worker_is_killed_and_the_other_is_not(
    tmp_path: Path, marked: Callable[..., subprocess.Popen[bytes]]
) -> None:
    agent = marked(ADJOURN_WORKER="worker-1")
    supervisor = marked(STUBBORN, str(tmp_path / "worker-1"))
    other = marked(STUBBORN, str(tmp_path / "worker-2"), ADJOURN_WORKER="worker-2")
    killed = await process_cleanup.kill(tmp_path, "worker-1", tmp_path / "worker-1")
    assert killed == sorted([agent.pid, supervisor.pid])
    assert (agent.wait(), supervisor.wait()) == (-signal.SIGKILL, -signal.SIGKILL)
    assert other.poll() is None
    assert psutil.pid_exists(other.pid)


async def test_a_process_of_a_worker_that_ends_just_before_it_is_killed_is_left_out(
    tmp_path: Path, marked: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (marked(ADJOURN_WORKER="worker-1") for _ in range(2))
    kill = psutil.Process.kill

    def too_late(process: psutil.Process) -> None:
        if process.pid == first.pid:
            first.kill()
            first.wait()
        kill(process)

    monkeypatch.setattr(psutil.Process, "kill", too_late)
    assert await process_cleanup.kill(tmp_path, "worker-1", tmp_path / "worker-1") == [second.pid]


def test_a_directory_has_one_user_at_a_time(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from adjourn.local.data_directory import DataDirectory\n"
        "with DataDirectory(pathlib.Path(sys.argv[1])).held(): print('up', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"up\n"
        with pytest.raises(DirectoryInUseError, match=f"pid {holder.pid}"), DataDirectory(tmp_path).held():
            pass
        holder.kill()
    with DataDirectory(tmp_path).held():
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_the_first_start_decides_for_later_ones(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    first = directory.settings(threads=3, ports=2)
    assert DataDirectory(tmp_path).settings(threads=1, ports=2) == first
    assert stat.S_IMODE((tmp_path / "stack.json").stat().st_mode) == 0o600


async def test_a_port_that_someone_took_is_replaced_and_no_secret_changes(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    first = directory.settings(threads=1, ports=2)
    async with await asyncio.start_server(lambda _reader, writer: writer.close(), HOST, first.ports[0]):
        second = directory.settings(threads=1, ports=2)
    assert set(second.ports).isdisjoint({first.ports[0]})
    assert (second.redis_password, second.s3_secret_key) == (first.redis_password, first.s3_secret_key)


async def test_free_ports_are_free_and_different() -> None:
    begun = time.monotonic()
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(map(is_free, ports))
    assert time.monotonic() - begun < 5
