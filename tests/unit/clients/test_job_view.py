"""What people see, rendered to text."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, RenderableType

from adjourn.cli import formatting, job_view, phrases, tables, usage_table
from adjourn.reasons import WHOLE_LOG
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Condition, Failure, Hold, Job, JobSpec, Pause, PauseMode, Progress
from adjourn.v1.usage_pb2 import EpochMetrics, GpuSample, ResourceSample
from adjourn.v1.worker_pb2 import Device, Worker

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
NOW = START + timedelta(minutes=10)


UNPLACED = Condition(type=Condition.UNPLACED, reason="NO_CAPACITY", message="every worker is busy")


def lasting(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration


@pytest.fixture(autouse=True)
def central_europe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


def at(seconds: float) -> Timestamp:
    moment = Timestamp()
    moment.FromDatetime(START + timedelta(seconds=seconds))
    return moment


def text(renderable: RenderableType, *, width: int = 140, colour: bool = False) -> str:
    out = StringIO()
    Console(file=out, width=width, force_terminal=colour, color_system="standard" if colour else None).print(renderable)
    return out.getvalue()


def pause(**fields: Any) -> Pause:
    whole: dict[str, Any] = {
        "cause": Pause.HELD, "mode": PauseMode.EPOCH, "actor": "eva@lab", "reason": "lunch",
        "request_time": at(60), "boundary_time": at(64.2), "snapshot_time": at(64.25), "release_time": at(65),
        "pause_time": at(67), "resume_request_time": at(127), "resume_time": at(129.5), "epoch": 5, "step": 500,
        "checkpoint": "jobs/digits/checkpoints/7", "from_worker": "workers/a", "to_worker": "workers/b",
        "verdict": Pause.EXACT,
    }  # fmt: skip
    return Pause(**{**whole, **fields})


def paused() -> Job:
    job = Job(name="jobs/digits", state=Job.PAUSED, latest_checkpoint="jobs/digits/checkpoints/7", attempt=3)
    job.spec.entry_point, job.spec.total_epochs = "digits:main", 20
    job.spec.model_name, job.spec.dataset_uri, job.spec.seed = "small-cnn", "s3://data/digits", 42
    job.spec.args.update({"lr": 0.001})
    job.labels["team"] = "vision"
    job.create_time.CopyFrom(at(-5))
    job.start_time.CopyFrom(at(0))
    progress = job.progress
    progress.epoch, progress.step, progress.loss = 5, 500, 0.123456
    progress.metrics["val_loss"] = 0.25
    progress.best.metric, progress.best.value, progress.best.epoch, progress.best.stale_epochs = "val_loss", 0.2, 3, 2
    progress.active_duration.FromSeconds(64)
    progress.remaining_duration.FromSeconds(192)
    job.pause.CopyFrom(pause())
    for field in ("resume_request_time", "resume_time", "to_worker", "verdict"):
        job.pause.ClearField(field)
    sample = job.pause.usage
    sample.gpus.add(index=0, utilization_percent=95, memory_used_bytes=18 << 30, memory_total_bytes=24 << 30)
    sample.gpus.add(index=1, utilization_percent=45, memory_used_bytes=6 << 30, memory_total_bytes=24 << 30)
    sample.worker_cpu_percent, sample.cpu_percent = 72, 150
    sample.worker_memory_bytes, sample.worker_memory_limit_bytes, sample.memory_bytes = 8 << 30, 64 << 30, 2 << 30
    job.pause.released_gpu_memory_bytes = 24 << 30
    job.pause.checkpoint_size_bytes, job.pause.checkpoint_uploaded_bytes = 3 << 30, 1 << 20
    job.pause.checkpoint_verified, job.pause.saved_gpu_seconds = True, 7200
    job.pause.saved_cost.currency, job.pause.saved_cost.amount = "EUR", 5
    progress.least_remaining_duration.FromSeconds(180)
    progress.most_remaining_duration.FromSeconds(240)
    job.holds.add(kind=Hold.USER, actor="eva@lab", reason="lunch")
    job.past_pauses.append(pause(epoch=2, step=200))
    return job


def test_a_paused_run_tells_everything() -> None:
    shown = text(job_view.paused_run(paused(), now=NOW))
    for fact in (
        "PAUSED", "rests after epoch 5, on no worker; `adjourn resume digits` goes on with epoch 6",
        "digits:main", "small-cnn", "s3://data/digits", "lr=0.001", "42", "team=vision",
        "2026-03-01 12:59:55 CET", "2026-03-01 13:00:00 CET",
        "5 of 20", "25 %", "500", "0.12346", "val_loss 0.25", "val_loss 0.2 in epoch 3, 2 epochs without improvement",
        "1 min 04 s, pauses left out", "10 min 00 s since the start",
        "about 3 min 12 s of training, likely 3 min 00 s to 4 min 00 s",
        "3.0 GiB, 1.0 MiB uploaded, verified", "5.00 EUR",
        "jobs/digits/checkpoints/7", "eva@lab", "lunch", "held, epoch", "at epoch 5, step 500", "24.0 GiB",
        "95 %", "75 %", "18.0 of 24.0 GiB", "GPU average", "70 %", "50 %", "1.5 cores", "8.0 of 64.0 GiB",
        "4.2 s", "50 ms", "750 ms", "2.0 s", "1 min 00 s", "2.5 s", "a → b", "EXACT", "Earlier pauses",
        "for 8m53s now", "1: 2026-03-01 13:01:00 CET by eva@lab: lunch",
    ):  # fmt: skip
        assert fact in shown, fact


def test_each_verdict_is_told_in_words() -> None:
    assert set(phrases.VERDICTS) | {Pause.VERDICT_UNSPECIFIED} == set(Pause.Verdict.values())
    job = paused()
    job.spec.drill_steps = 50
    job.pause.verdict = Pause.EXACT_REPLAYED
    shown = text(job_view.paused_run(job, now=NOW))
    assert "50 steps, once, in a second process" in shown
    assert "EXACT_REPLAYED: every digest is equal, and a drill came to the same bits" in shown


def test_an_empty_job_is_shown_without_a_fault() -> None:
    shown = text(job_view.paused_run(Job(name="jobs/x"), now=NOW))
    assert "a state that this version does not know" in shown
    assert "1970" not in shown


def test_a_failed_job_tells_why() -> None:
    job = Job(name="jobs/x", state=Job.FAILED, attempt=4, restart_count=3)
    job.failure.reason, job.failure.message, job.failure.attempt = "TRAINING_RAISED", "ValueError: bad\n  line", 4
    shown = text(job_view.paused_run(job, now=NOW))
    for fact in ("gave up (TRAINING_RAISED)", "ValueError: bad", "4, of which 3 after a failure", "no checkpoint"):
        assert fact in shown


def test_what_a_job_needs_of_a_worker_is_shown() -> None:
    job = Job(name="jobs/x", spec=JobSpec(gpu_count=2, worker_selector={"zone": "b"}))
    assert "2 GPUs, a worker with zone=b" in text(job_view.paused_run(job))
    assert "needs" not in text(job_view.paused_run(Job(name="jobs/x")))


def test_what_users_wrote_cannot_steer_the_terminal() -> None:
    job = paused()
    job.pause.reason = "[red]x[/]\x1b[2J\x07"
    shown = text(job_view.paused_run(job, now=NOW))
    assert "[red]x[/]\N{REPLACEMENT CHARACTER}[2J" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(("share", "code"), [(90.5, "31"), (90, "33"), (70.5, "33"), (70, "32"), (10, "32")])
def test_shares_are_coloured_by_threshold(share: float, code: str) -> None:
    sample = ResourceSample(gpus=[GpuSample(utilization_percent=share)])
    assert f"\x1b[{code}m{share:.0f} %" in text(usage_table.usage_table(sample), colour=True)


def test_what_a_machine_cannot_tell_is_a_dash() -> None:
    shown = text(usage_table.usage_table(ResourceSample(gpus=[GpuSample(index=3)])))
    assert "GPU 3" in shown
    assert "0 %" not in shown
    assert "GPU average" not in shown
    assert "-" in text(usage_table.usage_table(ResourceSample(gpus=[GpuSample(), GpuSample(index=1)])))


def test_phases_that_were_not_reached_are_dashes() -> None:
    running = Pause(request_time=at(0), boundary_time=at(2), from_worker="workers/a")
    row = text(job_view.phase_table([running], first=7)).splitlines()[-2]
    assert row.split() == ["7", "-", "2.0", "s", "-", "-", "-", "-", "-", "a", "-"]


def test_phases_fit_a_narrow_terminal() -> None:
    shown = text(job_view.phase_table([pause(from_worker="workers/worker-1", to_worker="workers/worker-2")]), width=80)
    assert "…" not in shown
    for fact in ("boundary", "snapshot", "750 ms", "1 min 00 s", "worker-2", "EXACT"):
        assert fact in shown


def test_a_pause_that_never_rested_tells_what_became_of_it() -> None:
    assert "the run finished first" in text(job_view.phase_table([Pause(note="the run finished first")]))


def test_clocks_that_disagree_give_no_negative_phase() -> None:
    assert job_view.between(at(10), at(9)) == "0 ms"


def sentence(state: Job.State.ValueType, **fields: Any) -> str:
    job = Job(name="jobs/x", state=state, worker="workers/a", **fields)
    job.spec.total_epochs = 20
    job.progress.epoch = 4
    return phrases.situation(job, NOW)


AMID = Progress(epoch=4, step=430, epoch_step=30, steps_per_epoch=100)


@pytest.mark.parametrize(
    ("state", "fields", "said"),
    [
        (Job.QUEUED, {}, "waits for a worker, to go on after epoch 4"),
        (Job.STARTING, {}, "a loads code, data and checkpoint"),
        (Job.RUNNING, {}, "trains on a"),
        (Job.PAUSING, {}, "will pause at the next epoch boundary"),
        (Job.PAUSING, {"pause": Pause(boundary_epoch=6)}, "will pause after epoch 6"),
        (Job.PAUSING, {"pause": Pause(boundary_epoch=20)}, "is in its last epoch: it will finish rather than pause"),
        (Job.PAUSING, {"pause": Pause(mode=PauseMode.STEP)}, "will pause after the next step"),
        (
            Job.PAUSING,
            {"pause": Pause(mode=PauseMode.LATEST, lost_steps=37, lost_duration=lasting(4))},
            "is being stopped now, and gives up 37 steps (4.0 s of training)",
        ),
        (Job.PAUSING, {"pause": Pause(mode=PauseMode.LATEST)}, "nothing is given up, as far as is known"),
        (
            Job.PAUSING,
            {"pause": Pause(mode=PauseMode.LATEST, release_time=at(0))},
            "has stopped; its checkpoint is being made durable",
        ),
        (
            Job.PAUSED,
            {"pause": Pause(lost_steps=37, lost_duration=lasting(4))},
            ", gave up 37 steps (4.0 s of training);",
        ),
        (Job.PAUSED, {"progress": AMID}, "rests within epoch 5, after 30 of 100 steps, on no worker"),
        (Job.PAUSED, {"progress": AMID}, "`adjourn resume x` goes on there"),
        (Job.QUEUED, {"progress": AMID}, "to go on within epoch 5, after 30 of 100 steps"),
        (Job.PAUSING, {"pause": Pause(boundary_time=at(0))}, "has stopped; its checkpoint is being made durable"),
        (
            Job.PAUSED,
            {"holds": [Hold(kind=Hold.Kind.ValueType(4), actor="ops", reason="spent")]},
            "held by unknown (4) ops: spent",
        ),
        (Job.CANCELLING, {}, "is being stopped for good"),
        (
            Job.CANCELLED,
            {"latest_checkpoint": "jobs/x/checkpoints/1"},
            "`adjourn resume x` goes on from its checkpoint",
        ),
        (Job.SUCCEEDED, {}, "trained to its end, 4 epochs"),
        (Job.FAILED, {"latest_checkpoint": "c"}, "`adjourn resume x` goes on from its checkpoint"),
    ],
)
def test_each_state_is_a_sentence(state: Job.State.ValueType, fields: dict[str, Any], said: str) -> None:
    assert said in sentence(state, **fields)


@pytest.mark.parametrize("state", [Job.PAUSED, Job.CANCELLED, Job.SUCCEEDED, Job.FAILED])
def test_a_process_that_may_live_out_of_reach_is_told_of(state: Job.State.ValueType) -> None:
    left = Condition(type=Condition.RELEASE_UNCONFIRMED, reason="WORKER_OUT_OF_REACH", message="attempt 1 on workers/a")
    said = sentence(state, conditions=[left])
    assert said.endswith(": attempt 1 on workers/a")
    assert "on no worker" not in said


def test_a_prediction_counts_down() -> None:
    asked = Pause(boundary_epoch=5, request_time=at(595), predicted_boundary_time=at(604))
    assert sentence(Job.PAUSING, pause=asked) == "will pause after epoch 5, in about 4.0 s"
    slow_clock = Pause(boundary_epoch=5, request_time=at(700), predicted_boundary_time=at(703))
    assert sentence(Job.PAUSING, pause=slow_clock) == "will pause after epoch 5, in about 3.0 s"
    overdue = Pause(boundary_epoch=5, request_time=at(0), predicted_boundary_time=at(3))
    assert sentence(Job.PAUSING, pause=overdue) == "will pause after epoch 5, later than foreseen"


def test_a_pause_in_the_last_epoch_is_not_promised() -> None:
    job = Job(state=Job.PAUSING)
    job.spec.total_epochs, job.progress.epoch = 5, 4
    assert phrases.situation(job, NOW) == "is in its last epoch: it will finish rather than pause"


def test_jobs_are_listed() -> None:
    shown = text(tables.job_table([paused(), Job(name="jobs/new", state=Job.QUEUED)]))
    for fact in (
        "digits",
        "PAUSED",
        "5/20",
        "0.12346",
        "val_loss 0.2",
        "1m04s",
        "3m12s",
        "small-cnn",
        "held by user eva@lab: lunch",
        "waits for a worker",
    ):
        assert fact in shown
    assert "QUEUED" in shown


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (Job(state=Job.QUEUED), "waits for a worker"),
        (Job(state=Job.QUEUED, conditions=[UNPLACED]), "NO_CAPACITY: every worker is busy"),
        (
            Job(state=Job.QUEUED, attempt=2, failure=Failure(reason="WORKER_LOST", message="w is silent", attempt=2)),
            "after WORKER_LOST: w is silent",
        ),
        (Job(state=Job.RUNNING, attempt=3, failure=Failure(reason="WORKER_LOST", attempt=2)), ""),
        (
            Job(state=Job.FAILED, failure=Failure(reason="TRAINING_RAISED", message=f"Tr\nValueError: no{WHOLE_LOG}l")),
            "TRAINING_RAISED: ValueError: no",
        ),
        (Job(state=Job.PAUSED, holds=[Hold(kind=Hold.OPERATOR, actor="ops")]), "held by operator ops"),
        (Job(state=Job.SUCCEEDED), ""),
    ],
)
def test_why_a_job_waits_rests_or_failed_is_said_on_a_line(job: Job, said: str) -> None:
    assert phrases.why(job) == said
    assert said in text(tables.job_table([job]), width=200)
    assert said in phrases.line(job)


def test_why_a_job_waits_is_listed_however_narrow_the_terminal() -> None:
    jobs = [Job(name="jobs/sweep-learning-rate-0.001-0017", state=Job.QUEUED, conditions=[UNPLACED])]
    shown = text(tables.job_table(jobs), width=66)
    assert "NO_CAPACITY: every work" in shown
    assert max(map(len, shown.splitlines())) <= 66


def test_a_state_of_a_newer_version_is_shown_by_number() -> None:
    job = Job.FromString(b"\x20\x63")
    assert "UNKNOWN (99)" in text(tables.job_table([job]))


def test_epochs_are_listed_with_every_metric() -> None:
    epochs = [
        EpochMetrics(epoch=1, step=10, attempt=1, active_duration=lasting(2.5), values={"train_loss": 1.5}, best=True),
        EpochMetrics(epoch=2, step=20, attempt=2, active_duration=lasting(0.5), values={"val_loss": 0.5}),
    ]
    lines = text(tables.epoch_tables(epochs, 140)).splitlines()
    assert [line.split() for line in lines] == [
        ["epoch", "step", "time", "train_loss", "val_loss", "attempt"],
        ["1", "*", "10", "2.5s", "1.5", "-", "1"],
        ["2", "20", "0.5s", "-", "0.5", "2"],
    ]
    narrow = [line.split() for line in text(tables.epoch_tables(epochs, 40)).splitlines()]
    assert narrow[0] == ["epoch", "step", "time", "train_loss"]
    assert narrow[4:6] == [["epoch", "step", "val_loss", "attempt"], ["1", "*", "10", "-", "1"]]


def test_checkpoints_are_listed() -> None:
    good = Checkpoint(name="jobs/x/checkpoints/1-ab", epoch=3, step=30, size_bytes=3 << 20, uploaded_bytes=1 << 10)
    good.create_time.CopyFrom(at(0))
    good.retained_for.extend([Checkpoint.LATEST, Checkpoint.PAUSE])
    good.state_digest = "ab" * 32
    shown = text(tables.checkpoint_table([good, Checkpoint(name="jobs/x/checkpoints/0")]))
    for fact in ("1-ab", "3.0 MiB", "1.0 KiB", "latest, pause", "abababababab", "CET"):
        assert fact in shown


def test_eight_gpus_fit_eighty_columns() -> None:
    gpus = [
        GpuSample(
            index=number, utilization_percent=100, memory_used_bytes=80 << 30, memory_total_bytes=80 << 30,
            job_memory_bytes=80 << 30, temperature_celsius=91, power_watts=1000,
        )
        for number in range(8)
    ]  # fmt: skip
    sample = ResourceSample(gpus=gpus, worker_memory_bytes=1 << 40, worker_memory_limit_bytes=2 << 40)
    lines = text(usage_table.usage_table(sample), width=80).splitlines()
    assert sum("80.0 of 80.0 GiB" in line and line.rstrip().endswith("91 °C  1000 W") for line in lines) == 8
    assert any("1.0 of 2.0 TiB" in line for line in lines)
    devices = [Device(index=number, model="NVIDIA H100", memory_bytes=80 << 30) for number in range(8)]
    devices.append(Device(index=8, model="A10", memory_bytes=24 << 30))
    devices[3].quarantined = devices[4].quarantined = True
    workers = text(tables.worker_table([Worker(name="workers/a", devices=devices)]), width=120)
    assert "8 x NVIDIA H100 (80.0 GiB), A10 (24.0 GiB); quarantined: GPU 3, 4" in workers


def test_workers_are_listed() -> None:
    gpu = Device(index=0, model="A100", memory_bytes=80 << 30, quarantined=True)
    busy = Worker(
        name="workers/a", state=Worker.ACTIVE, devices=[gpu], jobs=["jobs/x"], labels={"zone": "b"}, report_time=at(0)
    )
    shown = text(tables.worker_table([busy, Worker(name="workers/b", state=Worker.LOST, cpu_slots=2)]))
    for fact in ("ACTIVE", "A100 (80.0 GiB); quarantined: GPU 0", "zone=b", "LOST", "none", "2"):
        assert fact in shown


@pytest.mark.parametrize(
    ("seconds", "read"),
    [
        (0, "0 ms"),
        (-3, "0 ms"),
        (0.85, "850 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (192, "3 min 12 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_durations_read_well(seconds: float, read: str) -> None:
    assert formatting.duration(seconds) == formatting.duration(timedelta(seconds=seconds)) == read


@pytest.mark.parametrize(
    ("seconds", "read"),
    [(-1, "0.0s"), (9.94, "9.9s"), (9.96, "10s"), (192, "3m12s"), (7500, "2h05m"), (273600, "3d04h")],
)
def test_durations_in_tables_are_short(seconds: float, read: str) -> None:
    assert formatting.brief(seconds) == formatting.brief(timedelta(seconds=seconds)) == read


@pytest.mark.parametrize(
    ("count", "read"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (24 << 30, "24.0 GiB"),
        (3 << 50, "3.0 PiB"),
    ],
)
def test_sizes_read_well(count: int, read: str) -> None:
    assert formatting.size(count) == read


def test_times_are_local_with_their_zone() -> None:
    assert formatting.moment(at(0)) == "2026-03-01 13:00:00 CET"
    assert formatting.clock(at(0)) == "13:00:00"


def test_what_hangs_is_shown_with_what_becomes_of_it() -> None:
    job = Job(name="jobs/a", state=Job.RUNNING, spec=JobSpec(hang_policy=JobSpec.REPORT, hang_timeout=lasting(90)))
    job.conditions.add(type=Condition.HANGING, reason="TRAINING_HANGS", message="training has not got on for 130 s")
    shown = text(job_view.paused_run(job, now=NOW))
    assert "it is only reported, after 1 min 30 s without a step" in shown
    assert "TRAINING_HANGS since" in shown
    assert "training has not got on for 130 s" in shown
    assert "if it hangs" not in text(job_view.paused_run(Job(name="jobs/a", state=Job.RUNNING), now=NOW))
