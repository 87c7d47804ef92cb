"""PEFT Studio's interface, at `/api/training`."""

from typing import Annotated, Any, Final
from uuid import uuid4

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from adjourn.client import AsyncClient
from adjourn.client.watching import ENDED
from adjourn.errors import NotFoundError, PreconditionError
from adjourn.v1.job_pb2 import Job
from adjourn.web.origins import created, figures, peft_studio_answers, refusals
from adjourn.web.origins.peft_studio_answers import state
from adjourn.web.origins.refusals import refused

REASON: Final = "asked for through PEFT Studio's interface"


class NewRun(BaseModel):
    """The body of a request to start a run; keys that are not named here are kept and passed on."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    job_id: str | None = None
    model_name: Annotated[str, Field(min_length=1)]
    dataset_path: str = ""
    peft_method: str = "lora"
    lora_r: Annotated[int, Field(ge=1)] = 8
    lora_alpha: Annotated[float, Field(gt=0)] = 16
    lora_dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    batch_size: Annotated[int, Field(ge=1)] = 4
    num_epochs: Annotated[int, Field(ge=1, validation_alias=AliasChoices("num_epochs", "epochs"))] = 3
    optimizer: str = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01


NEW_RUN: Final = TypeAdapter(NewRun)


class PeftStudio:
    """Answers PEFT Studio's calls from a control plane. Keeps nothing."""

    def __init__(self, client: AsyncClient, trained: created.Trained) -> None:
        self._client = client
        self._trained = trained

    def routes(self) -> list[BaseRoute]:
        return [
            Mount(
                "/api/training",
                routes=[
                    Route("/start", self.start, methods=["POST"]),
                    Route("/list", self.list, methods=["GET"]),
                    Route("/paused", self.paused_runs, methods=["GET"]),
                    Route("/paused/{job_id}", self.paused, methods=["GET"]),
                    Route("/resume/{job_id}", self.resume, methods=["POST"]),
                    Route("/stop/{job_id}", self.stop, methods=["POST"]),
                    Route("/{job_id}/resume", self.resume, methods=["POST"]),
                    Route("/{job_id}/stop", self.stop, methods=["POST"]),
                    Route("/{job_id}/pause", self.pause, methods=["POST"]),
                ],
            )
        ]

    async def start(self, request: Request) -> Response:
        wanted = await refusals.body(request, NEW_RUN)
        config = wanted.model_dump(mode="json", exclude={"job_id"})
        spec = self._trained.spec(
            created.PEFT_STUDIO,
            {"config": config},
            config=config,
            total_epochs=wanted.num_epochs,
            model_name=wanted.model_name,
            dataset_uri=wanted.dataset_path,
        )
        job = await self._client.create_job(spec, job_id=wanted.job_id or str(uuid4()))
        return answer(job, "Training started: it runs as soon as a worker is free")

    async def list(self, _: Request) -> Response:
        jobs = [peft_studio_answers.job(job) async for job in self._client.list_jobs()]
        return JSONResponse({"jobs": jobs, "count": len(jobs)})

    async def paused_runs(self, _: Request) -> Response:
        runs = [peft_studio_answers.summary(job) async for job in self._client.list_jobs(states=[Job.PAUSED])]
        return JSONResponse({"paused_runs": runs, "count": len(runs)})

    async def paused(self, request: Request) -> Response:
        job = await self._job(request)
        if job.state != Job.PAUSED:
            job_id = figures.identifier(job)
            raise refused(f"Job {job_id} is not in paused state. Current state: {state(job)}")
        return JSONResponse(peft_studio_answers.paused(job))

    async def pause(self, request: Request) -> Response:
        async def decide() -> Job:
            job = await self._job(request)
            if job.state != Job.RUNNING:
                raise refused(f"Cannot pause job in state: {state(job)}")
            try:
                return await self._client.pause_job(job.name, reason=REASON, etag=job.etag)
            except PreconditionError as error:
                raise refused(error.message) from None

        return answer(await refusals.decided(decide), "Training pauses after the running epoch")

    async def resume(self, request: Request) -> Response:
        async def decide() -> Job:
            job = await self._job(request)
            if job.state not in (Job.PAUSED, Job.PAUSING):
                raise refused(f"Cannot resume job in state: {state(job)}")
            try:
                return await self._client.resume_job(job.name, etag=job.etag)
            except PreconditionError as error:
                raise refused(error.message) from None

        return answer(await refusals.decided(decide), "Training resumed successfully", status="resumed")

    async def stop(self, request: Request) -> Response:
        """Ends a run early and keeps its state: at its next boundary, with a last checkpoint."""

        async def decide() -> Job:
            job = await self._job(request)
            if job.state in ENDED:
                raise refused(f"Cannot stop job in state: {state(job)}")
            try:
                return await self._client.cancel_job(job.name, save_checkpoint=True, reason=REASON, etag=job.etag)
            except PreconditionError as error:
                raise refused(error.message) from None

        job = await refusals.decided(decide)
        when = "has stopped" if job.state == Job.CANCELLED else "stops after the running epoch"
        return answer(job, f"Training {when}, and its state is kept")

    async def _job(self, request: Request) -> Job:
        job_id = request.path_params["job_id"]
        try:
            return await self._client.get_job(job_id)
        except NotFoundError:
            raise HTTPException(404, f"Job {job_id} not found") from None


def answer(job: Job, message: str, *, status: str = "") -> Response:
    told: dict[str, Any] = {"job_id": figures.identifier(job), "status": status or state(job), "message": message}
    return JSONResponse(told)
