"""What a stack keeps in its data directory."""

from pathlib import Path

import pytest

from adjourn.local.data_directory import DataDirectory, DirectoryDamagedError
from tests.unit.clients.conftest import Adjourn


def test_settings_of_the_first_start_are_kept(tmp_path: Path) -> None:
    first = DataDirectory(tmp_path).settings(threads=1, ports=2)
    assert DataDirectory(tmp_path).settings(threads=3, ports=2) == first


def test_a_port_that_another_stack_keeps_is_replaced(tmp_path: Path) -> None:
    """Its server does not listen yet."""
    first = DataDirectory(tmp_path).settings(threads=1, ports=2)
    second = DataDirectory(tmp_path).settings(threads=1, ports=2, usable=lambda port: port != first.ports[1])
    assert first.ports[1] not in second.ports
    assert second.s3_secret_key == first.s3_secret_key


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"threads": 1}', "17", "\0"])
def test_damaged_settings_are_told_with_their_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "stack.json"
    file.write_text(text)
    with pytest.raises(DirectoryDamagedError, match=str(file)):
        DataDirectory(tmp_path).settings(threads=1, ports=2)
    assert file.read_text() == text


def test_up_ends_with_what_is_damaged_and_what_to_do(adjourn: Adjourn, tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text("{")
    result = adjourn("up", "--data", str(tmp_path))
    assert result.exit_code == 1
    assert "stack.json is damaged" in result.output.replace("\n", "")
    assert "Traceback" not in result.output
