"""What a launcher starts and ends, with real processes; only training is replaced, by short scripts."""

import asyncio
import json
import signal
import socket
from pathlib import Path

import psutil
import pytest

from adjourn.internal.v1.trainer_pb2 import TrainingProcess, TrainingStart
from adjourn_worker.attempt import files
from adjourn_worker.host.locks import holder
from adjourn_worker.host.notify import NotifySocket
from adjourn_worker.launcher import process_tree
from adjourn_worker.launcher.client import LauncherClient, LaunchRefused
from adjourn_worker.launcher.server import ENVIRONMENT
from tests.harness.launchers import DEADLINE, FAMILY, NONCE, SLEEPER, Stand, ended, runs, until

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
    stand: Stand, launcher: LauncherClient
) -> None:
    directory = stand.attempt(LOOK_AROUND)
    async with NotifySocket(stand.paths.notify_socket) as bell:
        process = await launcher.launch(directory, NONCE)
        assert await bell.wait(DEADLINE)
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


async def test_launching_again_changes_nothing(stand: Stand, launcher: LauncherClient) -> None:
    directory = stand.attempt(SLEEPER)
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
    stand: Stand, launcher: LauncherClient, script: str, code: int, said: str
) -> None:
    directory = stand.attempt(script)
    await launcher.launch(directory, NONCE)
    end = await ended(directory)
    assert (end.code, end.killed) == (code, False)
    assert said in (directory / "log").read_text()


@pytest.mark.parametrize("killed", [True, False])
async def test_nothing_that_a_training_process_started_outlives_it(
    stand: Stand, launcher: LauncherClient, killed: bool
) -> None:
    directory = stand.attempt(FAMILY + ("time.sleep(600)" if killed else ""))
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


async def test_killing_one_leaves_the_others(stand: Stand, launcher: LauncherClient) -> None:
    one, other = stand.attempt(SLEEPER, 1), stand.attempt(SLEEPER, 2)
    await launcher.launch(one, NONCE)
    kept = await launcher.launch(other, NONCE)
    await launcher.kill(one)
    await ended(one)
    assert await launcher.processes() == [kept]
    assert process_tree.alive(kept)


async def test_what_cannot_be_launched_is_refused_with_the_reason(stand: Stand, launcher: LauncherClient) -> None:
    elsewhere = stand.paths.data / "elsewhere"
    files.write_start(elsewhere, TrainingStart())
    with pytest.raises(LaunchRefused, match="is not an attempt"):
        await launcher.launch(elsewhere, NONCE)
    with pytest.raises(LaunchRefused, match="no file start"):
        await launcher.launch(stand.paths.attempts / "none", NONCE)
    directory = stand.attempt(SLEEPER)
    await launcher.launch(directory, NONCE)
    with pytest.raises(LaunchRefused, match="another nonce"):
        await launcher.launch(directory, "1" * 32)
    (stand.attempt("", 2) / "start").write_bytes(b"\xff")
    with pytest.raises(LaunchRefused, match="start"):
        await launcher.launch(stand.paths.attempts / f"job-2-{NONCE[:8]}", NONCE)


async def test_a_process_that_cannot_be_recorded_is_not_run(stand: Stand, launcher: LauncherClient) -> None:
    directory = stand.attempt("(directory / 'ran').touch()")
    in_the_way = directory / f".process.{holder(stand.paths.launcher_lock)}"
    in_the_way.mkdir()  # as a disk that takes no more
    with pytest.raises(LaunchRefused):
        await launcher.launch(directory, NONCE)
    assert await launcher.processes() == []
    assert not (directory / "ran").exists()
    in_the_way.rmdir()
    await launcher.launch(directory, NONCE)
    assert (await ended(directory)).code == 0
    assert (directory / "ran").exists()


async def test_an_end_that_cannot_be_recorded_yet_is_recorded_later(stand: Stand, launcher: LauncherClient) -> None:
    directory = stand.attempt("(directory / 'exit').mkdir(); (directory / 'exit' / 'x').touch()")
    process = await launcher.launch(directory, NONCE)
    await until(lambda: "exit_not_recorded" in stand.paths.launcher_log.read_text())
    assert await launcher.processes() == [process]
    (directory / "exit" / "x").unlink()
    (directory / "exit").rmdir()
    assert (await ended(directory)).code == 0
    await until(lambda: not runs(process.pid))


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\0\0\0\1\xff", b"\0\0"])
async def test_a_client_that_talks_nonsense_is_cut_off_and_no_one_else(
    stand: Stand, launcher: LauncherClient, garbage: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE)
        client.connect(str(stand.paths.launcher_socket))
        client.sendall(garbage)
        client.shutdown(socket.SHUT_WR)
        assert await asyncio.to_thread(client.recv, 1) == b""
    assert await launcher.processes() == []


async def test_only_we_can_ask_it(stand: Stand, launcher: LauncherClient) -> None:
    assert stand.paths.launcher_socket.stat().st_mode & 0o777 == 0o600
    assert await launcher.processes() == []


async def test_with_torch_loaded_a_fork_takes_milliseconds_and_grpc_is_nowhere(stand: Stand) -> None:
    directory = stand.attempt("")
    async with LauncherClient(stand.paths, stand.environment) as launcher:
        process = await launcher.launch(directory, NONCE)
        assert isinstance(process, TrainingProcess)
        parent = psutil.Process(holder(stand.paths.launcher_lock))
        libraries = {Path(item.path).name for item in parent.memory_maps()}
        await ended(directory)
        await launcher.shutdown()
    entries = [json.loads(line) for line in stand.paths.launcher_log.read_text().splitlines() if line.startswith("{")]
    (seconds,) = [entry["seconds"] for entry in entries if entry["event"] == "training_launched"]
    assert seconds < 0.5
    assert any("torch" in name for name in libraries)
    assert not any("cygrpc" in name for name in libraries)
