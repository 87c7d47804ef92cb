"""Failpoints: inert unless armed at the start, once in a directory, and where the page says."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adjourn import failpoints

ROOT = Path(__file__).parents[3]
POINT = "worker.before-manifest"


def hits(spec: str, code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in which `hit()` comes to the failpoint, in a process that has the variable."""
    program = f"from adjourn import failpoints\ndef hit(): failpoints.hit({POINT!r})\n{code}"
    environment = {**os.environ, failpoints.VARIABLE: spec}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_nothing_happens_unless_it_was_set_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, f"{POINT}:kill")
    failpoints.hit(POINT)
    assert hits("", "hit(); print('went on')").stdout == "went on\n"
    assert hits("worker.after-manifest:kill", "hit(); print('went on')").stdout == "went on\n"


def test_each_action() -> None:
    assert hits(f"{POINT}:kill", "hit()").returncode == -signal.SIGKILL
    assert hits(f"worker.after-manifest:kill,{POINT}:exit", "hit()").returncode == 1
    assert "FailpointError: failpoint worker.before-manifest" in hits(f"{POINT}:error", "hit()").stderr
    slept = hits(f"{POINT}:sleep=0.2", "import time; a = time.monotonic(); hit(); print(time.monotonic() - a >= 0.2)")
    assert slept.stdout == "True\n"


def test_a_process_that_is_stopped_goes_on_when_it_is_told() -> None:
    code = f"import subprocess, sys; from adjourn import failpoints; failpoints.hit({POINT!r}); print('went on')"
    environment = {**os.environ, failpoints.VARIABLE: f"{POINT}:stop"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=60)[0] == b"went on\n"


def test_the_nth_time() -> None:
    assert hits(f"{POINT}:exit@3", "hit(); hit(); print('twice', flush=True); hit(); print('more')").stdout == "twice\n"


def test_a_file_arms_a_failpoint_once(tmp_path: Path) -> None:
    assert hits(str(tmp_path), "hit(); print('went on')").stdout == "went on\n"
    (tmp_path / POINT).write_text("exit@2")
    assert hits(str(tmp_path), "hit(); print('once', flush=True); hit()").stdout == "once\n"
    assert [path.name for path in tmp_path.iterdir()] == [f"{POINT}.hit"]
    assert hits(str(tmp_path), "hit(); hit(); print('went on')").stdout == "went on\n"


@pytest.mark.parametrize("spec", ["nowhere:kill", f"{POINT}:explode", POINT, f"{POINT}:sleep", f"{POINT}:kill@0"])
def test_what_is_not_understood_is_told_at_the_start(spec: str) -> None:
    with pytest.raises(ValueError, match=failpoints.VARIABLE):
        failpoints.parse(spec)
    assert failpoints.VARIABLE in hits(spec, "print('went on')").stderr


def test_each_name_is_at_one_place_and_on_the_page() -> None:
    code = "\n".join(
        path.read_text()
        for package in ("clients/adjourn", "control_plane", "worker")
        for path in (ROOT / package).rglob("*.py")
    )
    assert sorted(re.findall(r'failpoints\.hit\("([^"]+)"\)', code)) == sorted(failpoints.NAMES)
    page = (ROOT / "docs" / "settings.md").read_text().partition("## For tests only")[2]
    assert set(re.findall(r"^\| ([a-z-]+\.[a-z-]+) \|", page, re.MULTILINE)) == failpoints.NAMES
    assert f"| {failpoints.VARIABLE} | none |" in page
