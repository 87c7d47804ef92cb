"""`adjourn control-plane`, `worker` and `web`: what is made of the options, and the processes that they become."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adjourn import cli

ADJOURN = [sys.executable, "-m", "adjourn.cli"]


class Became(BaseException):
    def __init__(self, program: str, words: list[str], environment: dict[str, str]) -> None:
        self.module = words[-1]
        self.environment = environment


def became(monkeypatch: pytest.MonkeyPatch, *words: str) -> Became:
    """Returns what a command would have become."""

    def execve(*given: object) -> None:
        raise Became(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "execve", execve)
    with pytest.raises(Became) as caught:
        CliRunner().invoke(cli.app, words, catch_exceptions=False)
    return caught.value


def test_an_option_takes_the_place_of_the_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADJOURN_WORKER", "of-the-environment")
    monkeypatch.setenv("ADJOURN_GPUS", "0/2")
    words = ("--name", "gpu-1", "--data", "here", "--label", "zone=a", "--label", "gpu=h200", "--cpu-slots", "0")
    process = became(monkeypatch, "worker", *words, "--control-plane", "plane:7400")
    settings = {name: value for name, value in process.environment.items() if name.startswith("ADJOURN_")}
    assert process.module == "adjourn_worker"
    assert settings == {
        "ADJOURN_WORKER": "gpu-1",
        "ADJOURN_DATA": str(tmp_path / "here"),
        "ADJOURN_LABELS": "zone=a,gpu=h200",
        "ADJOURN_CPU_SLOTS": "0",
        "ADJOURN_CONTROL_PLANE": "plane:7400",
        "ADJOURN_GPUS": "0/2",
    }


def test_without_options_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADJOURN_WORKER", "of-the-environment")
    monkeypatch.setenv("ADJOURN_NAMESPACE", "other")
    assert became(monkeypatch, "worker").environment == dict(os.environ)
    process = became(monkeypatch, "control-plane", "--listen", "0.0.0.0:1")
    assert process.module == "adjourn_control_plane"
    assert process.environment == {**os.environ, "ADJOURN_LISTEN": "0.0.0.0:1"}


def test_the_gateway_asks_the_control_plane_that_the_command_line_does(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("web", "--listen", "0.0.0.0:2", "--heimdall", "8001", "--peft-studio", "0.0.0.0:8000")
    process = became(monkeypatch, "--address", "plane:7400", *words)
    assert process.module == "adjourn.web"
    assert process.environment == {
        **os.environ,
        "ADJOURN_ADDRESS": "plane:7400",
        "ADJOURN_WEB_LISTEN": "0.0.0.0:2",
        "ADJOURN_HEIMDALL_LISTEN": "8001",
        "ADJOURN_PEFT_STUDIO_LISTEN": "0.0.0.0:8000",
    }


@pytest.mark.parametrize(
    ("command", "missing"),
    [("control-plane", "ADJOURN_REDIS_URL is not set"), ("worker", "ADJOURN_DATA is not set")],
)
def test_what_is_missing_is_told_by_the_process_itself(command: str, missing: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ADJOURN_")}
    (tmp_path / "adjourn_worker.py").write_text("raise SystemExit('not this one')")
    words = [*ADJOURN, command]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert missing in done.stderr.splitlines()
    assert "ADJOURN_S3_BUCKET is not set" in done.stderr.splitlines()
