"""How far off estimates are on the examples: two real trainings, paused now and then. `make bench-estimates` runs it.

Training time that is left is judged each time it is told, against what it then was. When a pause would come, and when
its GPUs would be free, are judged against when that was: as a share of the wait, one second at least. What others do
with the machine meanwhile is in the errors: it is to be run on a quiet one.
"""

import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp

from adjourn.client import AsyncClient
from adjourn.v1.job_pb2 import Job, JobSpec, Pause
from tests.harness.cluster import Cluster

LIMIT: Final = 0.25
"""Nine of ten errors are to be less, as a share of what was estimated."""
LEAST_WAIT: Final = 1.0
"""In seconds: what is over sooner is not estimated better than by a share of this."""
PATIENCE: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A training to be run."""

    name: str
    epochs: int
    args: dict[str, Any]
    pauses: int


EXAMPLES: Final = (
    Example(name="digits", epochs=16, args={"patience": 100}, pauses=6),
    Example(name="stdlib_lm", epochs=16, args={"steps": 80}, pauses=6),
)


@dataclass(slots=True, kw_only=True)
class Course:
    """What a job told of itself as it went on."""

    looks: list[Job] = field(default_factory=list)
    finished: Job = field(default_factory=Job)
    epochs: list[list[float]] = field(default_factory=list)
    """Number, attempt, seconds, seconds after the last step, training time of the job up to its end."""

    def remaining(self) -> list[float]:
        """Returns the errors of the training time that was left, as shares of it."""
        whole = seconds(self.finished.progress.active_duration)
        errors = []
        for look in self.looks:
            left = whole - seconds(look.progress.active_duration)
            if look.progress.HasField("remaining_duration") and left > 0:
                errors.append(abs(seconds(look.progress.remaining_duration) - left) / max(left, LEAST_WAIT))
        return errors

    def boundary(self) -> list[float]:
        """Returns the errors of when pauses would come."""
        return [share(pause.boundary_error, since_request(pause, pause.boundary_time)) for pause in self.judged()]

    def release(self) -> list[float]:
        """Returns the errors of when GPUs would be free."""
        return [share(pause.release_error, since_request(pause, pause.release_time)) for pause in self.judged()]

    def judged(self) -> list[Pause]:
        return [
            pause for pause in self.pauses() if pause.HasField("boundary_error") and pause.HasField("release_error")
        ]

    def pauses(self) -> list[Pause]:
        return [*self.finished.past_pauses, self.finished.pause]

    def trace(self) -> dict[str, Any]:
        """Returns what the control plane was told, to be replayed."""
        looks = [
            [job.progress.epoch, job.progress.epoch_step, round(seconds(job.progress.active_duration), 3)]
            for job in self.looks
        ]
        progress = self.finished.progress
        return {"steps": progress.steps_per_epoch, "total": progress.epoch, "epochs": self.epochs, "looks": looks}


def seconds(duration: Duration) -> float:
    return duration.ToTimedelta().total_seconds()


def share(error: Duration, waited: float) -> float:
    return abs(seconds(error)) / max(waited, LEAST_WAIT)


def since_request(pause: Pause, moment: Timestamp) -> float:
    return (moment.ToNanoseconds() - pause.request_time.ToNanoseconds()) / 1e9


def has_ended(epoch: int, job: Job) -> bool:
    return job.progress.epoch >= epoch


async def course(client: AsyncClient, example: Example, chance: random.Random) -> Course:
    """Runs an example to its end, and pauses it at moments that nothing foresees."""
    spec = JobSpec(
        entry_point=f"adjourn.examples.{example.name}:main", total_epochs=example.epochs, seed=chance.randrange(1 << 30)
    )
    ParseDict(example.args, spec.args)
    job = await client.create_job(spec, job_id=example.name.replace("_", "-"))
    found = Course()
    watching = asyncio.create_task(watch(client, job.name, found.looks))
    for number in range(1, example.pauses + 1):
        begin = number * example.epochs // (example.pauses + 1)
        reached = await client.wait_job(job.name, until=partial(has_ended, begin))
        await asyncio.sleep(chance.random() * seconds(reached.progress.active_duration) / reached.progress.epoch)
        await client.pause_job(job.name)
        await client.wait_job(job.name, until={Job.PAUSED}, timeout=PATIENCE)
        await client.resume_job(job.name)
    found.finished = await client.wait_job(job.name, timeout=PATIENCE)
    watching.cancel()
    async for each in client.list_epoch_metrics(job.name):
        times = (seconds(each.active_duration), seconds(each.end_duration), seconds(each.total_active_duration))
        found.epochs.append([each.epoch, each.attempt, *(round(one, 3) for one in times)])
    return found


async def watch(client: AsyncClient, name: str, looks: list[Job]) -> None:
    async with aclosing(client.watch_jobs(names=[name])) as changes:
        async for change in changes:
            new = not looks or change.job.progress != looks[-1].progress
            if change.job.state in (Job.RUNNING, Job.PAUSING) and new:
                looks.append(change.job)


def ninetieth(errors: Sequence[float]) -> float:
    return sorted(errors)[len(errors) * 9 // 10]


async def main(seed: int, kept: Path | None) -> int:
    """Returns the exit status: 1 if a limit is exceeded. `kept`: a directory for what the jobs told, to be replayed."""
    print(f"again: SEED={seed}")  # noqa: T201
    worst = 0.0
    with tempfile.TemporaryDirectory() as directory:
        async with Cluster(directory=Path(directory)) as cluster, AsyncClient(cluster.address) as client:
            for example in EXAMPLES:
                begin = time.monotonic()
                found = await course(client, example, random.Random(seed))
                kinds = {"remaining": found.remaining(), "boundary": found.boundary(), "release": found.release()}
                for what, errors in kinds.items():
                    worst = max(worst, ninetieth(errors))
                    print(  # noqa: T201
                        f"{example.name:10} {what:10} {ninetieth(errors):6.1%} at the 90th percentile of {len(errors)},"
                        f" limit {LIMIT:.0%}"
                    )
                print(f"{example.name:10} took {time.monotonic() - begin:.0f} s")  # noqa: T201
                if kept:
                    (kept / f"{example.name}.json").write_text(json.dumps(found.trace()))
    return int(worst > LIMIT)


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)))
