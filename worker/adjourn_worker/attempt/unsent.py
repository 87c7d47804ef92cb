"""PURE. Figures of an attempt that were not sent yet: bounded, and sent together now and then.

They go with a message that is sent anyway, so they cost none of their own, and the control plane one write in
SEND_SECONDS.
"""

from collections.abc import Sequence
from typing import Final, TypeVar

from adjourn.v1.agent_service_pb2 import FencingToken, SeriesPart
from adjourn.v1.job_pb2 import Progress
from adjourn.v1.usage_pb2 import ResourceSample, StepMetrics

SEND_SECONDS: Final = 5.0
"""Least time between two messages with figures."""
SAMPLE_SECONDS: Final = 5.0
"""Least time between two samples."""
STEP_SECONDS: Final = 1.0
"""Least time between the metrics of two steps."""
WAITING: Final = 240
"""Samples, and metrics of steps, that wait for a stream at most. Then every second one is given up."""
VALUES: Final = 20
"""Values in the metrics of a step."""
LONG_AGO: Final = float("-inf")

T = TypeVar("T")


class Unsent:
    """Figures of one attempt. Times are seconds of one clock, which only goes on."""

    def __init__(self, job: str, token: FencingToken) -> None:
        self._job, self._token = job, token
        self._samples: list[ResourceSample] = []
        self._steps: list[StepMetrics] = []
        self._step = 0
        """Of the newest metrics."""
        self._sampled = self._stepped = self._sent = LONG_AGO

    def add_sample(self, sample: ResourceSample, now: float) -> None:
        """Takes a sample, unless one was taken a short while ago."""
        if now - self._sampled >= SAMPLE_SECONDS:
            self._sampled = now
            self._samples = bounded([*self._samples, sample])

    def add_progress(self, progress: Progress, now: float, *, at_once: bool = False) -> None:
        """Takes what training shows if it has made a step, unless that was taken of another a short while ago.

        `at_once`: however short.
        """
        if progress.step != self._step and (now - self._stepped >= STEP_SECONDS or at_once):
            self._step, self._stepped = progress.step, now
            self._steps = bounded([*self._steps, step_metrics(progress, self._token.attempt)])

    def take(self, now: float, *, at_once: bool = False) -> SeriesPart | None:
        """Returns what was not sent yet, once. None: there is nothing, or what was sent last was so a short while ago.

        `at_once`: however short.
        """
        if not (self._samples or self._steps) or (now - self._sent < SEND_SECONDS and not at_once):
            return None
        part = SeriesPart(job=self._job, token=self._token, samples=self._samples, steps=self._steps)
        self._samples, self._steps, self._sent = [], [], now
        return part


def step_metrics(progress: Progress, attempt: int) -> StepMetrics:
    """Returns what training shows after its newest step."""
    loss = progress.loss if progress.HasField("loss") else None
    metrics = StepMetrics(step=progress.step, epoch=progress.epoch, attempt=attempt, loss=loss)
    metrics.time.CopyFrom(progress.report_time)
    metrics.values.update({name: progress.metrics[name] for name in sorted(progress.metrics)[:VALUES]})
    return metrics


def bounded(waiting: Sequence[T]) -> list[T]:
    """Returns what waits, the newest always; every second one of too many."""
    return list(waiting) if len(waiting) <= WAITING else list(waiting[::-2])[::-1]
