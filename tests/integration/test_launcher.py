"""The launcher and the agent's client of it, with real processes; only training is replaced, by short scripts."""

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from adjourn.internal.v1.trainer_pb2 import TrainingProcess, TrainingStart
from adjourn_worker.attempt import files
from adjourn_worker.host.locks import holder
from adjourn_worker.host.notify import NotifySocket
from adjourn_worker.launcher import client as module
from adjourn_worker.launcher import process_tree
from adjourn_worker.launcher.client import LauncherClient, LauncherFailed, LaunchRefused, launcher_environment
from adjourn_worker.launcher.process_tree import runs
from adjourn_worker.launcher.server import ALREADY_RUNNING, ENVIRONMENT
from tests.harness.launchers import (
    DEADLINE,
    ENTRY,
    FAMILY,
    NONCE,
    SLEEPER,
    LauncherHarness,
    ended,
    launcher_harness,
    until,
)


@pytest.fixture
def harness(tmp_path: Path, servers: Path) -> Iterator[LauncherHarness]:
    """A data directory and a launcher's environment; no launcher may be left when the test ends."""
    with launcher_harness(tmp_path, servers) as made:
        yield made


@pytest.fixture
async def launcher(harness: LauncherHarness) -> AsyncIterator[LauncherClient]:
    """A launcher that runs; it ends with the test."""
    async with harness.launcher() as launcher:
        yield launcher
        await launcher.shutdown()


LOOK_AROUND = """
import json, os, signal, sys
result = {
    "session": os.getsid(0),
    "group": os.getpgid(0),
    "pid": os.getpid(),
    "directory": os.getcwd(),
    "files": sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) > 2
                    and os.path.exists(f"/proc/self/fd/{fd}")),
    "environment": dict(os.environ),
    "sigterm": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
    "grpc": "grpc" in sys.modules,
    "arguments": sys.argv[1:],
    "umask": os.umask(0),
}
print("hello", flush=False)
print("over there", file=sys.stderr)
(directory / "result").write_text(json.dumps(result))
code = 7
"""


async def test_a_training_process_has_its_own_session_log_and_directory_and_nothing_of_ours(
    harness: LauncherHarness, launcher: LauncherClient
) -> None:
    directory = harness.attempt(LOOK_AROUND)
    async with NotifySocket(harness.paths.notify_socket) as notifications:
        process = await launcher.launch(directory, NONCE)
        assert await notifications.wait(DEADLINE)
        end = await ended(directory)
    result = json.loads((directory / "result").read_text())
    assert (end.code, end.killed) == (7, False)
    assert result["session"] == result["group"] == result["pid"] == process.pid
    assert Path(result["directory"]) == directory / "work"
    assert result["files"] == []
    assert result["sigterm"]
    assert not result["grpc"]
    assert result["arguments"] == []
    assert result["umask"] == 0o077
    assert "hush" not in result["environment"].values()
    assert ENVIRONMENT.items() <= result["environment"].items()
    assert (directory / "log").read_text().splitlines() == ["hello", "over there"]
    assert process == files.read_process(directory)
    assert (process.directory, process.nonce, process.boot_id) == (str(directory), NONCE, process_tree.boot_id())


async def test_launching_again_changes_nothing(harness: LauncherHarness, launcher: LauncherClient) -> None:
    directory = harness.attempt(SLEEPER)
    first = await launcher.launch(directory, NONCE)
    assert await launcher.launch(directory, NONCE) == first
    assert await launcher.processes() == [first]
    await launcher.kill(directory)
    end = await ended(directory)
    assert (end.code, end.killed) == (-signal.SIGKILL, True)
    assert await launcher.launch(directory, NONCE) == first
    assert await launcher.processes() == []
    assert not await launcher.exit_lost(first)
    await launcher.kill(directory)


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("raise ValueError('no such thing')", 1, "ValueError: no such thing"),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('why')", 1, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV, ""),
        ("import os; os._exit(9)", 9, ""),
        ("print('\\udcff')", 0, "\\udcff"),
    ],
)
async def test_every_way_to_end_is_recorded(
    harness: LauncherHarness, launcher: LauncherClient, script: str, code: int, said: str
) -> None:
    directory = harness.attempt(script)
    await launcher.launch(directory, NONCE)
    end = await ended(directory)
    assert (end.code, end.killed) == (code, False)
    assert said in (directory / "log").read_text()


@pytest.mark.parametrize("killed", [True, False])
async def test_nothing_that_a_training_process_started_outlives_it(
    harness: LauncherHarness, launcher: LauncherClient, killed: bool
) -> None:
    directory = harness.attempt(FAMILY + ("time.sleep(600)" if killed else ""))
    await launcher.launch(directory, NONCE)
    family = [
        int(pid) for pid in (await until((directory / "family").exists)) and (directory / "family").read_text().split()
    ]
    if killed:
        await launcher.kill(directory)
    end = await ended(directory)
    assert end.killed is killed
    assert len(family) == 3
    assert not [pid for pid in family if runs(pid)]


async def test_it_tells_what_software_trains_here(harness: LauncherHarness, launcher: LauncherClient) -> None:
    assert launcher.software == {"torch": "none"}


def test_training_gets_no_proxy_with_a_password_and_no_variable_that_may_be_secret(harness: LauncherHarness) -> None:
    given = {
        "HTTPS_PROXY": "http://user:hush@proxy:3128",
        "http_proxy": "user:hush@proxy:3128",
        "HTTP_PROXY": "http://proxy:3128",
        "https_proxy": "http://[hush",
        "ADJOURN_STACK": "/stack",
        "ADJOURN_STACK_ID": "0" * 32,
        "ADJOURN_S3_SECRET_KEY": "hush",
        "ADJOURN_DATA_S3_SECRET_KEY": "hush",
        "PIP_INDEX_URL": "https://user:hush@index/simple",
        "LC_ALL": "C",
    }
    passed = launcher_environment(given, harness.paths)
    assert passed == {
        **ENVIRONMENT,
        "HTTP_PROXY": "http://proxy:3128",
        "ADJOURN_STACK_ID": "0" * 32,
        "LC_ALL": "C",
        process_tree.MARK: process_tree.mark(harness.paths.data),
    }


async def test_a_log_that_grows_without_end_takes_no_more_than_its_limit(harness: LauncherHarness) -> None:
    script = "print('the first line', flush=True)\nwhile True: print('x' * 1000)"
    directory = harness.attempt(script)
    log = directory / "log"
    limit = 1 << 20
    async with harness.launcher(log_bytes=limit) as launcher:
        await launcher.launch(directory, NONCE)
        await until(lambda: log.exists() and log.stat().st_size > 20 * limit)
        psutil.Process((await launcher.processes())[0].pid).suspend()  # so that its size stands still
        await until(lambda: log.stat().st_blocks * 512 <= limit + 2 * os.statvfs(log).f_frsize)
        await launcher.shutdown()
    assert log.read_bytes().startswith(b"the first line\nxxx")


def taken(log: Path) -> int:
    return log.stat().st_blocks * 512 - 2 * os.statvfs(log).f_frsize


async def test_the_launchers_own_log_takes_no_more_than_its_limit(harness: LauncherHarness) -> None:
    log, limit = harness.paths.launcher_log, 1 << 20
    log.write_bytes(b"of long ago\n" + b"x" * 5 * limit)
    with pytest.raises(LauncherFailed):
        await harness.launcher(log_bytes=limit, entry="none:main").start()
    assert taken(log) <= limit, "a launcher that never comes so far as to do it"
    async with harness.launcher(log_bytes=limit) as launcher:
        with log.open("ab") as output:
            output.write(b"x" * 5 * limit)
        directory = harness.attempt(SLEEPER)
        await launcher.launch(directory, NONCE)
        await until(lambda: taken(log) <= limit)
        await launcher.kill(directory)
        await ended(directory)
        await launcher.shutdown()
    content = log.read_bytes()
    assert content.startswith(b"of long ago\n")
    assert b"training_ended" in content[-limit // 2 :]


async def test_killing_one_leaves_the_others(harness: LauncherHarness, launcher: LauncherClient) -> None:
    one, other = harness.attempt(SLEEPER, 1), harness.attempt(SLEEPER, 2)
    await launcher.launch(one, NONCE)
    kept = await launcher.launch(other, NONCE)
    await launcher.kill(one)
    await ended(one)
    assert await launcher.processes() == [kept]
    assert process_tree.alive(kept)


async def test_what_cannot_be_launched_is_refused_with_the_reason(
    harness: LauncherHarness, launcher: LauncherClient
) -> None:
    elsewhere = harness.paths.data / "elsewhere"
    files.write_start(elsewhere, TrainingStart())
    with pytest.raises(LaunchRefused, match="is not an attempt"):
        await launcher.launch(elsewhere, NONCE)
    with pytest.raises(LaunchRefused, match="no file start"):
        await launcher.launch(harness.paths.attempts / "none", NONCE)
    directory = harness.attempt(SLEEPER)
    await launcher.launch(directory, NONCE)
    with pytest.raises(LaunchRefused, match="another nonce"):
        await launcher.launch(directory, "1" * 32)
    (harness.attempt("", 2) / "start").write_bytes(b"\xff")
    with pytest.raises(LaunchRefused, match="start"):
        await launcher.launch(harness.paths.attempts / f"job-2-{NONCE[:8]}", NONCE)


async def test_a_process_that_cannot_be_recorded_is_not_run(harness: LauncherHarness, launcher: LauncherClient) -> None:
    directory = harness.attempt("(directory / 'ran').touch()")
    in_the_way = directory / f".process.{holder(harness.paths.launcher_lock)}"
    in_the_way.mkdir()  # as a disk that takes no more
    with pytest.raises(LaunchRefused):
        await launcher.launch(directory, NONCE)
    assert await launcher.processes() == []
    assert not (directory / "ran").exists()
    in_the_way.rmdir()
    await launcher.launch(directory, NONCE)
    assert (await ended(directory)).code == 0
    assert (directory / "ran").exists()


async def test_an_end_that_cannot_be_recorded_yet_is_recorded_later(
    harness: LauncherHarness, launcher: LauncherClient
) -> None:
    directory = harness.attempt("(directory / 'exit').mkdir(); (directory / 'exit' / 'x').touch()")
    process = await launcher.launch(directory, NONCE)
    await until(lambda: "exit_not_recorded" in harness.paths.launcher_log.read_text())
    assert await launcher.processes() == [process]
    (directory / "exit" / "x").unlink()
    (directory / "exit").rmdir()
    assert (await ended(directory)).code == 0
    await until(lambda: not runs(process.pid))


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\0\0\0\1\xff", b"\0\0"])
async def test_a_client_that_sends_garbage_is_disconnected_and_no_one_else(
    harness: LauncherHarness, launcher: LauncherClient, garbage: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE)
        client.connect(str(harness.paths.launcher_socket))
        client.sendall(garbage)
        client.shutdown(socket.SHUT_WR)
        assert await asyncio.to_thread(client.recv, 1) == b""
    assert await launcher.processes() == []


async def test_only_we_can_ask_it(harness: LauncherHarness, launcher: LauncherClient) -> None:
    assert harness.paths.launcher_socket.stat().st_mode & 0o777 == 0o600
    assert await launcher.processes() == []


async def test_with_torch_loaded_a_fork_takes_milliseconds_and_grpc_is_nowhere(harness: LauncherHarness) -> None:
    directory = harness.attempt("")
    async with LauncherClient(harness.paths, harness.environment) as launcher:
        parent = psutil.Process(holder(harness.paths.launcher_lock))
        before = parent.cpu_times()
        process = await launcher.launch(directory, NONCE)
        spent = parent.cpu_times()
        assert isinstance(process, TrainingProcess)
        libraries = {Path(item.path).name for item in parent.memory_maps()}
        await ended(directory)
        await launcher.shutdown()
    assert spent.user + spent.system - before.user - before.system < 0.5  # of a processor, which others use too
    assert any("torch" in name for name in libraries)
    assert not any("cygrpc" in name for name in libraries)


# Launchers, one after another.


async def test_training_goes_on_without_an_agent_and_the_next_one_finds_it(harness: LauncherHarness) -> None:
    directory = harness.attempt(SLEEPER)
    async with harness.launcher() as first:
        process = await first.launch(directory, NONCE)
        pid = holder(harness.paths.launcher_lock)
    async with harness.launcher() as second:
        assert holder(harness.paths.launcher_lock) == pid
        assert await second.processes() == [process]
        assert process_tree.alive(process)
        await second.kill(directory)
        assert (await ended(directory)).killed
        await second.shutdown()


async def test_a_launcher_that_dies_is_replaced_and_its_training_ended(
    harness: LauncherHarness, launcher: LauncherClient
) -> None:
    directory = harness.attempt(FAMILY + "time.sleep(600)")
    process = await launcher.launch(directory, NONCE)
    await until((directory / "family").exists)
    family = [int(pid) for pid in (directory / "family").read_text().split()]
    pid = holder(harness.paths.launcher_lock)
    assert pid
    keeper = asyncio.create_task(launcher.keep())
    async with NotifySocket(harness.paths.notify_socket) as notifications:
        os.kill(pid, signal.SIGKILL)
        assert await notifications.wait(DEADLINE)
    assert not [pid for pid in (process.pid, *family) if runs(pid)]
    assert await launcher.processes() == []
    assert holder(harness.paths.launcher_lock) != pid
    assert await launcher.exit_lost(process)
    assert files.read_exit(directory) is None
    with pytest.raises(LaunchRefused, match="earlier launcher"):
        await launcher.launch(directory, NONCE)
    keeper.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeper


async def test_a_request_finds_the_next_launcher_if_one_dies(
    harness: LauncherHarness, launcher: LauncherClient
) -> None:
    pid = holder(harness.paths.launcher_lock)
    assert pid
    os.kill(pid, signal.SIGKILL)
    await launcher.launch(harness.attempt("code = 4"), NONCE)
    assert (await ended(harness.paths.attempts / f"job-1-{NONCE[:8]}")).code == 4


async def test_what_survived_launcher_and_training_process_is_ended(harness: LauncherHarness) -> None:
    """The launcher dies first, so that its orphans go to another parent than the next launcher; then their parent."""
    directory = harness.attempt(FAMILY + "time.sleep(600)")
    async with harness.launcher() as first:
        process = await first.launch(directory, NONCE)
        await until((directory / "family").exists)
        family = [int(pid) for pid in (directory / "family").read_text().split()]
        pid = holder(harness.paths.launcher_lock)
    assert pid
    for each in (pid, process.pid):  # the launcher first
        os.kill(each, signal.SIGKILL)
    await until(lambda: not runs(pid) and not runs(process.pid))
    assert all(map(runs, family))
    with sleeping(directory) as bystander:
        async with harness.launcher() as second:
            assert await second.processes() == []
            assert not any(map(runs, family))
            assert runs(bystander.pid)
            bystander.kill()
            await second.shutdown()


def sleeping(directory: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"], cwd=directory)


async def test_a_copied_data_directory_has_another_mark(harness: LauncherHarness, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    assert process_tree.mark(harness.paths.data) == process_tree.mark(harness.paths.data)
    assert process_tree.mark(harness.paths.data) != process_tree.mark(tmp_path / "copy")


async def test_a_data_directory_made_in_place_of_another_has_another_mark(harness: LauncherHarness) -> None:
    before = process_tree.mark(harness.paths.data)
    (harness.paths.data / "id").unlink()  # the inode is the same, as it may be of a directory that was made anew
    assert process_tree.mark(harness.paths.data) != before


async def test_what_training_leaves_behind_while_others_train_is_ended_and_nothing_else(
    harness: LauncherHarness, launcher: LauncherClient
) -> None:
    other = harness.attempt(FAMILY + "time.sleep(600)", 2)
    await launcher.launch(other, NONCE)
    await until((other / "family").exists)
    directory = harness.attempt(FAMILY)
    await launcher.launch(directory, NONCE)
    await ended(directory)
    assert not [pid for pid in (directory / "family").read_text().split() if runs(int(pid))]
    assert all(runs(int(pid)) for pid in (other / "family").read_text().split())
    pid = holder(harness.paths.launcher_lock)
    assert pid
    await until(lambda: all(runs(each) for each in process_tree.children(pid)))  # no zombie stays


async def test_a_recorded_process_of_an_earlier_boot_is_not_alive(harness: LauncherHarness) -> None:
    process = process_tree.identify(os.getpid(), harness.paths.data, NONCE)
    assert process_tree.alive(process)
    process.boot_id = "another"
    assert not process_tree.alive(process)
    with pytest.raises(ProcessLookupError):
        process_tree.identify(2**22 + 1, harness.paths.data, NONCE)


async def test_shutdown_ends_everything_and_records_it(harness: LauncherHarness) -> None:
    one, other = harness.attempt(SLEEPER, 1), harness.attempt(SLEEPER, 2)
    async with harness.launcher() as launcher:
        running = [await launcher.launch(directory, NONCE) for directory in (one, other)]
        pid = holder(harness.paths.launcher_lock)
        await launcher.shutdown()
    assert pid
    assert not runs(pid)
    assert not any(map(process_tree.alive, running))
    for directory in (one, other):
        end = files.read_exit(directory)
        assert end
        assert end.killed
    assert not harness.paths.launcher_socket.exists()
    await harness.launcher().shutdown()  # with no launcher there is nothing to do


async def test_after_a_shutdown_nothing_is_started_again(harness: LauncherHarness) -> None:
    async with harness.launcher() as launcher:
        keeper = asyncio.create_task(launcher.keep())
        await launcher.shutdown()
        await asyncio.wait_for(keeper, DEADLINE)
        with pytest.raises(LauncherFailed, match="shut down"):
            await launcher.processes()
    assert not harness.paths.launcher_socket.exists()


async def test_a_launcher_that_is_still_loading_is_shut_down_at_once(harness: LauncherHarness, tmp_path: Path) -> None:
    (tmp_path / "code" / "slow.py").write_text("import time; time.sleep(600)")
    loading = harness.launcher(entry="slow:main").spawn()
    await until(lambda: holder(harness.paths.launcher_lock) == loading.pid)
    await asyncio.wait_for(harness.launcher().shutdown(), DEADLINE)
    assert loading.wait(DEADLINE) == -signal.SIGKILL


async def test_sigterm_ends_everything_in_order(harness: LauncherHarness) -> None:
    directory = harness.attempt(SLEEPER)
    async with harness.launcher() as launcher:
        process = await launcher.launch(directory, NONCE)
        parent = psutil.Process(holder(harness.paths.launcher_lock))
        parent.terminate()
        assert await asyncio.to_thread(parent.wait, DEADLINE) == 0
    end = files.read_exit(directory)
    assert end
    assert end.killed
    assert not process_tree.alive(process)


async def test_there_is_one_launcher_a_data_directory(harness: LauncherHarness, launcher: LauncherClient) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "adjourn_worker.launcher", str(harness.paths.data), "--entry", ENTRY],
        env=launcher_environment(harness.environment, harness.paths),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ALREADY_RUNNING
    assert done.stderr == f"another launcher serves {harness.paths.data}\n"
    assert await launcher.processes() == []


async def test_it_does_not_run_where_training_could_not_be_exact(harness: LauncherHarness) -> None:
    environment = launcher_environment(harness.environment, harness.paths)
    del environment["PYTHONHASHSEED"]
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "adjourn_worker.launcher", str(harness.paths.data)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "PYTHONHASHSEED must be 0" in done.stderr


async def test_a_launcher_that_cannot_start_says_why(harness: LauncherHarness) -> None:
    with pytest.raises(LauncherFailed, match="No module named 'nowhere'"):
        await harness.launcher(entry="nowhere:main").start()


async def test_a_launcher_that_takes_too_long_is_given_up(harness: LauncherHarness, tmp_path: Path) -> None:
    (tmp_path / "code" / "slow.py").write_text("import time; time.sleep(600)")
    with pytest.raises(LauncherFailed, match="no launcher after 2 s"):
        await harness.launcher(entry="slow:main", patience=2).start()


async def test_a_launcher_that_hangs_is_replaced(harness: LauncherHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.3)
    async with harness.launcher() as launcher:
        process = await launcher.launch(harness.attempt(SLEEPER), NONCE)
    stopped = holder(harness.paths.launcher_lock)
    assert stopped
    os.kill(stopped, signal.SIGSTOP)
    with contextlib.suppress(LauncherFailed):  # a busy machine starts none so soon
        async with harness.launcher(patience=0.5):
            pass
    await until(lambda: not runs(stopped))
    async with harness.launcher() as launcher:
        assert holder(harness.paths.launcher_lock) != stopped
        assert await launcher.processes() == []
        assert not process_tree.alive(process)
        await launcher.shutdown()


@pytest.mark.parametrize(("number", "no_room"), [(errno.ENOSPC, True), (errno.EIO, False)])
async def test_an_end_for_lack_of_room_is_told_from_others(
    harness: LauncherHarness, launcher: LauncherClient, number: int, no_room: bool
) -> None:
    directory = harness.attempt(f"raise OSError({number}, 'the disk')")
    await launcher.launch(directory, NONCE)
    assert (await ended(directory)).no_room == no_room
