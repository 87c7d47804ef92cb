"""What PEFT Studio's sockets tell."""

import json
from collections.abc import Iterable, Iterator

from adjourn.v1.job_pb2 import Job
from adjourn.v1.usage_pb2 import ResourceSample
from adjourn.web.origins import figures, peft_studio_answers
from adjourn.web.origins.feed import Deleted, News
from adjourn.web.origins.happened import Kind
from adjourn.web.origins.sockets import Frame


class PeftStudioFrames:
    """Words what happens to jobs."""

    needs_samples = True

    def __init__(self, everything: bool) -> None:
        self._state: dict[str, str] = {}

    def connected(self, job: Job | None) -> Iterator[Frame]:
        job_id = figures.identifier(job) if job else None
        yield {"type": "connected", "job_id": job_id, "message": "Connected to the training monitor"}
        if job is not None:
            yield from self._changed(job, peft_studio_answers.state(job))

    def heartbeat(self) -> Frame:
        return {"type": "heartbeat"}

    def pong(self, text: str) -> Frame | None:
        try:
            asked = json.loads(text)
        except ValueError:
            asked = None
        pinged = text.strip() == "ping" or (isinstance(asked, dict) and asked.get("type") == "ping")
        return {"type": "pong"} if pinged else None

    def frames(self, news: News, sample: ResourceSample | None) -> Iterable[Frame]:
        if isinstance(news, Deleted):
            self._state.pop(news.name, None)
            return
        match news.kind:
            case Kind.PAUSED:
                yield from self._changed(news.job, "paused")
            case Kind.STARTED | Kind.RESUMED:
                yield from self._changed(news.job, "running")
            case Kind.STATE_CHANGED:
                yield from self._changed(news.job, peft_studio_answers.state(news.job))
            case Kind.PROGRESSED | Kind.EPOCH_ENDED:
                yield {"type": "metrics", "data": peft_studio_answers.metrics(news.job, sample)}

    def _changed(self, job: Job, state: str) -> Iterator[Frame]:
        if self._state.get(job.name) != state:
            self._state[job.name] = state
            data = {"job_id": figures.identifier(job), "status": state}
            yield {"type": "status_change", "data": data}
