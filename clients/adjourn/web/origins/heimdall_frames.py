"""What Heimdall's sockets tell."""

import json
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Any, Final

from adjourn.v1.job_pb2 import Job
from adjourn.v1.usage_pb2 import ResourceSample
from adjourn.web.origins import figures, heimdall_answers
from adjourn.web.origins.feed import Deleted, News
from adjourn.web.origins.happened import Happened, Kind
from adjourn.web.origins.sockets import Frame, now

BATCH_SECONDS: Final = 1.0
"""Between two frames about the steps of a job, at least."""
ACTIONS: Final = {Kind.CREATED: "created", Kind.PAUSED: "paused", Kind.RESUME_REQUESTED: "resumed"}


class HeimdallFrames:
    """Words what happens to jobs; `everything`: for the socket of all jobs, which tells of their lives too."""

    needs_samples = False

    def __init__(self, everything: bool, clock: Callable[[], float] = monotonic) -> None:
        self._everything = everything
        self._clock = clock
        self._batches: dict[str, float] = {}

    def connected(self, job: Job | None) -> Iterable[Frame]:
        about = f"Connected to training job {figures.identifier(job)}" if job else "Connected to all training jobs"
        yield {
            "event": "connected",
            "job_id": figures.identifier(job) if job else None,
            "timestamp": now(),
            "message": about,
        }

    def heartbeat(self) -> Frame:
        return {"event": "heartbeat", "timestamp": now()}

    def pong(self, text: str) -> Frame | None:
        try:
            asked = json.loads(text)
        except ValueError:
            asked = None
        if text.strip() == "ping" or (isinstance(asked, dict) and asked.get("event") == "ping"):
            return {"event": "pong", "timestamp": now()}
        return None

    def frames(self, news: News, sample: ResourceSample | None) -> Iterator[Frame]:
        if isinstance(news, Deleted):
            self._batches.pop(news.name, None)
            if self._everything:
                gone = {"job_id": news.name.removeprefix("jobs/"), "status": "deleted", "action": "deleted"}
                yield frame("training_job_update", gone)
            return
        yield from self._training(news)
        action = ACTIONS.get(news.kind)
        if news.kind is Kind.ENDED and news.job.state == Job.CANCELLED:
            action = "cancelled"
        if action and self._everything:
            job_id = figures.identifier(news.job)
            yield frame(
                "training_job_update",
                {"job_id": job_id, "status": heimdall_answers.status(news.job), "action": action},
            )

    def _training(self, news: Happened) -> Iterator[Frame]:
        job = news.job
        about: dict[str, Any] = {"job_id": figures.identifier(job), "total_epochs": job.spec.total_epochs}
        match news.kind:
            case Kind.STARTED:
                yield frame("training:started", {**about, "status": heimdall_answers.status(job)})
            case Kind.EPOCH_ENDED if news.epoch is not None:
                share = news.epoch.epoch / job.spec.total_epochs * 100 if job.spec.total_epochs else 0.0
                told = {
                    "epoch": news.epoch.epoch,
                    "progress_percent": round(share, 2),
                    "metrics": heimdall_answers.epoch(news.epoch),
                    "is_best": news.epoch.best,
                }
                yield frame("training:progress", {**about, **told})
            case Kind.PROGRESSED if self._due(job):
                told = {
                    "epoch": job.progress.epoch,
                    "batch": job.progress.epoch_step,
                    "total_batches": job.progress.steps_per_epoch if job.progress.HasField("steps_per_epoch") else None,
                    "progress_percent": figures.percent(job),
                    "current_loss": figures.loss(job),
                    "phase": "train",
                }
                yield frame("training:batch_progress", {**about, **told})
            case Kind.PAUSED if news.pause is not None:
                told = {
                    "epoch": news.pause.epoch,
                    "current_epoch": news.pause.epoch,
                    "checkpoint_path": news.pause.checkpoint,
                }
                yield frame("training:paused", {**about, **told})
            case Kind.RESUMED if news.pause is not None:
                yield frame("training:resumed", {**about, "current_epoch": news.pause.epoch})
            case Kind.ENDED:
                status = heimdall_answers.status(job)
                if job.state == Job.FAILED:
                    yield frame("training:failed", {**about, "status": status, "error": job.failure.message})
                yield frame("training:completed", {**about, "status": status, "current_epoch": job.progress.epoch})

    def _due(self, job: Job) -> bool:
        """Returns whether a second has passed since the steps of this job were told last."""
        moment = self._clock()
        if moment - self._batches.get(job.name, -BATCH_SECONDS) < BATCH_SECONDS:
            return False
        self._batches[job.name] = moment
        return True


def frame(event: str, data: dict[str, Any]) -> Frame:
    return {"event": event, "timestamp": now(), "data": data}
