"""Errors cross the wire and come back as what they were."""

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from adjourn import errors


@pytest.mark.parametrize("kind", [each for each in errors.BY_REASON.values() if each is not errors.InvalidRequestError])
def test_every_error_survives_the_wire(kind: type[errors.AdjournError]) -> None:
    status = status_pb2.Status.FromString(
        kind("what happened", job="jobs/x", state="PAUSED").to_status().SerializeToString()
    )
    back = errors.from_status(status)
    assert type(back) is kind
    assert (back.message, dict(back.metadata)) == ("what happened", {"job": "jobs/x", "state": "PAUSED"})
    assert (back.code, back.reason) == (kind.code, kind.reason)
    assert status.code == kind.code != code_pb2.OK


def test_bad_fields_survive_the_wire() -> None:
    sent = errors.InvalidRequestError({"job.spec.total_epochs": "must be 0 to 10; is -1", "job_id": "too long"})
    back = errors.from_status(sent.to_status())
    assert isinstance(back, errors.InvalidRequestError)
    assert back.violations == sent.violations
    assert "job.spec.total_epochs: must be 0 to 10; is -1" in str(back)


def test_a_precondition_is_told_in_googles_words_too() -> None:
    status = errors.JobNotPausedError("jobs/x is RUNNING", job="jobs/x").to_status()
    failure = error_details_pb2.PreconditionFailure()
    assert errors.unpacked(status.details, failure)
    assert [(each.type, each.subject) for each in failure.violations] == [("JOB_NOT_PAUSED", "jobs/x")]


REPEATABLE = {
    errors.ContentionError,
    errors.BundleBeingRemovedError,
    errors.TooManyUploadsError,
    errors.TooManyReadsError,
    errors.ReadStalledError,
    errors.UploadStalledError,
    errors.StoreUnavailableError,
    errors.ObjectStoreUnavailableError,
    errors.ShuttingDownError,
}
"""The same request may succeed in a moment. It cannot with a stale etag, nor for a session that another took over."""


@pytest.mark.parametrize("kind", errors.BY_REASON.values())
def test_an_answer_says_when_to_repeat_it_only_where_that_helps(kind: type[errors.AdjournError]) -> None:
    error = kind({"field": "why"}) if kind is errors.InvalidRequestError else kind("what")
    retry = error_details_pb2.RetryInfo()
    found = errors.unpacked(error.to_status().details, retry)
    assert found == (kind.RETRY_DELAY is not None)
    assert errors.from_status(error.to_status()).retry_delay == kind.RETRY_DELAY
    assert found == (kind in REPEATABLE)


@pytest.mark.parametrize(
    ("metadata", "resource"),
    [
        ({"job": "jobs/x"}, ("adjourn.v1/Job", "jobs/x")),
        ({"worker": "workers/w"}, ("adjourn.v1/Worker", "workers/w")),
        ({"checkpoint": "jobs/x/checkpoints/1"}, ("adjourn.v1/Checkpoint", "jobs/x/checkpoints/1")),
    ],
)
@pytest.mark.parametrize("kind", [errors.NotFoundError, errors.AlreadyExistsError])
def test_what_is_missing_or_taken_is_named_as_a_resource(
    kind: type[errors.AdjournError], metadata: dict[str, str], resource: tuple[str, str]
) -> None:
    info = error_details_pb2.ResourceInfo()
    assert errors.unpacked(kind("no", **metadata).to_status().details, info)
    assert (info.resource_type, info.resource_name, info.description) == (*resource, "no")


def test_reasons_are_unique() -> None:
    kinds = list(errors.subclasses(errors.AdjournError))
    own = [kind for kind in kinds if "reason" in vars(kind)]
    assert len({kind.reason for kind in own}) == len(own)
    assert all(kind.__subclasses__() for kind in kinds if kind not in own), "what is raised has a reason of its own"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (code_pb2.NOT_FOUND, errors.NotFoundError),
        (code_pb2.UNAVAILABLE, errors.ControlPlaneUnreachableError),
        (code_pb2.DEADLINE_EXCEEDED, errors.DeadlineError),
        (code_pb2.UNIMPLEMENTED, errors.NotImplementedYetError),
        (code_pb2.RESOURCE_EXHAUSTED, errors.AdjournError),
    ],
)
def test_without_our_details_the_code_decides(code: int, kind: type[errors.AdjournError]) -> None:
    back = errors.from_status(status_pb2.Status(code=code, message="from a proxy"))
    assert type(back) is kind
    assert back.message == "from a proxy"


def test_a_reason_of_a_newer_version_keeps_its_name_and_its_family() -> None:
    status = status_pb2.Status(code=code_pb2.FAILED_PRECONDITION, message="new")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="NEW_REASON", domain=errors.DOMAIN))
    back = errors.from_status(status)
    assert type(back) is errors.PreconditionError
    assert (back.reason, back.code) == ("NEW_REASON", code_pb2.FAILED_PRECONDITION)
    assert errors.PreconditionError.reason == "FAILED_PRECONDITION"


def test_reasons_of_another_domain_are_not_ours() -> None:
    status = status_pb2.Status(code=code_pb2.NOT_FOUND)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="JOB_NOT_PAUSED", domain="other.example"))
    assert type(errors.from_status(status)) is errors.NotFoundError
