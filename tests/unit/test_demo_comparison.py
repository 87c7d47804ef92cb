"""The demonstration's verdict sees every difference."""

from collections.abc import Callable

import pytest

from adjourn.demo.comparison import Run, compare
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job, Pause, Progress
from adjourn.v1.usage_pb2 import EpochMetrics

DIGESTS = {"model": "ab" * 32, "optimizer": "cd" * 32, "random.torch": "ef" * 32}


def pause(before: str, after: str) -> Pause:
    record = Pause(from_worker=f"workers/{before}", to_worker=f"workers/{after}")
    record.pause_time.GetCurrentTime()
    record.resume_time.GetCurrentTime()
    return record


def a_run(*pauses: Pause) -> Run:
    job = Job(state=Job.SUCCEEDED, progress=Progress(epoch=2, step=20), past_pauses=pauses[:-1])
    if pauses:
        job.pause.CopyFrom(pauses[-1])
    history = [EpochMetrics(epoch=epoch, step=10 * epoch, values={"loss": 0.1 / epoch}) for epoch in (1, 2)]
    return Run(job=job, checkpoint=Checkpoint(epoch=2, component_digests=DIGESTS), history=history)


def test_equal_runs_are_exact_and_counted_from_what_happened() -> None:
    never_rested = Pause(from_worker="workers/c", note="the run finished first")
    verdict = compare(a_run(), a_run(pause("a", "b"), pause("b", "b"), pause("b", "a"), never_rested))
    assert verdict.exact
    assert str(verdict) == (
        "EXACT: 2 epochs, 3 pauses, 2 workers, weights sha256 abababababababab equal to the uninterrupted run"
    )


def test_times_and_attempts_may_differ() -> None:
    other = a_run()
    for measured in other.history:
        measured.attempt = 4
        measured.active_duration.seconds = 9
        measured.time.GetCurrentTime()
    assert compare(a_run(), other).exact


def set_digest(run: Run, name: str, digest: str) -> None:
    run.checkpoint.component_digests[name] = digest


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda run: setattr(run.job, "state", Job.FAILED), "state"),
        (lambda run: setattr(run.job.progress, "epoch", 1), "epochs"),
        (lambda run: setattr(run.job.progress, "step", 19), "steps"),
        (lambda run: set_digest(run, "model", "00"), "model"),
        (lambda run: set_digest(run, "random.torch", "00"), "random.torch"),
        (lambda run: set_digest(run, "scaler", "00"), "scaler"),
        (lambda run: run.checkpoint.component_digests.pop("optimizer"), "optimizer"),
        (lambda run: run.history[0].values.update(loss=0.1 + 2**-56), "metrics of epoch 1"),
        (lambda run: run.history[1].values.update(more=1.0), "metrics of epoch 2"),
        (lambda run: setattr(run.history[1], "best", True), "metrics of epoch 2"),
        (lambda run: setattr(run.history[1], "step", 21), "metrics of epoch 2"),
        (lambda run: run.history.pop(), "metrics of epoch 2"),
        (lambda run: run.history.append(EpochMetrics(epoch=3)), "metrics of epoch 3"),
    ],
)
def test_every_difference_is_seen_and_named(change: Callable[[Run], object], named: str) -> None:
    other = a_run()
    change(other)
    verdict = compare(a_run(), other)
    assert not verdict.exact
    assert str(verdict).startswith("DIFFERENT: ")
    assert str(verdict).endswith(f"not equal to the uninterrupted run: {named}")


def test_nothing_compared_is_no_equality() -> None:
    runs = [a_run(), a_run()]
    for run in runs:
        run.checkpoint.ClearField("component_digests")
    assert not compare(*runs).exact


def test_not_a_number_equals_itself() -> None:
    runs = [a_run(), a_run()]
    for run in runs:
        run.history[0].values.update(loss=float("nan"))
    assert compare(*runs).exact
