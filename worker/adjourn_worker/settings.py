"""The settings of a worker agent, from environment variables."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Self, TypeVar

from adjourn import outputs
from adjourn.channel import DEFAULT_ADDRESS
from adjourn.objects import S3Settings, endpoint
from adjourn.settings_reader import SettingsReader, address, within
from adjourn_worker.attempt import training_log
from adjourn_worker.attempt.pace import Pace
from adjourn_worker.data.places import EVERYTHING, Access, prefixes
from adjourn_worker.host import disk
from adjourn_worker.paths import SHARED_MEMORY, Kept
from adjourn_worker.storage.venvs import Venvs


class OnTerm(StrEnum):
    """What happens to training when the agent gets SIGTERM."""

    LEAVE = "leave"
    """It goes on; the next agent adopts it."""
    STOP = "stop"
    """It ends, and so does the launcher."""
    DRAIN = "drain"
    """It pauses at its next boundary, saves, and goes on elsewhere; what has not got there within a grace ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuShare:
    """Every `of`-th GPU of the machine, from number `part` on: workers side by side must not offer the same one."""

    part: int = 0
    of: int = 1

    def has(self, index: int) -> bool:
        return index % self.of == self.part


class LogFormat(StrEnum):
    JSON = "json"
    CONSOLE = "console"


KEPT: Final = Kept()
PACE: Final = Pace()
DAY: Final = 86_400
Choice = TypeVar("Choice", bound=StrEnum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of an agent."""

    control_plane: str
    """`host:port`."""
    worker: str
    """Name of the worker, without `workers/`."""
    data: Path
    """Directory, absolute."""
    shared_memory: Path
    """Directory in memory, absolute, for snapshots. What it has no room for goes to the data directory."""
    cpu_slots: int
    """Jobs without a GPU that run at a time."""
    labels: Mapping[str, str]
    gpus: GpuShare
    """Which of the machine's GPUs are this worker's."""
    threads: int
    """Threads of a training process; by default the cores we may use, shared among the slots."""
    log_bytes: int
    """Most bytes that the log of an attempt may have; what is in the middle is left out."""
    output_bytes: int
    """Most bytes of a run's output directory."""
    kept: Kept
    """What stays on the disk when its attempt is over."""
    pace: Pace
    """When training counts as hanging."""
    disk_reserve_bytes: int
    """Free bytes of the data directory below which nothing new is taken."""
    venvs: Venvs
    """Whether what jobs require is installed."""
    on_term: OnTerm
    drain_grace: int
    """Seconds that OnTerm.DRAIN waits for boundaries and uploads."""
    out_of_contact_leases: int
    """Leases of silence after which trainings pause by themselves."""
    log_format: LogFormat
    s3: S3Settings
    data_s3: S3Settings
    """Where jobs' data is read from: there, unless settings say another server."""
    data_access: Access
    """What of it."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Reads ADJOURN_*; raises InvalidSettings naming everything that is wrong."""
        reader = SettingsReader(environment)
        slots = reader.take("ADJOURN_CPU_SLOTS", within(0, 1024), 1)
        s3 = reader.nested(S3Settings.from_environment)
        data_s3, data_access = data_settings(reader, s3)
        share = len(os.sched_getaffinity(0)) // max(1, slots)
        settings = cls(
            control_plane=reader.take("ADJOURN_CONTROL_PLANE", address, DEFAULT_ADDRESS),
            worker=reader.take("ADJOURN_WORKER", worker_name),
            data=reader.take("ADJOURN_DATA", directory),
            shared_memory=reader.take("ADJOURN_SHARED_MEMORY", directory, SHARED_MEMORY),
            cpu_slots=slots,
            labels=reader.take("ADJOURN_LABELS", labels, {}),
            gpus=reader.take("ADJOURN_GPUS", gpu_share, GpuShare()),
            threads=reader.take("ADJOURN_THREADS", within(1, 4096), max(1, share)),
            log_bytes=reader.take("ADJOURN_LOG_BYTES", within(1 << 16, 1 << 40), training_log.LIMIT),
            output_bytes=reader.take("ADJOURN_OUTPUT_BYTES", within(1, 1 << 50), outputs.LIMIT_BYTES),
            kept=Kept(
                logs=reader.take("ADJOURN_KEPT_LOGS", within(0, 1_000_000), KEPT.logs),
                log_bytes=reader.take("ADJOURN_KEPT_LOG_BYTES", within(0, 1 << 50), KEPT.log_bytes),
                bundle_bytes=reader.take("ADJOURN_KEPT_BUNDLE_BYTES", within(0, 1 << 50), KEPT.bundle_bytes),
                venv_bytes=reader.take("ADJOURN_KEPT_VENV_BYTES", within(0, 1 << 50), KEPT.venv_bytes),
                data_bytes=reader.take("ADJOURN_KEPT_DATA_BYTES", within(0, 1 << 60), KEPT.data_bytes),
                snapshot_bytes=reader.take("ADJOURN_KEPT_SNAPSHOT_BYTES", within(0, 1 << 50), KEPT.snapshot_bytes),
                snapshot_days=reader.take("ADJOURN_KEPT_SNAPSHOT_DAYS", within(0, 36500), KEPT.snapshot_days),
            ),
            pace=Pace(
                factor=reader.take("ADJOURN_HANG_FACTOR", within(2, 1000), int(PACE.factor)),
                step_seconds=reader.take("ADJOURN_HANG_STEP_SECONDS", within(1, DAY), int(PACE.step_seconds)),
                other_seconds=reader.take("ADJOURN_HANG_OTHER_SECONDS", within(1, 30 * DAY), int(PACE.other_seconds)),
                grace_seconds=reader.take("ADJOURN_HANG_GRACE_SECONDS", within(1, DAY), int(PACE.grace_seconds)),
            ),
            disk_reserve_bytes=reader.take("ADJOURN_DISK_RESERVE_BYTES", within(0, 1 << 50), disk.RESERVE),
            venvs=reader.take("ADJOURN_VENVS", one_of(Venvs), Venvs.OFF),
            on_term=reader.take("ADJOURN_ON_TERM", one_of(OnTerm), OnTerm.LEAVE),
            drain_grace=reader.take("ADJOURN_DRAIN_GRACE", within(0, 86_400), 120),
            out_of_contact_leases=reader.take("ADJOURN_OUT_OF_CONTACT_LEASES", within(2, 1_000_000), 10),
            log_format=reader.take("ADJOURN_LOG_FORMAT", one_of(LogFormat), LogFormat.JSON),
            s3=s3,
            data_s3=data_s3,
            data_access=data_access,
        )
        if settings.venvs is not Venvs.OFF and find_spec("pip") is None:
            reader.problems["ADJOURN_VENVS"] = "needs pip in the environment of the worker"
        reader.check()
        return settings


def data_settings(reader: SettingsReader, s3: S3Settings | None) -> tuple[S3Settings, Access]:
    """Returns where jobs' data is read from and what of it they may read; `s3`: where checkpoints are, if it is known.

    With the worker's own key that is one folder of its bucket: it can read the checkpoints of all jobs. With a key that
    is there for data it is what the key may read.
    """
    server = reader.take("ADJOURN_DATA_S3_ENDPOINT", endpoint, "")
    access_key = reader.take("ADJOURN_DATA_S3_ACCESS_KEY", str, "")
    secret_key = reader.take("ADJOURN_DATA_S3_SECRET_KEY", str, "")
    region = reader.take("ADJOURN_DATA_S3_REGION", str, "us-east-1")
    chosen: tuple[str, ...] = reader.take("ADJOURN_DATA_PREFIXES", prefixes, ())
    own = s3 or S3Settings(endpoint="", bucket="", access_key="", secret_key="")
    if not server:
        for name, value in (("ACCESS_KEY", access_key), ("SECRET_KEY", secret_key)):
            if value:
                reader.problems[f"ADJOURN_DATA_S3_{name}"] = "is set without ADJOURN_DATA_S3_ENDPOINT"
        return own, Access(prefixes=chosen or (f"{EVERYTHING}{own.bucket}/data/",), own_bucket=own.bucket)
    if bool(access_key) != bool(secret_key):
        reader.problems["ADJOURN_DATA_S3_SECRET_KEY"] = "and ADJOURN_DATA_S3_ACCESS_KEY are set together, or neither"
    data = S3Settings(endpoint=server, bucket="", access_key=access_key, secret_key=secret_key, region=region)
    return data, Access(prefixes=chosen or (EVERYTHING,), own_bucket=own.bucket if server == own.endpoint else "")


def worker_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text):
        raise ValueError("must be 1 to 63 of a-z, 0-9 and -, with a letter or digit at both ends")
    return text


def directory(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


def labels(text: str) -> Mapping[str, str]:
    """Parses `key=value,key=value`."""
    found: dict[str, str] = {}
    for item in text.split(","):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not key or not equals:
            raise ValueError("must be key=value,key=value")
        if key in found:
            raise ValueError(f"has the key {key} twice")
        found[key] = value
    return found


def gpu_share(text: str) -> GpuShare:
    """Parses `part/of`."""
    part, slash, of = text.partition("/")
    if not slash or not part.isdecimal() or not of.isdecimal() or not int(part) < int(of):
        raise ValueError("must be part/of, as 0/2 and 1/2 for two workers that share a machine's GPUs")
    return GpuShare(part=int(part), of=int(of))


def one_of(kind: type[Choice]) -> Callable[[str], Choice]:
    def parse(text: str) -> Choice:
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"must be {', '.join(list(kind)[:-1])} or {list(kind)[-1]}") from None

    return parse
