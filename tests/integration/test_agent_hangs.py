"""An agent whose training falls silent; training is emulated, and shows a step when it is told to."""

import os
import signal
from dataclasses import replace

import pytest
from google.protobuf.duration_pb2 import Duration

from adjourn import reasons
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, ConditionChange
from adjourn.v1.job_pb2 import Condition, JobSpec
from adjourn_worker.agent import Agent
from adjourn_worker.attempt.pace import Pace
from adjourn_worker.attempt.runner import AttemptRunner
from adjourn_worker.launcher import process_tree
from tests.harness.agents import AgentHarness, alive, oversleep
from tests.harness.memory_objects import MemoryObjects
from tests.harness.scripted_control_plane import Job

RUNNING, PAUSING = AssignmentStatus.RUNNING, AssignmentStatus.PAUSING
SUCCEEDED, FAILED = AssignmentStatus.SUCCEEDED, AssignmentStatus.FAILED
LIMIT = 1
"""Seconds without a step."""


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


def limited(policy: JobSpec.HangPolicy.ValueType = JobSpec.RESTART) -> JobSpec:
    return JobSpec(hang_timeout=Duration(seconds=LIMIT), hang_policy=policy)


def told(harness: AgentHarness, job: Job) -> list[ConditionChange]:
    changes = [report.condition for report in harness.plane.of(job) if report.HasField("condition")]
    return [change for change in changes if change.condition.type == Condition.HANGING]


def hasty(agent: Agent) -> None:
    agent.settings = replace(agent.settings, pace=Pace(grace_seconds=0.5))


def in_no_hurry(runner: AttemptRunner) -> None:
    """Lets training take its time from here on."""
    runner.watch = replace(runner.watch, timeout=None)


def runner_of(agent: Agent) -> AttemptRunner:
    (runner,) = agent.runners.values()
    return runner


async def test_training_that_falls_silent_is_told_and_then_ended(harness: AgentHarness, objects: MemoryObjects) -> None:
    async with harness.agent(objects) as agent:
        job = harness.job(spec=limited())
        await harness.until_phase(job, RUNNING)
        job.do("epoch")
        await harness.until_durable(job, 1)
        assert not told(harness, job), "what has never shown a step is not judged"
        runner = runner_of(agent)
        runner.pace = Pace(grace_seconds=600)  # for what is written to the log
        job.do("step")
        log = harness.attempt(job) / "log"
        await harness.until(lambda: "does not catch the signal for that" in log.read_text())
        runner.pace = Pace(grace_seconds=0)
        await harness.until_forgotten(job)
    (change,) = told(harness, job)
    assert (change.condition.reason, change.ended) == (reasons.TRAINING_HANGS, False)
    how = harness.plane.exit(job)
    assert (how.phase, how.failure.reason) == (FAILED, reasons.TRAINING_HANGS)
    assert "hang_timeout" in how.failure.message


async def test_training_that_is_held_still_is_not_taken_for_hanging(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    async with harness.agent(objects) as agent:
        hasty(agent)
        job = harness.job(spec=limited())
        await harness.until_phase(job, RUNNING)
        job.do("step")
        runner = runner_of(agent)
        await harness.until(lambda: runner.watch.pulse and runner.watch.pulse.steps)
        harness.plane.mute = True  # what it says would let training go on
        oversleep(agent)
        assert process_tree.held(runner.held.process)
        assert runner.looked_at
        long_after = runner.looked_at + 4 * LIMIT
        await harness.until(lambda: (runner.looked_at or 0) > long_after)
        assert not told(harness, job)
        harness.plane.mute = False
        await harness.until(lambda: told(harness, job))


async def test_training_that_somebody_else_has_stopped_is_told_and_goes_on_when_it_is_let_go(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    """It was taken for hanging, and restarted."""
    async with harness.agent(objects) as agent:
        hasty(agent)
        job = harness.job(spec=limited())
        await harness.until_phase(job, RUNNING)
        job.do("step")
        runner = runner_of(agent)
        await harness.until(lambda: runner.watch.pulse and runner.watch.pulse.steps)
        pid = harness.training(job)
        os.kill(pid, signal.SIGSTOP)
        await harness.until(lambda: told(harness, job))
        (change,) = told(harness, job)
        assert (change.condition.reason, change.ended) == (reasons.PROCESS_SUSPENDED, False)
        assert f"pid {pid}" in change.condition.message
        assert "SIGCONT" in change.condition.message
        assert runner.looked_at
        long_after = runner.looked_at + 4 * LIMIT
        await harness.until(lambda: (runner.looked_at or 0) > long_after)
        assert alive(pid)
        in_no_hurry(runner)
        job.do("epoch", "finish")
        os.kill(pid, signal.SIGCONT)
        await harness.until_forgotten(job)
    assert harness.plane.exit(job).phase == SUCCEEDED
    assert len(told(harness, job)) <= 2, "it may end before it is said that it goes on"


async def test_a_pause_waits_for_training_that_somebody_else_has_stopped(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    async with harness.agent(objects) as agent:
        hasty(agent)
        job = harness.job(spec=limited())
        await harness.until_phase(job, RUNNING)
        job.do("step")
        runner = runner_of(agent)
        await harness.until(lambda: runner.watch.pulse and runner.watch.pulse.steps)
        pid = harness.training(job)
        os.kill(pid, signal.SIGSTOP)
        harness.plane.set_target(job, Assignment.PAUSE)
        await harness.until_phase(job, PAUSING)
        await harness.until(lambda: told(harness, job))
        assert runner.looked_at
        long_after = runner.looked_at + 4 * LIMIT
        await harness.until(lambda: (runner.looked_at or 0) > long_after)
        assert (alive(pid), harness.plane.phase(job)) == (True, PAUSING)
        in_no_hurry(runner)
        job.do("epoch")
        os.kill(pid, signal.SIGCONT)
        await harness.until_forgotten(job)
    assert harness.plane.exit(job).phase == AssignmentStatus.PAUSED


async def test_a_stop_ends_training_that_somebody_else_has_stopped(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    async with harness.agent(objects):
        job = harness.job()
        await harness.until_phase(job, RUNNING)
        pid = harness.training(job)
        os.kill(pid, signal.SIGSTOP)
        await harness.until(lambda: told(harness, job))
        harness.plane.set_target(job, Assignment.STOP)
        await harness.until_forgotten(job)
        assert not alive(pid)
    assert harness.plane.exit(job).phase == AssignmentStatus.STOPPED


async def test_a_hang_is_over_with_the_next_step_whichever_agent_sees_it(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    async with harness.agent(objects) as agent:
        hasty(agent)
        job = harness.job(spec=limited(JobSpec.REPORT))
        await harness.until_phase(job, RUNNING)
        job.do("step")
        await harness.until(lambda: told(harness, job))
        pid = harness.training(job)
    async with harness.agent(objects) as successor:
        runner = runner_of(successor)
        await harness.until(lambda: runner.watch.stepless > 2 * LIMIT)
        assert [change.ended for change in told(harness, job)] == [False], "no step was made"
        assert alive(pid), "it is only reported"
        job.do("step")
        await harness.until(lambda: [change.ended for change in told(harness, job)][:2] == [False, True])
        job.do("finish")
        await harness.until_forgotten(job)
