"""PURE. Checks requests field by field. Each function returns what is wrong; empty if nothing is."""

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC
from typing import Final, Literal

from google.protobuf.struct_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp
from packaging.requirements import InvalidRequirement, Requirement

from adjourn.environments import CPU_VARIABLES
from adjourn.v1.job_pb2 import Job, JobSpec, PauseMode
from adjourn.v1.job_service_pb2 import (
    CancelJobRequest,
    CreateJobRequest,
    HoldJobsRequest,
    ListResourceSamplesRequest,
    ListStepMetricsRequest,
    ReleaseJobsRequest,
    StreamLogsRequest,
    UpdateJobRequest,
)
from adjourn_control_plane.job.requests import LABELS, UPDATABLE

ID: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
ID_RULE: Final = "1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends"
ENTRY_POINT: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
BUNDLE: Final = re.compile(r"bundles/[0-9a-f]{64}")
LABEL: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
MAX_LABELS: Final = 64
MAX_LABEL_VALUE: Final = 256
MAX_ARGS_BYTES: Final = 256 << 10
MAX_TEXT: Final = 1024
MIN_SECONDS: Final = 1
"""Of a duration: an agent looks at its trainings twice a second, and a checkpoint takes longer than that."""
MAX_SECONDS: Final = 30 * 24 * 3600
MAX_REQUIREMENTS: Final = 1000
MAX_VARIABLES: Final = 256
MAX_VARIABLES_BYTES: Final = 64 << 10
VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
READ_BEFORE: Final = ("PYTHON", *CPU_VARIABLES)
"""Prefixes of variables that are read before a job's are set: its training process is a fork, with torch loaded."""
OF_THE_WORKER: Final = frozenset({"CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG"})
"""Variables that the worker sets: the job's GPUs, and what makes them compute the same each time."""
MAX_KEPT: Final = 1_000_000
"""Checkpoints of a job."""
MAX_INT32: Final = (1 << 31) - 1
MAX_OFFSET: Final = 10**15
"""Of a log: keys have so many digits."""
MAX_TAIL: Final = 1_000_000
"""Lines at the end of a log."""

MAX_QUOTED: Final = 64
"""Characters of a wrong value that are quoted: an answer must fit into metadata."""
MAX_VIOLATIONS: Final = 10

Violations = dict[str, str]

RANGES: Final = (
    ("total_epochs", 0, 10_000_000),
    ("gpu_count", 0, 1024),
    ("checkpoint_epochs", 0, 10_000_000),
    ("checkpoint_steps", 0, 1_000_000_000),
    ("drill_steps", 0, 1_000_000),
    ("max_restarts", 0, 1_000_000),
    ("seed", 0, (1 << 63) - 1),
)
"""Fields of JobSpec, with the least and the greatest value that is accepted."""


def create_job(request: CreateJobRequest) -> Violations:
    """Returns the fields of a CreateJobRequest that cannot be accepted, and why."""
    found: Violations = {}
    if request.job_id and not ID.fullmatch(request.job_id):
        found["job_id"] = f"must be {ID_RULE}; is {quoted(request.job_id)}"
    if not request.HasField("job") or not request.job.HasField("spec"):
        found["job.spec"] = "must be given"
        return found
    found.update(spec(request.job.spec))
    found.update(labels("job.labels", request.job.labels))
    found.update(short_id("request_id", request.request_id))
    return found


def stream_logs(request: StreamLogsRequest) -> Violations:
    """Returns what cannot be accepted of a StreamLogsRequest, but for an attempt that the job does not have."""
    found = name("name", request.name)
    for field, value, most in (
        ("attempt", request.attempt, MAX_INT32),
        ("offset", request.offset, MAX_OFFSET),
        ("tail_lines", request.tail_lines, MAX_TAIL),
    ):
        if not 0 <= value <= most:
            found[field] = f"must be 0 to {most}; is {value}"
    if request.offset and request.HasField("tail_lines"):
        found["tail_lines"] = "is for a log that is read from its end; leave out offset"
    return found


def update_job(request: UpdateJobRequest) -> Violations:
    """Returns what cannot be accepted of an UpdateJobRequest; fields beside the mask are not looked at."""
    job = request.job
    found = {
        **name("job.name", job.name),
        **short_id("request_id", request.request_id),
        **version("job.etag", job.etag),
    }
    paths = request.update_mask.paths
    if not paths:
        found["update_mask"] = f"must name fields of the job: {', '.join(UPDATABLE)}"
    elif unknown := sorted(set(paths) - set(UPDATABLE)):
        found["update_mask"] = f"may name {', '.join(UPDATABLE)}; not {quoted(', '.join(unknown))}"
    if LABELS in paths:
        found.update(labels("job.labels", job.labels))
    found.update(ranges(job.spec, [path.removeprefix("spec.") for path in paths if path.startswith("spec.")]))
    return found


def spec(spec: JobSpec) -> Violations:
    found: Violations = {}
    if not ENTRY_POINT.fullmatch(spec.entry_point):
        found["job.spec.entry_point"] = f"must be 'package.module:function'; is {quoted(spec.entry_point)}"
    if spec.bundle and not BUNDLE.fullmatch(spec.bundle):
        found["job.spec.bundle"] = "must be 'bundles/{sha256}', as UploadBundle returns it, or empty"
    found.update(ranges(spec, [field.name for field, _ in spec.ListFields()]))
    if spec.args.ByteSize() > MAX_ARGS_BYTES:
        found["job.spec.args"] = f"must take {MAX_ARGS_BYTES} bytes at most; takes {spec.args.ByteSize()}"
    elif (empty := unset(Value(struct_value=spec.args))) is not None:
        found[f"job.spec.args{empty}"] = "must have a value; one of none is null_value"
    for text in ("entry_point", "model_name", "dataset_uri"):
        if len(getattr(spec, text)) > MAX_TEXT:
            found[f"job.spec.{text}"] = f"must have {MAX_TEXT} characters at most"
    found.update(hangs(spec))
    found.update(duration("checkpoint_interval", spec))
    found.update(retention(spec))
    if spec.drill_steps > 0 and spec.total_epochs == 0:
        found.setdefault("job.spec.drill_steps", "needs epochs: a task has no checkpoint to go on from")
    found.update(labels("job.spec.worker_selector", spec.worker_selector))
    found.update(environment(spec.environment))
    found.update(requirements(spec.requirements))
    return found


def unset(value: Value) -> str | None:
    """Returns the path to a Value below this one whose kind is unset, which no JSON has; None if there is none."""
    match value.WhichOneof("kind"):
        case "struct_value":
            below = [(f"[{quoted(key)}]", each) for key, each in sorted(value.struct_value.fields.items())]
        case "list_value":
            below = [(f"[{number}]", each) for number, each in enumerate(value.list_value.values)]
        case None:
            return ""
        case _:
            return None
    return next((place + path for place, each in below if (path := unset(each)) is not None), None)


def requirements(given: Sequence[str]) -> Violations:
    """Checks what a job requires to be installed."""
    if len(given) > MAX_REQUIREMENTS or sum(map(len, given)) > MAX_ARGS_BYTES:
        return {"job.spec.requirements": f"must be {MAX_REQUIREMENTS} at most, of {MAX_ARGS_BYTES} characters in all"}
    return {
        f"job.spec.requirements[{number}]": f"must be a requirement of PEP 508 without a URL; is {quoted(text)}"
        for number, text in enumerate(given)
        if not is_requirement(text)
    }


def is_requirement(text: str) -> bool:
    try:
        return Requirement(text).url is None
    except InvalidRequirement:
        return False


def environment(variables: Mapping[str, str]) -> Violations:
    """Checks the environment variables of a training process."""
    field = "job.spec.environment"
    size = sum(len(name.encode()) + len(value.encode()) for name, value in variables.items())
    if len(variables) > MAX_VARIABLES or size > MAX_VARIABLES_BYTES:
        return {field: f"must have {MAX_VARIABLES} variables and {MAX_VARIABLES_BYTES} bytes at most"}
    wrong = {name: why for name, value in sorted(variables.items()) if (why := variable(name, value))}
    return {f"{field}[{quoted(name)}]": why for name, why in wrong.items()}


def variable(name: str, value: str) -> str:
    """Returns why a variable cannot be set; empty if it can."""
    if not VARIABLE.fullmatch(name):
        return "must have a name of letters, digits and '_', not a digit first"
    if "\0" in value:
        return "must have a value without null characters"
    if name.startswith("ADJOURN_") or name in OF_THE_WORKER:
        return "cannot be set for a job: the worker sets it"
    if name.startswith(READ_BEFORE):
        return "cannot be set for a job: it is read before, when Python and torch are loaded; set it for the worker"
    return ""


def retention(spec: JobSpec) -> Violations:
    """Checks which checkpoints are to be kept."""
    found: Violations = {}
    given = spec.retention
    if given.HasField("keep_last") and not 1 <= given.keep_last <= MAX_KEPT:
        found["job.spec.retention.keep_last"] = f"must be 1 to {MAX_KEPT}; is {given.keep_last}"
    if len(given.best_metric) > MAX_TEXT:
        found["job.spec.retention.best_metric"] = f"must have {MAX_TEXT} characters at most"
    if given.best not in JobSpec.Retention.Best.values():
        known = ", ".join(JobSpec.Retention.Best.keys()[1:])
        found["job.spec.retention.best"] = f"must be one of {known}; is {given.best}"
    return found


def hangs(spec: JobSpec) -> Violations:
    """Checks what is to become of training that hangs."""
    found: Violations = {}
    if spec.hang_policy not in JobSpec.HangPolicy.values():
        known = ", ".join(JobSpec.HangPolicy.keys()[1:])
        found["job.spec.hang_policy"] = f"must be one of {known}; is {spec.hang_policy}"
    return {**found, **duration("hang_timeout", spec)}


def duration(field: Literal["hang_timeout", "checkpoint_interval"], spec: JobSpec) -> Violations:
    """Checks a duration of a spec, if it is given."""
    given = getattr(spec, field)
    seconds = given.seconds + given.nanos / 1e9
    sound = 0 <= given.nanos < 1_000_000_000 and MIN_SECONDS <= seconds <= MAX_SECONDS
    if sound or not spec.HasField(field):
        return {}
    return {f"job.spec.{field}": f"must be {MIN_SECONDS} to {MAX_SECONDS} seconds; is {seconds:g}"}


def ranges(spec: JobSpec, fields: Collection[str]) -> Violations:
    """Checks the numbers among these fields of a spec."""
    return {
        f"job.spec.{field}": f"must be {low} to {high}; is {getattr(spec, field)}"
        for field, low, high in RANGES
        if field in fields and not low <= getattr(spec, field) <= high
    }


def labels(field: str, given: Mapping[str, str]) -> Violations:
    if len(given) > MAX_LABELS:
        return {field: f"must be {MAX_LABELS} at most; are {len(given)}"}
    for key, value in given.items():
        if not LABEL.fullmatch(key):
            return {f"{field}[{quoted(key)}]": "a key must be 1 to 63 letters, digits, '.', '_', '/' and '-'"}
        if len(value) > MAX_LABEL_VALUE:
            return {f"{field}[{quoted(key)}]": f"a value must have {MAX_LABEL_VALUE} characters at most"}
    return {}


def short_id(field: str, value: str) -> Violations:
    return {field: "must have 128 characters at most; use a UUID"} if len(value) > 128 else {}


def name(field: str, value: str, collection: str = "jobs") -> Violations:
    """Checks a resource name, `{collection}/{id}`."""
    head, _, tail = value.partition("/")
    if head == collection and ID.fullmatch(tail):
        return {}
    return {field: f"must be '{collection}/{{id}}', the id {ID_RULE}; is {quoted(value)}"}


def names(given: Collection[str]) -> Violations:
    """Checks the `names` of jobs that a request is about."""
    return {f"names[{i}]": why for i, value in enumerate(given) for why in name("", value).values()}


def checkpoint_name(field: str, value: str) -> Violations:
    if re.fullmatch(rf"jobs/{ID.pattern}/checkpoints/[0-9a-z-]{{1,100}}", value):
        return {}
    return {field: f"must be 'jobs/{{job}}/checkpoints/{{checkpoint}}'; is {quoted(value)}"}


def quoted(value: str) -> str:
    return repr(value) if len(value) <= MAX_QUOTED else f"{value[:MAX_QUOTED]!r}... ({len(value)} characters)"


def version(field: str, value: str) -> Violations:
    return {field: "must be the etag of a job"} if len(value) > MAX_QUOTED else {}


def verb(job: str, *, request_id: str, etag: str, reason: str = "") -> Violations:
    """Checks what every verb on a job carries."""
    return {
        **name("name", job),
        **short_id("request_id", request_id),
        **version("etag", etag),
        **text("reason", reason),
    }


def text(field: str, given: str) -> Violations:
    return {field: f"must have {MAX_TEXT} characters at most"} if len(given) > MAX_TEXT else {}


def selection(request: HoldJobsRequest | ReleaseJobsRequest) -> Violations:
    """Checks which jobs a call on many selects."""
    found = labels("labels", request.labels)
    found.update({f"names[{i}]": why for i, each in enumerate(request.names) for why in name("", each).values()})
    chosen = bool(request.labels or request.names)
    if request.all and chosen:
        found["all"] = "cannot be given together with labels or names, which select fewer"
    elif not request.all and not chosen:
        found["all"] = "must be given if neither labels nor names are"
    return found


def pause_mode(given: int) -> Violations:
    known = PauseMode.values()
    return {} if given in known else {"mode": f"must be one of {', '.join(PauseMode.keys()[1:])}; is {given}"}


def cancel_mode(request: CancelJobRequest) -> Violations:
    """Checks where a cancel saves its last checkpoint."""
    if request.mode == PauseMode.LATEST:
        return {"mode": "must be EPOCH or STEP; nothing is saved in mode LATEST, as without save_checkpoint"}
    if request.mode and not request.save_checkpoint:
        return {"mode": "is for a cancel with save_checkpoint"}
    return pause_mode(request.mode)


def states(given: list[int]) -> Violations:
    known = set(Job.State.values()) - {Job.STATE_UNSPECIFIED}
    unknown = sorted(set(given) - known)[:MAX_VIOLATIONS]
    return {"states": f"unknown: {', '.join(map(str, unknown))}"} if unknown else {}


def step_range(request: ListStepMetricsRequest) -> Violations:
    """Checks which step metrics are asked for."""
    given = {name: getattr(request, name) for name in ("start_step", "end_step", "max_steps")}
    return {name: f"must be 0 or more; is {value}" for name, value in given.items() if value < 0}


def time_range(request: ListResourceSamplesRequest) -> Violations:
    """Checks which resource samples are asked for."""
    found: Violations = {}
    if request.max_samples < 0:
        found["max_samples"] = f"must be 0 or more; is {request.max_samples}"
    times = {"start_time": request.start_time, "end_time": request.end_time}
    return found | {name: "must be a time from year 1 to 9999" for name, time in times.items() if not is_time(time)}


def is_time(given: Timestamp) -> bool:
    try:
        given.ToDatetime(UTC)
    except ValueError:
        return False
    return True
