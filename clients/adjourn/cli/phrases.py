"""Says in a sentence what a job does, what happens next and what the user may do. Pure: Job to text."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from adjourn.cli import formatting
from adjourn.reasons import WHOLE_LOG
from adjourn.v1.job_pb2 import Condition, Hold, Job, JobSpec, Pause, PauseMode, Progress
from adjourn.v1.job_service_pb2 import JobEvent

VERDICTS: Final = {
    Pause.EXACT: "every digest is equal",
    Pause.EXACT_REPLAYED: "every digest is equal, and a drill came to the same bits",
    Pause.WITHIN_TOLERANCE: "every digest is equal, the environment is another",
    Pause.UNPROVEN: "every digest is equal, but not everything is in one",
}
"""What was found when the restored state was compared."""
TASK_ENDED: Final = "ran to its end, a task without epochs"


def sentence(job: Job, now: datetime | None = None) -> str:
    """Returns the job's name and situation."""
    return f"{formatting.short(job.name)} {situation(job, now or datetime.now(UTC))}"


def situation(job: Job, now: datetime) -> str:  # noqa: C901 - a case for each state
    """Returns a sentence on the state of the job."""
    name, epoch, worker = formatting.short(job.name), job.progress.epoch, formatting.short(job.worker)
    resumable = f"`adjourn resume {name}` goes on from its checkpoint" if job.latest_checkpoint else "no checkpoint"
    match job.state:
        case Job.QUEUED:
            begun = epoch or job.progress.epoch_step
            words = f"waits for a worker, to go on {position(job.progress)}" if begun else "waits for a worker"
            return words + troubles(job)
        case Job.STARTING:
            words = f"{worker} loads code, data and checkpoint" if epoch else f"{worker} loads code and data"
            return words + troubles(job)
        case Job.RUNNING:
            left = remaining(job)
            return f"trains on {worker}" + (f", {left}" if left else "") + troubles(job)
        case Job.PAUSING if job.pause.HasField("boundary_time") or job.pause.HasField("release_time"):
            share = f", {job.pause.persisted_fraction:.0%} done" if job.pause.HasField("persisted_fraction") else ""
            return f"has stopped; its checkpoint is being made durable{share}{troubles(job)}"
        case Job.PAUSING:
            return prediction(job, now) + troubles(job)
        case Job.PAUSED:
            unknown = any(each.type == Condition.RELEASE_UNCONFIRMED for each in job.conditions)
            where = position(job.progress) + ("" if unknown else ", on no worker")
            return f"rests {where}{given_up(job.pause, 'gave')}; {release(job)}{troubles(job)}"
        case Job.CANCELLING:
            return "is being stopped for good"
        case Job.CANCELLED:
            return f"was stopped {position(job.progress)}; {resumable}{troubles(job)}"
        case Job.SUCCEEDED:
            trained = (
                f"trained to its end, {formatting.counted(epoch, 'epoch')}" if job.spec.total_epochs else TASK_ENDED
            )
            return trained + troubles(job)
        case Job.FAILED:
            return f"gave up ({formatting.printable(job.failure.reason)}); {resumable}{troubles(job)}"
        case _:
            return "is in a state that this version does not know"


def position(progress: Progress) -> str:
    """Says how far training has come, in epochs and steps."""
    if progress.epoch_step:
        of = f" of {progress.steps_per_epoch}" if progress.HasField("steps_per_epoch") else ""
        return f"within epoch {progress.epoch + 1}, after {progress.epoch_step}{of} steps"
    return f"after epoch {progress.epoch}" if progress.epoch else "before its first epoch ended"


def given_up(pause: Pause, verb: str) -> str:
    """Says what a pause costs, as a part of a sentence; empty if that is nothing."""
    if not pause.lost_steps:
        return ""
    spent = formatting.duration(pause.lost_duration.ToTimedelta())
    return f", {verb} up {pause.lost_steps} steps ({spent} of training)"


def troubles(job: Job) -> str:
    """Returns the messages of the job's conditions, as the end of a sentence; empty if it has none."""
    return "".join(f": {formatting.printable(each.message or each.reason)}" for each in job.conditions)


def settings(job: Job) -> str:
    """Returns the present values of what UpdateJob may change."""
    spec = job.spec
    parts = [f"{spec.total_epochs} epochs" if spec.total_epochs else "no epochs"]
    parts += [f"{spec.max_restarts} restarts" if spec.HasField("max_restarts") else "default restarts"]
    parts += [f"labels {formatting.pairs(job.labels)}" if job.labels else "no labels"]
    return ", ".join(parts)


def release(job: Job) -> str:
    """Says what would let a paused job go on."""
    others = [hold for hold in job.holds if hold.kind != Hold.USER]
    if others:
        return "held by " + ", ".join(holder(hold) for hold in others)
    goes_on = "goes on there" if job.progress.epoch_step else f"goes on with epoch {job.progress.epoch + 1}"
    return f"`adjourn resume {formatting.short(job.name)}` {goes_on}"


def holder(hold: Hold) -> str:
    kind = formatting.name_of(Hold.Kind.Name, hold.kind)
    words = f"{kind} {hold.actor}".strip() + (f": {hold.reason}" if hold.reason else "")
    return formatting.printable(words)


def prediction(job: Job, now: datetime) -> str:
    """Says when a pausing job will pause."""
    progress, pause = job.progress, job.pause
    if pause.mode in (PauseMode.EPOCH, PauseMode.PAUSE_MODE_UNSPECIFIED):
        epoch = pause.boundary_epoch
        if (epoch or progress.epoch + 1) >= job.spec.total_epochs:
            return "is in its last epoch: it will finish rather than pause"
        words = f"will pause after epoch {epoch}" if epoch else "will pause at the next epoch boundary"
    elif pause.mode == PauseMode.STEP:
        words = "will pause after the next step at which it can be cut"
    else:
        return "is being stopped now" + (given_up(pause, "and gives") or "; nothing is given up, as far as is known")
    left = ahead(pause.request_time, pause.predicted_boundary_time, now)
    if left is None:
        return words
    return f"{words}, in about {formatting.duration(left)}" if left else f"{words}, later than foreseen"


def ahead(asked: Timestamp, predicted: Timestamp, now: datetime) -> timedelta | None:
    """Returns the time left to a predicted moment; at most the predicted span, even if the local clock is wrong."""
    if not predicted.ByteSize():
        return None
    end = predicted.ToDatetime(tzinfo=UTC)
    return max(min(end - now, end - asked.ToDatetime(tzinfo=UTC)), timedelta())


def remaining(job: Job) -> str:
    """Says how much training is left; empty if that is unknown."""
    if not job.progress.remaining_duration.ByteSize():
        return ""
    return f"about {formatting.duration(job.progress.remaining_duration.ToTimedelta())} of training left"


def line(job: Job) -> str:
    """Returns the job on one line, for output that scrolls."""
    newest = max(job.progress.report_time, job.state_time, key=lambda time: time.ToNanoseconds())
    parts = [formatting.clock(newest)]
    parts += [formatting.short(job.name), f"{state(job):<10}", epochs(job)]
    if job.progress.HasField("loss"):
        parts.append(f"loss {formatting.figure(job.progress.loss)}")
    if job.state == Job.RUNNING and remaining(job):
        parts.append(remaining(job))
    if job.worker:
        parts.append(f"on {formatting.short(job.worker)}")
    if said := why(job):
        parts.append(said)
    return "  ".join(parts)


def why(job: Job) -> str:
    """Says on one line why a job failed, waits or rests, and what its conditions are; empty if there is no more to say.

    A reason of docs/reasons.md comes first where there is one, then its message.
    """
    parts = [told(each.reason, each.message) for each in job.conditions]
    if job.state in (Job.PAUSED, Job.PAUSING):
        parts += [f"held by {holder(hold)}" for hold in job.holds]
    if job.state == Job.FAILED:
        parts.insert(0, told(job.failure.reason, job.failure.message))
    elif job.state in (Job.QUEUED, Job.STARTING) and job.failure.reason and job.failure.attempt == job.attempt:
        parts.append(f"after {told(job.failure.reason, job.failure.message)}")
    elif job.state == Job.QUEUED and not parts:
        parts.append("waits for a worker")
    return "; ".join(parts)


def event_line(job: str, event: JobEvent) -> str:
    """Returns an event on one line, for output that scrolls."""
    happened = formatting.name_of(JobEvent.Type.Name, event.type)
    state = formatting.name_of(Job.State.Name, event.state).upper()
    parts = [formatting.moment(event.time), formatting.short(job), f"{happened:<21}", f"{state:<10}"]
    parts += [f"by {formatting.printable(event.actor)}"] if event.actor else []
    return "  ".join(part for part in (*parts, event_details(event)) if part).rstrip()


def event_details(event: JobEvent) -> str:
    """Returns what an event tells beside its type, on one line."""
    details = formatting.pairs(event.details)
    return "; ".join(part for part in (told("", event.message), details) if part)


def told(reason: str, message: str) -> str:
    """Returns a reason with its message on one line; of a traceback, what was raised."""
    lines = [line.strip() for line in message.partition(WHOLE_LOG)[0].splitlines() if line.strip()]
    return formatting.printable(": ".join(part for part in (reason, lines[-1] if lines else "") if part))


def state(job: Job) -> str:
    return formatting.name_of(Job.State.Name, job.state).upper()


def length(spec: JobSpec) -> str:
    """Says how long a job is to train."""
    if not spec.total_epochs:
        return "a task without epochs, which cannot pause and keeps no checkpoint"
    return formatting.counted(spec.total_epochs, "epoch")


def epochs(job: Job) -> str:
    total = job.spec.total_epochs
    return f"epoch {job.progress.epoch}/{total}" if total else "no epochs"


NAMED: Final = 6
"""Files that are named in a line."""


def files(names: Collection[str], packed_bytes: int) -> str:
    """Returns `train.py, helpers.py and nets/ (5 files, 1.2 KiB packed)`."""
    tops = dict.fromkeys(f"{top}/" if rest else top for top, _, rest in (name.partition("/") for name in names))
    count = f"{len(names)} file{'s' if len(names) > 1 else ''}"
    return f"{enumerated(list(tops))} ({count}, {formatting.size(packed_bytes)} packed)"


def left_out(why: Mapping[str, str]) -> str:
    """Says which files do not go along, and what takes them."""
    return (
        f"not taken: {enumerated([f'{name} ({each})' for name, each in why.items()])}; --include PATH takes one along"
    )


def enumerated(names: Sequence[str]) -> str:
    """Returns `a, b and c`; of many, the first ones and the number of the others."""
    shown = list(names) if len(names) <= NAMED else [*names[: NAMED - 1], f"{len(names) - NAMED + 1} more"]
    return formatting.printable(" and ".join(filter(None, (", ".join(shown[:-1]), shown[-1]))))
