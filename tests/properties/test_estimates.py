"""How good estimates are, on trainings whose epochs vary and whose first one warms up.

And on what the examples once told on a machine that others used at the same time, in `estimate_traces`: their pace
changed for long, fourfold at most. `python -m tests.benchmarks.estimates SEED DIRECTORY` writes others.
"""

import json
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import fmean

from google.protobuf.duration_pb2 import Duration

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.job_pb2 import Job, JobSpec
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn_control_plane.job import estimates

STEPS = 50
TRAININGS = 200
TRACES = sorted((Path(__file__).parent / "estimate_traces").glob("*.json"))
LEAST_SECONDS = 1.0
"""What is left beyond that is judged by its share of this."""


def lasting(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration


def looks(chance: random.Random) -> list[tuple[float, JobRecord]]:
    """Returns what is left of a training, and what the record has of it, in the midst of its epochs and at their ends.

    It is interrupted once; each attempt's first epoch takes up to twice as long as the others.
    """
    epochs, own = chance.randint(5, 30), chance.uniform(1, 1000)
    validation, interrupted = chance.uniform(0, 0.5), chance.randint(2, epochs)
    seconds = [
        own * chance.lognormvariate(0, 0.1) * (chance.uniform(1, 2) if epoch in (1, interrupted) else 1)
        for epoch in range(1, epochs + 1)
    ]
    record = JobRecord(job=Job(spec=JobSpec(total_epochs=epochs)))
    record.job.progress.steps_per_epoch = STEPS
    found, spent = [], 0.0
    for epoch, taken in enumerate(seconds, start=1):
        record.job.progress.epoch, record.job.progress.epoch_step = epoch - 1, chance.randint(1, STEPS)
        done = spent + taken * (1 - validation) * record.job.progress.epoch_step / STEPS
        record.job.progress.active_duration.CopyFrom(lasting(done))
        if epoch > 2:
            estimates.update_remaining(record)
            found.append((sum(seconds) - done, JobRecord.FromString(record.SerializeToString())))
        spent += taken
        metrics = EpochMetrics(epoch=epoch, attempt=1 + (epoch >= interrupted), active_duration=lasting(taken))
        metrics.end_duration.CopyFrom(lasting(taken * validation))
        metrics.total_active_duration.CopyFrom(lasting(spent))
        estimates.count_epoch(record, metrics)
    return found


def all_looks() -> list[tuple[float, JobRecord]]:
    return [each for seed in range(TRAININGS) for each in looks(random.Random(seed))]


def test_nine_of_ten_estimates_are_less_than_a_quarter_off() -> None:
    errors = sorted(
        abs(record.job.progress.remaining_duration.ToTimedelta().total_seconds() - left) / left
        for left, record in all_looks()
    )
    assert errors[len(errors) * 9 // 10] < 0.25


def test_four_of_five_times_what_is_left_is_within_the_spread() -> None:
    known = [
        (left, record.job.progress)
        for left, record in all_looks()
        if record.job.progress.HasField("most_remaining_duration")
    ]
    within = [
        progress.least_remaining_duration.ToTimedelta().total_seconds()
        <= left
        <= progress.most_remaining_duration.ToTimedelta().total_seconds()
        for left, progress in known
    ]
    assert len(known) > 5 * TRAININGS
    assert sum(within) > 0.8 * len(within)


def test_the_error_that_a_job_tells_is_that_of_its_epochs() -> None:
    shown = [record.job.progress for _, record in all_looks()]
    told = [progress.estimate_error for progress in shown if progress.HasField("estimate_error")]
    assert 0.05 < sum(told) / len(told) < 0.3, "a standard deviation of a tenth, and what warms up"


def replayed(trace: Path, left: Callable[[JobRecord, int], float | None]) -> list[float]:
    """Returns the errors of `left`, which estimates the time until an epoch ends, of the running one and the last."""
    told = json.loads(trace.read_text())
    ends = {epoch: total for epoch, _, _, _, total in told["epochs"]}
    record = JobRecord(job=Job(spec=JobSpec(total_epochs=told["total"])))
    record.job.progress.steps_per_epoch = told["steps"]
    errors = []
    for time, what in sorted(
        [(each[4], each) for each in told["epochs"]] + [(each[2], each) for each in told["looks"]]
    ):
        if len(what) > 3:
            epoch, attempt, taken, end, total = what
            metrics = EpochMetrics(epoch=epoch, attempt=attempt, active_duration=lasting(taken))
            metrics.end_duration.CopyFrom(lasting(end))
            metrics.total_active_duration.CopyFrom(lasting(total))
            estimates.count_epoch(record, metrics)
            continue
        progress = record.job.progress
        progress.epoch, progress.epoch_step = what[:2]
        progress.active_duration.CopyFrom(lasting(time))
        for until in {progress.epoch + 1, told["total"]} & ends.keys():
            expected, actual = left(record, until), ends[until] - time
            if expected is not None and actual > 0:
                errors.append(abs(expected - actual) / max(actual, LEAST_SECONDS))
    return sorted(errors)


def estimated(record: JobRecord, until: int) -> float | None:
    found = estimates.to_boundary(record, until)
    return found.total_seconds() if found is not None else None


def plainly(record: JobRecord, until: int) -> float | None:
    """Returns the mean of all epochs, for as many as are left."""
    progress = record.job.progress
    if not record.epoch_times:
        return None
    left = until - progress.epoch - progress.epoch_step / progress.steps_per_epoch
    return fmean(each.seconds for each in record.epoch_times) * left


def test_where_the_pace_changes_estimates_follow_it() -> None:
    def three_quarters_below(left: Callable[[JobRecord, int], float | None]) -> float:
        errors = sorted(error for trace in TRACES for error in replayed(trace, left))
        return errors[len(errors) * 3 // 4]

    assert three_quarters_below(estimated) < 0.67 * three_quarters_below(plainly)
