"""Whatever befalls control plane, workers, network and storage, in whatever order: what is promised holds."""

import logging
import os
from collections.abc import Iterator
from typing import Final

import pytest
import structlog
from hypothesis import HealthCheck, Phase, settings
from hypothesis.internal.conjecture import engine

from tests.harness.joined_machine import JoinedMachine

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
"""Tens of thousands of steps, others each night; the seed is printed with what is found."""
SHRINKING_SECONDS: Final = 300 if NIGHTLY else 30
"""What is found is shortened for so long: a long example today says more than a short one too late."""


@pytest.fixture(autouse=True)
def _shrinks_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MAX_SHRINKING_SECONDS", SHRINKING_SECONDS)  # there is no setting for it


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


JoinedMachine.TestCase.settings = settings(
    max_examples=1000 if NIGHTLY else 60,
    stateful_step_count=100 if NIGHTLY else 50,
    deadline=None,
    derandomize=not NIGHTLY,
    print_blob=NIGHTLY,
    database=None,
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)
# A timeout in the middle of an example would be reported as Hypothesis's FlakyStrategyDefinition.
TestJoinedMachine = pytest.mark.timeout(36_000 if NIGHTLY else 1200)(JoinedMachine.TestCase)
