"""`adjourn hold`, `release`, `drain`, `undrain`, `delete-worker` against a scripted control plane."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from typer.testing import Result

from adjourn.cli import fleet_verbs
from adjourn.cli.exit_status import Status
from adjourn.v1.job_pb2 import LATEST, Condition, Job
from adjourn.v1.job_service_pb2 import HoldOutcome
from adjourn.v1.worker_pb2 import Worker

if TYPE_CHECKING:
    from tests.unit.clients.conftest import Plane

Adjourn = Callable[..., Result]


def test_jobs_are_held_by_label_and_name(adjourn: Adjourn, plane: "Plane") -> None:
    plane.outcomes = [HoldOutcome(job="jobs/x", state=Job.PAUSING, changed=True)]
    result = adjourn("hold", "x", "--label", "team=a", "--reason", "power", "--mode", "latest", "--dry-run")
    assert result.exit_code == 0
    assert "would be" in result.stdout
    assert "PAUSING" in result.stdout
    request = dict(plane.asked)["HoldJobs"]
    assert (list(request.names), dict(request.labels), request.all) == (["jobs/x"], {"team": "a"}, False)
    assert (request.reason, request.dry_run, request.mode) == ("power", True, LATEST)


@pytest.mark.parametrize("verb", ["hold", "release"])
def test_what_was_left_is_named_and_is_a_failure(adjourn: Adjourn, plane: "Plane", verb: str) -> None:
    plane.outcomes = [
        HoldOutcome(job="jobs/x", state=Job.RUNNING, reason="JOB_NOT_PAUSABLE", message="jobs/x has no epochs")
    ]
    result = adjourn(verb, "--all")
    assert result.exit_code == 1
    assert "jobs/x has no epochs" in result.stdout
    assert '"JOB_NOT_PAUSABLE"' in adjourn(verb, "--all", "-o", "json").stdout
    plane.outcomes = [HoldOutcome(job="jobs/x", unknown=True, reason="STORE_UNAVAILABLE", message="no answer")]
    result = adjourn(verb, "--all")
    assert result.exit_code == 1
    assert "unknown" in result.stdout
    plane.outcomes = []
    assert "no such jobs" in adjourn(verb, "--all").stdout


@pytest.mark.parametrize(
    "words", [("hold",), ("release",), ("hold", "x", "--all"), ("release", "--label", "a=b", "--all")]
)
def test_it_has_to_be_said_which_jobs(adjourn: Adjourn, plane: "Plane", words: tuple[str, ...]) -> None:
    assert adjourn(*words).exit_code == 2
    assert plane.asked == []


def test_a_worker_is_drained(adjourn: Adjourn, plane: "Plane") -> None:
    plane.workers = [Worker(name="workers/w", state=Worker.ACTIVE, jobs=["jobs/a", "jobs/b"])]
    said = "w takes no new job; these leave at their next boundary: a, b (DRAINING)\n"
    assert adjourn("drain", "w", "--reason", "new disk").stdout == said
    assert dict(plane.asked)["DrainWorker"].reason == "new disk"
    assert "drained by" in adjourn("workers").stdout
    assert "new disk" in adjourn("workers").stdout
    assert adjourn("undrain", "w").stdout == "w is ACTIVE\n"


def test_a_drained_worker_is_waited_for(adjourn: Adjourn, plane: "Plane", monkeypatch: pytest.MonkeyPatch) -> None:
    plane.workers = [Worker(name="workers/w", state=Worker.ACTIVE, jobs=["jobs/a"])]

    def leaves(_: float) -> None:
        plane.workers[0].jobs.pop()
        plane.workers[0].state = Worker.DRAINED

    monkeypatch.setattr(fleet_verbs, "sleep", leaves)
    lines = adjourn("drain", "w", "--wait").stdout.splitlines()
    assert lines[-1] == "w takes no new job, and has none left (DRAINED)"


def test_a_drain_is_waited_for_no_longer_than_its_timeout(adjourn: Adjourn, plane: "Plane") -> None:
    plane.workers = [Worker(name="workers/w", state=Worker.ACTIVE, jobs=["jobs/x"])]
    result = adjourn("drain", "w", "--wait", "--timeout", "0.1s")
    assert result.exit_code == Status.TIMEOUT
    assert "these leave at their next boundary: x (DRAINING); `adjourn workers` shows it" in result.stderr
    assert adjourn("drain", "w", "--timeout", "1s").exit_code == Status.USAGE


def test_a_wait_ends_with_the_order(adjourn: Adjourn, plane: "Plane", monkeypatch: pytest.MonkeyPatch) -> None:
    plane.workers = [Worker(name="workers/w", state=Worker.ACTIVE, jobs=["jobs/a"])]
    monkeypatch.setattr(fleet_verbs, "sleep", lambda _: plane.workers[0].ClearField("drain"))
    assert adjourn("drain", "w", "--wait").stdout.splitlines()[-1] == "w is not to be drained any more"


def test_an_agent_that_drains_itself_stays_so(adjourn: Adjourn, plane: "Plane") -> None:
    plane.workers = [Worker(name="workers/w", draining=True)]
    assert "its agent itself wants no new work" in adjourn("undrain", "w").stdout


def test_conditions_of_workers_are_listed(adjourn: Adjourn, plane: "Plane") -> None:
    plane.workers = [
        Worker(
            name="workers/w", conditions=[Condition(type=Condition.DISK_FULL, reason="DISK_FULL", message="no room")]
        )
    ]
    assert "no room" in adjourn("workers").stdout


def test_a_lost_worker_is_forgotten(adjourn: Adjourn, plane: "Plane") -> None:
    plane.workers = [Worker(name="workers/w", state=Worker.LOST)]
    assert adjourn("delete-worker", "w").stdout == "w is forgotten\n"
    assert plane.workers == []


def test_an_earlier_machine_of_a_workers_name_is_forgotten_and_the_worker_stays(
    adjourn: Adjourn, plane: "Plane"
) -> None:
    plane.workers = [Worker(name="workers/w", state=Worker.ACTIVE)]
    assert adjourn("delete-worker", "w", "--instance", "0a1b").stdout == "the instance 0a1b of w is forgotten\n"
    assert [request.instance for _, request in plane.asked] == ["0a1b"]
    assert len(plane.workers) == 1


def test_a_deletion_that_was_cut_short_is_repeated_though_the_worker_is_not_known_any_more(
    adjourn: Adjourn, plane: "Plane"
) -> None:
    adjourn("delete-worker", "w")
    assert [method for method, _ in plane.asked] == ["DeleteWorker"], "what is left to do there, the server knows"
