"""How launchers start, end and follow one another, and what becomes of training meanwhile; with real processes."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from adjourn_worker.attempt import files
from adjourn_worker.host.locks import holder
from adjourn_worker.host.notify import NotifySocket
from adjourn_worker.launcher import process_tree, start
from adjourn_worker.launcher.client import LauncherClient, LaunchRefused, end_orphans
from adjourn_worker.launcher.server import TAKEN
from adjourn_worker.launcher.start import LauncherFailed
from tests.harness.launchers import DEADLINE, ENTRY, FAMILY, NONCE, SLEEPER, Stand, ended, runs, sleeping, until


async def test_training_goes_on_without_an_agent_and_the_next_one_finds_it(stand: Stand) -> None:
    directory = stand.attempt(SLEEPER)
    async with stand.launcher() as first:
        process = await first.launch(directory, NONCE)
        pid = holder(stand.paths.launcher_lock)
    async with stand.launcher() as second:
        assert holder(stand.paths.launcher_lock) == pid
        assert await second.processes() == [process]
        assert process_tree.alive(process)
        await second.kill(directory)
        assert (await ended(directory)).killed
        await second.shutdown()


async def test_a_launcher_that_dies_is_replaced_and_its_training_ended(stand: Stand, launcher: LauncherClient) -> None:
    directory = stand.attempt(FAMILY + "time.sleep(600)")
    process = await launcher.launch(directory, NONCE)
    await until((directory / "family").exists)
    family = [int(pid) for pid in (directory / "family").read_text().split()]
    pid = holder(stand.paths.launcher_lock)
    assert pid
    keeper = asyncio.create_task(launcher.keep())
    async with NotifySocket(stand.paths.notify_socket) as bell:
        os.kill(pid, signal.SIGKILL)
        assert await bell.wait(DEADLINE)
    assert not [pid for pid in (process.pid, *family) if runs(pid)]
    assert await launcher.processes() == []
    assert holder(stand.paths.launcher_lock) != pid
    assert await launcher.exit_lost(process)
    assert files.read_exit(directory) is None
    with pytest.raises(LaunchRefused, match="earlier launcher"):
        await launcher.launch(directory, NONCE)
    keeper.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeper


async def test_a_request_finds_the_next_launcher_if_one_dies(stand: Stand, launcher: LauncherClient) -> None:
    pid = holder(stand.paths.launcher_lock)
    assert pid
    os.kill(pid, signal.SIGKILL)
    await launcher.launch(stand.attempt("code = 4"), NONCE)
    assert (await ended(stand.paths.attempts / f"job-1-{NONCE[:8]}")).code == 4


async def test_what_survived_launcher_and_leader_is_ended(stand: Stand) -> None:
    directory = stand.attempt("")
    (directory / "work").mkdir()
    sleeper, bystander = sleeping(directory / "work"), sleeping(stand.paths.data)
    try:
        # The pid has gone to another since, which has nothing to do with it.
        gone = process_tree.identify(bystander.pid, directory, NONCE)
        gone.start_ticks -= 1
        files.write_process(directory, gone)
        assert not process_tree.alive(gone)
        assert end_orphans(stand.paths, []) == []
        assert sleeper.wait(DEADLINE) == -signal.SIGKILL
        assert runs(bystander.pid)
        assert end_orphans(stand.paths, [gone]) == []
    finally:
        for process in (sleeper, bystander):
            process.kill()
            process.wait()


async def test_an_attempt_whose_record_is_damaged_is_searched_for_strays_too(stand: Stand) -> None:
    directory = stand.attempt("")
    (directory / "work").mkdir()
    (directory / "process").write_bytes(b"\xff")
    with sleeping(directory / "work") as sleeper:
        end_orphans(stand.paths, [])
        assert sleeper.wait(DEADLINE) == -signal.SIGKILL


async def test_a_recorded_process_of_an_earlier_boot_is_not_alive(stand: Stand) -> None:
    process = process_tree.identify(os.getpid(), stand.paths.data, NONCE)
    assert process_tree.alive(process)
    process.boot_id = "another"
    assert not process_tree.alive(process)
    with pytest.raises(ProcessLookupError):
        process_tree.identify(2**22 + 1, stand.paths.data, NONCE)


async def test_shutdown_ends_everything_and_records_it(stand: Stand) -> None:
    one, other = stand.attempt(SLEEPER, 1), stand.attempt(SLEEPER, 2)
    async with stand.launcher() as launcher:
        running = [await launcher.launch(directory, NONCE) for directory in (one, other)]
        pid = holder(stand.paths.launcher_lock)
        await launcher.shutdown()
    assert pid
    assert not runs(pid)
    assert not any(map(process_tree.alive, running))
    for directory in (one, other):
        end = files.read_exit(directory)
        assert end
        assert end.killed
    assert not stand.paths.launcher_socket.exists()
    await stand.launcher().shutdown()  # with no launcher there is nothing to do


async def test_after_a_shutdown_nothing_is_started_again(stand: Stand) -> None:
    async with stand.launcher() as launcher:
        keeper = asyncio.create_task(launcher.keep())
        await launcher.shutdown()
        await asyncio.wait_for(keeper, DEADLINE)
        with pytest.raises(LauncherFailed, match="shut down"):
            await launcher.processes()
    assert not stand.paths.launcher_socket.exists()


async def test_a_launcher_that_is_still_loading_is_shut_down_at_once(stand: Stand, tmp_path: Path) -> None:
    (tmp_path / "code" / "slow.py").write_text("import time; time.sleep(600)")
    loading = start.start(stand.paths, stand.environment, "slow:main")
    await until(lambda: holder(stand.paths.launcher_lock) == loading.pid)
    await asyncio.wait_for(stand.launcher().shutdown(), DEADLINE)
    assert loading.wait(DEADLINE) == -signal.SIGKILL


async def test_sigterm_ends_everything_in_order(stand: Stand) -> None:
    directory = stand.attempt(SLEEPER)
    async with stand.launcher() as launcher:
        process = await launcher.launch(directory, NONCE)
        parent = psutil.Process(holder(stand.paths.launcher_lock))
        parent.terminate()
        assert await asyncio.to_thread(parent.wait, DEADLINE) == 0
    end = files.read_exit(directory)
    assert end
    assert end.killed
    assert not process_tree.alive(process)


async def test_there_is_one_launcher_a_data_directory(stand: Stand, launcher: LauncherClient) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "adjourn_worker.launcher", str(stand.paths.data), "--entry", ENTRY],
        env=start.inherited(stand.environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == TAKEN
    assert done.stderr == f"another launcher serves {stand.paths.data}\n"
    assert await launcher.processes() == []


async def test_it_does_not_run_where_training_could_not_be_exact(stand: Stand) -> None:
    environment = start.inherited(stand.environment)
    del environment["PYTHONHASHSEED"]
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "adjourn_worker.launcher", str(stand.paths.data)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "PYTHONHASHSEED must be 0" in done.stderr


async def test_a_launcher_that_cannot_start_says_why(stand: Stand) -> None:
    with pytest.raises(LauncherFailed, match="No module named 'nowhere'"):
        await stand.launcher(entry="nowhere:main").start()


async def test_a_launcher_that_takes_too_long_is_given_up(stand: Stand, tmp_path: Path) -> None:
    (tmp_path / "code" / "slow.py").write_text("import time; time.sleep(600)")
    with pytest.raises(LauncherFailed, match="no launcher after 2 s"):
        await stand.launcher(entry="slow:main", patience=2).start()


async def test_a_launcher_that_hangs_is_replaced(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "PROBE_SECONDS", 0.3)
    async with stand.launcher() as launcher:
        process = await launcher.launch(stand.attempt(SLEEPER), NONCE)
    stopped = holder(stand.paths.launcher_lock)
    assert stopped
    os.kill(stopped, signal.SIGSTOP)
    async with stand.launcher(patience=1.0) as launcher:
        assert holder(stand.paths.launcher_lock) != stopped
        assert await launcher.processes() == []
        assert not process_tree.alive(process)
        await launcher.shutdown()
