"""PURE  Jobs and epochs as Heimdall tells them."""

from collections.abc import Mapping
from typing import Any, Final

from adjourn.v1.job_pb2 import Job
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn.web.origins import created, figures

STATUS: Final[Mapping[Job.State.ValueType, str]] = {
    Job.QUEUED: "queued",
    Job.STARTING: "queued",
    Job.RUNNING: "running",
    Job.PAUSING: "pausing",
    Job.PAUSED: "paused",
    Job.CANCELLING: "cancelling",
    Job.CANCELLED: "cancelled",
    Job.SUCCEEDED: "completed",
    Job.FAILED: "failed",
}
"""`paused` and `cancelled` are said of jobs that rest, never of jobs on their way."""
STATES: Final[Mapping[str, tuple[Job.State.ValueType, ...]]] = {
    word: tuple(state for state, name in STATUS.items() if name == word) for word in dict.fromkeys(STATUS.values())
} | {"pending": ()}
"""States by the word of a filter. No job is `pending`: it is queued as soon as it is there."""
RESUMABLE: Final = frozenset({"paused", "pausing", "cancelled", "failed"})
CANCELLABLE: Final = frozenset({"queued", "running", "pausing", "paused", "cancelling"})


def status(job: Job) -> str:
    return STATUS.get(job.state, "running")


def job(job: Job) -> dict[str, Any]:
    """Returns a job with the fields that Heimdall gives it; what Adjourn does not know is null."""
    asked, config = created.asked(job, created.HEIMDALL), created.config(job, created.HEIMDALL)
    progress, name = job.progress, figures.identifier(job)
    best = progress.best if progress.HasField("best") else None
    ended = status(job) in ("completed", "failed", "cancelled")
    return {
        "id": name,
        "job_id": name,
        "job_name": asked.get("job_name") or job.spec.model_name or name,
        "description": asked.get("description"),
        "job_type": "training" if job.spec.total_epochs else "synthetic_data_generation",
        "status": status(job),
        "created_at": figures.time_of(job, "create_time"),
        "started_at": figures.time_of(job, "start_time"),
        "completed_at": figures.time_of(job, "end_time") if ended else None,
        "config": config,
        "current_epoch": progress.epoch,
        "total_epochs": job.spec.total_epochs,
        "progress_percent": figures.percent(job),
        "current": progress.epoch,
        "total": job.spec.total_epochs,
        "message": message(job),
        "train_loss": train_loss(job),
        "val_loss": figures.value(progress.metrics, ("val_loss",)),
        "train_accuracy": figures.value(progress.metrics, figures.TRAIN_ACCURACY),
        "val_accuracy": figures.value(progress.metrics, figures.VAL_ACCURACY),
        "learning_rate": figures.value(progress.metrics, figures.LEARNING_RATE),
        "best_epoch": best.epoch if best else None,
        "best_val_loss": figures.number(best.value) if best and best.metric == "val_loss" else None,
        "checkpoint_path": job.latest_checkpoint or None,
        "pause_checkpoint_path": (job.pause.checkpoint or None) if job.state == Job.PAUSED else None,
        "onnx_model_path": None,
        "mlflow_run_id": None,
        "error_message": job.failure.message if job.state == Job.FAILED else None,
        "dataset_size": None,
        "train_samples": None,
        "val_samples": None,
        "model_architecture": config.get("model_architecture"),
        "celery_task_id": job.uid,
        "dataset_id": config.get("dataset_id"),
    }


def train_loss(job: Job) -> float | None:
    """Returns the loss of the newest epoch if training code logs one, else the newest of a step."""
    found = figures.value(job.progress.metrics, ("train_loss",))
    return figures.loss(job) if found is None else found


def message(job: Job) -> str | None:
    """Returns what is to be known of a job beyond its status."""
    if job.state == Job.FAILED and job.failure.message:
        return job.failure.message
    return next((condition.message for condition in job.conditions), None)


def epoch(metrics: EpochMetrics) -> dict[str, Any]:
    """Returns an epoch with the values that Heimdall names, and all others as they were logged."""
    values = metrics.values
    named = {
        "epoch": metrics.epoch,
        "train_loss": figures.value(values, figures.TRAIN_LOSS),
        "val_loss": figures.value(values, ("val_loss",)),
        "train_accuracy": figures.value(values, figures.TRAIN_ACCURACY),
        "val_accuracy": figures.value(values, figures.VAL_ACCURACY),
        "learning_rate": figures.value(values, figures.LEARNING_RATE),
        "gradient_norm": figures.value(values, figures.GRADIENT_NORM),
        "is_best": metrics.best,
        "timestamp": figures.time(metrics.time),
    }
    return {name: figures.number(each) for name, each in values.items()} | named
