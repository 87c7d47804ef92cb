"""Fields of the contract by the names that people write them by."""

import pytest
import typer

from adjourn import cli
from adjourn.cli import fields
from adjourn.v1.job_pb2 import JobSpec


def test_every_field_of_a_job_has_an_option() -> None:
    known = {
        path.removeprefix("job.spec.").partition(".")[0] for path in fields.OPTIONS if path.startswith("job.spec.")
    }
    assert {field.name for field in JobSpec.DESCRIPTOR.fields} == known


def test_every_option_is_one_of_a_command() -> None:
    commands = typer.main.get_command(cli.app).commands.values()  # type: ignore[attr-defined]
    known = {name for command in commands for parameter in command.params for name in parameter.opts}
    assert {name for name in fields.OPTIONS.values() if name.startswith("--")} <= known


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("job.spec.total_epochs", "--epochs"),
        ("job.spec.args['a']['b c'][2]", "--arg a.b c"),
        ("job.spec.requirements[3]", "--requirements"),
        ("job.labels['it\\'s']", "--label it\\'s"),
        ("names[4]", "JOB"),
        ("parent", "JOB"),
        ("job.spec.of_tomorrow", "job.spec.of_tomorrow"),
    ],
)
def test_a_field_is_told_as_it_is_written(field: str, told: str) -> None:
    assert fields.option(field) == told


@pytest.mark.parametrize(
    ("field", "told"),
    [("job_id", "name"), ("job.labels['a']", "labels['a']"), ("job.spec.args['a'][0]", "spec.args['a'][0]")],
)
def test_a_field_has_a_key_in_a_file(field: str, told: str) -> None:
    assert fields.key(field) == told
