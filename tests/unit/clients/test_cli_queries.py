"""`adjourn list`, `get`, `watch` and the like against a scripted control plane."""

import json
import time
from collections.abc import Callable
from io import StringIO
from typing import TYPE_CHECKING

import pytest
from google.protobuf.json_format import Parse
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, RenderableType
from typer.testing import CliRunner, Result

from adjourn import Client, cli, errors
from adjourn.cli import formatting, top
from adjourn.cli.exit_status import Status
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Condition, Failure, Hold, Job, Progress
from adjourn.v1.job_service_pb2 import JobEvent, WatchJobsResponse
from adjourn.v1.usage_pb2 import EpochMetrics, ResourceSample
from adjourn.v1.worker_pb2 import Worker

if TYPE_CHECKING:
    from tests.unit.clients.conftest import Plane

Adjourn = Callable[..., Result]


def test_jobs_are_listed_and_filtered(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("one", Job.PAUSED)
    for number in range(4):
        plane.add(f"more-{number}", Job.RUNNING)
    assert all(name in adjourn("list").stdout for name in ("one", "more-0", "more-3"))
    result = adjourn("list", "--state", "paused", "--label", "a=b", "-o", "json")
    assert [json.loads(line)["name"] for line in result.stdout.splitlines()] == ["jobs/one"]
    assert plane.asked[-1][1].labels == {"a": "b"}
    assert len(adjourn("list", "--limit", "2", "-o", "json").stdout.splitlines()) == 2


def test_an_empty_list_says_so(adjourn: Adjourn, plane: "Plane") -> None:
    assert "no jobs yet" in adjourn("list").stdout
    assert adjourn("list", "--state", "FAILED").stdout == "no such jobs\n"
    assert adjourn("list", "-o", "json").stdout == ""
    plane.add("x")
    assert "no epoch has ended" in adjourn("metrics", "x").stdout
    assert "no checkpoint" in adjourn("checkpoints", "x").stdout
    assert "no worker" in adjourn("workers").stdout


def test_lists_come_in_every_format(adjourn: Adjourn, plane: "Plane") -> None:
    yaml = pytest.importorskip("yaml")
    plane.add("x", Job.RUNNING)
    plane.add("y", Job.PAUSED)
    assert adjourn("list", "-o", "name").stdout == "jobs/x\njobs/y\n"
    documents = list(yaml.safe_load_all(adjourn("list", "-o", "yaml").stdout))
    assert documents == [json.loads(line) for line in adjourn("list", "-o", "json").stdout.splitlines()]
    plane.epochs = [EpochMetrics(epoch=1)]
    assert adjourn("metrics", "x", "-o", "name").exit_code == Status.USAGE
    assert adjourn("watch", "x", "-o", "name").exit_code == Status.USAGE


def test_a_pipe_gets_all_of_it_and_columns_limits_it(plane: "Plane") -> None:
    why = Condition(type=Condition.UNPLACED, reason="NO_CAPACITY", message="busy " * 60)
    plane.add("x", Job.QUEUED, conditions=[why])
    argv = ["--address", plane.address, "list"]
    whole = CliRunner().invoke(cli.app, argv, env={"COLUMNS": None}).stdout
    assert ("busy " * 60).strip() in whole
    assert not any(line.endswith(" ") for line in whole.splitlines())
    assert max(map(len, CliRunner().invoke(cli.app, argv, env={"COLUMNS": "70"}).stdout.splitlines())) <= 70


def test_an_unknown_state_is_told_with_the_known_ones(adjourn: Adjourn) -> None:
    result = adjourn("list", "--state", "asleep")
    assert result.exit_code == 2
    assert "queued" in result.stderr
    assert "unspecified" not in result.stderr


def test_a_job_is_shown_to_people_and_to_programs(adjourn: Adjourn, plane: "Plane") -> None:
    job = plane.add("x", Job.PAUSED, latest_checkpoint="jobs/x/checkpoints/1")
    assert "adjourn resume x" in adjourn("get", "x").stdout
    assert Parse(adjourn("get", "jobs/x", "-o", "json").stdout, Job()) == job


def test_series_are_shown_to_people_and_to_programs(adjourn: Adjourn, plane: "Plane") -> None:
    plane.epochs = [EpochMetrics(epoch=number, values={"loss": 0.5}) for number in (1, 2, 3)]
    plane.checkpoints = [Checkpoint(name="jobs/x/checkpoints/1-ab")]
    plane.workers = [Worker(name="workers/w", state=Worker.ACTIVE)]
    assert "loss" in adjourn("metrics", "x").stdout
    assert [json.loads(line)["epoch"] for line in adjourn("metrics", "x", "-o", "json").stdout.splitlines()] == [
        1,
        2,
        3,
    ]
    assert "1-ab" in adjourn("checkpoints", "x").stdout
    assert "damaged" not in adjourn("checkpoints", "x").stdout
    plane.checkpoints[0].damage = "a part is missing"
    assert "damaged" in adjourn("checkpoints", "x").stdout
    plane.checkpoints[0].damage = ""
    assert json.loads(adjourn("checkpoints", "x", "-o", "json").stdout)["name"] == "jobs/x/checkpoints/1-ab"
    assert "ACTIVE" in adjourn("workers").stdout
    assert json.loads(adjourn("workers", "-o", "json").stdout)["name"] == "workers/w"


def test_named_jobs_are_watched_to_their_end(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x")
    plane.add("y")
    gone = WatchJobsResponse(deleted="jobs/y")
    plane.streams = [[plane.change(Job.RUNNING, 1), plane.change(Job.RUNNING, 1), plane.change(Job.SUCCEEDED, 3), gone]]
    result = adjourn("watch", "x", "y")
    assert result.exit_code == Status.ENDED_OTHERWISE, "y did not succeed"
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].split()[1:] == ["x", "RUNNING", "epoch", "1/3"]
    assert lines[2] == "y was deleted"


def test_a_watch_shows_each_change_of_a_reason(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x")
    full, none = (Condition(type=Condition.UNPLACED, reason=reason) for reason in ("NO_CAPACITY", "NO_WORKER"))
    changes = [plane.change(Job.QUEUED, conditions=[why]) for why in (full, full, none)]
    failed = plane.change(Job.FAILED, failure=Failure(reason="WORKER_LOST"))
    plane.streams = [[*changes, failed]]
    lines = adjourn("watch", "x").stdout.splitlines()
    assert [line.split()[-1] for line in lines] == ["NO_CAPACITY", "NO_WORKER", "WORKER_LOST"]


def test_a_line_has_the_time_of_what_came_last(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x")
    earlier, later = Timestamp(seconds=1_000_000), Timestamp(seconds=1_000_019)
    progress = Progress(report_time=earlier)
    plane.streams = [[plane.change(Job.STARTING, state_time=later, progress=progress), plane.change(Job.SUCCEEDED)]]
    assert adjourn("watch", "x").stdout.startswith(formatting.clock(later))


def test_a_watch_for_programs_has_one_object_a_line(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x")
    plane.streams = [[plane.change(Job.RUNNING, 1), plane.change(Job.SUCCEEDED, 3)]]
    lines = adjourn("watch", "x", "-o", "json").stdout.splitlines()
    assert [json.loads(line)["job"]["state"] for line in lines] == ["RUNNING", "SUCCEEDED"]


def test_a_watch_of_all_ends_only_with_an_error(adjourn: Adjourn, plane: "Plane") -> None:
    plane.streams = [[plane.change(Job.SUCCEEDED), errors.InternalError("broken", error_id="e7")]]
    result = adjourn("watch")
    assert result.exit_code == 1
    assert "error_id e7" in result.stderr


def test_an_unknown_job_cannot_be_watched(adjourn: Adjourn) -> None:
    assert "there is no jobs/x; `adjourn list` shows" in adjourn("watch", "x").stderr


def test_events_are_shown_to_people_and_to_programs(adjourn: Adjourn, plane: "Plane") -> None:
    plane.events = [
        JobEvent(sequence=1, type=JobEvent.CREATED, actor="eva@lab", state=Job.QUEUED),
        JobEvent(sequence=2, type=JobEvent.PLACED, state=Job.STARTING, attempt=1, details={"worker": "workers/a"}),
        JobEvent(sequence=3, type=JobEvent.FAILED, state=Job.FAILED, message="no \x1b[31mluck"),
    ]
    lines = [line.split() for line in adjourn("events", "x").stdout.splitlines() if line.split()[:1] in (["1"], ["2"])]
    assert [line[1:5] for line in lines] == [["created", "QUEUED", "-", "eva@lab"], ["placed", "STARTING", "1", "-"]]
    assert "worker=workers/a" in adjourn("events", "x").stdout
    assert "\x1b" not in adjourn("events", "x").stdout
    sequences = [json.loads(line)["sequence"] for line in adjourn("events", "x", "-o", "json").stdout.splitlines()]
    assert sequences == [1, 2, 3]


def test_paused_jobs_are_listed_with_since_when_and_why(adjourn: Adjourn, plane: "Plane") -> None:
    assert adjourn("paused").stdout == "no job is paused\n"
    job = plane.add("x", Job.PAUSED, holds=[Hold(kind=Hold.USER, actor="eva@lab", reason="lunch")])
    job.pause.pause_time.FromSeconds(int(time.time()) - 3600)
    job.pause.saved_gpu_seconds = 7200
    job.pause.usage.memory_bytes = 3 << 30
    job.pause.from_worker = "workers/w"
    job.progress.metrics["val_loss"] = 0.5
    plane.add("y", Job.RUNNING)
    shown = adjourn("paused").stdout
    for fact in ("1h00m", "2h00m", "val_loss 0.5", "3.0 GiB", "held by user eva@lab: lunch"):
        assert fact in shown
    assert adjourn("paused", "-o", "name").stdout == "jobs/x\n"
    assert plane.asked[-1][1].states == [Job.PAUSING, Job.PAUSED]


def test_top_prints_once_without_a_terminal(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x", Job.RUNNING, worker="workers/w")
    plane.add("y", Job.SUCCEEDED)
    plane.workers = [Worker(name="workers/w", state=Worker.ACTIVE, jobs=["jobs/x"], cpu_slots=1)]
    plane.samples = [ResourceSample(worker_cpu_percent=10), ResourceSample(worker_cpu_percent=95)]
    shown = adjourn("top").stdout
    for fact in ("1 worker: 1 ACTIVE", "1/1 slots", "95 %", "1 job: 1 RUNNING"):
        assert fact in shown
    assert "y" not in shown.split()
    assert "95 %" in adjourn("get", "x").stdout
    plane.jobs["jobs/x"].attempt = 2
    assert "95 %" not in adjourn("top").stdout + adjourn("get", "x").stdout, "an earlier attempt used that"


def test_conditions_say_why_a_job_does_not_go_on(adjourn: Adjourn, plane: "Plane") -> None:
    why = Condition(type=Condition.UNPLACED, reason="NO_CAPACITY", message="every worker is full")
    plane.add("x", Job.QUEUED, conditions=[why])
    plane.add("y", Job.QUEUED)
    assert "NO_CAPACITY" in adjourn("list").stdout
    shown = adjourn("get", "x").stdout
    assert "waits for a worker: every worker is full" in shown
    assert "unplaced" in shown
    assert "NO_CAPACITY" not in adjourn("get", "y").stdout


def test_the_environment_of_the_newest_checkpoint_is_shown(adjourn: Adjourn, plane: "Plane") -> None:
    plane.checkpoints = [Checkpoint(name="jobs/x/checkpoints/2", environment={"torch": "2.13", "python": "3.11"})]
    assert "python=3.11, torch=2.13" in adjourn("checkpoints", "x").stdout


def test_a_checkpoint_is_pinned_shown_and_unpinned(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x", latest_checkpoint="jobs/x/checkpoints/1-ab")
    plane.checkpoints = [
        Checkpoint(
            name=f"jobs/x/checkpoints/{name}",
            epoch=epoch,
            uri=f"s3://models/checkpoints/u/manifests/{name}.json",
            component_digests={"model": "f" * 64},
            metrics={"loss": 0.5},
        )
        for name, epoch in (("1-ab", 4), ("1-aa", 3))
    ]
    plane.checkpoints[1].retained_for.append(Checkpoint.FINAL)
    assert adjourn("checkpoint", "pin", "x", "--reason", "paper").stdout == "1-ab, after epoch 4, is pinned\n"
    method, request = plane.asked[-1]
    assert (method, request.name, request.reason) == ("PinCheckpoint", "jobs/x/checkpoints/1-ab", "paper")
    shown = adjourn("checkpoint", "show", "x").stdout
    for words in ("s3://models/checkpoints/u/manifests/1-ab.json", "pinned", "loss=0.5", "f" * 64, "none is known"):
        assert words in shown
    shown = adjourn("checkpoint", "show", "x", "--checkpoint", "3", "-o", "json").stdout
    assert json.loads(shown)["retainedFor"] == ["FINAL"]
    done = adjourn("checkpoint", "unpin", "x", "--checkpoint", "1-aa")
    assert done.stdout == "1-aa, after epoch 3, is not pinned\n"
    assert plane.asked[-1][0] == "UnpinCheckpoint"


def test_top_goes_on_while_nobody_answers(client: Client, plane: "Plane") -> None:
    plane.workers = [Worker(name="workers/w", state=Worker.ACTIVE)]
    state = top.State(client)
    plane.failures["ListWorkers"] = [errors.StoreUnavailableError("the store is away")] * 9
    state.look_again()
    shown = render(state.view(24))
    assert "the store is away; what was known last is shown" in shown
    assert "1 worker: 1 ACTIVE" in shown
    plane.failures.clear()
    state.look_again()
    assert "the store is away" not in render(state.view(24))
    plane.failures["ListWorkers"] = [errors.InternalError("a fault")]
    with pytest.raises(errors.InternalError):
        state.look_again()


def render(view: RenderableType) -> str:
    out = StringIO()
    Console(file=out, width=100).print(view)
    return out.getvalue()
