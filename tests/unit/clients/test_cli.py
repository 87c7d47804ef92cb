"""The command line as a whole: failures in a line, Ctrl-C, options."""

import signal
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner, Result

from adjourn import __version__, cli, errors
from adjourn.cli import error_messages, exit_status
from adjourn.cli.exit_status import Status
from adjourn.local.managed_process import readable

if TYPE_CHECKING:
    from tests.unit.clients.conftest import Plane

Adjourn = Callable[..., Result]


@pytest.mark.parametrize("kind", sorted(set(errors.BY_REASON.values()) - {errors.InvalidRequestError}, key=str))
def test_every_error_is_one_line(adjourn: Adjourn, plane: "Plane", kind: type[errors.AdjournError]) -> None:
    plane.failures["GetJob"] = [kind("it is\nso", job="jobs/x")] * 10
    result = adjourn("get", "x")
    assert (result.exit_code, result.stdout) == (exit_status.of(kind("it is so")), "")
    assert result.stderr.startswith("adjourn: it is so")
    assert result.stderr.count("\n") == 1


def test_ctrl_c_is_quiet(adjourn: Adjourn, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("adjourn.client.blocking.Client.get_job", interrupt)
    result = adjourn("get", "x")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


def test_ctrl_c_ends_a_real_watch_quietly(plane: "Plane") -> None:
    plane.add("x")
    argv = [sys.executable, "-m", "adjourn.cli", "--address", plane.address, "watch", "x"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert plane.watched.wait(60)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, "", "")


def test_no_control_plane_is_told_in_a_line() -> None:
    result = CliRunner().invoke(cli.app, ["--address", "127.0.0.1:1", "list"])
    assert result.exit_code == Status.UNAVAILABLE
    assert result.stderr == (
        "adjourn: no control plane answers at 127.0.0.1:1 (Connection refused); "
        "start one with `adjourn up`, or name it by --address or ADJOURN_ADDRESS\n"
    )


@pytest.mark.parametrize("address", ["http://127.0.0.1:7400", "localhost", "a b:1"])
def test_an_address_is_host_and_port(address: str) -> None:
    result = CliRunner().invoke(cli.app, ["--address", address, "list"])
    assert result.exit_code == 2
    assert "host:port" in result.stderr


def test_help_loads_nothing_that_only_some_command_needs() -> None:
    heavy = ("grpc", "pathspec", "yaml", "matplotlib", "numpy", "torch")
    program = f"import sys, adjourn.cli; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout == b"[]\n"


def test_the_version_is_printed() -> None:
    result = CliRunner().invoke(cli.app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"adjourn {__version__}\n")


def test_an_unexpected_fault_is_a_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise RuntimeError("of\nours")

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert (
        capsys.readouterr().err
        == f"adjourn: internal error, RuntimeError: of ours; {error_messages.TRACEBACK_VARIABLE}=1 shows where\n"
    )
    monkeypatch.setenv(error_messages.TRACEBACK_VARIABLE, "1")
    with pytest.raises(SystemExit):
        cli.main()
    assert "Traceback" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == "adjourn: the output: No space left on device\n"


def test_what_ctrl_c_left_half_built_is_told_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class HalfBuilt:
        def __del__(self) -> None:
            raise AttributeError("_state")

    monkeypatch.setattr(sys, "unraisablehook", error_messages.ignore_unraisable)
    HalfBuilt()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(error_messages.TRACEBACK_VARIABLE, "1")
    HalfBuilt()
    assert "_state" in capsys.readouterr().err


def test_help_is_quick() -> None:
    program = (
        "import sys; from adjourn import cli\n"
        "try: cli.app(['--help'])\n"
        "except SystemExit: sys.exit(bool({'grpc', 'torch', 'minio'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, stdout=subprocess.DEVNULL)


def test_the_training_code_needs_no_grpc() -> None:
    program = "import sys, adjourn, adjourn.training; sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.parametrize("command", ["up", "demo"])
def test_options_of_the_embedded_stack_are_passed_on(command: str) -> None:
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert f"adjourn {command}" in result.stdout
    assert CliRunner().invoke(cli.app, [command, "--no-such-option"]).exit_code == 2


@pytest.mark.parametrize(("words", "told"), [(("drain", "w"), "`adjourn workers`"), (("get", "x"), "`adjourn list`")])
def test_what_is_not_there_is_to_be_looked_for_in_its_own_list(
    adjourn: Adjourn, plane: "Plane", words: tuple[str, ...], told: str
) -> None:
    plane.failures["DrainWorker"] = [errors.NotFoundError("there is no workers/w", worker="workers/w")]
    assert f"; {told} shows what there is\n" in adjourn(*words).stderr


def test_ctrl_c_on_a_terminal_says_that_jobs_go_on(
    adjourn: Adjourn, plane: "Plane", monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    context = SimpleNamespace(invoked_subcommand="watch")
    assert error_messages.interrupted(context).exit_code == Status.INTERRUPTED
    assert capsys.readouterr().err == "\nadjourn: stopped looking; jobs, and what was asked for, go on\n"


def test_a_log_of_our_processes_is_shown_in_words() -> None:
    line = '{"errors": ["The store is unavailable", "so is S3"], "event": "cannot_serve", "level": "critical"}'
    assert readable(line) == "cannot_serve: The store is unavailable; so is S3"
    for other in ("a word", "7", '{"event": "began"}', "[]"):
        assert readable(other) == other
