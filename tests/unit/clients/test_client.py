"""The blocking client against a scripted control plane, over real connections."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc
import pytest

import adjourn
from adjourn import AsyncClient, Client, errors
from adjourn.channel import CHUNK_BYTES, CLIENT_OPTIONS, SERVICE_CONFIG
from adjourn.client import calls
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job, JobSpec, PauseMode
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics, ResourceSample, StepMetrics
from adjourn.v1.worker_pb2 import Worker

if TYPE_CHECKING:
    from tests.unit.clients.conftest import Plane

NOWHERE = "127.0.0.1:1"


def test_a_job_is_created_shown_changed_and_deleted(client: Client, plane: "Plane") -> None:
    spec = JobSpec(entry_point="m:f", total_epochs=3)
    job = client.create_job(spec, job_id="x", labels={"team": "a"})
    assert (job.name, job.spec, job.labels["team"]) == ("jobs/x", spec, "a")
    assert client.get_job("x") == client.get_job("jobs/x") == job
    client.pause_job("x", reason="lunch", etag="e")
    client.resume_job("x", allow_inexact=True)
    assert client.cancel_job("x", reason="enough").state == Job.CANCELLING
    client.delete_job("x")
    asked = dict(plane.asked)
    assert (asked["PauseJob"].mode, asked["PauseJob"].reason, asked["PauseJob"].etag) == (PauseMode.EPOCH, "lunch", "e")
    assert asked["ResumeJob"].allow_inexact
    assert plane.jobs == {}


def test_every_call_says_who_calls(client: Client, plane: "Plane") -> None:
    plane.add("x")
    client.get_job("x")
    assert [actor.count("@") for actor in plane.actors] == [1]


def test_a_caller_without_a_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", nameless)
    monkeypatch.setattr("socket.gethostname", lambda: "kölle")
    assert calls.caller() == (("adjourn-actor", "unknown@k?lle"),)


def test_a_call_is_repeated_for_longer_than_a_channel_waits_before_it_connects_again() -> None:
    config: Any = SERVICE_CONFIG
    policy = config["methodConfig"][0]["retryPolicy"]
    first, most = (float(policy[name].removesuffix("s")) for name in ("initialBackoff", "maxBackoff"))
    waits = [min(first * policy["backoffMultiplier"] ** number, most) for number in range(policy["maxAttempts"] - 1)]
    longest = int(dict(CLIENT_OPTIONS)["grpc.max_reconnect_backoff_ms"]) / 1000
    assert 0.8 * sum(waits) > 1.2 * longest  # gRPC varies each of them by a fifth


def test_lists_go_on_over_all_pages(client: Client, plane: "Plane") -> None:
    for number in range(5):
        plane.add(f"job-{number}", Job.PAUSED if number % 2 else Job.RUNNING)
    plane.epochs = [EpochMetrics(epoch=number) for number in range(1, 6)]
    plane.checkpoints = [Checkpoint(name=f"jobs/x/checkpoints/{number}") for number in range(3)]
    plane.workers = [Worker(name=f"workers/{number}") for number in range(3)]
    plane.events = [JobEvent(sequence=number) for number in range(1, 6)]
    assert [job.name for job in client.list_jobs()] == list(plane.jobs)
    assert [job.name for job in client.list_jobs(states=[Job.PAUSED])] == ["jobs/job-1", "jobs/job-3"]
    assert list(client.list_epoch_metrics("x")) == plane.epochs
    assert list(client.list_checkpoints("x")) == plane.checkpoints
    assert list(client.list_job_events("x")) == plane.events
    plane.steps = [StepMetrics(step=7)]
    plane.samples = [ResourceSample(memory_bytes=5)]
    assert client.list_step_metrics("x", start=3, max_steps=9) == plane.steps
    assert client.list_resource_samples("x", end=datetime(2026, 1, 2, tzinfo=UTC)) == plane.samples
    (_, steps), (_, samples) = plane.asked[-2:]
    assert (steps.parent, steps.start_step, steps.end_step, steps.max_steps) == ("jobs/x", 3, 0, 9)
    assert (samples.HasField("start_time"), samples.end_time.ToJsonString()) == (False, "2026-01-02T00:00:00Z")
    assert list(client.list_workers()) == plane.workers
    assert client.get_worker("1") == plane.workers[1]
    assert client.get_checkpoint("x/2") == plane.checkpoints[2]
    client.delete_worker("1")
    assert [worker.name for worker in plane.workers] == ["workers/0", "workers/2"]


def test_pages_are_fetched_only_as_they_are_needed(client: Client, plane: "Plane") -> None:
    for number in range(5):
        plane.add(f"job-{number}")
    next(client.list_jobs())
    assert len(plane.asked) == 1


def test_a_bundle_is_sent_in_chunks(client: Client, plane: "Plane") -> None:
    data = bytes(CHUNK_BYTES + 5)
    assert client.upload_bundle(data) == f"bundles/{len(data):064x}"
    assert plane.asked == [("UploadBundle", [data[:CHUNK_BYTES], data[CHUNK_BYTES:]])]


def test_a_refused_bundle_is_a_typed_error(client: Client, plane: "Plane") -> None:
    plane.failures["UploadBundle"] = [errors.InvalidRequestError({"chunk": "is no archive"})]
    with pytest.raises(errors.InvalidRequestError) as caught:
        client.upload_bundle(b"x")
    assert caught.value.violations == {"chunk": "is no archive"}


def test_an_unknown_job_is_not_found(client: Client) -> None:
    with pytest.raises(errors.NotFoundError, match="there is no jobs/x") as caught:
        client.get_job("x")
    assert caught.value.metadata == {"job": "jobs/x"}


def test_a_call_that_an_older_server_does_not_know() -> None:
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        with Client(address) as client, pytest.raises(errors.NotImplementedYetError, match="does not know this call"):
            client.update_job("x", max_restarts=1)
        server.stop(grace=None).wait()


def test_an_update_names_what_it_changes(client: Client, plane: "Plane") -> None:
    plane.add("x")
    client.update_job("x", labels={}, total_epochs=9, etag="e")
    client.update_job("x", max_restarts=0)
    first, second = (request for _, request in plane.asked)
    assert list(first.update_mask.paths) == ["labels", "spec.total_epochs"]
    assert (first.job.name, first.job.spec.total_epochs, first.job.etag) == ("jobs/x", 9, "e")
    assert list(second.update_mask.paths) == ["spec.max_restarts"]
    assert second.job.spec.HasField("max_restarts")
    assert "" != first.request_id != second.request_id


def test_a_passing_failure_is_retried_with_the_same_request_id(client: Client, plane: "Plane") -> None:
    plane.add("x")
    plane.failures["PauseJob"] = [errors.StoreUnavailableError("redis is away")]
    client.pause_job("x")
    ids = [request.request_id for _, request in plane.asked]
    assert len(ids) == 2
    assert ids[0] == ids[1] != ""


def test_no_control_plane_is_told_with_the_address() -> None:
    with Client(NOWHERE) as client, pytest.raises(errors.ControlPlaneUnreachableError, match=f"at {NOWHERE}"):
        client.get_job("x")


def test_no_answer_in_time_is_a_deadline_error(plane: "Plane") -> None:
    plane.silent = True
    with Client(plane.address, timeout=0.2) as client, pytest.raises(errors.DeadlineError, match="may still take"):
        client.get_job("x")


def test_details_that_cannot_be_read_leave_the_code() -> None:
    class Garbled(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.NOT_FOUND

        def details(self) -> str:
            return "not here"

        def trailing_metadata(self) -> Any:
            return (("other", "x"), (calls.STATUS_KEY, b"\xff\xff"))

    error = calls.typed(Garbled(), "a:1")
    assert (type(error), error.message) == (errors.NotFoundError, "not here")


def test_the_cause_of_a_failed_connection_is_told_without_grpcs_own_words() -> None:
    class Unresolved(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.UNAVAILABLE

        def details(self) -> str:
            return (
                "errors resolving nowhere:1: [A: C-ares status is not ARES_SUCCESS name=nowhere: Domain name not found]"
            )

        def trailing_metadata(self) -> Any:
            return ()

    assert str(calls.typed(Unresolved(), "nowhere:1")) == (
        "no control plane answers at nowhere:1 (Domain name not found)"
    )


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Failed parsing HTTP/2 (Expected SETTINGS frame as the first frame, got 79)"),
        (grpc.StatusCode.UNIMPLEMENTED, "Received http2 header with status: 404"),
    ],
)
def test_what_is_no_control_plane_is_told_so(code: grpc.StatusCode, said: str) -> None:
    class Foreign(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return code

        def details(self) -> str:
            return said

        def trailing_metadata(self) -> Any:
            return ()

    error = calls.typed(Foreign(), "web:80")
    assert isinstance(error, errors.ControlPlaneUnreachableError)
    assert error.message == "what answers at web:80 is no control plane: it does not speak gRPC"


def test_ctrl_c_does_not_wait_for_a_call_in_the_making(plane: "Plane") -> None:
    begun, may_end = threading.Event(), threading.Event()

    class Stuck(Client):
        def close(self) -> None:
            begun.set()
            assert may_end.wait(30)
            super().close()

    with pytest.raises(KeyboardInterrupt), Stuck(plane.address):
        raise KeyboardInterrupt
    assert begun.wait(30)
    may_end.set()


def test_a_client_serves_many_threads(client: Client, plane: "Plane") -> None:
    plane.add("x")
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(client.get_job("x").name)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["jobs/x"] * 4


@pytest.mark.parametrize("make", [Client, AsyncClient])
async def test_the_package_offers_both_by_name(make: Callable[[], Any]) -> None:
    import adjourn

    assert getattr(adjourn, make.__name__) is make
    with pytest.raises(AttributeError, match="no attribute 'Server'"):
        _ = adjourn.Server


def test_a_client_without_an_address_finds_the_control_plane_as_the_command_line_does(
    plane: "Plane", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADJOURN_ADDRESS", plane.address)
    with Client() as client:
        assert list(client.list_jobs()) == []
    monkeypatch.delenv("ADJOURN_ADDRESS")
    with Client() as client:
        assert client.address == "127.0.0.1:7400"


def test_the_package_shows_what_it_has() -> None:
    assert {"AsyncClient", "Client", "Job", "JobSpec"} <= set(dir(adjourn))
    assert (adjourn.Job, adjourn.JobSpec) == (Job, JobSpec)
