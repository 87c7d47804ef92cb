"""The launcher and the agent's side of it, with real processes; only training is replaced, by short scripts."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from adjourn.v1.trainer_pb2 import ProcessExit, TrainingProcess, TrainingStart
from worker import attempts, launching, processes
from worker.doorbell import Doorbell
from worker.launcher import ENVIRONMENT, TAKEN
from worker.launching import LauncherFailed
from worker.lock import holder
from worker.places import Places
from worker.supervisor import LaunchRefused, Supervisor, end_strays

DEADLINE = 20.0
NONCE = "0" * 32
ENTRY = "scripted:main"
SCRIPTED = """
def main(directory):
    scope = {"directory": directory}
    exec((directory / "script").read_text(), scope)
    return scope.get("code", 0)
"""
SLEEPER = "import pathlib, time; pathlib.Path('began').touch(); time.sleep(600)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A data directory, a launcher's environment, and attempts made by hand."""

    places: Places
    environment: dict[str, str]

    def supervisor(self, **options: Any) -> Supervisor:
        return Supervisor(self.places, self.environment, **{"entry": ENTRY, **options})

    def attempt(self, script: str, number: int = 1) -> Path:
        directory = self.places.attempts / f"job-{number}-{NONCE[:8]}"
        attempts.write_start(directory, TrainingStart(job="jobs/job", doorbell=str(self.places.doorbell)))
        (directory / "script").write_text(script)
        return directory


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    code = tmp_path / "code"
    code.mkdir()
    (code / "scripted.py").write_text(SCRIPTED)
    (tmp_path / "shm").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(code), "ADJOURN_S3_SECRET_KEY": "hush", "AWS_SECRET": "hush"}
    places = Places.prepare(tmp_path / "data", {}, tmp_path / "shm")
    yield Bench(places=places, environment=environment)
    pid = holder(places.launcher_lock)
    left = [
        process for process in psutil.process_iter(["cmdline"]) if str(places.data) in (process.info["cmdline"] or [])
    ]
    for process in left:
        process.kill()
    end_strays(places, [])
    places.remove_volatile()
    assert not left, f"launcher {pid} was left running"


@pytest.fixture
async def supervisor(bench: Bench) -> AsyncIterator[Supervisor]:
    async with bench.supervisor() as supervisor:
        yield supervisor
        await supervisor.shutdown()


async def until(condition: Callable[[], Any]) -> Any:
    """Returns what the condition comes to once it is true."""
    deadline = time.monotonic() + DEADLINE
    while not (result := condition()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    return result


async def ended(directory: Path) -> ProcessExit:
    result = await until(lambda: attempts.read_exit(directory))
    assert isinstance(result, ProcessExit)
    return result


async def pid_in(path: Path) -> int:
    return int(await until(lambda: path.exists() and path.read_text()))


def sleeping(directory: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"], cwd=directory, start_new_session=True)


def runs(pid: int) -> bool:
    return processes.stat(pid) is not None


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
    bench: Bench, supervisor: Supervisor
) -> None:
    directory = bench.attempt(LOOK_AROUND)
    async with Doorbell(bench.places.doorbell) as bell:
        process = await supervisor.launch(directory, NONCE)
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
    assert process == attempts.read_process(directory)
    assert (process.directory, process.nonce, process.boot_id) == (str(directory), NONCE, processes.boot_id())


async def test_launching_again_changes_nothing(bench: Bench, supervisor: Supervisor) -> None:
    directory = bench.attempt(SLEEPER)
    first = await supervisor.launch(directory, NONCE)
    assert await supervisor.launch(directory, NONCE) == first
    assert await supervisor.processes() == [first]
    await supervisor.kill(directory)
    end = await ended(directory)
    assert (end.code, end.killed) == (-signal.SIGKILL, True)
    assert await supervisor.launch(directory, NONCE) == first
    assert await supervisor.processes() == []
    assert not await supervisor.unseen(first)
    await supervisor.kill(directory)


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
    bench: Bench, supervisor: Supervisor, script: str, code: int, said: str
) -> None:
    directory = bench.attempt(script)
    await supervisor.launch(directory, NONCE)
    end = await ended(directory)
    assert (end.code, end.killed) == (code, False)
    assert said in (directory / "log").read_text()


FAMILY = """
import os, pathlib, subprocess, sys, time
# One in our group; one with a session of its own; one whose parent has gone, with its output elsewhere.
child = subprocess.Popen(["sleep", "600"])
apart = subprocess.Popen(["sleep", "600"], start_new_session=True)
orphan = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=2).pid)"
found = subprocess.run([sys.executable, "-c", orphan], stdout=subprocess.PIPE, check=True, text=True)
(directory / "family.new").write_text(f"{child.pid} {apart.pid} {found.stdout.strip()}")
os.rename(directory / "family.new", directory / "family")
"""


@pytest.mark.parametrize("killed", [True, False])
async def test_nothing_that_a_training_process_started_outlives_it(
    bench: Bench, supervisor: Supervisor, killed: bool
) -> None:
    directory = bench.attempt(FAMILY + ("time.sleep(600)" if killed else ""))
    await supervisor.launch(directory, NONCE)
    family = [
        int(pid) for pid in (await until((directory / "family").exists)) and (directory / "family").read_text().split()
    ]
    if killed:
        await supervisor.kill(directory)
    end = await ended(directory)
    assert end.killed is killed
    assert len(family) == 3
    assert not [pid for pid in family if runs(pid)]


async def test_killing_one_leaves_the_others(bench: Bench, supervisor: Supervisor) -> None:
    one, other = bench.attempt(SLEEPER, 1), bench.attempt(SLEEPER, 2)
    await supervisor.launch(one, NONCE)
    kept = await supervisor.launch(other, NONCE)
    await supervisor.kill(one)
    await ended(one)
    assert await supervisor.processes() == [kept]
    assert processes.alive(kept)


async def test_what_cannot_be_launched_is_refused_with_the_reason(bench: Bench, supervisor: Supervisor) -> None:
    elsewhere = bench.places.data / "elsewhere"
    attempts.write_start(elsewhere, TrainingStart())
    with pytest.raises(LaunchRefused, match="is not an attempt"):
        await supervisor.launch(elsewhere, NONCE)
    with pytest.raises(LaunchRefused, match="no file start"):
        await supervisor.launch(bench.places.attempts / "none", NONCE)
    directory = bench.attempt(SLEEPER)
    await supervisor.launch(directory, NONCE)
    with pytest.raises(LaunchRefused, match="another nonce"):
        await supervisor.launch(directory, "1" * 32)
    (bench.attempt("", 2) / "start").write_bytes(b"\xff")
    with pytest.raises(LaunchRefused, match="start"):
        await supervisor.launch(bench.places.attempts / f"job-2-{NONCE[:8]}", NONCE)


async def test_a_process_that_cannot_be_recorded_is_not_run(bench: Bench, supervisor: Supervisor) -> None:
    directory = bench.attempt("(directory / 'ran').touch()")
    in_the_way = directory / f".process.{holder(bench.places.launcher_lock)}"
    in_the_way.mkdir()  # as a disk that takes no more
    with pytest.raises(LaunchRefused):
        await supervisor.launch(directory, NONCE)
    assert await supervisor.processes() == []
    assert not (directory / "ran").exists()
    in_the_way.rmdir()
    await supervisor.launch(directory, NONCE)
    assert (await ended(directory)).code == 0
    assert (directory / "ran").exists()


async def test_an_end_that_cannot_be_recorded_yet_is_recorded_later(bench: Bench, supervisor: Supervisor) -> None:
    directory = bench.attempt("(directory / 'exit').mkdir(); (directory / 'exit' / 'x').touch()")
    process = await supervisor.launch(directory, NONCE)
    await until(lambda: "exit_not_recorded" in bench.places.launcher_log.read_text())
    assert await supervisor.processes() == [process]
    (directory / "exit" / "x").unlink()
    (directory / "exit").rmdir()
    assert (await ended(directory)).code == 0
    await until(lambda: not runs(process.pid))


async def test_training_goes_on_without_an_agent_and_the_next_one_finds_it(bench: Bench) -> None:
    directory = bench.attempt(SLEEPER)
    async with bench.supervisor() as first:
        process = await first.launch(directory, NONCE)
        launcher = holder(bench.places.launcher_lock)
    async with bench.supervisor() as second:
        assert holder(bench.places.launcher_lock) == launcher
        assert await second.processes() == [process]
        assert processes.alive(process)
        await second.kill(directory)
        assert (await ended(directory)).killed
        await second.shutdown()


async def test_a_launcher_that_dies_is_replaced_and_its_training_ended(bench: Bench, supervisor: Supervisor) -> None:
    directory = bench.attempt(FAMILY + "time.sleep(600)")
    process = await supervisor.launch(directory, NONCE)
    await until((directory / "family").exists)
    family = [int(pid) for pid in (directory / "family").read_text().split()]
    launcher = holder(bench.places.launcher_lock)
    assert launcher
    keeper = asyncio.create_task(supervisor.keep())
    async with Doorbell(bench.places.doorbell) as bell:
        os.kill(launcher, signal.SIGKILL)
        assert await bell.wait(DEADLINE)
    assert not [pid for pid in (process.pid, *family) if runs(pid)]
    assert await supervisor.processes() == []
    assert holder(bench.places.launcher_lock) != launcher
    assert await supervisor.unseen(process)
    assert attempts.read_exit(directory) is None
    with pytest.raises(LaunchRefused, match="earlier launcher"):
        await supervisor.launch(directory, NONCE)
    keeper.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeper


async def test_a_request_finds_the_next_launcher_if_one_dies(bench: Bench, supervisor: Supervisor) -> None:
    launcher = holder(bench.places.launcher_lock)
    assert launcher
    os.kill(launcher, signal.SIGKILL)
    await supervisor.launch(bench.attempt("code = 4"), NONCE)
    assert (await ended(bench.places.attempts / f"job-1-{NONCE[:8]}")).code == 4


async def test_what_survived_launcher_and_leader_is_ended(bench: Bench) -> None:
    directory = bench.attempt("")
    (directory / "work").mkdir()
    sleeper, bystander = sleeping(directory / "work"), sleeping(bench.places.data)
    try:
        # The pid has gone to another since, which has nothing to do with it.
        gone = processes.identify(bystander.pid, directory, NONCE)
        gone.start_ticks -= 1
        attempts.write_process(directory, gone)
        assert not processes.alive(gone)
        assert end_strays(bench.places, []) == []
        assert sleeper.wait(DEADLINE) == -signal.SIGKILL
        assert runs(bystander.pid)
        assert end_strays(bench.places, [gone]) == []
    finally:
        for process in (sleeper, bystander):
            process.kill()
            process.wait()


async def test_an_attempt_whose_record_is_damaged_is_searched_for_strays_too(bench: Bench) -> None:
    directory = bench.attempt("")
    (directory / "work").mkdir()
    (directory / "process").write_bytes(b"\xff")
    with sleeping(directory / "work") as sleeper:
        end_strays(bench.places, [])
        assert sleeper.wait(DEADLINE) == -signal.SIGKILL


async def test_a_recorded_process_of_an_earlier_boot_is_not_alive(bench: Bench) -> None:
    process = processes.identify(os.getpid(), bench.places.data, NONCE)
    assert processes.alive(process)
    process.boot_id = "another"
    assert not processes.alive(process)
    with pytest.raises(ProcessLookupError):
        processes.identify(2**22 + 1, bench.places.data, NONCE)


async def test_shutdown_ends_everything_and_records_it(bench: Bench) -> None:
    one, other = bench.attempt(SLEEPER, 1), bench.attempt(SLEEPER, 2)
    async with bench.supervisor() as supervisor:
        running = [await supervisor.launch(directory, NONCE) for directory in (one, other)]
        launcher = holder(bench.places.launcher_lock)
        await supervisor.shutdown()
    assert launcher
    assert not runs(launcher)
    assert not any(map(processes.alive, running))
    for directory in (one, other):
        end = attempts.read_exit(directory)
        assert end
        assert end.killed
    assert not bench.places.launcher_socket.exists()
    await bench.supervisor().shutdown()  # with no launcher there is nothing to do


async def test_after_a_shutdown_nothing_is_started_again(bench: Bench) -> None:
    async with bench.supervisor() as supervisor:
        keeper = asyncio.create_task(supervisor.keep())
        await supervisor.shutdown()
        await asyncio.wait_for(keeper, DEADLINE)
        with pytest.raises(LauncherFailed, match="shut down"):
            await supervisor.processes()
    assert not bench.places.launcher_socket.exists()


async def test_a_launcher_that_is_still_loading_is_shut_down_at_once(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "code" / "slow.py").write_text("import time; time.sleep(600)")
    loading = launching.start(bench.places, bench.environment, "slow:main")
    await until(lambda: holder(bench.places.launcher_lock) == loading.pid)
    await asyncio.wait_for(bench.supervisor().shutdown(), DEADLINE)
    assert loading.wait(DEADLINE) == -signal.SIGKILL


async def test_sigterm_ends_everything_in_order(bench: Bench) -> None:
    directory = bench.attempt(SLEEPER)
    async with bench.supervisor() as supervisor:
        process = await supervisor.launch(directory, NONCE)
        launcher = psutil.Process(holder(bench.places.launcher_lock))
        launcher.terminate()
        assert await asyncio.to_thread(launcher.wait, DEADLINE) == 0
    end = attempts.read_exit(directory)
    assert end
    assert end.killed
    assert not processes.alive(process)


async def test_there_is_one_launcher_a_data_directory(bench: Bench, supervisor: Supervisor) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "worker.launcher", str(bench.places.data), "--entry", ENTRY],
        env=launching.inherited(bench.environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == TAKEN
    assert done.stderr == f"another launcher serves {bench.places.data}\n"
    assert await supervisor.processes() == []


async def test_it_does_not_run_where_training_could_not_be_exact(bench: Bench) -> None:
    environment = launching.inherited(bench.environment)
    del environment["PYTHONHASHSEED"]
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "worker.launcher", str(bench.places.data)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "PYTHONHASHSEED must be 0" in done.stderr


async def test_a_launcher_that_cannot_start_says_why(bench: Bench) -> None:
    with pytest.raises(LauncherFailed, match="No module named 'nowhere'"):
        await bench.supervisor(entry="nowhere:main").start()


async def test_a_launcher_that_takes_too_long_is_given_up(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "code" / "slow.py").write_text("import time; time.sleep(600)")
    with pytest.raises(LauncherFailed, match="no launcher after 2 s"):
        await bench.supervisor(entry="slow:main", patience=2).start()


async def test_a_launcher_that_hangs_is_replaced(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "PROBE_SECONDS", 0.3)
    async with bench.supervisor() as supervisor:
        process = await supervisor.launch(bench.attempt(SLEEPER), NONCE)
    stopped = holder(bench.places.launcher_lock)
    assert stopped
    os.kill(stopped, signal.SIGSTOP)
    async with bench.supervisor(patience=1.0) as supervisor:
        assert holder(bench.places.launcher_lock) != stopped
        assert await supervisor.processes() == []
        assert not processes.alive(process)
        await supervisor.shutdown()


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\0\0\0\1\xff", b"\0\0"])
async def test_a_client_that_talks_nonsense_is_cut_off_and_no_one_else(
    bench: Bench, supervisor: Supervisor, garbage: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE)
        client.connect(str(bench.places.launcher_socket))
        client.sendall(garbage)
        client.shutdown(socket.SHUT_WR)
        assert await asyncio.to_thread(client.recv, 1) == b""
    assert await supervisor.processes() == []


async def test_only_we_can_ask_it(bench: Bench, supervisor: Supervisor) -> None:
    assert bench.places.launcher_socket.stat().st_mode & 0o777 == 0o600
    assert await supervisor.processes() == []


async def test_with_torch_loaded_a_fork_takes_milliseconds_and_grpc_is_nowhere(bench: Bench) -> None:
    directory = bench.attempt("")
    async with Supervisor(bench.places, bench.environment) as supervisor:
        process = await supervisor.launch(directory, NONCE)
        assert isinstance(process, TrainingProcess)
        launcher = psutil.Process(holder(bench.places.launcher_lock))
        libraries = {Path(item.path).name for item in launcher.memory_maps()}
        await ended(directory)
        await supervisor.shutdown()
    entries = [json.loads(line) for line in bench.places.launcher_log.read_text().splitlines() if line.startswith("{")]
    (seconds,) = [entry["seconds"] for entry in entries if entry["event"] == "training_launched"]
    assert seconds < 0.5
    assert any("torch" in name for name in libraries)
    assert not any("cygrpc" in name for name in libraries)
