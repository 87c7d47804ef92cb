"""PURE  Jobs as PEFT Studio tells them.

Its pages show numbers without a look whether they are there, so each number is one. Those that nobody knows are 0, and
`unknown` has their names. Of GPUs that tell nothing, the lists are empty.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf import json_format

from adjourn.v1.job_pb2 import Job, Pause
from adjourn.v1.usage_pb2 import ResourceSample
from adjourn.web.origins import created, figures

STATE: Final[Mapping[Job.State.ValueType, str]] = {
    Job.QUEUED: "created",
    Job.STARTING: "initializing",
    Job.RUNNING: "running",
    Job.PAUSING: "pausing",
    Job.PAUSED: "paused",
    Job.CANCELLING: "stopping",
    Job.CANCELLED: "stopped",
    Job.SUCCEEDED: "completed",
    Job.FAILED: "failed",
}
"""`paused` and `stopped` are said of jobs that rest, never of jobs on their way."""


def state(job: Job) -> str:
    return STATE.get(job.state, "running")


def known(values: Mapping[str, float | None]) -> dict[str, Any]:
    """Returns the values with 0 for what is not known, and the names of those under `unknown`."""
    filled: dict[str, Any] = {name: 0 if value is None else value for name, value in values.items()}
    return filled | {"unknown": [name for name, value in values.items() if value is None]}


def model_name(job: Job) -> str:
    return job.spec.model_name or figures.identifier(job)


def dataset(job: Job) -> dict[str, str]:
    asked = created.config(job, created.PEFT_STUDIO)
    path = job.spec.dataset_uri
    return {"dataset_path": path, "dataset_name": str(asked.get("dataset_name") or path.rstrip("/").rpartition("/")[2])}


def seconds(job: Job, name: str) -> float | None:
    """Returns a duration of the job's progress; None if it is not known."""
    duration = getattr(job.progress, name)
    return duration.ToTimedelta().total_seconds() if job.progress.HasField(name) else None  # type: ignore[arg-type]


def usage(sample: ResourceSample) -> dict[str, Any]:
    """Returns resources in use, lists over the GPUs of which they are known.

    CPU is that of the worker, 100 = all that it may use, since it is drawn as a bar. Memory is the job's own, in bytes.
    """
    told = known(
        {
            "cpu_utilization": sample.worker_cpu_percent if sample.HasField("worker_cpu_percent") else None,
            "ram_used": sample.memory_bytes if sample.HasField("memory_bytes") else None,
        }
    )
    gpus = sample.gpus
    return {
        "gpu_utilization": [gpu.utilization_percent for gpu in gpus if gpu.HasField("utilization_percent")],
        "gpu_memory_used": [gpu.memory_used_bytes for gpu in gpus if gpu.HasField("memory_used_bytes")],
        **told,
    }


def paused(job: Job) -> dict[str, Any]:
    """Returns all that is known of a job that is PAUSED: PEFT Studio's fields, and its wish list after them."""
    pause = job.pause
    figures_ = known(
        {
            "elapsed_time": seconds(job, "active_duration") or 0.0,
            "remaining_time_estimate": seconds(job, "remaining_duration"),
            "current_step": job.progress.step,
            "current_epoch": job.progress.epoch,
            "current_loss": figures.loss(job),
        }
    )
    return {
        "job_id": figures.identifier(job),
        "state": state(job),
        "paused_at": figures.time(job.state_time),
        "started_at": figures.time_of(job, "start_time") or figures.time(job.create_time),
        **figures_,
        "resource_usage": usage(pause.usage),
        "model_name": model_name(job),
        **dataset(job),
        "checkpoint": {
            "name": pause.checkpoint,
            "size_bytes": pause.checkpoint_size_bytes,
            "uploaded_bytes": pause.checkpoint_uploaded_bytes,
            "verified": pause.checkpoint_verified,
        },
        "pause_reason": pause.reason,
        "paused_by": pause.actor,
        "holds": [json_format.MessageToDict(hold, preserving_proto_field_name=True) for hold in job.holds],
        "gpu_memory_released": pause.released_gpu_memory_bytes if pause.HasField("released_gpu_memory_bytes") else None,
        "saved_gpu_seconds": pause.saved_gpu_seconds,
        "saved_cost": cost(pause),
        "history": [cycle(each) for each in [*job.past_pauses, pause]],
        "config": created.config(job, created.PEFT_STUDIO),
    }


def cost(pause: Pause) -> dict[str, Any] | None:
    if not pause.HasField("saved_cost"):
        return None
    return {"amount": pause.saved_cost.amount, "currency": pause.saved_cost.currency}


def cycle(pause: Pause) -> dict[str, Any]:
    """Returns one cycle of pause and resume; times that were not reached are null."""
    times = {
        name: figures.time(getattr(pause, name)) if pause.HasField(name) else None
        for name in (
            "request_time",
            "boundary_time",
            "release_time",
            "pause_time",
            "resume_request_time",
            "resume_time",
        )
    }
    return {"reason": pause.reason, "actor": pause.actor, "epoch": pause.epoch, "step": pause.step, **times}


def summary(job: Job) -> dict[str, Any]:
    """Returns a line of the list of paused runs."""
    whole = paused(job)
    names = ("job_id", "model_name", "paused_at", "elapsed_time", "current_step", "current_epoch", "current_loss")
    return {name: whole[name] for name in names} | {"unknown": whole["unknown"]}


def job(job: Job) -> dict[str, Any]:
    """Returns a line of the list of all jobs."""
    return {
        "job_id": figures.identifier(job),
        "state": state(job),
        "model_name": model_name(job),
        **dataset(job),
        "config": created.config(job, created.PEFT_STUDIO),
        "created_at": figures.time_of(job, "create_time"),
        "started_at": figures.time_of(job, "start_time"),
        "completed_at": figures.time_of(job, "end_time"),
        "paused_at": figures.time(job.state_time) if job.state == Job.PAUSED else None,
        "checkpoint_path": job.latest_checkpoint or None,
        "error_message": job.failure.message if job.state == Job.FAILED else None,
        "current_epoch": job.progress.epoch,
        "total_epochs": job.spec.total_epochs,
        "current_metrics": metrics(job, None) if job.progress.step else None,
    }


def metrics(job: Job, sample: ResourceSample | None) -> dict[str, Any]:
    """Returns the newest figures of a job that trains, as its page draws them."""
    progress = job.progress
    active = seconds(job, "active_duration") or 0.0
    pace = progress.step / active if active else None
    batch = created.config(job, created.PEFT_STUDIO).get("batch_size")
    told = known(
        {
            "step": progress.step,
            "epoch": progress.epoch,
            "loss": figures.loss(job),
            "learning_rate": figures.value(progress.metrics, figures.LEARNING_RATE),
            "grad_norm": figures.value(progress.metrics, figures.GRADIENT_NORM),
            "throughput": pace,
            "samples_per_second": pace * batch if pace is not None and isinstance(batch, int) else None,
            "val_loss": figures.value(progress.metrics, ("val_loss",)),
            "elapsed_time": active,
            "estimated_time_remaining": seconds(job, "remaining_duration"),
        }
    )
    used = usage(sample or ResourceSample())
    temperatures = (
        [gpu.temperature_celsius for gpu in sample.gpus if gpu.HasField("temperature_celsius")] if sample else []
    )
    moment = (
        progress.report_time.ToDatetime(tzinfo=UTC)
        if progress.HasField("report_time")
        else datetime.fromtimestamp(0, UTC)
    )
    return {
        **used,
        **told,
        "gpu_temperature": temperatures,
        "timestamp": figures.iso(moment),
        "unknown": [*told["unknown"], *used["unknown"]],
    }
