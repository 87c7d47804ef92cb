"""Logs tell what went wrong, and no secret that happened to lie around."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import structlog
from adjourn.logs import configure

def fail():
    secret_key = "hush" + "-hush"
    raise ValueError("storage refused")

configure("{style}", service="worker")
try:
    fail()
except ValueError:
    structlog.get_logger().exception("work_failed", job="jobs/one")
"""


def logged(style: str) -> str:
    script = SCRIPT.format(style=style)
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    return done.stderr


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_traceback_shows_no_variables(style: str) -> None:
    text = logged(style)
    assert "storage refused" in text
    assert "hush-hush" not in text


def test_json_is_one_object_a_line_with_the_same_keys() -> None:
    (line,) = logged("json").splitlines()
    entry = json.loads(line)
    assert (entry["event"], entry["job"], entry["service"], entry["level"]) == (
        "work_failed",
        "jobs/one",
        "worker",
        "error",
    )
