"""What looks wrong in metrics of epochs and steps: told when it begins, with what may help; nothing else is told."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.job_pb2 import Job, Progress
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics, GpuSample, ResourceSample
from adjourn_control_plane.job import anomalies
from adjourn_control_plane.job.events import EpochEnded, MemoryNearlyFull, Observed
from tests.harness.job_life import A, Life

NAN, INF = math.nan, math.inf


def told(values: Sequence[float], metric: str = "val_loss") -> dict[int, str]:
    """Returns what is told after which epoch of a metric with these values."""
    record, found = JobRecord(), {}
    for epoch, value in enumerate(values, 1):
        for anomaly in anomalies.look(record, EpochMetrics(epoch=epoch, values={metric: value})):
            assert anomaly.details["metric"] == metric
            assert anomaly.details["epoch"] == str(epoch)
            assert anomaly.details["action"]
            found[epoch] = JobEvent.Type.Name(anomaly.kind)
    return found


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([NAN], {1: "LOSS_NOT_FINITE"}),
        ([1.0, INF, NAN, NAN], {2: "LOSS_NOT_FINITE"}),
        ([1.0, -INF, 1.0, NAN], {2: "LOSS_NOT_FINITE", 4: "LOSS_NOT_FINITE"}),
        ([1.0, 0.9, 0.8, 4.0], {4: "LOSS_JUMPED"}),
        ([1.0, 0.9, 0.8, 4.0, 4.1, 4.2, 4.0], {4: "LOSS_JUMPED"}),
        ([1.0, 0.9, 4.0], {}),  # two epochs make nothing usual
        ([2.0, 1.0, 0.5, 0.6, 0.7, 0.9], {}),
        ([1.0, 3.0, 1.0, 3.0, 1.0, 3.0, 4.0], {}),  # it is as noisy as that
        ([2.0, 1e-6, 3e-6, 2e-6, 1e-6, 9e-6], {}),  # of a loss near zero
        ([-5.0, -5.1, -5.2, -5.1, 6.0], {5: "LOSS_JUMPED"}),
        ([5.0, 4.0, 3.0, 2.0, 1.0, 0.5], {}),
    ],
)
def test_a_loss(values: list[float], expected: dict[int, str]) -> None:
    assert told(values) == expected


STEADY = [1.0, 1.1] * 6
"""As many values of steps as make something usual, and two more."""


def told_of_steps(losses: Sequence[float], *, not_finite: Sequence[int] = (), **metrics: float) -> dict[int, str]:
    """Returns what is told by which step of losses that are seen every tenth step, in epochs of 1000.

    `not_finite`: places where steps before the one that is seen had a loss that was not finite.
    """
    record, known, found = JobRecord(), Progress(), {}
    for place, loss in enumerate(losses, 1):
        count = known.not_finite_steps + (place in not_finite or not math.isfinite(loss))
        step = 10 * place
        progress = Progress(
            epoch=step // 1000, step=step, epoch_step=step % 1000, loss=loss, not_finite_steps=count, metrics=metrics
        )
        for anomaly in anomalies.look_at_steps(record, known, progress):
            assert (anomaly.details["metric"], anomaly.details["step"]) == ("loss", str(step))
            assert anomaly.details["action"]
            found[place] = JobEvent.Type.Name(anomaly.kind)
        known = progress
    assert all(len(history.recent) <= anomalies.RECENT_STEPS for history in record.step_histories.values())
    return found


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([NAN, NAN, NAN], {1: "LOSS_NOT_FINITE"}),
        ([1.0, INF, 1.0, NAN, 1.0], {2: "LOSS_NOT_FINITE"}),  # once, until it was in order for long
        ([1.0, NAN, *STEADY * 9, NAN], {2: "LOSS_NOT_FINITE", 111: "LOSS_NOT_FINITE"}),
        ([*STEADY, 4.0, 4.1, 4.0], {13: "LOSS_JUMPED"}),
        ([*STEADY, 4.0, NAN], {13: "LOSS_JUMPED"}),
        ([*STEADY[:9], 4.0], {}),
        ([10.0 / step for step in range(1, 40)], {}),
        ([1.0, 3.0] * 10 + [4.0], {}),  # it is as noisy as that
    ],
)
def test_losses_of_steps(losses: list[float], expected: dict[int, str]) -> None:
    assert told_of_steps(losses) == expected


def test_a_step_between_those_that_are_seen_is_not_missed() -> None:
    assert told_of_steps([1.0, 1.1, 1.0], not_finite=[2]) == {2: "LOSS_NOT_FINITE"}
    assert told_of_steps([1.0, 1.1, 1.0], not_finite=[2, 3]) == {2: "LOSS_NOT_FINITE"}


def test_norms_of_gradients_that_are_logged_by_steps() -> None:
    record, known, found = JobRecord(), Progress(), []
    for step, norm in enumerate([*STEADY, 40.0, 41.0, NAN], 1):
        progress = Progress(step=step, epoch_step=step, metrics={"grad_norm": norm, "val_loss": NAN})
        found += anomalies.look_at_steps(record, known, progress)
        known = progress
    (anomaly,) = found
    assert (anomaly.kind, anomaly.details["metric"]) == (JobEvent.GRADIENTS_EXPLODED, "grad_norm")
    assert anomaly.message == "grad_norm is 40 by step 13, in epoch 1, and was about 1.05"


def test_a_norm_that_is_logged_by_epochs_is_one_value_however_often_it_is_seen() -> None:
    record = JobRecord()
    for step in range(1, 30):
        progress = Progress(step=step, epoch_step=step, metrics={"grad_norm": 1.0 if step < 20 else 40.0})
        assert not anomalies.look_at_steps(record, Progress(step=step - 1), progress)
    assert list(record.step_histories["grad_norm"].recent) == [1.0, 40.0]


def test_what_is_not_new_is_not_looked_at() -> None:
    known = Progress(step=10, epoch_step=10, loss=1.0)
    assert not anomalies.look_at_steps(JobRecord(), known, Progress(step=10, epoch_step=10, loss=NAN))


def test_what_was_told_of_steps_is_not_told_again_at_the_end_of_their_epoch() -> None:
    def at_the_end(epoch: int) -> list[int]:
        record = JobRecord()
        assert anomalies.look_at_steps(record, Progress(), Progress(epoch=2, step=9, epoch_step=1, loss=NAN))
        values = {"train_loss": NAN, "grad_norm": NAN}
        return [each.kind for each in anomalies.look(record, EpochMetrics(epoch=epoch, values=values))]

    assert at_the_end(2) == at_the_end(3) == [JobEvent.GRADIENTS_EXPLODED]
    assert at_the_end(4) == [JobEvent.GRADIENTS_EXPLODED, JobEvent.LOSS_NOT_FINITE]


def test_what_was_told_at_the_end_of_an_epoch_is_not_told_again_of_its_steps() -> None:
    record = JobRecord()
    assert anomalies.look(record, EpochMetrics(epoch=1, values={"train_loss": NAN}))
    progress = Progress(epoch=1, step=9, epoch_step=1, loss=NAN)
    assert not anomalies.look_at_steps(record, Progress(), progress)


@pytest.mark.parametrize("metric", ["gradient_norm", "grad_norm"])
def test_gradients(metric: str) -> None:
    assert told([1.0, 2.0, 1.0, 30.0, 31.0, 30.0], metric) == {4: "GRADIENTS_EXPLODED"}
    assert told([1.0, 2.0, 1.0, 9.0], metric) == {}
    assert told([1.0, NAN, NAN], metric) == {2: "GRADIENTS_EXPLODED"}


def test_other_metrics_may_be_anything() -> None:
    assert told([1.0, 1.0, 1.0, 1000.0, NAN], "accuracy") == {}
    assert told([1.0, NAN], "lossless") == {}
    assert told([1.0, NAN], "loss") == told([1.0, NAN], "train_loss") == {2: "LOSS_NOT_FINITE"}


@given(st.lists(st.floats(0.5, 1.0), max_size=30))
def test_what_stays_within_a_factor_of_two_is_no_jump(values: list[float]) -> None:
    assert told(values) == {}


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30), st.sampled_from(["loss", "grad_norm"]))
def test_any_values_are_judged_and_little_is_kept(values: list[float], metric: str) -> None:
    record = JobRecord()
    for epoch, value in enumerate(values, 1):
        assert len(anomalies.look(record, EpochMetrics(epoch=epoch, values={metric: value}))) <= 1
    assert all(len(history.recent) <= anomalies.RECENT for history in record.metric_histories.values())


def test_only_so_many_metrics_are_looked_at() -> None:
    record = JobRecord()
    for first in (0, 100):
        values = {f"{number}_loss": NAN for number in range(first, first + 50)}
        found = anomalies.look(record, EpochMetrics(epoch=1, values=values))
        assert len(found) == (anomalies.METRICS if not first else 0)
    assert len(record.metric_histories) == anomalies.METRICS


def gpu(used: int | None, total: int | None) -> ResourceSample:
    return ResourceSample(gpus=[GpuSample(index=3, memory_used_bytes=used, memory_total_bytes=total)])


def test_memory_of_a_gpu_that_is_nearly_full() -> None:
    assert anomalies.nearly_full([gpu(94, 100), gpu(None, 100), gpu(5, None), ResourceSample()]) is None
    assert anomalies.nearly_full([gpu(1, 100), gpu(95, 100)]) == gpu(95, 100).gpus[0]


def test_a_job_tells_once_in_an_attempt_that_memory_is_nearly_full() -> None:
    full = MemoryNearlyFull(actor=A, gpu=gpu(97, 100).gpus[0])
    life = Life().running(1).tell(full).tell(full)
    events = [event for decision in life.decisions for event in decision.events]
    (event,) = [event for event in events if event.type == JobEvent.GPU_MEMORY_NEARLY_FULL]
    assert event.message == "97 % of the memory of GPU 3 are in use"
    assert (event.details["gpu"], event.details["used_bytes"], event.details["total_bytes"]) == ("3", "97", "100")
    assert event.details["action"]
    life.is_lost().placed().began().tell(full)
    assert life.history.count("GPU_MEMORY_NEARLY_FULL") == 2


def test_a_job_tells_of_it_in_its_history_and_trains_on() -> None:
    life = Life().running()
    for epoch, loss in enumerate([1.0, NAN, NAN], 1):
        life.tell(EpochEnded(actor=A, metrics=EpochMetrics(epoch=epoch, values={"train_loss": loss})))
    events = [event for decision in life.decisions for event in decision.events]
    (event,) = [event for event in events if event.type == JobEvent.LOSS_NOT_FINITE]
    assert (event.state, event.details["epoch"], event.details["value"]) == (Job.RUNNING, "2", "nan")
    assert event.message == "train_loss is nan after epoch 2"
    assert life.state == "RUNNING"


def test_a_job_tells_of_its_steps_as_it_makes_them() -> None:
    life = Life().running()
    for step, loss in enumerate([1.0, NAN, NAN], 1):
        progress = Progress(step=step, epoch_step=step, loss=loss)
        life.tell(Observed(actor=A, generation=life.record.generation, progress=progress))
    life.tell(EpochEnded(actor=A, metrics=EpochMetrics(epoch=1, values={"train_loss": NAN})))
    events = [event for decision in life.decisions for event in decision.events]
    (event,) = [event for event in events if event.type == JobEvent.LOSS_NOT_FINITE]
    assert event.message == "loss is nan by step 2, in epoch 1"
    assert life.state == "RUNNING"
