"""Jobs as a page has to show them: all states, all figures, and text that somebody has made to do harm."""

import math
from datetime import UTC, datetime, timedelta

from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp

from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Condition, Hold, Job, Pause, PauseMode
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics, ResourceSample, StepMetrics
from adjourn.v1.worker_pb2 import Worker
from tests.harness.scripted_gateway import ScriptedGateway, Told

HOSTILE = """<img src=x onerror="window.harmed=1"><script>window.harmed=1</script>"' onclick=1 {{7*7}} ${7*7}"""
RUNNING, PAUSED, UNCONFIRMED, FAILED, PAUSING = (
    "jobs/vit-base",
    "jobs/llm-tune",
    "jobs/cut-off",
    "jobs/broken",
    "jobs/leaving",
)
GIB = 1 << 30


def ago(seconds: float) -> Timestamp:
    return at(datetime.now(UTC) - timedelta(seconds=seconds))


def at(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def job(name: str, state: Job.State.ValueType, *, epoch: int = 0, total: int = 40, age: float = 3600) -> Job:
    made = Job(name=name, uid=f"uid-{name}", state=state, etag="1", attempt=1 if epoch else 0)
    made.spec.entry_point = "train:main"
    made.spec.total_epochs = total
    made.create_time.CopyFrom(ago(age))
    made.state_time.CopyFrom(ago(age / 2))
    if epoch:
        made.start_time.CopyFrom(ago(age - 20))
        made.latest_checkpoint = f"{name}/checkpoints/1-a1b2c3d4-{epoch}"
        progress = made.progress
        progress.epoch, progress.step, progress.steps_per_epoch = epoch, 100 * epoch, 100
        progress.loss = 0.4312
        progress.metrics["val_loss"] = 0.4512
        progress.active_duration.FromTimedelta(timedelta(seconds=epoch * 31))
        progress.report_time.CopyFrom(ago(1))
        progress.remaining_duration.FromTimedelta(timedelta(seconds=(total - epoch) * 31))
        progress.least_remaining_duration.FromTimedelta(timedelta(seconds=(total - epoch) * 29))
        progress.most_remaining_duration.FromTimedelta(timedelta(seconds=(total - epoch) * 35))
        progress.best.metric, progress.best.value, progress.best.epoch = "val_loss", 0.41, max(epoch - 2, 1)
        progress.best.stale_epochs = 2
    return made


def sample(seconds: float, *, gpus: int = 2) -> ResourceSample:
    wave = math.sin(seconds / 60)
    made = ResourceSample(
        attempt=1, cpu_percent=180 + 20 * wave, memory_bytes=6 * GIB, worker_cpu_percent=75 + 5 * wave
    )
    made.time.CopyFrom(ago(seconds))
    made.worker_memory_bytes, made.worker_memory_limit_bytes = int((40 + 4 * wave) * GIB), 128 * GIB
    for index in range(gpus):
        made.gpus.add(
            uuid=f"GPU-{index}",
            index=index,
            utilization_percent=93 + 4 * wave - index * 20,
            memory_used_bytes=int((70 + wave) * GIB) - index * 30 * GIB,
            job_memory_bytes=38 * GIB,
            memory_total_bytes=80 * GIB,
            temperature_celsius=66 + 3 * wave,
            power_watts=540,
        )
    return made


def pause(name: str, epoch: int, *, age: float, resumed: bool) -> Pause:
    made = Pause(
        cause=Pause.HELD,
        mode=PauseMode.EPOCH,
        actor="ada@lab",
        reason="the GPUs are needed for a deadline",
        epoch=epoch,
        step=100 * epoch,
        checkpoint=f"{name}/checkpoints/1-a1b2c3d4-{epoch}",
        checkpoint_size_bytes=3 * GIB,
        checkpoint_uploaded_bytes=900 << 20,
        checkpoint_verified=True,
        from_worker="workers/gpu-1",
        saved_gpu_seconds=2 * age,
        released_gpu_memory_bytes=76 * GIB,
    )
    begun = datetime.now(UTC) - timedelta(seconds=age)
    for field, after in (
        ("request_time", 0.0),
        ("predicted_boundary_time", 21.0),
        ("predicted_release_time", 22.5),
        ("boundary_time", 20.2),
        ("snapshot_time", 20.9),
        ("release_time", 21.8),
        ("pause_time", 27.3),
    ):
        getattr(made, field).CopyFrom(at(begun + timedelta(seconds=after)))
    made.boundary_error.FromTimedelta(timedelta(seconds=-0.8))
    made.saved_cost.currency, made.saved_cost.amount = "EUR", 4.2
    made.usage.CopyFrom(sample(age))
    if resumed:
        made.resume_request_time.CopyFrom(at(begun + timedelta(seconds=300)))
        made.resume_time.CopyFrom(at(begun + timedelta(seconds=304.4)))
        made.to_worker, made.verdict = "workers/gpu-2", Pause.EXACT
    return made


def running() -> Job:
    made = job(RUNNING, Job.RUNNING, epoch=24)
    made.worker = "workers/gpu-1"
    made.spec.gpu_count, made.spec.model_name, made.spec.dataset_uri = 2, "ViT-B/16", "s3://data/imagenet"
    made.labels.update({"team": "vision", "kind": "sweep"})
    made.progress.epoch_step, made.attempt = 40, 2
    made.past_pauses.append(pause(RUNNING, 9, age=1800, resumed=True))
    ParseDict({"learning_rate": 3e-4, "augment": True, "name": HOSTILE}, made.spec.args)
    return made


def paused() -> Job:
    made = job(PAUSED, Job.PAUSED, epoch=18)
    made.spec.gpu_count, made.spec.model_name, made.spec.dataset_uri = 2, "Llama 8B, LoRA", "s3://data/instructions"
    made.labels["team"] = "language"
    made.pause.CopyFrom(pause(PAUSED, 18, age=900, resumed=False))
    made.past_pauses.append(pause(PAUSED, 7, age=2900, resumed=True))
    made.holds.add(kind=Hold.USER, actor="ada@lab", reason=made.pause.reason, create_time=ago(900))
    return made


def unconfirmed() -> Job:
    made = job(UNCONFIRMED, Job.PAUSED, epoch=5)
    made.spec.gpu_count = 1
    made.pause.CopyFrom(pause(UNCONFIRMED, 5, age=400, resumed=False))
    made.pause.ClearField("release_time")
    made.pause.cause = Pause.WORKER_LOST
    made.holds.add(kind=Hold.OPERATOR, actor="grace@ops", create_time=ago(400))
    made.conditions.add(
        type=Condition.RELEASE_UNCONFIRMED,
        reason="WORKER_OUT_OF_REACH",
        message="gpu-9 has not been heard of",
        time=ago(300),
    )
    return made


def pausing() -> Job:
    made = job(PAUSING, Job.PAUSING, epoch=11)
    made.worker = "workers/gpu-2"
    made.pause.mode, made.pause.cause, made.pause.actor, made.pause.boundary_epoch = (
        PauseMode.EPOCH,
        Pause.HELD,
        "ada@lab",
        12,
    )
    made.pause.request_time.CopyFrom(ago(2))
    made.pause.predicted_boundary_time.CopyFrom(ago(-19))
    made.holds.add(kind=Hold.USER, actor="ada@lab", create_time=ago(2))
    return made


def failed() -> Job:
    made = job(FAILED, Job.FAILED, epoch=3)
    made.end_time.CopyFrom(ago(100))
    made.failure.reason, made.failure.attempt = "USER_CODE_FAILED", 4
    made.failure.message = f'Traceback (most recent call last):\n  File "train.py", line 3\nValueError: {HOSTILE}'
    made.failure.time.CopyFrom(ago(100))
    made.spec.model_name, made.labels["note"] = HOSTILE, HOSTILE
    return made


def told() -> Told:
    epochs, events = [], []
    for epoch in range(1, 25):
        made = EpochMetrics(epoch=epoch, attempt=1 if epoch < 10 else 2, step=100 * epoch, time=ago(1800 - 31 * epoch))
        loss = 2.2 * math.exp(-epoch / 9) + 0.25
        made.values.update(
            {
                "train_loss": loss,
                "val_loss": loss + 0.05 + 0.03 * math.sin(epoch),
                "val_accuracy": 1 - loss / 2.6,
                "learning_rate": 3e-4 * math.cos(epoch / 30),
                "gradient_norm": 1 + 0.3 * math.sin(epoch * 2),
                HOSTILE: 1.0 / epoch,
            }
        )
        epochs.append(made)
    steps = [
        StepMetrics(step=step, epoch=step // 100, attempt=1, loss=2.2 * math.exp(-step / 900) + 0.08 * math.sin(step))
        for step in range(0, 2400, 20)
    ]
    for sequence, (kind, message) in enumerate(
        [
            (JobEvent.CREATED, ""),
            (JobEvent.PLACED, "to gpu-1"),
            (JobEvent.BEGAN, ""),
            (JobEvent.CHECKPOINT_REGISTERED, ""),
            (JobEvent.PAUSE_REQUESTED, HOSTILE),
            (JobEvent.PAUSED, ""),
            (JobEvent.RESUME_REQUESTED, ""),
            (JobEvent.MILESTONE_REACHED, "half of its epochs are trained"),
            (JobEvent.LOSS_JUMPED, "val_loss is far above"),
        ],
        start=1,
    ):
        events.append(
            JobEvent(
                sequence=sequence,
                type=kind,
                message=message,
                actor="ada@lab",
                attempt=1,
                time=ago(2000 - 60 * sequence),
            )
        )
    events[-1].details.update({"metric": "val_loss", "usual": "0.41", "action": HOSTILE})
    checkpoints = [
        Checkpoint(
            name=f"{RUNNING}/checkpoints/1-a1b2c3d4-{epoch}",
            attempt=1,
            epoch=epoch,
            step=100 * epoch,
            size_bytes=3 * GIB,
            uploaded_bytes=900 << 20,
            create_time=ago(1800 - 31 * epoch),
            metrics={"val_loss": 0.41, HOSTILE: 1},
            retained_for=kept,
            uri="s3://models/a",
            damage=HOSTILE if epoch == 9 else "",
        )
        for epoch, kept in (
            (24, [Checkpoint.LATEST]),
            (22, [Checkpoint.BEST]),
            (9, [Checkpoint.PINNED, Checkpoint.PAUSE]),
        )
    ]
    lines = [f"\r\x1b[32mepoch {epoch}\x1b[0m {'#' * 20} loss {0.5 / epoch:.4f}\x1b[K" for epoch in range(1, 60)]
    bar = "".join(f"\rbatch {batch}/100 {'=' * (batch // 5)}" for batch in range(1, 101))
    log = "\n".join([*lines, f"\x1b[31mwarning:\x1b[0m {HOSTILE}", bar, "\x1b]0;a title\x07the last line"])
    samples = [sample(seconds) for seconds in range(900, 0, -5) if not 300 < seconds < 400]
    return Told(epochs=epochs, steps=steps, samples=samples, events=events, checkpoints=checkpoints, log=log.encode())


def workers() -> list[Worker]:
    first = Worker(
        name="workers/gpu-1",
        state=Worker.ACTIVE,
        cpu_slots=2,
        jobs=[RUNNING],
        agent_version="0.4.0",
        report_time=ago(1),
    )
    for index in range(2):
        first.devices.add(uuid=f"GPU-{index}", index=index, model="NVIDIA H200", memory_bytes=141 * GIB)
    first.labels["zone"], first.environment["torch"] = HOSTILE, "2.10"
    second = Worker(name="workers/gpu-2", state=Worker.DRAINING, cpu_slots=2, jobs=[PAUSING], report_time=ago(1))
    second.drain.actor, second.drain.reason = "grace@ops", HOSTILE
    lost = Worker(name="workers/gpu-9", state=Worker.LOST, report_time=ago(400))
    lost.devices.add(uuid="GPU-9", index=0, model="NVIDIA H200", memory_bytes=141 * GIB, quarantined=True)
    return [first, second, lost]


def fill(gateway: ScriptedGateway) -> None:
    """Has a gateway serve all of this."""
    queued = job("jobs/waiting", Job.QUEUED)
    queued.conditions.add(
        type=Condition.UNPLACED, reason="NO_CAPACITY", message="no worker has 8 free GPUs", time=ago(60)
    )
    ended = [job("jobs/done", Job.SUCCEEDED, epoch=40), job("jobs/stopped", Job.CANCELLED, epoch=2)]
    task = job("jobs/a-task", Job.RUNNING, total=0)
    task.worker = "workers/gpu-1"
    for each in (running(), paused(), unconfirmed(), pausing(), failed(), queued, task, *ended):
        gateway.put(each)
    gateway.told = {RUNNING: told()}
    gateway.workers = workers()
