# ruff: noqa: N802 - methods are named as in the contract
"""A control plane of a few lines: it answers from a dict, fails on request, and plays watches from a script."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2
from google.protobuf.message import Message
from typer.testing import CliRunner, Result

from adjourn import Client, cli, errors
from adjourn.channel import SERVER_OPTIONS
from adjourn.cli import patience
from adjourn.client import watching
from adjourn.v1 import checkpoint_service_pb2 as checkpoints_pb
from adjourn.v1 import job_service_pb2 as jobs_pb
from adjourn.v1 import worker_service_pb2 as workers_pb
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.checkpoint_service_pb2_grpc import (
    CheckpointServiceServicer,
    add_CheckpointServiceServicer_to_server,
)
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2_grpc import JobServiceServicer, add_JobServiceServicer_to_server
from adjourn.v1.usage_pb2 import EpochMetrics, ResourceSample, StepMetrics
from adjourn.v1.worker_pb2 import Worker
from adjourn.v1.worker_service_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server

Context = Any
Play = Sequence[Any]
"""Messages; an error ends them, and a function is called when they have come so far."""
Adjourn = Callable[..., Result]
PAGE = 2


class Plane(JobServiceServicer, CheckpointServiceServicer, WorkerServiceServicer):
    def __init__(self) -> None:
        self.address = ""
        self.jobs: dict[str, Job] = {}
        self.events: list[jobs_pb.JobEvent] = []
        self.epochs: list[EpochMetrics] = []
        self.steps: list[StepMetrics] = []
        self.samples: list[ResourceSample] = []
        self.checkpoints: list[Checkpoint] = []
        self.files: dict[str, bytes] = {}
        """What ReadCheckpoint sends, by the name of the file, two bytes a message."""
        self.printed: list[jobs_pb.StreamLogsResponse] = []
        """What StreamLogs sends."""
        self.workers: list[Worker] = []
        self.outcomes: list[jobs_pb.HoldOutcome] = []
        self.failures: dict[str, list[errors.AdjournError]] = {}
        """Errors to answer with, by method, before answering properly."""
        self.streams: list[Play] = []
        """What each WatchJobs sends; the stream ends in order after its last message. When all are used up, a stream
        stays open and silent."""
        self.event_streams: list[Play] = []
        """The same of WatchEvents."""
        self.silent = False
        """Do not answer GetJob at all."""
        self.asked: list[tuple[str, Any]] = []
        self.actors: list[str] = []
        self.watched = threading.Event()
        self.closing = threading.Event()

    def add(self, name: str, state: Job.State.ValueType = Job.RUNNING, **fields: Any) -> Job:
        job = Job(name=f"jobs/{name}", state=state, **fields)
        self.jobs[job.name] = job
        return job

    @staticmethod
    def change(
        state: Job.State.ValueType, epoch: int = 0, *, token: str = "t", **fields: Any
    ) -> jobs_pb.WatchJobsResponse:
        """Returns what a watch tells of `jobs/x`, a job of three epochs."""
        response = jobs_pb.WatchJobsResponse(job=Job(name="jobs/x", state=state, **fields), resume_token=token)
        response.job.spec.total_epochs = 3
        response.job.progress.epoch = epoch
        return response

    @property
    def tokens(self) -> list[str]:
        """What each WatchJobs began at."""
        return [request.resume_token for method, request in self.asked if method == "WatchJobs"]

    def note(self, method: str, request: Message, context: Context) -> None:
        self.asked.append((method, request))
        self.actors += [str(value) for key, value in context.invocation_metadata() if key == "adjourn-actor"]
        if self.failures.get(method):
            fail(context, self.failures[method].pop(0))

    def found(self, name: str, context: Context) -> Job:
        if name not in self.jobs:
            fail(context, errors.NotFoundError(f"there is no {name}", job=name))
        return self.jobs[name]

    def CreateJob(self, request: jobs_pb.CreateJobRequest, context: Context) -> Job:
        self.note("CreateJob", request, context)
        return self.add(request.job_id or "made-up", Job.QUEUED, spec=request.job.spec, labels=request.job.labels)

    def GetJob(self, request: jobs_pb.GetJobRequest, context: Context) -> Job:
        self.note("GetJob", request, context)
        if self.silent:
            self.closing.wait()
        return self.found(request.name, context)

    def ListJobs(self, request: jobs_pb.ListJobsRequest, context: Context) -> jobs_pb.ListJobsResponse:
        self.note("ListJobs", request, context)
        matching = [job for job in self.jobs.values() if not request.states or job.state in request.states]
        page, token = paged(matching, request.page_token)
        return jobs_pb.ListJobsResponse(jobs=page, next_page_token=token)

    def PauseJob(self, request: jobs_pb.PauseJobRequest, context: Context) -> Job:
        self.note("PauseJob", request, context)
        return self.found(request.name, context)

    def ResumeJob(self, request: jobs_pb.ResumeJobRequest, context: Context) -> Job:
        self.note("ResumeJob", request, context)
        return self.found(request.name, context)

    def CancelJob(self, request: jobs_pb.CancelJobRequest, context: Context) -> Job:
        self.note("CancelJob", request, context)
        job = self.found(request.name, context)
        job.state = Job.CANCELLING
        return job

    def UpdateJob(self, request: jobs_pb.UpdateJobRequest, context: Context) -> Job:
        self.note("UpdateJob", request, context)
        job = self.found(request.job.name, context)
        job.labels.update(request.job.labels)
        return job

    def DeleteJob(self, request: jobs_pb.DeleteJobRequest, context: Context) -> empty_pb2.Empty:
        self.note("DeleteJob", request, context)
        del self.jobs[request.name]
        return empty_pb2.Empty()

    def WatchJobs(self, request: jobs_pb.WatchJobsRequest, context: Context) -> Iterator[jobs_pb.WatchJobsResponse]:
        self.note("WatchJobs", request, context)
        self.watched.set()
        if not self.streams:
            context.send_initial_metadata(())
            self.closing.wait()
            return
        yield from played(self.streams.pop(0), context)

    def WatchEvents(
        self, request: jobs_pb.WatchEventsRequest, context: Context
    ) -> Iterator[jobs_pb.WatchEventsResponse]:
        self.note("WatchEvents", request, context)
        yield from played(self.event_streams.pop(0), context)

    def ListJobEvents(self, request: jobs_pb.ListJobEventsRequest, context: Context) -> jobs_pb.ListJobEventsResponse:
        self.note("ListJobEvents", request, context)
        page, token = paged(self.events, request.page_token)
        return jobs_pb.ListJobEventsResponse(events=page, next_page_token=token)

    def ListEpochMetrics(
        self, request: jobs_pb.ListEpochMetricsRequest, context: Context
    ) -> jobs_pb.ListEpochMetricsResponse:
        self.note("ListEpochMetrics", request, context)
        page, token = paged(self.epochs, request.page_token)
        return jobs_pb.ListEpochMetricsResponse(epochs=page, next_page_token=token)

    def ListStepMetrics(
        self, request: jobs_pb.ListStepMetricsRequest, context: Context
    ) -> jobs_pb.ListStepMetricsResponse:
        self.note("ListStepMetrics", request, context)
        return jobs_pb.ListStepMetricsResponse(steps=self.steps)

    def ListResourceSamples(
        self, request: jobs_pb.ListResourceSamplesRequest, context: Context
    ) -> jobs_pb.ListResourceSamplesResponse:
        self.note("ListResourceSamples", request, context)
        return jobs_pb.ListResourceSamplesResponse(samples=self.samples)

    def StreamLogs(self, request: jobs_pb.StreamLogsRequest, context: Context) -> Iterator[jobs_pb.StreamLogsResponse]:
        """Sends `printed` from where it is asked for on; a failure comes behind the first message."""
        self.note("StreamLogs", request, context)
        for piece in self.printed:
            place, asked = (piece.attempt, piece.next_offset), (request.attempt, request.offset)
            if place > asked or (piece.end and place == asked):
                yield piece
                if self.failures.get("StreamLogs"):
                    fail(context, self.failures["StreamLogs"].pop(0))

    def UploadBundle(
        self, request_iterator: Iterator[jobs_pb.UploadBundleRequest], context: Context
    ) -> jobs_pb.UploadBundleResponse:
        chunks = [request.chunk for request in request_iterator]
        self.asked.append(("UploadBundle", chunks))
        if self.failures.get("UploadBundle"):
            fail(context, self.failures["UploadBundle"].pop(0))
        return jobs_pb.UploadBundleResponse(bundle=f"bundles/{len(b''.join(chunks)):064x}")

    def GetCheckpoint(self, request: checkpoints_pb.GetCheckpointRequest, context: Context) -> Checkpoint:
        self.note("GetCheckpoint", request, context)
        return next(each for each in self.checkpoints if each.name == request.name)

    def ListCheckpoints(
        self, request: checkpoints_pb.ListCheckpointsRequest, context: Context
    ) -> checkpoints_pb.ListCheckpointsResponse:
        self.note("ListCheckpoints", request, context)
        page, token = paged(self.checkpoints, request.page_token)
        return checkpoints_pb.ListCheckpointsResponse(checkpoints=page, next_page_token=token)

    def PinCheckpoint(self, request: checkpoints_pb.PinCheckpointRequest, context: Context) -> Checkpoint:
        self.note("PinCheckpoint", request, context)
        found = next(each for each in self.checkpoints if each.name == request.name)
        found.retained_for.append(Checkpoint.PINNED)
        return found

    def UnpinCheckpoint(self, request: checkpoints_pb.UnpinCheckpointRequest, context: Context) -> Checkpoint:
        self.note("UnpinCheckpoint", request, context)
        found = next(each for each in self.checkpoints if each.name == request.name)
        del found.retained_for[:]
        return found

    def ReadCheckpoint(
        self, request: checkpoints_pb.ReadCheckpointRequest, context: Context
    ) -> Iterator[checkpoints_pb.ReadCheckpointResponse]:
        self.asked.append(("ReadCheckpoint", (request.file, request.offset)))
        data = self.files[request.file][request.offset :]
        for begin in range(0, len(data), 2):
            if self.failures.get("ReadCheckpoint") and begin:
                fail(context, self.failures["ReadCheckpoint"].pop(0))
            yield checkpoints_pb.ReadCheckpointResponse(data=data[begin : begin + 2])

    def GetWorker(self, request: workers_pb.GetWorkerRequest, context: Context) -> Worker:
        self.note("GetWorker", request, context)
        return next(each for each in self.workers if each.name == request.name)

    def DeleteWorker(self, request: workers_pb.DeleteWorkerRequest, context: Context) -> empty_pb2.Empty:
        self.note("DeleteWorker", request, context)
        if not request.instance:
            self.workers = [each for each in self.workers if each.name != request.name]
        return empty_pb2.Empty()

    def ListWorkers(self, request: workers_pb.ListWorkersRequest, context: Context) -> workers_pb.ListWorkersResponse:
        self.note("ListWorkers", request, context)
        page, token = paged(self.workers, request.page_token)
        return workers_pb.ListWorkersResponse(workers=page, next_page_token=token)

    def HoldJobs(self, request: jobs_pb.HoldJobsRequest, context: Context) -> jobs_pb.HoldJobsResponse:
        self.note("HoldJobs", request, context)
        return jobs_pb.HoldJobsResponse(jobs=self.outcomes)

    def ReleaseJobs(self, request: jobs_pb.ReleaseJobsRequest, context: Context) -> jobs_pb.ReleaseJobsResponse:
        self.note("ReleaseJobs", request, context)
        return jobs_pb.ReleaseJobsResponse(jobs=self.outcomes)

    def DrainWorker(self, request: workers_pb.DrainWorkerRequest, context: Context) -> Worker:
        self.note("DrainWorker", request, context)
        worker = next(each for each in self.workers if each.name == request.name)
        drained = Worker(state=Worker.DRAINING if worker.jobs else Worker.DRAINED)
        drained.drain.reason = request.reason
        worker.MergeFrom(drained)
        return worker

    def UndrainWorker(self, request: workers_pb.UndrainWorkerRequest, context: Context) -> Worker:
        self.note("UndrainWorker", request, context)
        worker = next(each for each in self.workers if each.name == request.name)
        worker.ClearField("drain")
        worker.state = Worker.ACTIVE
        return worker


def paged(items: Sequence[Any], token: str) -> tuple[Sequence[Any], str]:
    start = int(token or 0)
    rest = start + PAGE < len(items)
    return items[start : start + PAGE], str(start + PAGE) if rest else ""


def played(script: Play, context: Context) -> Iterator[Any]:
    for message in script:
        if isinstance(message, errors.AdjournError):
            fail(context, message)
        elif callable(message):
            message()
        else:
            yield message


def fail(context: Context, error: errors.AdjournError) -> None:
    status = error.to_status()
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(next(code for code in grpc.StatusCode if code.value[0] == status.code), status.message)


@pytest.fixture
def plane() -> Iterator[Plane]:
    plane = Plane()
    with ThreadPoolExecutor(max_workers=8) as pool:
        server = grpc.server(pool, options=SERVER_OPTIONS)
        add_JobServiceServicer_to_server(plane, server)
        add_CheckpointServiceServicer_to_server(plane, server)
        add_WorkerServiceServicer_to_server(plane, server)
        plane.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        yield plane
        plane.closing.set()
        server.stop(grace=None).wait()


@pytest.fixture
def adjourn(plane: Plane) -> Adjourn:
    def run(*words: str) -> Result:
        result = CliRunner().invoke(cli.app, list(words), env={"ADJOURN_ADDRESS": plane.address, "COLUMNS": "200"})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture
def hour_passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Ends whatever clients wait for with a timeout; in a script, after what they are to have heard until then."""
    hours = [0.0]
    for module in (patience, watching):
        monkeypatch.setattr(module, "monotonic", lambda: hours[-1])
    return lambda: hours.append(hours[-1] + 3600)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text("def main(run): ...\n")
    return path


@pytest.fixture
def client(plane: Plane) -> Iterator[Client]:
    with Client(plane.address) as client:
        yield client
