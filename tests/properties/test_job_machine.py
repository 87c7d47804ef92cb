"""Whatever callers, workers and the network do, and in whatever order: what the control plane promises holds."""

import logging
from collections.abc import Iterator
from datetime import datetime
from types import SimpleNamespace

import pytest
import structlog
from hypothesis import HealthCheck, settings

from adjourn_control_plane.fleet import scheduler
from tests.harness.job_state_machine import ControlPlane


@pytest.fixture(autouse=True)
def _restarts_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "datetime", SimpleNamespace(now=lambda zone: datetime.max.replace(tzinfo=zone)))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


ControlPlane.TestCase.settings = settings(
    max_examples=140,
    stateful_step_count=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
# A timeout in the middle of an example would be reported as Hypothesis's FlakyStrategyDefinition.
TestControlPlane = pytest.mark.timeout(1200)(ControlPlane.TestCase)
