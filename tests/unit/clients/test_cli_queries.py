"""`adjourn list`, `get`, `watch` and the like against a scripted control plane."""

import json
import time
from collections.abc import Callable
from io import StringIO
from typing import TYPE_CHECKING

import pytest
import yaml
from google.protobuf.json_format import Parse
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, RenderableType
from typer.testing import CliRunner, Result

from adjourn import Client, cli, errors
from adjourn.cli import formatting, top
from adjourn.cli.exit_status import Status
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Condition, Failure, Hold, Job, Progress
from adjourn.v1.job_service_pb2 import JobEvent, WatchEventsResponse, WatchJobsResponse
from adjourn.v1.usage_pb2 import EpochMetrics, ResourceSample, StepMetrics
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


def test_who_stopped_a_job_and_why_is_shown(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x", Job.CANCELLED)
    asked = JobEvent(sequence=2, type=JobEvent.CANCEL_REQUESTED, actor="eva@lab", message="wrong data")
    plane.events = [JobEvent(sequence=1, type=JobEvent.CREATED, actor="ann"), asked, JobEvent(sequence=3)]
    assert "eva@lab, -: wrong data" in adjourn("get", "x").stdout
    plane.jobs["jobs/x"].state = Job.RUNNING
    assert "eva@lab" not in adjourn("get", "x").stdout


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


def event(job: str, sequence: int, kind: JobEvent.Type.ValueType, state: Job.State.ValueType) -> WatchEventsResponse:
    told = JobEvent(sequence=sequence, type=kind, state=state, actor="eva@lab")
    return WatchEventsResponse(job=f"jobs/{job}", job_uid=f"u-{job}", event=told, resume_token=f"{sequence}-0")


def test_events_of_named_jobs_are_followed_after_their_history_until_they_end(adjourn: Adjourn, plane: "Plane") -> None:
    for name in ("x", "y"):
        plane.add(name, Job.RUNNING, uid=f"u-{name}")
    plane.events = [JobEvent(sequence=1, type=JobEvent.CREATED), JobEvent(sequence=2, type=JobEvent.BEGAN)]
    for told in plane.events:
        told.state = Job.RUNNING
    plane.event_streams = [
        [WatchEventsResponse(resume_token="0-0"), event("x", 2, JobEvent.BEGAN, Job.RUNNING)],  # in the history already
        [WatchEventsResponse(gap=True), event("x", 3, JobEvent.PAUSED, Job.PAUSED), WatchEventsResponse()],
        [event("x", 4, JobEvent.SUCCEEDED, Job.SUCCEEDED), event("y", 3, JobEvent.FAILED, Job.FAILED)],
    ]
    result = adjourn("events", "x", "y", "-f")
    assert result.exit_code == 0
    found = [line.split()[1:3] for line in result.stdout.replace("-  ", "- ", 1).splitlines()]
    assert [tuple(words) for words in found] == [
        *(("x", "created"), ("x", "began"), ("y", "created"), ("y", "began")),
        *(("x", "paused"), ("x", "succeeded"), ("y", "failed")),
    ]
    assert "events are missing here" in result.stderr
    tokens = [request.resume_token for method, request in plane.asked if method == "WatchEvents"]
    assert tokens == ["", "2-0", ""]


def test_events_of_all_jobs_are_followed_for_programs(adjourn: Adjourn, plane: "Plane") -> None:
    told = [event("x", 4, JobEvent.PAUSED, Job.PAUSED), event("z", 1, JobEvent.CREATED, Job.QUEUED)]
    plane.event_streams = [[*told, WatchEventsResponse(resume_token="9"), errors.InternalError("broken")]]
    result = adjourn("events", "--follow", "--label", "a=b", "--resume-token", "3-0", "-o", "json")
    assert result.exit_code == 1, "it ends only with an error"
    assert [Parse(line, WatchEventsResponse()) for line in result.stdout.splitlines()] == told
    request = plane.asked[-1][1]
    assert (dict(request.labels), request.resume_token, list(request.names)) == ({"a": "b"}, "3-0", [])


def test_a_job_that_has_ended_is_followed_no_further_than_its_history(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x", Job.SUCCEEDED)
    plane.events = [JobEvent(sequence=1, type=JobEvent.SUCCEEDED, state=Job.SUCCEEDED)]
    plane.event_streams = [[WatchEventsResponse(resume_token="0-0")]]
    assert adjourn("events", "x", "--follow").stdout.split()[1:] == ["x", "succeeded", "SUCCEEDED"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name one job, or give --follow"),
        (("x", "y"), "name one job, or give --follow"),
        (("x", "--label", "a=b"), "is for --follow"),
        (("x", "--resume-token", "1"), "is for --follow"),
        (("-f", "-o", "name"), "does not say what happened"),
    ],
)
def test_whose_events_are_meant_has_to_be_said(adjourn: Adjourn, words: tuple[str, ...], said: str) -> None:
    result = adjourn("events", *words)
    assert result.exit_code == Status.USAGE
    assert said in result.stderr


def test_steps_are_shown_as_a_table_as_curves_and_to_programs(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x")
    assert "no step is known yet" in adjourn("metrics", "x", "--steps").stdout
    plane.steps = [
        StepMetrics(step=10 * number, epoch=number // 2, attempt=1 + (number > 2), loss=1 / number, values={"lr": 0.1})
        for number in range(1, 5)
    ]
    plane.steps[0].ClearField("loss")
    plane.steps[2].step = 31
    lines = adjourn("metrics", "x", "--steps").stdout.splitlines()
    assert lines[0].split() == ["step", "epoch", "time", "loss", "lr", "attempt"]
    assert [line.split()[3] for line in lines[1:]] == ["-", "0.5", "0.33333", "0.25"]
    assert plane.asked[-1][1].max_steps == 1000
    found = [json.loads(line) for line in adjourn("metrics", "x", "--steps", "-o", "json").stdout.splitlines()]
    assert [each["step"] for each in found] == [10, 20, 31, 40]
    drawn = adjourn("metrics", "x", "--steps", "--plot").stdout
    assert "began anew after step 20" in drawn
    assert "is 0.1 in every step" in drawn
    paused = plane.jobs["jobs/x"].past_pauses.add(step=31)  # its last steps were not told
    paused.pause_time.FromSeconds(1)
    drawn = adjourn("metrics", "x", "--steps", "--plot").stdout
    assert "paused after step 31" in drawn
    assert "began anew" not in drawn


def test_jobs_are_listed_in_the_order_of_a_column(adjourn: Adjourn, plane: "Plane") -> None:
    for place, (name, loss) in enumerate((("b", 0.5), ("c", None), ("a", 0.1), ("d", float("nan")))):
        job = plane.add(name, creator=f"{name}@lab")
        job.create_time.FromSeconds(1000 - place)
        job.progress.epoch = place
        if loss is not None:
            job.progress.loss = loss

    def names(*words: str) -> str:
        return "".join(line[-1] for line in adjourn("list", "-o", "name", *words).stdout.split())

    assert (names(), names("-r"), names("--sort", "job"), names("--sort", "owner", "-r")) == (
        *("bcad", "dacb", "abcd", "dcba"),
    )
    assert (names("--sort", "loss"), names("--sort", "loss", "-r")) == ("abcd", "bacd"), "what is not known comes last"
    assert names("--sort", "epoch", "-r", "--limit", "2") == "da"
    refused = adjourn("list", "--sort", "size")
    assert refused.exit_code == Status.USAGE
    assert "'size' is none of age, best, epoch" in refused.stderr


def test_a_wide_list_has_owner_and_labels_whatever_the_width(plane: "Plane") -> None:
    plane.add("x" * 60, Job.QUEUED, creator="eva@lab", labels={"team": "vision"})
    argv = ["--address", plane.address, "list"]
    narrow = CliRunner().invoke(cli.app, argv, env={"COLUMNS": "70"}).stdout
    assert "team=vision" not in narrow
    wide = CliRunner().invoke(cli.app, [*argv, "--wide"], env={"COLUMNS": "70"}).stdout
    for fact in ("x" * 60, "eva@lab", "team=vision"):
        assert fact in wide.splitlines()[1]


def test_a_watch_ends_after_its_timeout(adjourn: Adjourn, plane: "Plane", hour_passes: Callable[[], None]) -> None:
    plane.add("x")
    plane.streams = [[plane.change(Job.RUNNING, 1), hour_passes]]
    result = adjourn("watch", "x", "--timeout", "60s")
    assert result.exit_code == Status.TIMEOUT
    assert result.stderr == "adjourn: x trains on ; `adjourn watch x` follows it\n"


def test_a_silent_watch_ends_after_its_timeout(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x")
    plane.add("y")
    both = adjourn("watch", "x", "y", "--timeout", "0.1s", "-o", "json")
    assert both.exit_code == Status.TIMEOUT
    assert both.stderr == "adjourn: x, y did not end in time; `adjourn watch` follows them\n"
    assert adjourn("watch", "--timeout", "1s").exit_code == Status.USAGE


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
