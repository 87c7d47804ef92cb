"""What looks wrong in the metrics of an epoch: told when it begins, with what may help; and nothing else is told."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics, GpuSample, ResourceSample
from adjourn_control_plane.job import anomalies
from adjourn_control_plane.job.events import EpochEnded, MemoryNearlyFull
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
