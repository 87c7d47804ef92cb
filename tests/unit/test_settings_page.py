"""docs/settings.md lists every environment variable that is read, with its default."""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from adjourn.cli.error_messages import TRACEBACK_VARIABLE
from adjourn.objects import S3Settings
from adjourn.settings_reader import InvalidSettings, SettingsReader
from adjourn.web import settings as web
from adjourn_control_plane import settings as control_plane
from adjourn_worker import settings as worker

PAGE = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()


def rows(title: str) -> dict[str, str]:
    """Returns the variables of a table and their defaults."""
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| (ADJOURN_\w+) \| ([^|]+) \|", section, re.MULTILINE))


STORAGE = rows("Object storage, for both")


@pytest.mark.parametrize(
    ("read", "listed"),
    [
        (S3Settings.from_environment, STORAGE),
        (control_plane.Settings.from_environment, STORAGE | rows("Control plane")),
        (worker.Settings.from_environment, STORAGE | rows("Worker")),
        (web.Settings.from_environment, rows("Gateway")),
    ],
)
def test_each_variable_is_listed_with_its_default(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[Mapping[str, str]], Any], listed: dict[str, str]
) -> None:
    defaults: dict[str, object] = {}
    take = SettingsReader.take

    def noted(self: SettingsReader, name: str, parse: Callable[[str], Any], default: object = None) -> object:
        defaults[name] = default
        if default is not None and re.fullmatch(r"[\w./:-]+", listed.get(name, "")) and listed[name] != "none":
            assert parse(listed[name]) == default, name
        return take(self, name, parse, default)

    monkeypatch.setattr(SettingsReader, "take", noted)
    with suppress(InvalidSettings):  # a gateway needs nothing
        read({})
    assert set(listed) == set(defaults)
    assert {name for name, text in listed.items() if text == "required"} == {
        name for name, default in defaults.items() if default is None
    }


def test_the_variables_of_the_command_line_are_listed() -> None:
    code = "\n".join(path.read_text() for path in (Path(__file__).parents[2] / "clients/adjourn/cli").glob("*.py"))
    named = set(re.findall(r'envvar="(ADJOURN_\w+)"', code)) | {TRACEBACK_VARIABLE}
    assert set(rows("Command line")) | {"ADJOURN_REDIS_URL"} == named
