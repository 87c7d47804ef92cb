"""What the origins' interfaces make of jobs: their words, their units, and what is told from change to change."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from adjourn.settings_reader import InvalidSettings
from adjourn.v1.job_pb2 import Hold, Job, Pause
from adjourn.v1.usage_pb2 import EpochMetrics, GpuSample, ResourceSample
from adjourn.web.origins import created, heimdall_answers, peft_studio_answers
from adjourn.web.origins.created import Trained
from adjourn.web.origins.feed import Deleted
from adjourn.web.origins.happened import Happened, Kind, Seen, between
from adjourn.web.origins.heimdall_frames import HeimdallFrames
from adjourn.web.origins.peft_studio_frames import PeftStudioFrames

JOB_ID = "5b1f1a52-1c0f-4c3e-9a53-2f1c8b8d1c11"
ON_THEIR_WAY = (Job.QUEUED, Job.STARTING, Job.RUNNING, Job.PAUSING, Job.CANCELLING)


def job(state: Job.State.ValueType = Job.RUNNING, *, epoch: int = 0, step: int = 0, started: bool = True) -> Job:
    made = Job(name=f"jobs/{JOB_ID}", uid="u", state=state)
    made.spec.total_epochs = 4
    made.create_time.FromSeconds(1000)
    made.state_time.FromSeconds(2000)
    made.progress.epoch, made.progress.step = epoch, step
    if started:
        made.start_time.FromSeconds(1001)
    return made


def pause(epoch: int, *times: int, cause: Pause.Cause.ValueType = Pause.HELD) -> Pause:
    """Returns a pause that came to rest, was asked to end and ended at these times, as far as they are given."""
    made = Pause(cause=cause, epoch=epoch, checkpoint=f"jobs/{JOB_ID}/checkpoints/1-{epoch}")
    for field, seconds in zip(("pause_time", "resume_request_time", "resume_time"), times, strict=False):
        getattr(made, field).FromSeconds(seconds)
    return made


def epochs(*numbers: int) -> list[EpochMetrics]:
    return [EpochMetrics(epoch=each, values={"loss": 1 / each}, best=each == 1) for each in numbers]


class TestWhatHappened:
    def told(self, before: Job | None, after: Job, ended: Iterable[EpochMetrics] = ()) -> list[tuple[Kind, int]]:
        seen = None if before is None else Seen.of(before, epoch=before.progress.epoch)
        return [
            (each.kind, each.epoch.epoch if each.epoch else each.pause.epoch if each.pause else -1)
            for each in between(seen, after, ended)
        ]

    def test_a_new_job_was_created(self) -> None:
        assert self.told(None, job(Job.QUEUED, started=False)) == [(Kind.CREATED, -1), (Kind.STATE_CHANGED, -1)]

    def test_what_was_told_is_not_told_again(self) -> None:
        paused = job(Job.PAUSED, epoch=2, step=20)
        paused.pause.CopyFrom(pause(2, 50))
        assert self.told(paused, paused) == []

    def test_a_pause_and_its_end_between_two_messages_are_told_between_the_epochs_around_them(self) -> None:
        after = job(epoch=3, step=30)
        after.past_pauses.append(pause(1, 50, 51, 52))
        after.pause.CopyFrom(pause(2, 60, 61, 62))
        assert self.told(job(epoch=0, step=5), after, epochs(1, 2, 3)) == [
            (Kind.EPOCH_ENDED, 1),
            (Kind.PAUSED, 1),
            (Kind.RESUME_REQUESTED, 1),
            (Kind.RESUMED, 1),
            (Kind.EPOCH_ENDED, 2),
            (Kind.PAUSED, 2),
            (Kind.RESUME_REQUESTED, 2),
            (Kind.RESUMED, 2),
            (Kind.EPOCH_ENDED, 3),
            (Kind.PROGRESSED, -1),
        ]

    def test_a_pause_that_never_came_to_rest_and_a_drain_are_no_pauses(self) -> None:
        after = job(epoch=1, step=10)
        taken_back = Pause(cause=Pause.HELD, epoch=1)
        taken_back.resume_request_time.FromSeconds(50)
        after.past_pauses.append(taken_back)
        after.pause.CopyFrom(pause(1, 60, 61, 62, cause=Pause.DRAINED))
        assert self.told(job(epoch=1, step=10), after) == []

    def test_an_end_is_told_last_and_a_new_begin_of_a_job_that_had_ended(self) -> None:
        failed = job(Job.FAILED, epoch=1, step=10)
        assert self.told(job(epoch=0), failed, epochs(1)) == [
            (Kind.EPOCH_ENDED, 1),
            (Kind.PROGRESSED, -1),
            (Kind.STATE_CHANGED, -1),
            (Kind.ENDED, -1),
        ]
        again = job(Job.QUEUED, epoch=1, step=10)
        assert self.told(failed, again) == [(Kind.RESUME_REQUESTED, -1), (Kind.STATE_CHANGED, -1)]


class TestHeimdall:
    @pytest.mark.parametrize("state", ON_THEIR_WAY)
    def test_paused_and_cancelled_are_said_of_jobs_that_rest(self, state: Job.State.ValueType) -> None:
        assert heimdall_answers.status(job(state)) not in ("paused", "cancelled", "completed", "failed")

    def test_a_job_is_told_as_it_was_asked_for(self) -> None:
        config = {"batch_size": 8, "learning_rate": 0.5, "dropout_rate": 0.25, "of their own": [1, "a"]}
        asked = {"job_name": "<b>name</b>", "description": None, "config": config}
        made = job(Job.PAUSED, epoch=2, step=20)
        spec = Trained(arguments={"slow": True}).spec(
            created.HEIMDALL, asked, config=config, total_epochs=4, model_name="resnet", dataset_uri="d"
        )
        assert dict(created.plain(dict(spec.args)))["dropout"] == 0.25
        assert spec.args["slow"] is True
        made.spec.CopyFrom(spec)
        made.progress.metrics.update({"val_loss": float("nan"), "lr": 0.125, "loss": 2.0})
        made.pause.CopyFrom(pause(2, 2000))
        told = heimdall_answers.job(made)
        assert (told["job_name"], told["config"]) == ("<b>name</b>", config)
        assert isinstance(told["config"]["batch_size"], int)
        assert (told["val_loss"], told["learning_rate"], told["train_loss"]) == (None, 0.125, 2.0)
        assert (told["current_epoch"], told["progress_percent"]) == (2, 50.0)
        assert told["pause_checkpoint_path"] == f"jobs/{JOB_ID}/checkpoints/1-2"
        json.dumps(told, allow_nan=False)

    def test_a_job_of_another_client_has_its_arguments_for_config(self) -> None:
        made = job()
        made.spec.args.update({"width": 3})
        assert heimdall_answers.job(made)["config"] == {"width": 3}
        assert heimdall_answers.job(made)["job_name"] == JOB_ID

    def test_steps_are_told_once_a_second_at_most(self) -> None:
        clock = iter((0.0, 0.5, 0.99, 1.0, 1.5, 2.1))
        frames = HeimdallFrames(everything=False, clock=lambda: next(clock))
        progressed = Happened(Kind.PROGRESSED, job(step=1))
        assert [len(list(frames.frames(progressed, None))) for _ in range(6)] == [1, 0, 0, 1, 0, 1]

    def test_a_failure_is_told_as_one_and_as_an_end(self) -> None:
        failed = job(Job.FAILED)
        failed.failure.message = "out of memory"
        told = list(HeimdallFrames(everything=False).frames(Happened(Kind.ENDED, failed), None))
        assert [(each["event"], each["data"]["status"]) for each in told] == [
            ("training:failed", "failed"),
            ("training:completed", "failed"),
        ]
        assert told[0]["data"]["error"] == "out of memory"

    def test_the_socket_of_all_jobs_tells_of_their_lives(self) -> None:
        frames = HeimdallFrames(everything=True)
        news: list[Happened | Deleted] = [
            Happened(Kind.CREATED, job(Job.QUEUED)),
            Happened(Kind.PAUSED, job(Job.PAUSED), pause=pause(1, 50)),
            Happened(Kind.RESUME_REQUESTED, job(Job.QUEUED)),
            Happened(Kind.ENDED, job(Job.CANCELLED)),
            Deleted(f"jobs/{JOB_ID}"),
        ]
        told = [each["data"] for item in news for each in frames.frames(item, None) if "action" in each["data"]]
        assert [each["action"] for each in told] == ["created", "paused", "resumed", "cancelled", "deleted"]
        assert {each["job_id"] for each in told} == {JOB_ID}

    @pytest.mark.parametrize(
        ("text", "answered"), [('{"event": "ping"}', True), ("ping", True), ("[", False), ("[]", False)]
    )
    def test_a_ping_is_answered_and_nothing_else(self, text: str, answered: bool) -> None:
        assert (HeimdallFrames(everything=False).pong(text) is not None) == answered


class TestPeftStudio:
    def numbers(self, value: object) -> Iterable[object]:
        if isinstance(value, Mapping):
            for each in value.values():
                yield from self.numbers(each)
        elif isinstance(value, list):
            for each in value:
                yield from self.numbers(each)
        else:
            yield value

    def paused(self) -> Job:
        made = job(Job.PAUSED, epoch=2, step=20)
        made.spec.model_name, made.spec.dataset_uri = "llama", "/data/sets/alpaca"
        made.progress.loss = 0.5
        made.progress.active_duration.FromSeconds(90)
        made.progress.remaining_duration.FromSeconds(45)
        made.holds.append(Hold(kind=Hold.USER, reason="lunch"))
        made.pause.CopyFrom(pause(2, 2000))
        made.pause.usage.CopyFrom(
            ResourceSample(
                worker_cpu_percent=25.0,
                memory_bytes=1 << 30,
                gpus=[GpuSample(utilization_percent=95.0, memory_used_bytes=7), GpuSample(memory_used_bytes=8)],
            )
        )
        return made

    def test_a_paused_run_has_every_field_in_its_units(self) -> None:
        told = peft_studio_answers.paused(self.paused())
        fields = ("state", "elapsed_time", "remaining_time_estimate", "current_step", "current_epoch", "current_loss")
        assert [told[name] for name in fields] == ["paused", 90.0, 45.0, 20, 2, 0.5]
        assert told["resource_usage"] == {
            "gpu_utilization": [95.0],
            "gpu_memory_used": [7, 8],
            "cpu_utilization": 25.0,
            "ram_used": 1 << 30,
            "unknown": [],
        }
        assert (told["model_name"], told["dataset_path"], told["dataset_name"]) == (
            "llama",
            "/data/sets/alpaca",
            "alpaca",
        )
        assert (told["unknown"], told["gpu_memory_released"], told["saved_cost"]) == ([], None, None)

    def test_each_number_is_one_and_what_is_not_known_is_said_to_be(self) -> None:
        told = peft_studio_answers.paused(job(Job.PAUSED))
        assert (told["current_loss"], told["remaining_time_estimate"]) == (0, 0)
        assert told["unknown"] == ["remaining_time_estimate", "current_loss"]
        usage: dict[str, Any] = told["resource_usage"]
        assert (usage["gpu_utilization"], usage["gpu_memory_used"], usage["cpu_utilization"]) == ([], [], 0)
        assert usage["unknown"] == ["cpu_utilization", "ram_used"]
        metrics = peft_studio_answers.metrics(job(), None)
        assert None not in self.numbers(metrics)
        assert {"loss", "throughput", "estimated_time_remaining"} < set(metrics["unknown"])

    @pytest.mark.parametrize("state", ON_THEIR_WAY)
    def test_paused_and_stopped_are_said_of_jobs_that_rest(self, state: Job.State.ValueType) -> None:
        assert peft_studio_answers.state(job(state)) not in ("paused", "stopped", "completed", "failed")

    def test_a_change_of_state_is_told_once_and_a_pause_that_is_over_too(self) -> None:
        frames = PeftStudioFrames(everything=False)
        told = [*frames.connected(job(Job.QUEUED, started=False))]
        resumed = job(Job.RUNNING, epoch=1)
        resumed.pause.CopyFrom(pause(1, 50, 51, 52))
        for news in between(Seen.of(job(Job.RUNNING), epoch=0), resumed, epochs(1)):
            told += frames.frames(news, None)
        changes = [each["data"]["status"] for each in told if each["type"] == "status_change"]
        assert changes == ["created", "paused", "running"]
        assert [each["type"] for each in told].count("metrics") == 1


class TestWhatTrains:
    def test_is_a_setting(self) -> None:
        trained = Trained.from_environment(
            {
                "ADJOURN_ORIGIN_JOB_ENTRY_POINT": "mine.train:main",
                "ADJOURN_ORIGIN_JOB_RENAMED": "batch_size=bs, lr = rate",
                "ADJOURN_ORIGIN_JOB_ARGUMENTS": '{"slow": true}',
                "ADJOURN_ORIGIN_JOB_GPUS": "2",
            }
        )
        assert trained == Trained(
            entry_point="mine.train:main",
            renamed={"batch_size": "bs", "lr": "rate"},
            arguments={"slow": True},
            gpu_count=2,
        )
        assert Trained.from_environment({}) == Trained()

    def test_each_mistake_is_named(self) -> None:
        wrong = {
            "ADJOURN_ORIGIN_JOB_ENTRY_POINT": "main",
            "ADJOURN_ORIGIN_JOB_RENAMED": "batch_size",
            "ADJOURN_ORIGIN_JOB_ARGUMENTS": "[]",
            "ADJOURN_ORIGIN_JOB_GPUS": "-1",
        }
        with pytest.raises(InvalidSettings) as error:
            Trained.from_environment(wrong)
        assert set(error.value.problems) == set(wrong)
