"""`adjourn pause`, `resume`, `cancel`, `delete` against a scripted control plane."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import typer
import yaml
from typer.testing import Result

from adjourn import errors
from adjourn.cli import selection, verbs
from adjourn.cli.exit_status import Status
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Condition, Hold, Job, Pause, PauseMode
from adjourn.v1.job_service_pb2 import WatchJobsResponse

if TYPE_CHECKING:
    from tests.unit.clients.conftest import Plane

Adjourn = Callable[..., Result]


def pausing(plane: "Plane") -> Job:
    job = plane.add("x", Job.PAUSING, holds=[Hold(kind=Hold.USER, reason="lunch")])
    job.spec.total_epochs, job.progress.epoch = 20, 4
    now = datetime.now(UTC)
    job.pause.request_time.FromDatetime(now)
    job.pause.predicted_boundary_time.FromDatetime(now + timedelta(hours=4, seconds=30))
    return job


def test_a_pause_tells_when_it_will_come(adjourn: Adjourn, plane: "Plane") -> None:
    pausing(plane)
    result = adjourn("pause", "x", "--reason", "lunch", "--mode", "STEP")
    assert result.stdout == "x will pause at the next epoch boundary, in about 4 h 00 min\n"
    (request,) = [request for method, request in plane.asked if method == "PauseJob"]
    assert (request.reason, request.mode) == ("lunch", PauseMode.STEP)


def test_a_pause_names_its_epoch_once_that_is_certain(adjourn: Adjourn, plane: "Plane") -> None:
    pausing(plane).pause.boundary_epoch = 6
    assert adjourn("pause", "x").stdout == "x will pause after epoch 6, in about 4 h 00 min\n"


def test_a_pause_can_be_waited_for(adjourn: Adjourn, plane: "Plane") -> None:
    job = pausing(plane)
    done = Job()
    done.CopyFrom(job)
    done.state, done.progress.epoch = Job.PAUSED, 5
    start = done.pause.request_time.ToDatetime()
    done.pause.boundary_time.FromDatetime(start + timedelta(seconds=4))
    done.pause.pause_time.FromDatetime(start + timedelta(seconds=5))
    plane.streams = [[WatchJobsResponse(job=job), WatchJobsResponse(job=done)]]
    result = adjourn("pause", "x", "--wait")
    assert result.exit_code == 0
    assert "rests after epoch 5" in result.stdout
    assert result.stdout.splitlines()[-1] == "boundary reached after 4.0 s"


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [(Job.SUCCEEDED, 0, "trained to its end"), (Job.RUNNING, 5, "trains on"), (Job.FAILED, 5, "gave up")],
)
def test_a_pause_that_does_not_come_is_told(
    adjourn: Adjourn, plane: "Plane", end: Job.State.ValueType, status: int, said: str
) -> None:
    pausing(plane)
    plane.streams = [[plane.change(end)]]
    result = adjourn("pause", "x", "--wait")
    assert result.exit_code == status
    assert said in result.stdout


def test_a_pause_at_the_latest_checkpoint_says_what_it_gives_up(adjourn: Adjourn, plane: "Plane") -> None:
    pause = pausing(plane).pause
    pause.ClearField("predicted_boundary_time")
    pause.mode, pause.lost_steps = PauseMode.LATEST, 40
    pause.lost_duration.FromSeconds(4)
    said = "x is being stopped now, and gives up 40 steps (4.0 s of training)\n"
    assert adjourn("pause", "x", "--mode", "latest").stdout == said
    (request,) = [request for method, request in plane.asked if method == "PauseJob"]
    assert request.mode == PauseMode.LATEST


def test_a_cancel_can_save_after_the_running_step(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x", Job.RUNNING)
    said = "x is being stopped for good, after its running step and with a last checkpoint\n"
    assert adjourn("cancel", "x", "--save", "--mode", "step").stdout == said
    (request,) = [request for method, request in plane.asked if method == "CancelJob"]
    assert (request.save_checkpoint, request.mode) == (True, PauseMode.STEP)
    assert adjourn("cancel", "x", "--mode", "step").exit_code == 2, "without --save nothing is saved"


def test_an_unknown_mode_is_bad_usage(adjourn: Adjourn) -> None:
    result = adjourn("pause", "x", "--mode", "soon")
    assert result.exit_code == 2
    assert "epoch, step, latest" in result.stderr


def test_a_resume_tells_from_where(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x", Job.QUEUED, latest_checkpoint="jobs/x/checkpoints/1")
    plane.checkpoints = [Checkpoint(name="jobs/x/checkpoints/1", epoch=5, step=500)]
    result = adjourn("resume", "x", "--allow-inexact")
    assert result.stdout == "x resumes from epoch 5, step 500, as soon as a worker is free\n"
    assert [request.allow_inexact for method, request in plane.asked if method == "ResumeJob"] == [True]


def test_a_resume_amid_an_epoch_says_so(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x", Job.QUEUED, latest_checkpoint="jobs/x/checkpoints/1")
    plane.checkpoints = [Checkpoint(name="jobs/x/checkpoints/1", epoch=5, step=530, epoch_step=30)]
    assert adjourn("resume", "x").stdout == "x resumes within epoch 6, step 530, as soon as a worker is free\n"


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (Job(state=Job.QUEUED), "starts from the beginning"),
        (Job(state=Job.RUNNING), "had not left its worker yet"),
        (Job(state=Job.PAUSING), "as soon as its checkpoint is durable"),
        (
            Job(state=Job.PAUSED, holds=[Hold(kind=Hold.Kind.ValueType(4), reason="spent")]),
            "is still held by unknown (4): spent",
        ),
    ],
)
def test_a_resume_tells_what_happens_next(adjourn: Adjourn, plane: "Plane", job: Job, said: str) -> None:
    job.name = "jobs/x"
    plane.jobs["jobs/x"] = job
    assert said in adjourn("resume", "x").stdout


def test_a_resume_can_be_waited_for(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x", Job.QUEUED, attempt=1, pause=Pause(epoch=1))
    news = Pause(verdict=Pause.EXACT)
    plane.streams = [
        [plane.change(Job.STARTING, attempt=2), plane.change(Job.RUNNING, attempt=2, worker="workers/b", pause=news)]
    ]
    plane.streams.append([plane.change(Job.RUNNING, pause=news)])
    result = adjourn("resume", "x", "--wait")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1:] == ["x trains on b", "restored state: EXACT"]


def test_a_verdict_that_comes_late_is_waited_for(
    adjourn: Adjourn, plane: "Plane", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verbs, "VERDICT_SECONDS", 60)
    plane.add("x", Job.QUEUED, attempt=1, pause=Pause(epoch=1))
    late = Pause(verdict=Pause.WITHIN_TOLERANCE)
    plane.streams = [
        [plane.change(Job.RUNNING, attempt=2)],
        [plane.change(Job.RUNNING), plane.change(Job.RUNNING, pause=late)],
    ]
    assert adjourn("resume", "x", "--wait").stdout.splitlines()[-1] == "restored state: WITHIN_TOLERANCE"


def test_a_verdict_that_does_not_come_is_not_waited_for(
    adjourn: Adjourn, plane: "Plane", monkeypatch: pytest.MonkeyPatch
) -> None:
    plane.add("x", Job.QUEUED, attempt=1, pause=Pause(epoch=1))
    plane.streams = [[plane.change(Job.RUNNING, attempt=2)]]
    monkeypatch.setattr(verbs, "VERDICT_SECONDS", 0.2)
    assert adjourn("resume", "x", "--wait").stdout.splitlines()[-1] == "restored state: not compared"


def test_a_resume_that_fails_is_told(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x", Job.QUEUED, attempt=1)
    plane.streams = [[plane.change(Job.FAILED, attempt=2)]]
    result = adjourn("resume", "x", "--wait")
    assert result.exit_code == Status.ENDED_OTHERWISE
    assert "gave up" in result.stdout


def test_scripts_are_not_asked(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x")
    assert adjourn("cancel", "x", "--reason", "enough").stdout == "x is being stopped for good\n"
    assert adjourn("delete", "x").stdout == "x is deleted\n"
    assert plane.jobs == {}


def test_a_cancel_can_save(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x", Job.RUNNING)
    said = "x is being stopped for good, at its next boundary and with a last checkpoint\n"
    assert adjourn("cancel", "x", "--save").stdout == said
    assert adjourn("cancel", "x", "--save").stdout == "x is being stopped for good\n", "how, an earlier call has said"
    assert [request.save_checkpoint for method, request in plane.asked if method == "CancelJob"] == [True, True]


@pytest.mark.parametrize(
    ("verb", "read", "asked"),
    [
        ("pause", [], "Pause x, y after the running epoch?"),
        ("resume", [], "Resume x, y?"),
        ("cancel", ["GetJob", "GetJob"], "Stop x for good? This loses what was done since the newest checkpoint."),
        ("delete", ["GetJob", "GetJob"], "Delete x, y with all checkpoints and metrics, for ever?"),
    ],
)
def test_people_are_asked(
    adjourn: Adjourn, plane: "Plane", monkeypatch: pytest.MonkeyPatch, verb: str, read: list[str], asked: str
) -> None:
    plane.add("x", latest_checkpoint="jobs/x/checkpoints/1")
    plane.add("y", Job.SUCCEEDED)
    questions: list[str] = []

    def refuse(question: str, *, abort: bool, err: bool) -> None:
        questions.append(question)
        raise typer.Abort

    monkeypatch.setattr(selection, "interactive", lambda: True)
    monkeypatch.setattr(typer, "confirm", refuse)
    refused = adjourn(verb, "x", "y")
    assert (refused.exit_code, refused.stderr) == (1, "adjourn: nothing was changed\n")
    assert [method for method, _ in plane.asked] == read
    assert questions == [asked]
    assert adjourn(verb, "x", "y", "--yes").exit_code == 0
    assert len(questions) == 1


def test_labels_are_changed_one_by_one_under_the_etag_that_was_read(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x", labels={"old": "1", "kept": "2"}, etag="7")
    result = adjourn("update", "x", "--label", "new=3", "--remove-label", "old", "--max-restarts", "5")
    assert result.exit_code == 0
    assert "x is updated" in result.stdout
    request = dict(plane.asked)["UpdateJob"]
    assert (dict(request.job.labels), request.job.etag) == ({"kept": "2", "new": "3"}, "7")
    assert list(request.update_mask.paths) == ["labels", "spec.max_restarts"]


def test_epochs_are_changed_without_a_look_at_labels(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x", labels={"a": "b"})
    assert adjourn("update", "x", "--epochs", "20").exit_code == 0
    assert [method for method, _ in plane.asked] == ["UpdateJob"]
    assert list(plane.asked[0][1].update_mask.paths) == ["spec.total_epochs"]


def test_an_update_of_nothing_is_a_usage_error(adjourn: Adjourn, plane: "Plane") -> None:
    assert adjourn("update", "x").exit_code == 2
    assert plane.asked == []


@pytest.mark.parametrize("option", ["--epochs", "--max-restarts"])
def test_a_number_that_no_field_holds_is_a_usage_error(adjourn: Adjourn, plane: "Plane", option: str) -> None:
    result = adjourn("update", "x", option, "99999999999")
    assert result.exit_code == 2
    assert f"{option}: 99999999999 is out of range" in " ".join(result.stderr.replace("│", " ").split())
    assert plane.asked == []


def test_a_job_on_a_worker_is_to_be_paused_first(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x")
    plane.failures["UpdateJob"] = [errors.JobHeldByWorkerError("jobs/x is RUNNING on workers/a")]
    result = adjourn("update", "x", "--epochs", "20")
    assert result.exit_code == 1
    assert "`adjourn pause --wait` it first" in result.stderr


def test_an_error_of_one_job_leaves_the_others_alone(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x", Job.PAUSED)
    plane.add("z", Job.PAUSED)
    result = adjourn("pause", "x", "y", "z", "x")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["x", "z"], "each once"
    assert result.stderr == "adjourn: there is no jobs/y; `adjourn list` shows what there is\n"
    assert result.exit_code == Status.NOT_FOUND
    plane.failures["PauseJob"] = [errors.JobFinishedError("jobs/x is SUCCEEDED")]
    assert adjourn("pause", "x", "y").exit_code == Status.REFUSED, "two kinds of failure"


def test_jobs_are_chosen_by_label_as_far_as_the_verb_applies(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("trains", Job.RUNNING)
    plane.add("rests", Job.PAUSED, holds=[Hold(kind=Hold.USER)])
    plane.add("done", Job.SUCCEEDED)
    for verb, method, names in (
        ("pause", "PauseJob", ["jobs/trains"]),
        ("resume", "ResumeJob", ["jobs/rests"]),
        ("cancel", "CancelJob", ["jobs/trains", "jobs/rests"]),
        ("delete", "DeleteJob", ["jobs/done"]),
    ):
        assert adjourn(verb, "--label", "team=a").exit_code == 0
        assert [request.name for said, request in plane.asked if said == method] == names
    assert plane.asked[0][1].labels == {"team": "a"}
    nothing = adjourn("delete", "--label", "team=a")
    assert nothing.exit_code == Status.NOT_FOUND
    assert "no such job carries team=a; 2 carry it in a state that leaves nothing to do" in nothing.stderr


@pytest.mark.parametrize("verb", ["pause", "resume", "cancel", "delete"])
def test_it_has_to_be_said_which_jobs(adjourn: Adjourn, plane: "Plane", verb: str) -> None:
    assert adjourn(verb).exit_code == Status.USAGE
    assert adjourn(verb, "x", "--label", "a=b").exit_code == Status.USAGE
    assert plane.asked == []


@pytest.mark.parametrize("verb", ["pause", "resume", "cancel", "submit"])
def test_verbs_answer_programs_too(adjourn: Adjourn, plane: "Plane", verb: str) -> None:
    plane.add("x", Job.PAUSED)
    words = ("submit", "m:f", "--epochs", "3", "--name", "x") if verb == "submit" else (verb, "x")
    assert adjourn(*words, "-o", "name").stdout == "jobs/x\n"
    assert json.loads(adjourn(*words, "-o", "json").stdout)["name"] == "jobs/x"
    assert yaml.safe_load(adjourn(*words, "-o", "yaml").stdout)["name"] == "jobs/x"


def test_a_wait_for_programs_prints_how_it_ended(adjourn: Adjourn, plane: "Plane") -> None:
    pausing(plane)
    plane.streams = [[plane.change(Job.PAUSED)]]
    assert json.loads(adjourn("pause", "x", "--wait", "-o", "json").stdout)["state"] == "PAUSED"
    plane.jobs["jobs/x"].state = Job.QUEUED
    plane.streams = [[plane.change(Job.RUNNING, attempt=1)]]
    assert json.loads(adjourn("resume", "x", "--wait", "-o", "json").stdout)["state"] == "RUNNING"


def test_a_wait_tells_what_is_in_the_way(adjourn: Adjourn, plane: "Plane") -> None:
    job = pausing(plane)
    stuck = WatchJobsResponse(job=job)
    stuck.job.conditions.add(type=Condition.HANGING, reason="TRAINING_HANGS", message="no step for 90 s")
    plane.streams = [[stuck, stuck, plane.change(Job.PAUSED)]]
    lines = adjourn("pause", "x", "--wait").stdout.splitlines()
    assert [": no step for 90 s" in line for line in lines[:3]] == [False, True, False]


def test_a_wait_ends_after_its_timeout(adjourn: Adjourn, plane: "Plane") -> None:
    pausing(plane)
    result = adjourn("pause", "x", "--wait", "--timeout", "0.1s")
    assert result.exit_code == Status.TIMEOUT
    assert "x will pause at the next epoch boundary" in result.stderr
    assert "`adjourn watch x` follows it" in result.stderr
    assert adjourn("pause", "x", "--timeout", "1s").exit_code == Status.USAGE


@pytest.mark.parametrize(
    ("end", "status"), [(Job.CANCELLED, Status.DONE), (Job.SUCCEEDED, Status.DONE), (Job.FAILED, 5)]
)
def test_a_cancel_can_be_waited_for(adjourn: Adjourn, plane: "Plane", end: Job.State.ValueType, status: int) -> None:
    plane.add("x")
    plane.streams = [[plane.change(Job.CANCELLING, 1), plane.change(end, 1)]]
    result = adjourn("cancel", "x", "--wait")
    assert result.exit_code == status
    assert result.stdout.startswith("x is being stopped for good\nx ")
    assert len(result.stdout.splitlines()) == 2
    plane.streams = [[plane.change(end, 1)]]
    plane.add("x")
    assert json.loads(adjourn("cancel", "x", "--wait", "-o", "json").stdout)["state"] == Job.State.Name(end)
    plane.add("x")
    plane.streams = []
    late = adjourn("cancel", "x", "--wait", "--timeout", "0.1s")
    assert (late.exit_code, late.stderr) == (
        Status.TIMEOUT,
        "adjourn: x is being stopped for good; `adjourn watch x` follows it\n",
    )


def test_a_job_that_is_deleted_meanwhile_ends_the_wait(adjourn: Adjourn, plane: "Plane") -> None:
    pausing(plane)
    plane.streams = [[WatchJobsResponse(deleted="jobs/x")]]
    result = adjourn("pause", "x", "--wait")
    assert result.exit_code == Status.ENDED_OTHERWISE
    assert "was deleted" in result.stderr


def test_the_reason_of_an_earlier_pause_stays_and_that_is_said(adjourn: Adjourn, plane: "Plane") -> None:
    pausing(plane)
    assert "its reason stays: lunch" in adjourn("pause", "x", "--reason", "tea").stdout
    assert "its reason stays" not in adjourn("pause", "x", "--reason", "lunch").stdout
