"""docs/running.md and deploy/systemd: each setting, command, file and link that they name is there."""

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from typer.main import get_command

from adjourn import channel, cli
from adjourn_control_plane.store import redis_checks
from tests.unit.test_settings_page import rows

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "running.md").read_text()
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
ADJOURN = Path(sys.executable).parent / "adjourn"
SETTINGS = rows("Object storage, for both") | rows("Control plane") | rows("Worker") | rows("Gateway")


def unit(path: Path) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(path.read_text())
    return parser


def commands(text: str) -> list[list[str]]:
    """Returns the words of each line of code that runs `adjourn`."""
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("adjourn ")]


def options(words: list[str]) -> set[str]:
    """Returns the options that the command takes; fails if there is no such command."""
    group = get_command(cli.app)
    command = group.commands[words[1]]  # type: ignore[attr-defined]
    return {name for parameter in command.params for name in parameter.opts}


def test_there_is_a_unit_for_each_process() -> None:
    assert [path.stem for path in UNITS] == ["adjourn-control-plane", "adjourn-web", "adjourn-worker"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_runs_a_command_that_there_is_with_settings_that_are_read(path: Path) -> None:
    service = unit(path)["Service"]
    program, *words = shlex.split(service["ExecStart"])
    assert program == "/opt/adjourn/bin/adjourn"
    assert program.removesuffix("bin/adjourn") in PAGE
    assert options(["adjourn", *words])
    assert path.stem == f"adjourn-{words[0]}"
    assert service["EnvironmentFile"] in PAGE
    named = set(re.findall(r"\bADJOURN_\w+\*?", path.read_text()))
    assert len(named) > 2
    assert {each for each in named if not any(fnmatch(name, each) for name in SETTINGS)} == set()


def test_training_outlives_the_agents_unit() -> None:
    service = unit(ROOT / "deploy" / "systemd" / "adjourn-worker.service")["Service"]
    for line in re.findall(r"^- `(\w+=\w+)`", PAGE, re.MULTILINE):
        key, _, value = line.partition("=")
        assert service[key] == value
    assert int(service["TimeoutStopSec"]) > int(SETTINGS["ADJOURN_DRAIN_GRACE"])


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_finds_nothing_wrong_with_a_unit(path: Path, tmp_path: Path) -> None:
    placed = tmp_path / path.name
    placed.write_text(path.read_text().replace("/opt/adjourn/bin/adjourn", str(ADJOURN)))
    words = ["systemd-analyze", "verify", "--man=no", str(placed)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_page_names_settings_that_are_read() -> None:
    named = set(re.findall(r"\bADJOURN_\w+", PAGE))
    assert {name for name, default in SETTINGS.items() if default == "required"} <= named
    assert named <= set(SETTINGS)
    assert str(channel.DEFAULT_ADDRESS.rpartition(":")[2]) in PAGE


def test_the_page_runs_commands_that_there_are() -> None:
    found = commands(PAGE)
    assert len(found) >= 5
    for words in found:
        assert {word for word in words if word.startswith("--")} <= options(words), words


def test_the_page_says_what_the_store_has_to_be_set_to() -> None:
    told = dict(re.findall(r"^\| `([\w-]+)` \| `([\w-]+)` \|", PAGE, re.MULTILINE))
    assert set(told) == set(redis_checks.SETTINGS)
    assert redis_checks.shortcomings(told) == []


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", PAGE)
    assert len(links) >= 4
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
