"""A little chaos; `make chaos` makes more of it."""

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from adjourn.local import process_cleanup

ROOT = Path(__file__).parents[2]
SEED = 1
FAULTS = 6


@pytest.mark.timeout(400)
def test_a_few_faults_and_commands_lose_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "chaos"
    words = ("--faults", str(FAULTS), "--seed", str(SEED), "--directory", str(directory))
    ran = subprocess.run(
        (sys.executable, "-m", "tests.chaos", *words), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "lost: nothing" in ran.stdout
    assert re.search(r"\d+  jobs equal to their uninterrupted twins", ran.stdout)
    assert not directory.exists()
    assert not list(process_cleanup.find(directory))
    words_of_all = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not [words for words in words_of_all if str(directory) in words]
