"""Heimdall's interface, at `/v1/training` and `/api/v1/training`, and its sockets."""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

import adjourn
from adjourn.client import AsyncClient
from adjourn.errors import (
    AdjournError,
    DeadlineError,
    JobFinishedError,
    JobNotFinishedError,
    JobNotPausedError,
    NoCheckpointError,
    NotFoundError,
)
from adjourn.v1.job_pb2 import Job
from adjourn.web.origins import created, figures, heimdall_answers, refusals
from adjourn.web.origins.heimdall_answers import CANCELLABLE, RESUMABLE, STATES, status
from adjourn.web.origins.refusals import refused

REASON: Final = "asked for through Heimdall's interface"
CANCEL_SECONDS: Final = 5.0
"""How long an answer waits for a job to be CANCELLED."""
RECENT: Final = 10
"""Epochs that are told with a job."""
WILL_PAUSE: Final = "Training will pause after completing the current epoch"
NO_BOUNDARIES: Final = "Cannot pause synthetic data generation jobs."


class Config(BaseModel):
    """What a client asks of a training; keys that are not named here are kept and passed on."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    dataset_id: str | None = None
    dataset_ids: list[str] | None = None
    model_architecture: str | None = None
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 32
    num_workers: Annotated[int, Field(ge=0)] = 0
    validation_split: Annotated[float, Field(ge=0, lt=1)] = 0.2
    epochs: Annotated[int, Field(ge=0, le=5000)] = 100
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    dropout_rate: Annotated[float, Field(ge=0, le=1)] = 0.2
    lr_scheduler: str | None = "cosine"
    warmup_epochs: Annotated[int, Field(ge=0)] = 5
    early_stop_patience: Annotated[int, Field(ge=0)] = 20
    early_stop_delta: Annotated[float, Field(ge=0)] = 1e-3
    max_grad_norm: float | None = 1.0
    accelerator: str = "auto"
    devices: int | str = 1


class NewJob(BaseModel):
    """The body of a request for a new job."""

    job_name: Annotated[str, Field(min_length=1, max_length=255)]
    config: Config
    description: str | None = None


NEW_JOB: Final = TypeAdapter(NewJob)
JOB_ID: Final = TypeAdapter(UUID)
LIMIT: Final[TypeAdapter[int]] = TypeAdapter(Annotated[int, Field(ge=1, le=500)])
METRICS_LIMIT: Final[TypeAdapter[int]] = TypeAdapter(Annotated[int, Field(ge=1, le=1000)])
OFFSET: Final[TypeAdapter[int]] = TypeAdapter(Annotated[int, Field(ge=0)])


class Heimdall:
    """Answers Heimdall's calls from a control plane. Keeps nothing."""

    def __init__(self, client: AsyncClient, trained: created.Trained) -> None:
        self._client = client
        self._trained = trained

    def routes(self) -> list[BaseRoute]:
        health = [Route("/health", self.health), Route("/ready", self.ready)]
        jobs = [
            Route("/jobs", self.create, methods=["POST"]),
            Route("/jobs", self.list, methods=["GET"]),
            Route("/jobs/{job_id}", self.get, methods=["GET"]),
            Route("/jobs/{job_id}", self.delete, methods=["DELETE"]),
            Route("/jobs/{job_id}/pause", self.pause, methods=["POST"]),
            Route("/jobs/{job_id}/resume", self.resume, methods=["POST"]),
            Route("/jobs/{job_id}/cancel", self.cancel, methods=["POST"]),
            Route("/jobs/{job_id}/metrics", self.metrics, methods=["GET"]),
        ]
        places = ("/v1/training", "/api/v1/training")
        return [*health, *(Mount(place, routes=[*jobs, *health]) for place in places)]

    async def create(self, request: Request) -> Response:
        wanted = await refusals.body(request, NEW_JOB)
        config = wanted.config.model_dump(mode="json")
        asked = {"job_name": wanted.job_name, "description": wanted.description, "config": config}
        spec = self._trained.spec(
            created.HEIMDALL,
            asked,
            config=config,
            total_epochs=wanted.config.epochs,
            model_name=wanted.config.model_architecture or wanted.job_name,
            dataset_uri=wanted.config.dataset_id or ",".join(wanted.config.dataset_ids or []),
        )
        job = await self._client.create_job(spec, job_id=str(uuid4()))
        return JSONResponse(heimdall_answers.job(job), status_code=201)

    async def list(self, request: Request) -> Response:
        limit = refusals.parameter(request, "limit", LIMIT, 50)
        offset = refusals.parameter(request, "offset", OFFSET, 0)
        word = request.query_params.get("status")
        if word is not None and word not in STATES:
            known = ", ".join(f"'{each}'" for each in STATES)
            problem = {"loc": ["query", "status"], "msg": f"Input should be one of {known}", "type": "enum"}
            raise refusals.Unprocessable([problem])
        if word is not None and not STATES[word]:
            found = []
        else:
            states = STATES[word] if word is not None else ()
            found = [job async for job in self._client.list_jobs(states=states) if is_uuid(figures.identifier(job))]
        page = [heimdall_answers.job(job) for job in found[offset : offset + limit]]
        return JSONResponse({"jobs": page, "total": len(found)})

    async def get(self, request: Request) -> Response:
        job = await self._job(request)
        told = heimdall_answers.job(job)
        recent = [heimdall_answers.epoch(each) async for each in self._client.list_epoch_metrics(job.name)][-RECENT:]
        address = f"ws://{request.url.netloc}/ws/training/{told['id']}"
        return JSONResponse({**told, "job": told, "recent_metrics": recent[::-1], "websocket_url": address})

    async def pause(self, request: Request) -> Response:
        async def decide() -> Job:
            job = await self._job(request)
            if not job.spec.total_epochs:
                raise refused(NO_BOUNDARIES)
            if job.state != Job.RUNNING:
                raise refused(f"Cannot pause job in status '{status(job)}'. Only running jobs can be paused.")
            return await self._client.pause_job(job.name, reason=REASON, etag=job.etag)

        job = await refusals.decided(decide)
        return JSONResponse({**where(job), "message": WILL_PAUSE})

    async def resume(self, request: Request) -> Response:
        async def decide() -> Job:
            job = await self._job(request)
            refusal = (
                f"Cannot resume job in status '{status(job)}'. Only paused, cancelled, or failed jobs can be resumed."
            )
            if status(job) not in RESUMABLE:
                raise refused(refusal)
            try:
                return await self._client.resume_job(job.name, etag=job.etag)
            except NoCheckpointError:
                raise refused("No checkpoint found. Cannot resume training.") from None
            except (JobNotPausedError, JobFinishedError):
                raise refused(refusal) from None

        job = await refusals.decided(decide)
        message = f"Training resumed from epoch {job.progress.epoch}"
        return JSONResponse({**where(job), "celery_task_id": job.uid, "message": message})

    async def cancel(self, request: Request) -> Response:
        async def decide() -> Job:
            job = await self._job(request)
            if status(job) not in CANCELLABLE:
                allowed = "Only pending, queued, or running jobs can be cancelled."
                raise refused(f"Cannot cancel job in status '{status(job)}'. {allowed}")
            return await self._client.cancel_job(job.name, reason=REASON, etag=job.etag)

        job = await refusals.decided(decide)
        with suppress(DeadlineError, JobFinishedError):
            job = await self._client.wait_job(job.name, until={Job.CANCELLED}, timeout=CANCEL_SECONDS)
        return JSONResponse({"status": status(job), "job_id": figures.identifier(job)})

    async def delete(self, request: Request) -> Response:
        job = await self._job(request)
        try:
            await self._client.delete_job(job.name)
        except JobNotFinishedError:
            raise refused(f"Cannot delete job in status '{status(job)}'. Cancel the job first.") from None
        return Response(status_code=204)

    async def metrics(self, request: Request) -> Response:
        limit = refusals.parameter(request, "limit", METRICS_LIMIT, 100)
        job = await self._job(request)
        epochs = [heimdall_answers.epoch(each) async for each in self._client.list_epoch_metrics(job.name)]
        return JSONResponse(epochs[-limit:])

    async def health(self, _: Request) -> Response:
        now = figures.iso(datetime.now(UTC))
        return JSONResponse(
            {"status": "healthy", "service": "adjourn", "version": adjourn.__version__, "timestamp": now}
        )

    async def ready(self, _: Request) -> Response:
        """Answers 503 while the control plane does not answer."""
        try:
            async for _worker in self._client.list_workers():
                break
        except AdjournError as error:
            return JSONResponse({"status": "not ready", "detail": error.message}, status_code=503)
        return JSONResponse({"status": "ready"})

    async def _job(self, request: Request) -> Job:
        """Returns the job of a path; an id that is no UUID is a mistake, one that nobody knows is not found."""
        job_id = str(refusals.valid(request.path_params["job_id"], JOB_ID, "path", "job_id"))
        try:
            return await self._client.get_job(job_id)
        except NotFoundError:
            raise HTTPException(404, f"Training job {job_id} not found") from None


def where(job: Job) -> dict[str, Any]:
    return {
        "status": status(job),
        "job_id": figures.identifier(job),
        "current_epoch": job.progress.epoch,
        "total_epochs": job.spec.total_epochs,
    }


def is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
