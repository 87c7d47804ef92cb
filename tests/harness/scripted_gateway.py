"""A gateway that answers as a test wants it: the real page and guard, and jobs, lists and streams out of memory."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from google.protobuf.message import Message
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics, ResourceSample, StepMetrics
from adjourn.v1.worker_pb2 import Worker
from adjourn.web import page
from adjourn.web.guard import Guard
from adjourn.web.process import Server, listening
from adjourn.web.rest.sse import frame
from adjourn.web.rest.transcoding import to_json
from adjourn.web.settings import Settings


@dataclass(kw_only=True)
class Told:
    """What a job has told beside itself."""

    epochs: Sequence[EpochMetrics] = ()
    steps: Sequence[StepMetrics] = ()
    samples: Sequence[ResourceSample] = ()
    events: Sequence[JobEvent] = ()
    checkpoints: Sequence[Checkpoint] = ()
    log: bytes = b""


@dataclass(kw_only=True)
class ScriptedGateway:
    """What is served; a test changes it by its methods."""

    address: str = ""
    jobs: dict[str, Job] = field(default_factory=dict)
    told: dict[str, Told] = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)
    calls: list[tuple[str, str, Any]] = field(default_factory=list)
    """Changes that were asked for: method, path, body. They are answered, and change nothing by themselves."""
    refusal: dict[str, Any] | None = None
    """A google.rpc.Status that changes are refused with."""
    down: bool = False
    """No call and no stream is answered."""
    _changes: list[str] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    watching: int = 0
    """Watches of jobs that are open."""
    following: int = 0
    """Watches of events that are open."""
    _happened: list[str] = field(default_factory=list)

    def put(self, job: Job) -> None:
        """Makes or changes a job, and tells those who watch."""
        self.jobs[job.name] = job
        self._tell(f'{{"job": {to_json(job)}, "resumeToken": "{len(self._changes) + 1}"}}')

    def delete(self, name: str) -> None:
        del self.jobs[name]
        self._tell(json.dumps({"deleted": name, "resumeToken": f"{len(self._changes) + 1}"}))

    def happen(self, name: str, event: JobEvent) -> None:
        """Tells those who watch events."""
        token, uid = str(len(self._happened) + 1), self.jobs[name].uid
        about = {"job": name, "jobUid": uid, "event": json.loads(to_json(event)), "resumeToken": token}
        self._happened.append(json.dumps(about))
        self._wake()

    def cut(self) -> None:
        """Breaks all streams, and answers nothing any more."""
        self.down = True
        self._wake()

    def heal(self) -> None:
        self.down = False

    def _tell(self, change: str) -> None:
        self._changes.append(change)
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def application(self) -> Starlette:
        routes = [
            Route("/v1/jobs:watch", self._watch),
            Route("/v1/jobs:watchEvents", self._events_stream),
            Route("/v1/workers", self._workers),
            Route("/v1/jobs/{job}:streamLogs", self._log),
            Route("/v1/jobs/{job}/{kind}", self._told),
            Route("/v1/{path:path}", self._change, methods=["POST", "DELETE", "PATCH", "GET"]),
            Mount("/", app=page.application()),
        ]
        return Starlette(routes=routes, middleware=[Middleware(Guard, settings=Settings(listen=self.address or "x:1"))])

    async def _watch(self, request: Request) -> Response:
        if self.down:
            return away()
        last = request.headers.get("last-event-id", "")

        async def messages() -> AsyncIterator[bytes]:
            place = int(last) if last else len(self._changes)
            if not last:
                for job in list(self.jobs.values()):
                    yield frame(f'{{"job": {to_json(job)}}}', "")
            self.watching += 1
            try:
                async for message in self._kept(self._changes, place):
                    yield message
            finally:
                self.watching -= 1

        return StreamingResponse(messages(), media_type="text/event-stream")

    async def _events_stream(self, request: Request) -> Response:
        last = request.headers.get("last-event-id", "")

        async def messages() -> AsyncIterator[bytes]:
            self.following += 1
            try:
                async for message in self._kept(self._happened, int(last or len(self._happened))):
                    yield message
            finally:
                self.following -= 1

        return away() if self.down else StreamingResponse(messages(), media_type="text/event-stream")

    async def _kept(self, messages: Sequence[str], place: int) -> AsyncIterator[bytes]:
        """Yields a message that has a token alone, then what follows that place."""
        yield frame(f'{{"resumeToken": "{place}"}}', str(place))
        while not self.down:
            news = self._news
            for message in messages[place:]:
                place += 1
                yield frame(message, str(place))
            await news.wait()

    async def _log(self, request: Request) -> Response:
        log = self._of(request).log

        async def messages() -> AsyncIterator[bytes]:
            data = base64.b64encode(log).decode()
            yield frame(json.dumps({"attempt": 1, "data": data, "nextOffset": str(len(log))}), f"1:{len(log)}")
            while not self.down:
                await self._news.wait()

        return away() if self.down else StreamingResponse(messages(), media_type="text/event-stream")

    async def _workers(self, _: Request) -> Response:
        return await self._list("workers", self.workers)

    def _of(self, request: Request) -> Told:
        return self.told.get(f"jobs/{request.path_params['job']}", Told())

    async def _told(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        return await self._list(kind, getattr(self._of(request), kind))

    async def _list(self, name: str, items: Sequence[Message]) -> Response:
        if self.down:
            return away()
        return Response(f'{{"{name}": [{", ".join(map(to_json, items))}]}}', media_type="application/json")

    async def _change(self, request: Request) -> Response:
        if self.down:
            return away()
        if request.method == "GET":
            return JSONResponse({"code": 5, "message": "nothing has this name"}, status_code=404)
        body = await request.body()
        self.calls.append((request.method, request.url.path, json.loads(body) if body else None))
        if self.refusal:
            return JSONResponse(self.refusal, status_code=400)
        name = f"jobs/{request.path_params['path'].removeprefix('jobs/').partition(':')[0]}"
        return Response(to_json(self.jobs.get(name, Job(name=name))), media_type="application/json")


def away() -> Response:
    return JSONResponse({"code": 14, "message": "the control plane cannot be reached"}, status_code=503)


@asynccontextmanager
async def scripted_gateway() -> AsyncIterator[ScriptedGateway]:
    with listening("127.0.0.1:0") as listener:
        served = ScriptedGateway(address=f"127.0.0.1:{listener.getsockname()[1]}")
        config = uvicorn.Config(served.application(), log_config=None, access_log=False, timeout_graceful_shutdown=1)
        server = Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield served
        finally:
            served.cut()
            server.should_exit = True
            await serving
