from uuid import UUID

import pytest

from adjourn.channel import BUNDLE_LIMIT_BYTES, CHUNK_BYTES
from adjourn.client import requests
from adjourn.errors import InvalidRequestError
from adjourn.v1.job_pb2 import Job, JobSpec, PauseMode


@pytest.mark.parametrize(("given", "full"), [("x", "jobs/x"), ("jobs/x", "jobs/x"), ("", "jobs/")])
def test_a_job_may_be_named_either_way(given: str, full: str) -> None:
    assert requests.get_job(given).name == full
    assert requests.list_epoch_metrics(given).parent == full
    assert requests.list_checkpoints(given).parent == full
    assert requests.watch_jobs([given], None, "").names == [full]


@pytest.mark.parametrize("given", ["x/7", "jobs/x/checkpoints/7"])
def test_a_checkpoint_may_be_named_either_way(given: str) -> None:
    assert requests.get_checkpoint(given).name == "jobs/x/checkpoints/7"


def test_a_worker_may_be_named_either_way() -> None:
    assert requests.get_worker("w").name == requests.get_worker("workers/w").name == "workers/w"


def test_what_changes_something_carries_a_fresh_request_id() -> None:
    def ids() -> list[str]:
        return [
            requests.create_job(JobSpec(), job_id="x", labels=None, request_id="").request_id,
            requests.pause_job("x", mode=PauseMode.EPOCH, reason="", etag="", request_id="").request_id,
            requests.resume_job("x", allow_inexact=False, etag="", request_id="").request_id,
            requests.cancel_job(
                "x", save_checkpoint=False, mode=PauseMode.EPOCH, reason="", etag="", request_id=""
            ).request_id,
            requests.delete_job("x", etag="", request_id="").request_id,
        ]

    found = ids() + ids()
    assert len({UUID(each) for each in found}) == 10


def test_a_callers_own_request_id_is_kept() -> None:
    request = requests.resume_job("x", allow_inexact=True, etag="e", request_id="mine")
    assert (request.request_id, request.etag, request.allow_inexact) == ("mine", "e", True)


def test_create_carries_spec_id_and_labels() -> None:
    spec = JobSpec(entry_point="m:f", total_epochs=3)
    request = requests.create_job(spec, job_id="x", labels={"team": "a"}, request_id="")
    assert (request.job_id, request.job.spec, dict(request.job.labels)) == ("x", spec, {"team": "a"})


def test_list_asks_for_states_and_labels() -> None:
    request = requests.list_jobs([Job.PAUSED], {"a": "b"})
    assert (list(request.states), dict(request.labels)) == ([Job.PAUSED], {"a": "b"})


def test_a_bundle_goes_in_messages_of_at_most_one_chunk() -> None:
    data = bytes(range(256)) * (CHUNK_BYTES // 256) * 2 + b"rest"
    chunks = [request.chunk for request in requests.upload_bundle(data)]
    assert [len(chunk) for chunk in chunks] == [CHUNK_BYTES, CHUNK_BYTES, 4]
    assert b"".join(chunks) == data


def test_a_bundle_over_the_limit_is_refused_before_it_is_sent() -> None:
    with pytest.raises(InvalidRequestError, match="at most") as caught:
        requests.upload_bundle(bytes(BUNDLE_LIMIT_BYTES + 1))
    assert "chunk" in caught.value.violations


def test_one_name_to_watch_is_not_taken_for_its_letters() -> None:
    assert list(requests.watch_jobs("digits", None, "").names) == ["jobs/digits"]
