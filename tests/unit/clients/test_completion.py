"""What a shell is told on TAB; every command's help has an example that can be typed."""

import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from adjourn import cli
from adjourn.cli import checkpoint_verbs, help_texts
from adjourn.cli.completion import Shell
from adjourn.v1.worker_pb2 import Worker

if TYPE_CHECKING:
    from tests.unit.clients.conftest import Plane

PROGRAM = """
import sys
from adjourn.cli import completion, main
sys.argv[0] = "adjourn"
completion.PATIENCE_SECONDS = 60  # a busy machine may not answer within a second
main()
"""


def completed(line: str, address: str) -> list[str]:
    """Returns what bash is told to offer for the last word of a line."""
    environment = {
        "_ADJOURN_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - (not line.endswith(" "))),
        "ADJOURN_ADDRESS": address,
    }
    argv = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, env=environment, timeout=60)
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_and_names_are_completed(plane: "Plane") -> None:
    for name in ("digits", "digits-2", "other"):
        plane.add(name)
    plane.workers = [Worker(name="workers/w")]
    assert completed("adjourn pau", plane.address) == ["paused", "pause"]
    assert completed("adjourn pause dig", plane.address) == ["digits", "digits-2"]
    assert completed("adjourn get jobs/o", plane.address) == ["jobs/other"]
    assert completed("adjourn drain ", plane.address) == ["w"]
    assert completed("adjourn list -o ", plane.address) == ["table", "json", "yaml", "name"]


def test_without_a_control_plane_there_are_no_names_and_no_error() -> None:
    assert completed("adjourn pause ", "127.0.0.1:1") == []


@pytest.mark.parametrize("shell", list(Shell))
def test_a_script_is_printed_for_each_shell(shell: Shell) -> None:
    done = CliRunner().invoke(cli.app, ["completion", shell])
    assert done.exit_code == 0
    assert "_ADJOURN_COMPLETE" in done.stdout


def test_every_command_has_examples() -> None:
    named = {str(command.name) for command in cli.app.registered_commands}
    named |= {f"checkpoint {command.name}" for command in checkpoint_verbs.app.registered_commands}
    assert named == set(help_texts.COMMANDS)


@pytest.mark.parametrize("name", list(help_texts.COMMANDS))
def test_help_has_examples_whose_options_there_are(name: str) -> None:
    words = name.split()
    known = CliRunner().invoke(cli.app, [*words, "--help"])
    assert known.exit_code == 0
    assert "Examples:\n" in known.stdout
    for example in help_texts.COMMANDS[name].examples:
        assert f"    {example}\n" in known.stdout
        typed = re.sub(r"^eval|[|$()\"].*$", "", example) if name == "completion" else example
        for option in (word for word in shlex.split(typed.partition(" | ")[0]) if word.startswith("-")):
            assert re.search(rf"(^|[ ,]){re.escape(option)}\b", known.stdout), f"{example}: {option}"
