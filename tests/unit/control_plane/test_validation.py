"""What is wrong with a request, field by field."""

import re
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from adjourn.v1.job_pb2 import Job, JobSpec, PauseMode
from adjourn.v1.job_service_pb2 import CreateJobRequest, ListResourceSamplesRequest, ListStepMetricsRequest
from adjourn_control_plane.api import validation

GOOD: dict[str, Any] = {"entry_point": "package.module:main"}


def request(*, job_id: str = "", request_id: str = "", labels: Any = None, **spec: Any) -> CreateJobRequest:
    job = Job(spec=JobSpec(**(GOOD | spec)), labels=labels)
    return CreateJobRequest(job_id=job_id, job=job, request_id=request_id)


def test_a_spec_of_defaults_is_accepted() -> None:
    assert validation.create_job(request()) == {}


def test_everything_at_its_limit_is_accepted() -> None:
    assert (
        validation.create_job(
            request(
                job_id="a" * 63,
                request_id="x" * 128,
                labels={"a/b.c_d-e": "v" * 256, "k": ""},
                bundle=f"bundles/{'0' * 64}",
                total_epochs=10_000_000,
                gpu_count=1024,
                seed=0,
                checkpoint_epochs=0,
                checkpoint_steps=1_000_000_000,
                checkpoint_interval=Duration(seconds=30 * 24 * 3600),
                max_restarts=0,
                model_name="m" * 1024,
                worker_selector={"zone": "x"},
                environment={"_a1": "", "LD_PRELOAD": "/x.so", "CUBLASLT_X": "é"},
            )
        )
        == {}
    )


@pytest.mark.parametrize("job_id", ["A", "-a", "a-", "a_b", "a/b", "a.b", "ä", "a" * 64, "a\n", "../a", "a\0"])
def test_a_malformed_id(job_id: str) -> None:
    assert list(validation.create_job(request(job_id=job_id))) == ["job_id"]


@pytest.mark.parametrize(
    "entry_point",
    [
        "",
        "main",
        "a.b",
        ":f",
        "a:",
        "a b:f",
        "a.:f",
        ".a:f",
        "a..b:f",
        "a:b:c",
        "a:b.c",
        "1a:f",
        "a-b:f",
        "a:f\n",
        "a/b",
    ],
)
def test_a_malformed_entry_point(entry_point: str) -> None:
    assert list(validation.create_job(request(entry_point=entry_point))) == ["job.spec.entry_point"]


@pytest.mark.parametrize("entry_point", ["a:f", "a.b_c.d2:_main", "модуль:главная"])
def test_an_entry_point(entry_point: str) -> None:
    assert validation.create_job(request(entry_point=entry_point)) == {}


@pytest.mark.parametrize(
    "bundle", ["0" * 64, "bundles/0", f"bundles/{'G' * 64}", f"bundles/{'0' * 64}/x", "bundles/../x"]
)
def test_a_malformed_bundle(bundle: str) -> None:
    assert list(validation.create_job(request(bundle=bundle))) == ["job.spec.bundle"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("total_epochs", -1),
        ("total_epochs", 10_000_001),
        ("gpu_count", -1),
        ("gpu_count", 1025),
        ("checkpoint_epochs", -1),
        ("checkpoint_steps", -1),
        ("checkpoint_steps", 1_000_000_001),
        ("drill_steps", -1),
        ("drill_steps", 1_000_001),
        ("max_restarts", -1),
        ("max_restarts", 1_000_001),
        ("seed", -1),
    ],
)
def test_a_number_out_of_range(field: str, value: Any) -> None:
    ((path, why),) = validation.create_job(request(**{field: value})).items()
    assert path == f"job.spec.{field}"
    assert str(value) in why


@pytest.mark.parametrize(
    ("args", "path"),
    [
        (Struct(fields={"lr": Value()}), "['lr']"),
        (Struct(fields={"deep": Value(list_value=ListValue(values=[Value(null_value=0), Value()]))}), "['deep'][1]"),  # type: ignore[arg-type]
        (Struct(fields={"a": Value(struct_value=Struct(fields={"b": Value()}))}), "['a']['b']"),
    ],
)
def test_an_argument_without_a_value(args: Struct, path: str) -> None:
    assert list(validation.create_job(request(args=args))) == [f"job.spec.args{path}"]


def test_arguments_may_be_null_and_empty() -> None:
    args = Struct()
    args.update({"none": None, "empty": {}, "nothing": [], "no": False, "zero": 0, "text": ""})
    assert validation.create_job(request(args=args)) == {}


def test_a_drill_needs_epochs() -> None:
    assert validation.create_job(request(total_epochs=1, drill_steps=5)) == {}
    assert validation.create_job(request(total_epochs=0, drill_steps=0)) == {}
    assert list(validation.create_job(request(total_epochs=0, drill_steps=5))) == ["job.spec.drill_steps"]


def test_every_number_of_the_spec_has_a_range() -> None:
    numbers = {field.name for field in JobSpec.DESCRIPTOR.fields if field.cpp_type in (1, 2, 3, 4)}
    assert {field for field, _, _ in validation.RANGES} == numbers


@pytest.mark.parametrize(
    ("seconds", "nanos"), [(0, 0), (0, 999_999_999), (-5, 0), (30 * 24 * 3600, 1), (5, -1), (5, 1_000_000_000)]
)
@pytest.mark.parametrize("field", ["hang_timeout", "checkpoint_interval"])
def test_a_duration_out_of_range(field: str, seconds: int, nanos: int) -> None:
    given: Any = Duration(seconds=seconds, nanos=nanos)
    assert list(validation.create_job(request(**{field: given}))) == [f"job.spec.{field}"]


def test_what_is_to_become_of_training_that_hangs() -> None:
    for policy in JobSpec.HangPolicy.values():
        for timeout in (Duration(seconds=1), Duration(seconds=2, nanos=5), Duration(seconds=30 * 24 * 3600)):
            assert validation.create_job(request(hang_policy=policy, hang_timeout=timeout)) == {}
    assert list(validation.create_job(request(hang_policy=17))) == ["job.spec.hang_policy"]


@pytest.mark.parametrize("field", ["model_name", "dataset_uri", "entry_point"])
def test_a_text_that_is_too_long(field: str) -> None:
    value: Any = "m:" + "x" * 1024
    assert list(validation.create_job(request(**{field: value}))) == [f"job.spec.{field}"]


def test_arguments_that_are_too_large() -> None:
    spec = ParseDict({"entryPoint": "m:f", "args": {"text": "x" * (256 << 10)}}, JobSpec())
    assert list(validation.spec(spec)) == ["job.spec.args"]


@pytest.mark.parametrize(
    "labels",
    [{"": "v"}, {"a b": "v"}, {"-a": "v"}, {"a" * 64: "v"}, {"a": "v" * 257}, {f"k{i}": "" for i in range(65)}],
)
def test_labels(labels: dict[str, str]) -> None:
    for violations in (
        validation.create_job(request(labels=labels)),
        validation.create_job(request(worker_selector=labels)),
    ):
        (field,) = violations
        assert field.startswith(("job.labels", "job.spec.worker_selector"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, "") for name in ("", "1a", "a-b", "ä", "a=b", "a\n")),
        *((name, "1") for name in ("ADJOURN_LAUNCHER", "PYTHONHASHSEED", "PYTHONPATH", "OMP_NUM_THREADS", "MKL_CBWR")),
        *((name, ":16:8") for name in ("CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG")),
        ("A", "a\0b"),
    ],
)
def test_variables_that_cannot_be_set(name: str, value: str) -> None:
    (field,) = validation.create_job(request(environment={name: value, "GOOD": "1"}))
    assert field == f"job.spec.environment[{name!r}]"


@pytest.mark.parametrize("text", ["", "-r other.txt", "a b", "a @ https://a.b/c.whl", "a==", "a\0"])
def test_what_is_no_requirement(text: str) -> None:
    wrong = validation.create_job(request(requirements=["torch>=2; python_version>'3'", text]))
    assert list(wrong) == ["job.spec.requirements[1]"]
    assert list(validation.create_job(request(requirements=["a"] * 1001))) == ["job.spec.requirements"]


@pytest.mark.parametrize("variables", [{f"A{i}": "" for i in range(257)}, {"A": "ä" * (32 << 10)}])
def test_too_many_or_too_long_variables(variables: dict[str, str]) -> None:
    assert list(validation.create_job(request(environment=variables))) == ["job.spec.environment"]


@pytest.mark.parametrize("empty", [CreateJobRequest(), CreateJobRequest(job=Job())])
def test_a_request_without_a_spec(empty: CreateJobRequest) -> None:
    assert validation.create_job(empty) == {"job.spec": "must be given"}


def test_all_that_is_wrong_is_said_at_once() -> None:
    wrong = request(job_id="A", request_id="x" * 129, labels={"": ""}, entry_point="x", total_epochs=-1, bundle="b")
    assert len(validation.create_job(wrong)) == 6


def test_what_is_said_back_is_short() -> None:
    long = "x" * 1_000_000
    for violations in (
        validation.create_job(request(job_id=long, entry_point=long, labels={long: ""})),
        validation.name("name", long),
        validation.checkpoint_name("name", long),
        validation.verb("jobs/a", request_id=long, etag=long, reason=long),
    ):
        assert violations
        assert all(len(field) + len(why) < 500 for field, why in violations.items())


@pytest.mark.parametrize("name", ["", "a", "jobs/", "jobs/A", "jobs/a/b", "workers/a", "/jobs/a", "jobs/a\n", "JOBS/a"])
def test_a_malformed_name(name: str) -> None:
    assert list(validation.name("name", name)) == ["name"]


def test_names() -> None:
    assert validation.name("name", "jobs/a") == validation.name("name", "workers/a", "workers") == {}
    assert validation.checkpoint_name("name", "jobs/a/checkpoints/1-0f-2") == {}
    for wrong in ("jobs/a", "jobs/a/checkpoints/", "jobs/A/checkpoints/1", "jobs/a/checkpoints/../b", ""):
        assert list(validation.checkpoint_name("parent", wrong)) == ["parent"]


def test_what_every_verb_carries() -> None:
    assert validation.verb("jobs/a", request_id="r", etag="1", reason="why") == {}
    wrong = validation.verb("a", request_id="x" * 129, etag="x" * 101, reason="x" * 1025)
    assert set(wrong) == {"name", "request_id", "etag", "reason"}


def test_pause_modes() -> None:
    assert validation.pause_mode(0) == validation.pause_mode(PauseMode.LATEST) == {}
    assert validation.pause_mode(17) == {"mode": "must be one of EPOCH, STEP, LATEST; is 17"}


def test_ranges_of_series() -> None:
    assert validation.step_range(ListStepMetricsRequest(start_step=1, end_step=9)) == {}
    assert validation.step_range(ListStepMetricsRequest(start_step=-1, max_steps=-2)) == {
        "start_step": "must be 0 or more; is -1",
        "max_steps": "must be 0 or more; is -2",
    }
    assert validation.time_range(ListResourceSamplesRequest(start_time=Timestamp(seconds=5))) == {}
    wrong = ListResourceSamplesRequest(end_time=Timestamp(seconds=1 << 40), max_samples=-1)
    assert validation.time_range(wrong).keys() == {"end_time", "max_samples"}


def test_states() -> None:
    assert validation.states([Job.PAUSED, Job.QUEUED]) == {}
    assert re.search("0, 99", validation.states([0, 99, Job.PAUSED])["states"])


@pytest.mark.parametrize(
    ("retention", "field"),
    [
        (JobSpec.Retention(keep_last=0), "keep_last"),
        (JobSpec.Retention(keep_last=-1), "keep_last"),
        (JobSpec.Retention(keep_last=1_000_001), "keep_last"),
        (JobSpec.Retention(best_metric="x" * 1025), "best_metric"),
        (JobSpec.Retention(best=9), "best"),  # type: ignore[arg-type]
    ],
)
def test_retention_that_cannot_be_is_refused(retention: JobSpec.Retention, field: str) -> None:
    assert set(validation.spec(JobSpec(entry_point="a:b", retention=retention))) == {f"job.spec.retention.{field}"}
    assert (
        validation.spec(JobSpec(entry_point="a:b", retention=JobSpec.Retention(keep_last=1, best_metric="loss"))) == {}
    )
