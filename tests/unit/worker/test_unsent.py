from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from adjourn.v1.agent_service_pb2 import FencingToken
from adjourn.v1.job_pb2 import Progress
from adjourn.v1.usage_pb2 import ResourceSample, StepMetrics
from adjourn_worker.attempt.unsent import SAMPLE_SECONDS, SEND_SECONDS, STEP_SECONDS, VALUES, WAITING, Unsent

TOKEN = FencingToken(attempt=3, nonce="n", job_uid="u")


def fresh() -> Unsent:
    return Unsent("jobs/a", TOKEN)


def progress(step: int) -> Progress:
    shown = Progress(step=step, epoch=1, loss=0.5, metrics={"loss": 0.5})
    shown.report_time.FromSeconds(step)
    return shown


def steps(unsent: Unsent, now: float = 1e9) -> Sequence[StepMetrics]:
    part = unsent.take(now)
    return part.steps if part else []


def test_figures_are_sent_once_and_together() -> None:
    unsent = fresh()
    assert unsent.take(0) is None
    unsent.add_sample(ResourceSample(memory_bytes=1), 0)
    first = unsent.take(0)
    assert first is not None
    assert (first.job, first.token, list(first.samples)) == ("jobs/a", TOKEN, [ResourceSample(memory_bytes=1)])
    unsent.add_progress(progress(1), 1)
    unsent.add_sample(ResourceSample(memory_bytes=2), SAMPLE_SECONDS)
    assert unsent.take(SEND_SECONDS - 0.1) is None
    second = unsent.take(SEND_SECONDS)
    assert second is not None
    assert ([each.memory_bytes for each in second.samples], [each.step for each in second.steps]) == ([2], [1])
    assert unsent.take(1e9) is None


def test_what_is_left_of_an_attempt_that_has_ended_does_not_wait() -> None:
    unsent = fresh()
    unsent.add_progress(progress(1), 0)
    assert unsent.take(0)
    unsent.add_progress(progress(9), 2)
    assert unsent.take(2) is None
    assert unsent.take(2, at_once=True)
    unsent.add_progress(progress(10), 2.1)
    assert unsent.take(2.1, at_once=True) is None
    unsent.add_progress(progress(10), 2.1, at_once=True)
    assert [each.step for each in steps(unsent)] == [10]


def test_samples_and_steps_are_taken_now_and_then() -> None:
    unsent = fresh()
    for tenth in range(101):
        unsent.add_sample(ResourceSample(), tenth / 10)
        unsent.add_progress(progress(1 + tenth), tenth / 10)
    part = unsent.take(1e9)
    assert part is not None
    assert len(part.samples) == 10 / SAMPLE_SECONDS + 1
    assert len(part.steps) == 10 / STEP_SECONDS + 1


def test_metrics_are_those_of_a_step_that_was_made() -> None:
    unsent = fresh()
    unsent.add_progress(Progress(), 0)  # loading
    unsent.add_progress(progress(4), 2)
    unsent.add_progress(progress(4), 4)  # validation
    expected = StepMetrics(step=4, epoch=1, attempt=3, loss=0.5, values={"loss": 0.5})
    expected.time.FromSeconds(4)
    assert steps(unsent) == [expected]


def test_a_loss_that_nobody_reported_is_absent_and_values_are_few() -> None:
    unsent = fresh()
    unsent.add_progress(Progress(step=1, metrics={f"m{number:03}": number for number in range(100)}), 0)
    (metrics,) = steps(unsent)
    assert not metrics.HasField("loss")
    assert sorted(metrics.values) == [f"m{number:03}" for number in range(VALUES)]


@given(count=st.integers(1, 4 * WAITING))
def test_what_waits_for_a_stream_is_bounded_and_ends_with_the_newest(count: int) -> None:
    unsent = fresh()
    for step in range(1, count + 1):
        unsent.add_progress(progress(step), step * STEP_SECONDS)
    kept = [each.step for each in steps(unsent)]
    assert len(kept) <= WAITING
    assert kept == sorted(set(kept))
    assert kept[-1] == count
    if count <= WAITING:
        assert len(kept) == count
