"""Both clients against a scripted control plane, over real connections."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from adjourn import AsyncClient, Client, errors
from adjourn.channel import CHUNK_BYTES
from adjourn.client import calls, watching
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job, JobSpec, PauseMode
from adjourn.v1.job_service_pb2 import WatchJobsRequest, WatchJobsResponse
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn.v1.worker_pb2 import Worker

if TYPE_CHECKING:
    from tests.unit.clients.conftest import Plane

NOWHERE = "127.0.0.1:1"


@pytest.fixture
def client(plane: "Plane") -> Iterator[Client]:
    with Client(plane.address) as client:
        yield client


def change(state: Job.State.ValueType, token: str = "", epoch: int = 0) -> WatchJobsResponse:
    response = WatchJobsResponse(job=Job(name="jobs/x", state=state), resume_token=token)
    response.job.progress.epoch = epoch
    return response


def tokens(plane: "Plane") -> list[str]:
    return [request.resume_token for method, request in plane.asked if method == "WatchJobs"]


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
    assert not asked["CancelJob"].HasField("save")
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


def test_lists_go_on_over_all_pages(client: Client, plane: "Plane") -> None:
    for number in range(5):
        plane.add(f"job-{number}", Job.PAUSED if number % 2 else Job.RUNNING)
    plane.epochs = [EpochMetrics(epoch=number) for number in range(1, 6)]
    plane.checkpoints = [Checkpoint(name=f"jobs/x/checkpoints/{number}") for number in range(3)]
    plane.workers = [Worker(name=f"workers/{number}") for number in range(3)]
    assert [job.name for job in client.list_jobs()] == list(plane.jobs)
    assert [job.name for job in client.list_jobs(states=[Job.PAUSED])] == ["jobs/job-1", "jobs/job-3"]
    assert list(client.list_epoch_metrics("x")) == plane.epochs
    assert list(client.list_checkpoints("x")) == plane.checkpoints
    assert list(client.list_workers()) == plane.workers
    assert client.get_worker("1") == plane.workers[1]
    assert client.get_checkpoint("x/2") == plane.checkpoints[2]


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


def test_a_call_that_the_server_does_not_know(client: Client) -> None:
    with pytest.raises(errors.NotImplementedYetError, match="does not know this call"):
        client._call(client._workers.DrainWorker, Worker())  # type: ignore[misc]


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


def test_a_watch_goes_on_where_its_stream_broke(client: Client, plane: "Plane") -> None:
    plane.streams = [
        [change(Job.RUNNING, "1"), WatchJobsResponse(resume_token="2"), errors.ShuttingDownError("bye")],
        [change(Job.PAUSING, "3")],  # ended in order, as by a proxy
        [errors.StoreUnavailableError("no redis")],
        [WatchJobsResponse(deleted="jobs/x", resume_token="4")],
    ]
    changes = client.watch_jobs(names=["x"], labels={"a": "b"})
    states = [next(changes).job.state, next(changes).job.state]
    assert states == [Job.RUNNING, Job.PAUSING]
    assert next(changes).deleted == "jobs/x"
    changes.close()
    assert tokens(plane)[:2] == ["", "2"]
    assert set(tokens(plane)[2:]) == {"3"}
    assert plane.asked[-1][1].labels == {"a": "b"}


def test_a_watch_begins_at_a_given_token(client: Client, plane: "Plane") -> None:
    plane.streams = [[change(Job.RUNNING, "8")]]
    changes = client.watch_jobs(resume_token="7")
    assert next(changes).resume_token == "8"
    changes.close()
    assert tokens(plane) == ["7"]


def test_a_watch_ends_with_an_error_that_does_not_pass(client: Client, plane: "Plane") -> None:
    plane.streams = [[errors.InvalidRequestError({"names": "too many"})]]
    with pytest.raises(errors.InvalidRequestError, match="too many"):
        next(client.watch_jobs())


def test_a_watch_gives_up_after_its_patience() -> None:
    with Client(NOWHERE) as client, pytest.raises(errors.ControlPlaneUnreachableError):
        next(client.watch_jobs(patience=0.0))


def test_patience_and_delays_start_anew_with_every_message(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(watching, "monotonic", lambda: now)
    watch = watching.Watch(WatchJobsRequest(), patience=60)
    failure = errors.ControlPlaneUnreachableError("away")
    assert [watch.broken(failure, 1.0) for _ in range(7)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])
    now = 159.0
    watch.broken(failure, 1.0)
    assert not watch.accept(WatchJobsResponse(resume_token="5"))
    now = 161.0
    assert watch.broken(failure, 1.0) == pytest.approx(0.1)
    now = 221.0
    with pytest.raises(errors.ControlPlaneUnreachableError):
        watch.broken(failure, 1.0)


def test_waiting_ends_with_the_state(client: Client, plane: "Plane") -> None:
    plane.add("x")
    plane.streams = [[change(Job.RUNNING, "1"), change(Job.PAUSING, "2"), change(Job.PAUSED, "3")]]
    assert client.wait_job("x", until=[Job.PAUSED], timeout=30).state == Job.PAUSED


def test_waiting_ends_with_a_predicate_and_survives_a_break(client: Client, plane: "Plane") -> None:
    plane.add("x")
    plane.streams = [[change(Job.RUNNING, "1", 1), errors.ShuttingDownError("bye")], [change(Job.RUNNING, "2", 2)]]
    assert client.wait_job("x", until=lambda job: job.progress.epoch >= 2, timeout=30).progress.epoch == 2


def test_waiting_for_what_is_already_so_asks_once(client: Client, plane: "Plane") -> None:
    plane.add("x", Job.SUCCEEDED)
    assert client.wait_job("x").state == Job.SUCCEEDED
    assert [method for method, _ in plane.asked] == ["GetJob"]


def test_waiting_in_vain_is_told(client: Client, plane: "Plane") -> None:
    plane.add("x")
    plane.streams = [[change(Job.SUCCEEDED, "1")]]
    with pytest.raises(errors.JobFinishedError, match="ended SUCCEEDED while PAUSED was waited for"):
        client.wait_job("x", until=[Job.PAUSED], timeout=30)


def test_waiting_for_a_job_that_is_deleted_is_told(client: Client, plane: "Plane") -> None:
    plane.add("x")
    plane.streams = [[WatchJobsResponse(deleted="jobs/x")]]
    with pytest.raises(errors.NotFoundError, match="was deleted"):
        client.wait_job("x", timeout=30)


def test_waiting_for_an_unknown_job_is_an_error_at_once(client: Client) -> None:
    with pytest.raises(errors.NotFoundError):
        client.wait_job("x")


def test_waiting_has_a_limit(client: Client, plane: "Plane") -> None:
    plane.add("x")
    with pytest.raises(errors.DeadlineError, match=r"jobs/x is RUNNING; PAUSED did not come within 0\.2 s"):
        client.wait_job("x", until=[Job.PAUSED], timeout=0.2)


def test_waiting_has_a_limit_while_reconnecting(client: Client, plane: "Plane") -> None:
    plane.add("x")
    plane.streams = [[change(Job.RUNNING, str(number))] for number in range(200)]
    with pytest.raises(errors.DeadlineError, match="the condition did not come"):
        client.wait_job("x", until=lambda job: job.state == Job.PAUSED, timeout=0.3)


def test_a_client_serves_many_threads(client: Client, plane: "Plane") -> None:
    plane.add("x")
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(client.get_job("x").name)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["jobs/x"] * 4


async def test_the_asynchronous_client_makes_the_same_calls(plane: "Plane") -> None:
    plane.epochs = [EpochMetrics(epoch=number) for number in range(1, 6)]
    plane.checkpoints = [Checkpoint(name="jobs/x/checkpoints/1")]
    plane.workers = [Worker(name="workers/1")]
    async with AsyncClient(plane.address) as client:
        job = await client.create_job(JobSpec(entry_point="m:f"), job_id="x")
        assert await client.get_job("x") == job
        assert await client.pause_job("x") == await client.resume_job("x") == job
        assert [each.name async for each in client.list_jobs()] == ["jobs/x"]
        assert [each async for each in client.list_epoch_metrics("x")] == plane.epochs
        assert [each async for each in client.list_checkpoints("x")] == plane.checkpoints
        assert [each async for each in client.list_workers()] == plane.workers
        assert await client.get_worker("1") == plane.workers[0]
        assert await client.get_checkpoint("x/1") == plane.checkpoints[0]
        assert await client.upload_bundle(bytes(7)) == f"bundles/{7:064x}"
        assert (await client.cancel_job("x")).state == Job.CANCELLING
        await client.delete_job("x")
    assert plane.jobs == {}


async def test_the_asynchronous_client_raises_the_same_errors(plane: "Plane") -> None:
    plane.failures["UploadBundle"] = [errors.InvalidRequestError({"chunk": "is no archive"})]
    async with AsyncClient(plane.address) as client:
        with pytest.raises(errors.NotFoundError, match="there is no jobs/x"):
            await client.get_job("x")
        with pytest.raises(errors.InvalidRequestError):
            await client.upload_bundle(b"x")
    async with AsyncClient(NOWHERE) as client:
        with pytest.raises(errors.ControlPlaneUnreachableError, match=f"at {NOWHERE}"):
            await client.get_job("x")


async def test_the_asynchronous_watch_goes_on_where_its_stream_broke(plane: "Plane") -> None:
    plane.streams = [[change(Job.RUNNING, "1"), errors.ShuttingDownError("bye")], [change(Job.PAUSED, "2")]]
    async with AsyncClient(plane.address) as client:
        changes = client.watch_jobs(names=["x"])
        assert [(await anext(changes)).job.state, (await anext(changes)).job.state] == [Job.RUNNING, Job.PAUSED]
        await changes.aclose()
    assert tokens(plane) == ["", "1"]


async def test_the_asynchronous_wait(plane: "Plane") -> None:
    plane.add("x")
    plane.streams = [[change(Job.RUNNING, "1"), change(Job.PAUSED, "2")], [change(Job.FAILED, "3")]]
    async with AsyncClient(plane.address) as client:
        assert (await client.wait_job("x", until=[Job.PAUSED], timeout=30)).state == Job.PAUSED
        with pytest.raises(errors.JobFinishedError):
            await client.wait_job("x", until=[Job.PAUSED], timeout=30)
        with pytest.raises(errors.DeadlineError, match="did not come"):
            await client.wait_job("x", timeout=0.2)


async def test_a_cancelled_wait_is_cancelled(plane: "Plane") -> None:
    plane.add("x")
    async with AsyncClient(plane.address) as client:
        waiting = asyncio.create_task(client.wait_job("x"))
        assert await asyncio.to_thread(plane.watched.wait, 30)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


@pytest.mark.parametrize("make", [Client, AsyncClient])
async def test_the_package_offers_both_by_name(make: Callable[[], Any]) -> None:
    import adjourn

    assert getattr(adjourn, make.__name__) is make
    with pytest.raises(AttributeError, match="no attribute 'Server'"):
        _ = adjourn.Server
