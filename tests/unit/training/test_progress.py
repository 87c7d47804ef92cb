import math

import pytest
import torch

from adjourn import frames
from adjourn.training.progress import METRIC_LIMIT, NAME_LIMIT, ProgressTracker, copied
from adjourn.v1.job_pb2 import Progress


@pytest.mark.parametrize("interval", [1, 3, 100])
def test_every_step_whose_loss_is_not_finite_is_counted(interval: int) -> None:
    tracker = ProgressTracker(Progress(not_finite_steps=2))
    for step, loss in enumerate([1.0, math.nan, 1.0, math.inf, 1.0], 1):
        tracker.losses.append(loss)
        if step % interval == 0:
            tracker.settle()
    assert tracker.progress(None).not_finite_steps == 4


@pytest.mark.parametrize("interval", [1, 2, 7, 1000])
def test_mean_loss_does_not_depend_on_when_losses_are_settled(interval: int) -> None:
    tracker = ProgressTracker(None)
    tracker.begin_epoch()
    losses = [1 / (number + 3) for number in range(1000)]
    for number, loss in enumerate(losses):
        tracker.losses.append(loss)
        if number % interval == 0:
            tracker.settle()
    tracker.end_epoch()
    assert tracker.values["train_loss"] == sum(losses) / 1000
    assert tracker.loss == losses[-1]


def test_copied_losses_do_not_change_with_the_tensor_they_came_from() -> None:
    loss = torch.ones((), requires_grad=True)
    on_cpu = copied(loss)
    elsewhere = copied(torch.ones((), device="meta", requires_grad=True))
    with torch.no_grad():
        loss.zero_()
    assert on_cpu == 1
    assert isinstance(elsewhere, torch.Tensor)
    assert not elsewhere.requires_grad
    with pytest.raises(RuntimeError, match="2 elements"):
        copied(torch.ones(2))


def test_metrics_outside_an_epoch_belong_to_none() -> None:
    tracker = ProgressTracker(None)
    tracker.record({"parameters": torch.tensor(10)}, in_epoch=False)
    tracker.begin_epoch()
    tracker.record({"val_loss": 0.5}, in_epoch=True)
    assert tracker.values == {"val_loss": 0.5}
    assert tracker.metrics == {"parameters": 10, "val_loss": 0.5}
    with pytest.raises(TypeError):
        tracker.record({"name": None}, in_epoch=True)  # type: ignore[dict-item]


def test_time_and_metrics_are_carried_on() -> None:
    before = Progress(metrics={"val_loss": 2}, loss=3, steps_per_epoch=4)
    before.active_duration.FromSeconds(100)
    tracker = ProgressTracker(before)
    progress = tracker.progress(None)
    assert progress.active_duration.seconds == 100
    tracker.start()
    assert tracker.active_seconds > 100
    assert dict(progress.metrics) == {"val_loss": 2}
    assert (progress.loss, progress.steps_per_epoch) == (3, 4)


def test_metrics_are_limited_in_number_and_name() -> None:
    """Every event carries them all, and an event has to fit a message."""
    tracker = ProgressTracker(None)
    tracker.begin_epoch(learning_rate=0.1)
    tracker.record({f"m{number}": number for number in range(METRIC_LIMIT - 1)}, in_epoch=True)
    tracker.record({"m0": 5}, in_epoch=True)
    with pytest.raises(ValueError, match="1001 different metrics with 'more'; at most 1000 are kept"):
        tracker.record({"more": 1}, in_epoch=True)
    tracker = ProgressTracker(None)
    tracker.record({"x" * NAME_LIMIT: 1}, in_epoch=False)
    with pytest.raises(ValueError, match=f"has {NAME_LIMIT + 1} characters; at most {NAME_LIMIT}"):
        tracker.record({"x" * (NAME_LIMIT + 1): 1}, in_epoch=False)
    assert list(tracker.metrics) == ["x" * NAME_LIMIT]


def test_largest_metrics_fit_an_event() -> None:
    tracker = ProgressTracker(None)
    tracker.record(
        {f"{number:04}".ljust(NAME_LIMIT, "\U0001f388"): 1.5 for number in range(METRIC_LIMIT)}, in_epoch=True
    )
    assert tracker.progress(None).ByteSize() < frames.LIMIT / 8
