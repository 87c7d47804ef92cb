"""The exit statuses that scripts may rely on."""

import re
from pathlib import Path

import pytest

from adjourn import errors
from adjourn.cli.exit_status import Status, of

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"


def test_the_page_has_every_status() -> None:
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)] == list(Status)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.NotFoundError("there is no jobs/x"), Status.NOT_FOUND),
        (errors.InstanceUnknownError("no such instance"), Status.NOT_FOUND),
        (errors.ControlPlaneUnreachableError("nobody"), Status.UNAVAILABLE),
        (errors.StoreUnavailableError("the store is away"), Status.UNAVAILABLE),
        (errors.DeadlineError("no answer in time"), Status.UNAVAILABLE),
        (errors.ContentionError("others changed it"), Status.UNAVAILABLE),
        (errors.JobFinishedError("it has ended"), Status.REFUSED),
        (errors.InternalError("a fault"), Status.REFUSED),
        (errors.InvalidRequestError({"job.spec": "is empty"}), Status.REFUSED),
    ],
)
def test_an_error_has_a_status(error: errors.AdjournError, status: Status) -> None:
    assert of(error) == status
