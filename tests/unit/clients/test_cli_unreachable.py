"""Every command that asks a control plane says in a sentence that nobody answers, and where."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adjourn import cli
from adjourn.channel import COMMON
from adjourn.cli import checkpoint_verbs
from adjourn.cli.exit_status import Status

NOWHERE = "127.0.0.1:1"
SERVERS = frozenset({"completion", "control-plane", "demo", "up", "web", "worker"})
"""Commands that ask no control plane."""
COMMANDS = (
    "cancel x --save --wait --timeout 60s",
    "checkpoint export x -o FOLDER/a.pt --format torch",
    "checkpoint pin x",
    "checkpoint show x --checkpoint 3",
    "checkpoint unpin x",
    "checkpoints x",
    "cp x:model.pt FOLDER",
    "delete x --yes",
    "delete-worker w",
    "drain w --wait --timeout 60s",
    "events x",
    "events x -f",
    "events -f",
    "get x -o json",
    "hold --all",
    "list --state running --sort loss",
    "logs x",
    "logs x -f",
    "metrics x --plot",
    "metrics x --steps",
    "pause x y --wait --timeout 60s",
    "pause --label a=b",
    "paused",
    "release x",
    "resume x --wait",
    "submit FOLDER/train.py:main --epochs 3 --wait",
    "submit m:f --epochs 3",
    "top",
    "undrain w",
    "update x --label a=b",
    "watch",
    "watch x",
    "workers",
)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has nobody try again for seconds."""
    monkeypatch.setattr("adjourn.client.blocking.CLIENT_OPTIONS", COMMON)


def names() -> Iterator[str]:
    yield from (f"checkpoint {command.name}" for command in checkpoint_verbs.app.registered_commands)
    yield from (str(command.name) for command in cli.app.registered_commands if command.name not in SERVERS)


def test_every_command_is_here() -> None:
    assert {" ".join(words.split()[: 2 if words.startswith("checkpoint ") else 1]) for words in COMMANDS} == {*names()}


@pytest.mark.parametrize("words", COMMANDS)
def test_a_control_plane_that_is_away_is_told_with_its_address(words: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("def main(run): ...\n")
    given = [word.replace("FOLDER", str(tmp_path)) for word in words.split()]
    result = CliRunner().invoke(cli.app, given, env={"ADJOURN_ADDRESS": NOWHERE})
    assert result.exit_code == Status.UNAVAILABLE
    assert result.stdout == ""
    assert result.stderr == (
        f"adjourn: no control plane answers at {NOWHERE} (Connection refused); "
        "start one with `adjourn up`, or name it by --address or ADJOURN_ADDRESS\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]
