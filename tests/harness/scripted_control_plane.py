"""A control plane that answers as a test wants, and jobs whose training does what a test wants."""

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import grpc

from adjourn import errors
from adjourn.channel import SERVER_OPTIONS
from adjourn.local.ports import free_ports
from adjourn.v1 import agent_service_pb2_grpc
from adjourn.v1.agent_service_pb2 import (
    Assignment,
    AssignmentStatus,
    Exit,
    Report,
    SynchronizeRequest,
    SynchronizeResponse,
)
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import PauseMode

INTERVAL: Final = timedelta(seconds=0.1)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as the control plane assigns it, and as a test leads its training."""

    assignment: Assignment
    commands: int
    """Descriptor of the FIFO, which keeps what is written until training reads it."""

    @property
    def name(self) -> str:
        return self.assignment.job

    def do(self, *commands: str) -> None:
        """Has the training process do things, once it runs."""
        os.write(self.commands, "".join(f"{command}\n" for command in commands).encode())


async def refuse(context: Any, error: errors.AdjournError) -> None:
    """Ends a stream as a control plane does."""
    status = error.to_status()
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    code = next(each for each in grpc.StatusCode if each.value[0] == error.code)
    await context.abort(code, status.message, details)


class ControlPlane(agent_service_pb2_grpc.AgentServiceServicer):
    """Assigns what a test puts into `assignments`, and keeps all requests and reports."""

    def __init__(self) -> None:
        self.assignments: dict[str, Assignment] = {}
        self.acknowledging = True
        self.superseding = False
        self.refusing_name = False
        self.mute = False
        """It hears and does not answer, as the far end of a partition."""
        self.lease = timedelta(seconds=15)
        self.keeping = False
        """Finished assignments stay."""
        self.followed: list[str] = []
        """Uids of jobs whose logs somebody follows."""
        self.requests: list[SynchronizeRequest] = []
        self.reports: list[Report] = []
        """Each once, in the order in which they came."""
        self.port = 0
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        agent_service_pb2_grpc.add_AgentServiceServicer_to_server(self, self._server)
        self.port = self.port or free_ports(1)[0]  # one that nobody is given while it is stopped
        self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server:
            await self._server.stop(0)
            self._server = None

    async def Synchronize(  # noqa: N802
        self, requests: AsyncIterator[SynchronizeRequest], context: Any
    ) -> AsyncIterator[SynchronizeResponse]:
        async for request in requests:
            if self.superseding:
                await refuse(context, errors.SessionSupersededError("another agent speaks"))
            if self.refusing_name:
                await refuse(context, errors.WorkerNameTakenError(f"{request.worker.name} is another's"))
            self.on_request(request)
            if not self.mute:
                yield self.response()

    def on_request(self, request: SynchronizeRequest) -> None:
        self.requests.append(request)
        newest = self.reports[-1].sequence if self.reports else 0
        sequences = [report.sequence for report in request.reports]
        assert sequences == sorted(set(sequences)), "out of order"
        self.reports += [report for report in request.reports if report.sequence > newest]
        for report in request.reports:
            if report.HasField("exit") and self.acknowledging and not self.keeping:
                current = self.assignments.get(report.job)
                if current and current.token == report.token:
                    del self.assignments[report.job]

    def response(self) -> SynchronizeResponse:
        response = SynchronizeResponse(assignments=self.assignments.values(), followed_job_uids=self.followed)
        if self.acknowledging and self.reports:
            response.acknowledged_report = self.reports[-1].sequence
        response.sync_interval.FromTimedelta(INTERVAL)
        response.lease_duration.FromTimedelta(self.lease)
        return response

    def status(self, job: Job) -> AssignmentStatus:
        """Returns what was said last of a job's present attempt; phase 0: nothing."""
        said = self.requests[-1].assignments if self.requests else []
        found = [each for each in said if (each.job, each.token) == (job.name, job.assignment.token)]
        return found[0] if found else AssignmentStatus()

    def phase(self, job: Job) -> int:
        return self.status(job).phase

    def of(self, job: Job) -> list[Report]:
        """Returns the reports on a job's present attempt."""
        return [each for each in self.reports if (each.job, each.token) == (job.name, job.assignment.token)]

    def kinds(self, job: Job) -> list[str | None]:
        return [report.WhichOneof("report") for report in self.of(job)]

    def epochs(self, job: Job) -> list[int]:
        return [report.epoch.epoch for report in self.of(job) if report.HasField("epoch")]

    def checkpoints(self, job: Job) -> list[Checkpoint]:
        return [report.checkpoint for report in self.of(job) if report.HasField("checkpoint")]

    def exit(self, job: Job) -> Exit:
        """How a job's present attempt ended, which was said once and last."""
        *_, last = self.of(job)
        assert self.kinds(job).count("exit") == 1
        assert last.HasField("exit")
        return last.exit

    def ended(self, job: Job) -> bool:
        return "exit" in self.kinds(job)

    def set_target(
        self,
        job: Job,
        target: Assignment.Target.ValueType,
        mode: PauseMode.ValueType = PauseMode.PAUSE_MODE_UNSPECIFIED,
    ) -> None:
        """Changes the target of a job, with a new generation. `mode`: of a pause; left out: EPOCH."""
        job.assignment.target, job.assignment.pause_mode = target, mode
        job.assignment.generation += 1
        self.assignments[job.name] = job.assignment
